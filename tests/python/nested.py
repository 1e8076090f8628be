"""Puts the first branch of a merged decoder into an If of its own, twice: python nested.py MODEL OUT."""
import copy
import sys

import onnx
from onnx import helper

model = onnx.load(sys.argv[1])
outer = next(n for n in model.graph.node if n.op_type == "If")
branch = next(a for a in outer.attribute if a.name == "then_branch").g


def renamed(graph, prefix):
    """A copy whose own values have names of their own."""
    graph = copy.deepcopy(graph)
    own = {o for n in graph.node for o in n.output} | {t.name for t in graph.initializer}
    new = lambda name: prefix + name if name in own else name
    for node in graph.node:
        node.name = prefix + node.name
        node.input[:] = [new(i) for i in node.input]
        node.output[:] = [new(o) for o in node.output]
    for value in list(graph.output) + list(graph.value_info) + list(graph.initializer):
        value.name = new(value.name)
    return graph


inner = helper.make_node(
    "If", [outer.input[0]], [o.name for o in branch.output], "inner",
    then_branch=renamed(branch, "a/"), else_branch=renamed(branch, "b/"),
)
del branch.node[:], branch.initializer[:], branch.value_info[:]
branch.node.append(inner)
onnx.save(model, sys.argv[2])
