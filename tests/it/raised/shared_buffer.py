"""Prints the largest difference of logits between a model that appends to its caches and one whose past and present are bound
to one buffer, which is longer than what it holds."""

import sys

import numpy as np
import onnxruntime as ort

CAPACITY = 24
STEPS = [6, 1, 1, 3, 1]

options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
append, shared = (
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for path in sys.argv[1:]
)
caches = [i for i in append.get_inputs() if i.name.startswith("past_key_values")]
presents = [i.name.replace("past_key_values", "present") for i in caches]


def empty(info, length):
    sizes = [d if isinstance(d, int) else 1 for d in info.shape]
    sizes[2] = length
    return np.zeros(sizes, np.float32)


def inputs(session, tokens, past):
    total = past + tokens.shape[1]
    known = {
        "input_ids": tokens,
        "attention_mask": np.ones((1, total), np.int64),
        "position_ids": np.arange(past, total, dtype=np.int64)[None],
        "cache_position": np.arange(past, total, dtype=np.int64),
    }
    return {i.name: known[i.name] for i in session.get_inputs() if i.name in known}


growing = {info.name: empty(info, 0) for info in caches}
buffers = {
    info.name: ort.OrtValue.ortvalue_from_numpy(empty(info, CAPACITY)) for info in caches
}
random = np.random.default_rng(0)
past, worst = 0, 0.0
for count in STEPS:
    tokens = random.integers(1, 60, (1, count)).astype(np.int64)
    expected, *rest = append.run(["logits", *presents], inputs(append, tokens, past) | growing)
    growing = {info.name: rows for info, rows in zip(caches, rest)}
    binding = shared.io_binding()
    for name, value in inputs(shared, tokens, past).items():
        binding.bind_cpu_input(name, value)
    for info, present in zip(caches, presents):
        binding.bind_ortvalue_input(info.name, buffers[info.name])
        binding.bind_ortvalue_output(present, buffers[info.name])
    binding.bind_output("logits")
    shared.run_with_iobinding(binding)
    found = binding.get_outputs()[-1].numpy()
    past += count
    worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
    for info, rows in zip(caches, rest):
        held = buffers[info.name].numpy()[:, :, :past]
        worst = max(worst, float(np.abs(held - rows).max()))
print(worst)
