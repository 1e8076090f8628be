"""Inserts norms of queries and keys, and biases of queries, keys and values, into a decoder whose projections are MatMul, Reshape
and Transpose (torch's dynamo export of SmolLM2, for example):

    python insert_norms.py model.onnx tokenizer.json text.txt out.onnx

The norms are RMS norms of each head, with the mean root mean square on the text as weight; the biases are random, a fifth of the
root mean square of their channel. The result computes something else than the model: train it back with

    gqa2mla tune out.onnx --teacher model.onnx --train layers --text text.txt --length 512 --context 512 --steps 200 -o healed.onnx
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

TOKENS = 512
BIAS = 0.2


def projections(graph):
    """Transpose, Reshape and MatMul of the queries, keys and values of each layer, in this order."""
    stored = {tensor.name for tensor in graph.initializer}
    maker = {output: node for node in graph.node for output in node.output}
    for turned in graph.node:
        split = maker.get(turned.input[0]) if turned.op_type == "Transpose" else None
        product = maker.get(split.input[0]) if split is not None and split.op_type == "Reshape" else None
        if product is not None and product.op_type == "MatMul" and product.input[1] in stored:
            yield turned, split, product


def outputs(model, names, ids):
    """The values `names` on the tokens `ids`, by name."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        onnx.save(watched, path, save_as_external_data=True, location="data")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        feeds = {}
        for port in session.get_inputs():
            if port.name == "input_ids":
                feeds[port.name] = np.array([ids], np.int64)
            elif port.name == "attention_mask":
                feeds[port.name] = np.ones((1, len(ids)), np.int64)
            elif port.name == "position_ids":
                feeds[port.name] = np.arange(len(ids), dtype=np.int64)[None]
            else:
                heads, size = port.shape[1], port.shape[3]
                feeds[port.name] = np.zeros((1, heads, 0, size), np.float32)
        return dict(zip(names, session.run(names, feeds)))


def main(path, tokenizer, text, out):
    model = onnx.load(path)
    graph = model.graph
    ids = Tokenizer.from_file(tokenizer).encode(Path(text).read_text()[: 20 * TOKENS]).ids[:TOKENS]
    found = list(projections(graph))
    seen = outputs(model, [product.output[0] for _, _, product in found], ids)
    random = np.random.default_rng(0)

    def constant(name, values):
        graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    two, eps = constant("norm/two", np.float32(2)), constant("norm/eps", np.float32(1e-6))
    axis = constant("norm/axis", np.array([-1], np.int64))
    size = next(port.type.tensor_type.shape.dim[3].dim_value for port in graph.input if "past" in port.name)
    behind = {}
    for number, (turned, split, product) in enumerate(found):
        layer, kind = divmod(number, 3)
        name = f"layers.{layer}.self_attn.{'qkv'[kind]}"
        rows = seen[product.output[0]][0]
        bias = BIAS * np.sqrt((rows**2).mean(0)) * random.standard_normal(rows.shape[1])
        constant(f"{name}_proj.bias", bias.astype(np.float32))
        split.input[0] = f"{name}_biased"
        behind[product.output[0]] = [
            helper.make_node("Add", [product.output[0], f"{name}_proj.bias"], [split.input[0]], name=split.input[0])
        ]
        if kind == 2:
            continue
        mean = np.sqrt((rows.reshape(len(rows), -1, size) ** 2).mean(-1)).mean()
        weight = constant(f"{name}_norm.weight", np.full(size, mean, np.float32))
        normed, raw = turned.output[0], f"{name}_raw"
        turned.output[0] = raw
        steps = [
            ("Pow", [raw, two], "square"),
            ("ReduceMean", [f"{name}_norm/square", axis], "mean"),
            ("Add", [f"{name}_norm/mean", eps], "sum"),
            ("Sqrt", [f"{name}_norm/sum"], "root"),
            ("Reciprocal", [f"{name}_norm/root"], "scale"),
            ("Mul", [raw, f"{name}_norm/scale"], "normed"),
        ]
        nodes = [helper.make_node(op, inputs, [f"{name}_norm/{to}"], name=f"{name}_norm/{to}") for op, inputs, to in steps]
        nodes.append(helper.make_node("Mul", [weight, f"{name}_norm/normed"], [normed], name=f"{name}_norm/out"))
        behind[raw] = nodes
    nodes = [new for node in graph.node for new in [node, *(n for o in node.output for n in behind.get(o, []))]]
    del graph.node[:]
    del graph.value_info[:]
    graph.node.extend(nodes)
    onnx.save(model, out, save_as_external_data=True, location=Path(out).name + ".data")


if __name__ == "__main__":
    main(*sys.argv[1:])
