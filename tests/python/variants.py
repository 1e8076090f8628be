"""Variants of one model in which an attention is spelled in a way that must be noticed: python variants.py MODEL FOLDER."""
import sys

import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto

SOURCE, FOLDER = sys.argv[1], sys.argv[2]


def fresh():
    return onnx.load(SOURCE)


def find(model, op, number=0):
    return [n for n in model.graph.node if n.op_type == op][number]


def insert(model, before, *nodes):
    at = list(model.graph.node).index(before)
    for offset, node in enumerate(nodes):
        model.graph.node.insert(at + offset, node)


def constant(model, name, value):
    model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    return name


def products(model):
    """Score and value product of the first layer."""
    softmax = find(model, "Softmax")
    made = {o: n for n in model.graph.node for o in n.output}
    node = made[softmax.input[0]]
    while node.op_type != "MatMul":
        node = made[node.input[0]]
    return node, softmax


def reshape(model):
    softmax = find(model, "Softmax")
    shape = constant(model, "same", np.array([0, 0, 0, -1], np.int64))
    insert(model, softmax, helper.make_node("Reshape", [softmax.input[0], shape], ["reshaped"], "reshaped"))
    softmax.input[0] = "reshaped"


def einsum(model):
    score, _ = products(model)
    score.op_type = "Einsum"
    score.attribute.append(helper.make_attribute("equation", "bhtd,bhds->bhts"))


def sigmoid(model):
    softmax = find(model, "Softmax")
    softmax.op_type = "Sigmoid"
    del softmax.attribute[:]


def scaled_key(model):
    """The node that scales the transposed key, and which of its inputs is the scale."""
    score, _ = products(model)
    made = {o: n for n in model.graph.node for o in n.output}
    return made[score.input[1]]


def overridable(model):
    scale = scaled_key(model)
    value = numpy_helper.to_array(next(a.t for n in model.graph.node if n.output[0] == scale.input[1] for a in n.attribute))
    constant(model, "key_scale", value)
    model.graph.input.append(helper.make_tensor_value_info("key_scale", TensorProto.FLOAT, value.shape))
    scale.input[1] = "key_scale"


def past_output(model):
    past = next(i for i in model.graph.input if i.name == "past_key_values.0.key")
    model.graph.output.append(past)


def crossed(model):
    swap = {"present.0.key": "present.1.key", "present.1.key": "present.0.key"}
    for node in model.graph.node:
        for values in (node.input, node.output):
            for at, value in enumerate(values):
                values[at] = swap.get(value, value)


def step(model):
    """The heads of the key are sliced with a step that is only known at run time."""
    score, _ = products(model)
    key = score.input[1]
    ids = model.graph.input[0].name
    zero, one = constant(model, "zero", np.array([0], np.int64)), constant(model, "one", np.array([1], np.int64))
    far = constant(model, "far", np.array([np.iinfo(np.int64).max], np.int64))
    nothing = [helper.make_node("Slice", [ids, zero, one, one], ["first_column"]), helper.make_node("Slice", ["first_column", zero, one, zero], ["id"]),
               helper.make_node("Reshape", ["id", one], ["first_id"]), helper.make_node("Mul", ["first_id", zero], ["nothing"]),
               helper.make_node("Add", ["nothing", one], ["step"])]
    cut = helper.make_node("Slice", [key, zero, far, one, "step"], ["cut"], "cut")
    insert(model, score, *nothing, cut)
    # What the exporter would declare: the shape of the whole.
    model.graph.value_info.append(helper.make_tensor_value_info("cut", TensorProto.FLOAT, ["batch_size", 8, 16, "past_sequence_length + sequence_length"]))
    score.input[1] = "cut"


for change in (reshape, einsum, sigmoid, overridable, past_output, crossed, step):
    model = fresh()
    model.ir_version = max(model.ir_version, 8)
    change(model)
    onnx.save(model, f"{FOLDER}/{change.__name__}.onnx")
