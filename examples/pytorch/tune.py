"""Trains the factors of a rewritten model in PyTorch, and writes them for `gqa2mla factors import`.

    gqa2mla factors export REWRITTEN -o factors.safetensors
    python tune.py REWRITTEN.onnx ORIGINAL.onnx factors.safetensors --tokens tokens.json -o tuned.safetensors [--device cuda]
    gqa2mla factors import REWRITTEN tuned.safetensors -o TUNED

The loss is the divergence (KL) of the rewritten model's next-token distribution from the original's, as in `gqa2mla tune`. Both
graphs run node by node, each node as the PyTorch operator of the same meaning. The time of a step is printed at the end: the
measure that `gqa2mla tune` is compared with in docs/training.md.
"""

import argparse
import json
import pathlib
import statistics
import time

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file, save_file

WITHOUT_CONTEXT = 16


def integers(tensor):
    return [int(v) for v in tensor.reshape(-1).tolist()]


def reshape(x, shape):
    sizes = integers(shape)
    return x.reshape([x.shape[at] if size == 0 else size for at, size in enumerate(sizes)])


def sliced(x, starts, ends, axes=None, steps=None):
    count = starts.numel()
    axes = integers(axes) if axes is not None else range(count)
    steps = integers(steps) if steps is not None else [1] * count
    parts = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, integers(starts), integers(ends), steps):
        parts[axis] = slice(start, None if end >= 2**31 else end, step)
    return x[tuple(parts)]


def unsqueezed(x, axes):
    places = sorted(axis % (x.ndim + axes.numel()) for axis in integers(axes))
    for place in places:
        x = x.unsqueeze(place)
    return x


def squeezed(x, axes=None):
    return x.squeeze() if axes is None else x.squeeze(tuple(integers(axes)))


def gathered(x, indices, axis=0):
    return torch.index_select(x, axis, indices.reshape(-1)).reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def on_one_device(operator, parts, device):
    """Moves what is computed from shapes, which PyTorch keeps on the CPU, to where the other operands are."""
    tensors = [part for part in parts if part is not None]
    if operator in SHAPED or len({tensor.device.type for tensor in tensors}) < 2:
        return parts
    return [part if part is None else part.to(device) for part in parts]


def mean(x, axes=None, axes_attribute=None, keepdims=1, noop_with_empty_axes=0):
    axes = integers(axes) if axes is not None else axes_attribute
    return x.mean(dim=axes, keepdim=bool(keepdims))


TYPES = {np.dtype("float32"): torch.float32, np.dtype("int64"): torch.int64, np.dtype("bool"): torch.bool, np.dtype("int32"): torch.int32}
OPERATORS = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Pow": torch.pow, "MatMul": torch.matmul, "Neg": torch.neg,
    "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal, "Sigmoid": torch.sigmoid, "Cos": torch.cos, "Sin": torch.sin, "IsNaN": torch.isnan,
    "Where": torch.where, "And": torch.logical_and, "LessOrEqual": torch.le, "Max": torch.maximum, "Identity": lambda x: x,
    "Reshape": lambda x, shape, allowzero=0: reshape(x, shape),
    "Transpose": lambda x, perm: x.permute(perm),
    "Concat": lambda *parts, axis: torch.cat(parts, dim=axis),
    "Slice": sliced, "Unsqueeze": unsqueezed, "Squeeze": squeezed, "Gather": gathered, "ReduceMean": mean,
    "Softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "Expand": lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, integers(shape))),
    "Range": lambda start, end, step: torch.arange(int(start), int(end), int(step), device=start.device),
    "Cast": lambda x, to: x.to(TYPES[helper.tensor_dtype_to_np_dtype(to)]),
    "Shape": lambda x, start=0, end=None: torch.tensor(list(x.shape)[start:end]),
    "GatherND": lambda x, indices, batch_dims=0: x[tuple(indices.unbind(-1))],
}  # fmt: skip

# These read shapes, axes or bounds, whose numbers are needed on the CPU.
SHAPED = {OPERATORS[name] for name in ("Reshape", "Slice", "Unsqueeze", "Squeeze", "ReduceMean", "Expand", "Range")}


class Decoder(torch.nn.Module):
    """A decoder's graph, which processes whole sequences with an empty cache."""

    def __init__(self, path, trained, device):
        super().__init__()
        graph = onnx.load(path).graph
        self.device = device
        made = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
        made = {name: tensor.to(device if tensor.is_floating_point() else "cpu") for name, tensor in made.items()}
        self.trained = torch.nn.ParameterDict({n.replace(".", "|"): torch.nn.Parameter(t.to(device)) for n, t in trained.items()})
        self.constants = {name: tensor for name, tensor in made.items() if name not in trained}
        self.inputs = {value.name: value.type.tensor_type for value in graph.input}
        self.nodes = [(OPERATORS[n.op_type], list(n.input), n.output[0], attributes(n)) for n in self.needed(graph)]

        read = {"logits", ""}
        self.last_reads = []
        for _, inputs, _, _ in reversed(self.nodes):
            self.last_reads.insert(0, set(inputs) - read)
            read |= set(inputs)

    def needed(self, graph):
        wanted, nodes = {"logits"}, []
        for node in reversed(graph.node):
            if wanted & set(node.output):
                wanted |= set(node.input)
                nodes.append(node)
        return reversed(nodes)

    def feeds(self, tokens, first):
        length = len(tokens)
        ids = {"input_ids": tokens, "position_ids": range(first, first + length), "attention_mask": [1] * length}
        for name, kind in self.inputs.items():
            if name in ids:
                yield name, torch.tensor([list(ids[name])], device=self.device)
            else:
                sizes = [d.dim_value or (1 if at == 0 else 0) for at, d in enumerate(kind.shape.dim)]
                yield name, torch.zeros(sizes, device=self.device)

    def forward(self, tokens, first):
        values = {"": None, **self.constants, **{n.replace("|", "."): p for n, p in self.trained.items()}, **dict(self.feeds(tokens, first))}
        for (operator, inputs, output, attributes), dropped in zip(self.nodes, self.last_reads):
            parts = on_one_device(operator, [values[name] for name in inputs], self.device)
            values[output] = operator(*parts, **attributes)
            for name in dropped:
                del values[name]
        return values["logits"][0]


def attributes(node):
    named = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "ReduceMean" and "axes" in named:
        named["axes_attribute"] = named.pop("axes")
    return named


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rewritten", type=pathlib.Path)
    parser.add_argument("original", type=pathlib.Path)
    parser.add_argument("factors", type=pathlib.Path)
    parser.add_argument("--tokens", type=pathlib.Path, required=True, help="a JSON list of token ids")
    parser.add_argument("-o", "--out", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--rate", type=float, default=5e-3, help="of a step, relative to the root mean square of a tensor")
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    torch.manual_seed(0)
    ids = json.loads(a.tokens.read_text())
    sequences = [ids[at : at + a.length] for at in range(0, len(ids) - a.length + 1, a.length)]
    student = Decoder(a.rewritten, load_file(a.factors), a.device)
    teacher = Decoder(a.original, {}, a.device)
    groups = [{"params": [p], "lr": a.rate * max(float(p.square().mean().sqrt()), 1e-3)} for p in student.trained.values()]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, a.steps)
    times = []
    for step in range(a.steps):
        started = time.monotonic()
        tokens = sequences[int(torch.randint(len(sequences), ()))]
        first = int(torch.randint(max(a.context - a.length, 0) + 1, ()))
        with torch.no_grad():
            target = torch.log_softmax(teacher(tokens, first)[WITHOUT_CONTEXT:], -1)
        found = torch.log_softmax(student(tokens, first)[WITHOUT_CONTEXT:], -1)
        loss = torch.nn.functional.kl_div(found, target, reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.trained.values(), 1.0)
        optimizer.step()
        schedule.step()
        loss = float(loss)
        times.append(time.monotonic() - started)
        print(f"step {step + 1}: loss {loss:.4f}, {times[-1]:.2f} s", flush=True)
    save_file({n.replace("|", "."): p.detach().cpu().contiguous() for n, p in student.trained.items()}, a.out)
    print(f"median of a step: {statistics.median(times):.2f} s")


if __name__ == "__main__":
    main()
