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


def appends(model):
    """The two nodes that append to the caches of the first layer."""
    pasts = ("past_key_values.0.key", "past_key_values.0.value")
    return [n for n in model.graph.node if n.op_type == "Concat" and n.input[0] in pasts]


def behind(model, value, op, name):
    """An operator between `value` and all that computes with it."""
    maker = next(n for n in model.graph.node if value in n.output)
    for node in model.graph.node:
        if node.op_type != "Shape":
            for at, read in enumerate(node.input):
                if read == value:
                    node.input[at] = name
    at = list(model.graph.node).index(maker)
    model.graph.node.insert(at + 1, helper.make_node(op, [value], [name], name))


def changed_key(model):
    behind(model, "present.0.key", "Tanh", "changed")


def changed_value(model):
    behind(model, "present.0.value", "Tanh", "changed")


def window(model):
    """The oldest row is dropped before the new ones are appended."""
    one, far = constant(model, "one", np.array([1], np.int64)), constant(model, "far", np.array([np.iinfo(np.int64).max], np.int64))
    axis = constant(model, "axis", np.array([2], np.int64))
    for node in appends(model):
        insert(model, node, helper.make_node("Slice", [node.input[0], one, far, axis], [node.input[0] + "/newest"], "drop_oldest"))
        node.input[0] += "/newest"


def static(model):
    """New rows are written into a buffer, as static caches have it."""
    model.graph.input.append(helper.make_tensor_value_info("slots", TensorProto.INT64, ["batch_size", 2, "sequence_length", 3]))
    for node in appends(model):
        past, new = node.input
        node.op_type = "ScatterND"
        del node.attribute[:], node.input[:]
        node.input.extend([past, "slots", new])


def shared(model):
    """The second layer reads the caches of the first, has none of its own, and is no attention of a known form."""
    for node in list(model.graph.node):
        if node.op_type == "Concat" and node.input[0].startswith("past_key_values.1"):
            model.graph.node.remove(node)
    for node in model.graph.node:
        for at, value in enumerate(node.input):
            node.input[at] = value.replace("past_key_values.1", "past_key_values.0").replace("present.1", "present.0")
    for values in (model.graph.input, model.graph.output):
        for value in [v for v in values if ".1." in v.name]:
            values.remove(value)
    # It reads the keys with another sign, which no repetition does.
    last = [at for at, node in enumerate(model.graph.node) if node.op_type == "Unsqueeze" and node.input[0] == "present.0.key"][-1]
    model.graph.node[last].input[0] = "negated"
    model.graph.node.insert(last, helper.make_node("Neg", ["present.0.key"], ["negated"], name="negated"))


def quantized_pair(model):
    """Both operands of the score product are rounded to integers and back."""
    score, _ = products(model)
    scale, zero = constant(model, "step", np.float32(0.05)), constant(model, "middle", np.int8(0))
    for at, value in enumerate(list(score.input)):
        rounded, back = f"rounded_{at}", f"back_{at}"
        insert(model, score, helper.make_node("QuantizeLinear", [value, scale, zero], [rounded], rounded),
               helper.make_node("DequantizeLinear", [rounded, scale, zero], [back], back))
        score.input[at] = back


def integers(model):
    """The score product is one of integers."""
    score, _ = products(model)
    output, scores, scales = score.output[0], "integer_scores", []
    for at, value in enumerate(list(score.input)):
        names = [f"integers_{at}", f"scale_{at}", f"zero_{at}"]
        insert(model, score, helper.make_node("DynamicQuantizeLinear", [value], names, names[0]))
        scales.append(names[1])
        score.input[at] = names[0]
    score.input.extend(["zero_0", "zero_1"])
    score.op_type, score.output[0] = "MatMulInteger", scores
    after = list(model.graph.node)[list(model.graph.node).index(score) + 1]
    insert(model, after, helper.make_node("Cast", [scores], ["scores"], "scores", to=TensorProto.FLOAT),
           helper.make_node("Mul", scales, ["scale"], "scale"), helper.make_node("Mul", ["scores", "scale"], [output], "scaled"))


def by_head(model):
    """Each query head has a product, a softmax and a product of its own."""
    score, softmax = products(model)
    made = {o: n for n in model.graph.node for o in n.output}
    nodes = list(model.graph.node)
    first = nodes.index(score)
    core, way = [], set()
    for node in nodes[first:]:
        if node is score or way & set(node.input):
            core.append(node)
            way.update(node.output)
            if node.op_type == "MatMul" and node is not score:
                break
    last = core[-1]
    new, outputs = [], []
    for head in range(8):
        index = constant(model, f"head_{head}", np.array([head], np.int64))
        for node in core:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{node.name}_{head}"
            for at, value in enumerate(node.input):
                if value in way:
                    copy.input[at] = f"{value}_{head}"
                elif node is score or node is last:
                    copy.input[at] = f"{value}_{head}"
                    new.append(helper.make_node("Gather", [value, index], [copy.input[at]], f"pick_{copy.input[at]}", axis=1))
            for at, value in enumerate(node.output):
                copy.output[at] = f"{value}_{head}"
            new.append(copy)
        outputs.append(f"{last.output[0]}_{head}")
    new.append(helper.make_node("Concat", outputs, [last.output[0]], "all_heads", axis=1))
    insert(model, last, *new)
    for node in core:
        model.graph.node.remove(node)


CHANGES = (reshape, einsum, sigmoid, overridable, past_output, crossed, step, changed_key, changed_value, window, static, shared,
           quantized_pair, integers, by_head)
for change in CHANGES:
    model = fresh()
    model.ir_version = max(model.ir_version, 8)
    change(model)
    onnx.save(model, f"{FOLDER}/{change.__name__}.onnx")
