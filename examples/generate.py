"""Greedy decoding with ONNX Runtime only. Caches are bound to buffers of the runtime.

    python examples/generate.py model.onnx --ids 504,3575,282,4649,314 --tokens 16

The program reads the shape of every cache from the session, so that it runs a model and its rewrite alike. States of constant
size, such as those of convolutions, start at zero. --head-size is needed if the export does not declare the head size.
Several --ids are a batch with left padding; if GroupQueryAttention counts the tokens of each row, all of them must have
the same length. The program prints a JSON list with the generated token ids of each prompt.
"""

import argparse
import json
import mmap

import numpy as np
import onnxruntime as ort

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


def empty_cache(port, batch, head_size):
    """An empty cache [B, heads, 0, width], or zeros for a state of constant size."""
    grows = len(port.shape) == 4 and not isinstance(port.shape[2], int)
    shape = [batch, *port.shape[1:]]
    if grows:
        shape[2] = 0
    open_axes = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
    if open_axes and not head_size:
        raise SystemExit(f"{port.name} leaves its size {port.shape[open_axes[0]]} open: give --head-size")
    for axis in open_axes:
        shape[axis] = head_size
    return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, TYPES[port.type]))


def counts_rows(path):
    """Whether GroupQueryAttention or what a rewrite made of it counts the tokens of each row: it counts padding on the left too."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as graph:
        return any(graph.find(name) >= 0 for name in (b"GroupQueryAttention", b"every_row_must_hold_past_plus_new_tokens"))


def generate(session, prompts, count, head_size):
    inputs = {port.name: port for port in session.get_inputs()}
    outputs = [port.name for port in session.get_outputs()]
    pasts = [name for name in inputs if name.startswith("past")]
    presents = [name.replace("past_key_values", "present").replace("past", "present") for name in pasts]

    longest = max(map(len, prompts))
    step = np.array([[0] * (longest - len(p)) + p for p in prompts], np.int64)
    mask = np.array([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], np.int64)
    caches = {name: empty_cache(inputs[name], len(prompts), head_size) for name in pasts}
    made = []
    for _ in range(count):
        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -step.shape[1] :]
        feeds = {"input_ids": step, "attention_mask": mask, "position_ids": positions}
        binding = session.io_binding()
        for name, value in feeds.items():
            if name in inputs:
                binding.bind_cpu_input(name, value.astype(TYPES[inputs[name].type]))
        for name, value in caches.items():
            binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        results = dict(zip(outputs, binding.get_outputs()))
        # The presents become the pasts of the next step without a copy in this program.
        caches = {past: results[present] for past, present in zip(pasts, presents)}
        step = results["logits"].numpy()[:, -1:].argmax(-1)
        mask = np.concatenate([mask, np.ones_like(step)], 1)
        made.append(step)
    return np.concatenate(made, 1).tolist()


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("model")
    arguments.add_argument("--ids", action="append", required=True, type=lambda text: [int(i) for i in text.split(",")])
    arguments.add_argument("--tokens", type=int, default=16)
    arguments.add_argument("--head-size", type=int)
    given = arguments.parse_args()
    if len(set(map(len, given.ids))) > 1 and counts_rows(given.model):
        raise SystemExit(f"{given.model} counts the tokens of each row itself, so that no row may be padded on the left: give --ids of the same length, or one --ids a run")
    session = ort.InferenceSession(given.model, providers=["CPUExecutionProvider"])
    print(json.dumps(generate(session, given.ids, given.tokens, given.head_size)))


main()
