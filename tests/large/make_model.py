"""Writes a decoder of the size of a 7B model that takes no room on disk: its weights are holes of a sparse file.

    python tests/large/make_model.py FOLDER [--layers 28] [--hidden 3584] [--inner 18944] [--vocabulary 152064]
                                            [--heads 28] [--kv-heads 4] [--head-size 128] [--type float16]
                                            [--attention products|operator] [--context 32768]

The graph is what exporters write of a Llama: RMSNorm, projections, attention, and a gated MLP. Attention is products, as
torch's exporter writes it (RoPE, a cache that grows by Concat, repeat_kv, two products around a Softmax), or one
GroupQueryAttention, as onnxruntime-genai's builder writes it. With the sizes above that are 15 GB of weights.
"""

import argparse
import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """Nodes and initializers as they are made; weights are ranges of one data file."""

    def __init__(self, elem_type):
        self.elem_type, self.nodes, self.initializers, self.length = elem_type, [], [], 0

    def node(self, op, inputs, name, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"node_{name}", **attributes))
        return name

    def constant(self, name, values):
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def weight(self, name, *shape):
        """A weight of `shape`, all zeros, at the next page of the data file; below 1,024 bytes inline, as exporters write it."""
        dtype = helper.tensor_dtype_to_np_dtype(self.elem_type)
        length, offset = int(np.prod(shape)) * dtype.itemsize, self.length
        if length < 1024:
            return self.constant(name, np.zeros(shape, dtype))
        tensor = TensorProto(name=name, data_type=self.elem_type, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "model.onnx.data"), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        self.length = -(-(offset + length) // 65536) * 65536
        return name


def norm(g, name, x, hidden):
    square = g.node("Pow", [x, "two"], f"{name}/square")
    mean = g.node("ReduceMean", [square, "last"], f"{name}/mean")
    root = g.node("Sqrt", [g.node("Add", [mean, "epsilon"], f"{name}/sum")], f"{name}/root")
    scaled = g.node("Div", [x, root], f"{name}/scaled")
    return g.node("Mul", [g.weight(f"{name}.weight", hidden), scaled], name)


def rotated(g, name, x):
    """RoPE of rows [B, heads, T, d]."""
    low = g.node("Slice", [x, "zero", "half", "last"], f"{name}/low")
    high = g.node("Slice", [x, "half", "end", "last"], f"{name}/high")
    turned = g.node("Concat", [g.node("Neg", [high], f"{name}/minus"), low], f"{name}/turned", axis=-1)
    by_cos = g.node("Mul", [x, "cos"], f"{name}/by_cos")
    by_sin = g.node("Mul", [turned, "sin"], f"{name}/by_sin")
    return g.node("Add", [by_cos, by_sin], name)


def products(g, number, project, a):
    """Attention as torch's exporter writes it; its rows [B, T, H * d]."""
    name = f"layers.{number}"

    def heads(part, count):
        split = g.node("Reshape", [project(part, count), f"split_{count}"], f"{name}/{part}/split")
        return g.node("Transpose", [split], f"{name}/{part}/heads", perm=[0, 2, 1, 3])

    q = rotated(g, f"{name}/q", heads("q_proj", a.heads))
    k = rotated(g, f"{name}/k", heads("k_proj", a.kv_heads))
    v = heads("v_proj", a.kv_heads)
    repeated = []
    for side, rows in (("key", k), ("value", v)):
        present = f"present.{number}.{side}"
        g.node("Concat", [f"past_key_values.{number}.{side}", rows], present, axis=2)
        apart = g.node("Unsqueeze", [present, "two_axis"], f"{name}/{side}/apart")
        length = g.node("Shape", [present], f"{name}/{side}/length", start=2, end=3)
        batch = g.node("Shape", [present], f"{name}/{side}/batch", start=0, end=1)
        shape = [batch, "groups", "group", length, "head_size"]
        copies = g.node("Expand", [apart, g.node("Concat", shape, f"{name}/{side}/copied", axis=0)], f"{name}/{side}/copies")
        shape = g.node("Concat", [batch, "all_heads", length, "head_size"], f"{name}/{side}/joined", axis=0)
        repeated.append(g.node("Reshape", [copies, shape], f"{name}/{side}/repeated"))
    keys, values = repeated
    turned = g.node("Transpose", [keys], f"{name}/keys", perm=[0, 1, 3, 2])
    scores = g.node("Mul", [g.node("MatMul", [q, turned], f"{name}/scores"), "scale"], f"{name}/scaled")
    masked = g.node("Add", [scores, "mask"], f"{name}/masked")
    out = g.node("MatMul", [g.node("Softmax", [masked], f"{name}/softmax", axis=-1), values], f"{name}/attention")
    rows = g.node("Transpose", [out], f"{name}/rows", perm=[0, 2, 1, 3])
    return g.node("Reshape", [rows, "joined_heads"], f"{name}/joined")


def operator(g, number, project, a):
    """Attention as onnxruntime-genai's builder writes it; its rows [B, T, H * d]."""
    parts = [project("q_proj", a.heads), project("k_proj", a.kv_heads), project("v_proj", a.kv_heads)]
    caches = [f"past_key_values.{number}.{side}" for side in ("key", "value")]
    outputs = [f"layers.{number}/attention", *(f"present.{number}.{side}" for side in ("key", "value"))]
    made = helper.make_node(
        "GroupQueryAttention", [*parts, *caches, "last_place", "total_length", "cos_cache", "sin_cache"], outputs,
        name=f"layers.{number}/operator", domain="com.microsoft", num_heads=a.heads, kv_num_heads=a.kv_heads,
        scale=a.head_size**-0.5, do_rotary=1,
    )  # fmt: skip
    g.nodes.append(made)
    return outputs[0]


def layer(g, number, x, a):
    name = f"layers.{number}"
    normed = norm(g, f"{name}/input_norm", x, a.hidden)

    def project(part, count):
        weight = g.weight(f"{name}.{part}.weight", a.hidden, count * a.head_size)
        return g.node("MatMul", [normed, weight], f"{name}/{part}")

    rows = {"products": products, "operator": operator}[a.attention](g, number, project, a)
    projected = g.node("MatMul", [rows, g.weight(f"{name}.o_proj.weight", a.heads * a.head_size, a.hidden)], f"{name}/o_proj")
    x = g.node("Add", [x, projected], f"{name}/attended")
    normed = norm(g, f"{name}/mlp_norm", x, a.hidden)
    gate = g.node("MatMul", [normed, g.weight(f"{name}.gate.weight", a.hidden, a.inner)], f"{name}/gate")
    gate = g.node("Mul", [gate, g.node("Sigmoid", [gate], f"{name}/sigmoid")], f"{name}/silu")
    up = g.node("MatMul", [normed, g.weight(f"{name}.up.weight", a.hidden, a.inner)], f"{name}/up")
    both = g.node("Mul", [gate, up], f"{name}/both")
    down = g.node("MatMul", [both, g.weight(f"{name}.down.weight", a.inner, a.hidden)], f"{name}/down")
    return g.node("Add", [x, down], f"{name}/output")


def model(a):
    elem_type = TensorProto.DataType.Value(a.type.upper())
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    g = Graph(elem_type)
    for name, values in {
        "zero": [0], "half": [a.head_size // 2], "end": [2**62], "last": [-1], "one_axis": [1], "two_axis": [2],
        "groups": [a.kv_heads], "group": [a.heads // a.kv_heads], "all_heads": [a.heads], "head_size": [a.head_size],
        f"split_{a.heads}": [0, 0, a.heads, a.head_size], f"split_{a.kv_heads}": [0, 0, a.kv_heads, a.head_size],
        "joined_heads": [0, 0, a.heads * a.head_size],
    }.items():
        g.constant(name, np.array(values, np.int64))
    for name, value in {"two": 2, "epsilon": 1e-5, "scale": a.head_size**-0.5, "lowest": np.finfo(dtype).min, "nothing": 0}.items():
        g.constant(name, np.array(value, dtype))
    {"products": tables_and_mask, "operator": lengths_and_caches}[a.attention](g, a)
    x = g.node("Gather", [g.weight("embed", a.vocabulary, a.hidden), "input_ids"], "embedding")
    for number in range(a.layers):
        x = layer(g, number, x, a)
    g.node("MatMul", [norm(g, "norm", x, a.hidden), g.weight("lm_head", a.hidden, a.vocabulary)], "logits")
    value = helper.make_tensor_value_info
    names = ("input_ids", "position_ids") if a.attention == "products" else ("input_ids",)
    ids = [value(n, TensorProto.INT64, ["batch", "tokens"]) for n in names]
    inputs = [*ids, value("attention_mask", TensorProto.INT64, ["batch", "total"])]
    outputs = [value("logits", elem_type, ["batch", "tokens", a.vocabulary])]
    for number in range(a.layers):
        for side in ("key", "value"):
            shape = lambda length: ["batch", a.kv_heads, length, a.head_size]
            inputs.append(value(f"past_key_values.{number}.{side}", elem_type, shape("past")))
            outputs.append(value(f"present.{number}.{side}", elem_type, shape("total")))
    graph = helper.make_graph(g.nodes, "decoder", inputs, outputs, g.initializers)
    domains = [("", 18)] + [("com.microsoft", 1)] * (a.attention == "operator")
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid(*d) for d in domains], producer_name="make_model")
    made.ir_version = 10
    return made, g.length


def tables_and_mask(g, a):
    """RoPE's cos and sin of the positions, and the mask of scores, for `products`."""
    frequencies = 10000.0 ** (-np.arange(0, a.head_size, 2) / a.head_size)
    g.constant("frequencies", frequencies.astype(np.float32)[None])
    position = g.node("Cast", [g.node("Unsqueeze", ["position_ids", "last"], "position")], "position_float", to=TensorProto.FLOAT)
    angle = g.node("MatMul", [position, "frequencies"], "angle")
    angles = g.node("Concat", [angle, angle], "angles", axis=-1)
    for name, op in (("cos", "Cos"), ("sin", "Sin")):
        table = g.node("Cast", [g.node(op, [angles], f"{name}/float")], f"{name}/table", to=g.elem_type)
        g.node("Unsqueeze", [table, "one_axis"], name)
    # Key s is seen by query t where position s <= position t: of the last T positions, queries are the last.
    kept = g.node("Cast", ["attention_mask"], "kept", to=TensorProto.BOOL)
    places = g.node("CumSum", ["attention_mask", g.constant("row", np.array(1, np.int64))], "places")
    placed = g.node("Unsqueeze", [g.node("Sub", [places, g.constant("unit", np.array(1, np.int64))], "from_zero"), "one_axis"], "placed")
    past = g.node("LessOrEqual", [placed, "position"], "past")
    seen = g.node("And", [past, g.node("Unsqueeze", [kept, "one_axis"], "kept_rows")], "seen")
    g.node("Unsqueeze", [g.node("Where", [seen, "nothing", "lowest"], "mask_rows"), "one_axis"], "mask")


def lengths_and_caches(g, a):
    """What GroupQueryAttention reads of the mask, and its tables of cos and sin, for `operator`."""
    dtype = helper.tensor_dtype_to_np_dtype(g.elem_type)
    total = g.node("ReduceSum", ["attention_mask", g.constant("row", np.array([1], np.int64))], "visible", keepdims=0)
    last = g.node("Sub", [total, g.constant("unit", np.array(1, np.int64))], "last_visible")
    g.node("Cast", [last], "last_place", to=TensorProto.INT32)
    length = g.node("Shape", ["attention_mask"], "mask_length", start=1, end=2)
    length = g.node("Squeeze", [length], "length")
    g.node("Cast", [length], "total_length", to=TensorProto.INT32)
    angles = np.outer(np.arange(a.context), 10000.0 ** (-np.arange(0, a.head_size, 2) / a.head_size))
    g.constant("cos_cache", np.cos(angles).astype(dtype))
    g.constant("sin_cache", np.sin(angles).astype(dtype))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    sizes = {"layers": 28, "hidden": 3584, "inner": 18944, "vocabulary": 152064, "heads": 28, "kv-heads": 4, "head-size": 128}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--attention", default="products", choices=["products", "operator"])
    parser.add_argument("--type", default="float16", choices=["float16", "float"])
    arguments = parser.parse_args()
    made, length = model(arguments)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with open(arguments.folder / "model.onnx.data", "wb") as data:
        data.truncate(length)
    onnx.save(made, arguments.folder / "model.onnx")
    print(f"{len(made.graph.node)} nodes, {length / 1e9:.1f} GB of weights")


main()
