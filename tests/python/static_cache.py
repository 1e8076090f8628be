"""Two models with static caches in one loop: python static_cache.py ORIGINAL REWRITTEN. Prints what differs, as JSON.

The buffers hold other numbers than zeros before a row is written, as a buffer that is used again does. After the prompt the first
sequence goes on from its third token, so that the rows of the batch differ in length.
"""
import json
import sys

import numpy as np
import onnxruntime as ort

CAPACITY = 32
# New tokens, and the number of tokens before them in each of two sequences.
STEPS = ((7, (0, 0)), (1, (3, 7)), (3, (4, 8)), (1, (7, 11)))
TYPES = {"tensor(float)": np.float32, "tensor(int8)": np.int8, "tensor(int64)": np.int64}


def present_of(past):
    return past.replace("past_key_values", "present") if past.startswith("past") else f"updated_{past}"


class Model:
    def __init__(self, path, shared):
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.shared, self.caches = shared, {}
        random = np.random.default_rng(len(path))
        for port in self.session.get_inputs():
            if len(port.shape) > 2:
                shape = [2, *(size if isinstance(size, int) else CAPACITY for size in port.shape[1:])]
                rows = (random.normal(size=shape) * 3).astype(TYPES[port.type])
                self.caches[port.name] = ort.OrtValue.ortvalue_from_numpy(rows)

    def step(self, feeds):
        binding = self.session.io_binding()
        for port in self.session.get_inputs():
            if port.name in self.caches:
                binding.bind_ortvalue_input(port.name, self.caches[port.name])
            else:
                binding.bind_cpu_input(port.name, feeds[port.name])
        binding.bind_output("logits")
        for past, buffer in self.caches.items():
            if self.shared:
                binding.bind_ortvalue_output(present_of(past), buffer)
            else:
                binding.bind_output(present_of(past))
        self.session.run_with_iobinding(binding)
        logits, *presents = binding.get_outputs()
        if not self.shared:
            self.caches = dict(zip(self.caches, presents))
        return logits.numpy()


def main():
    original, apart, shared = Model(sys.argv[1], False), Model(sys.argv[2], False), Model(sys.argv[2], True)
    random, worst, same = np.random.default_rng(0), 0.0, True
    for count, before in STEPS:
        before = np.array(before)
        feeds = {
            "input_ids": random.integers(3, 120, (2, count)),
            "position_ids": before[:, None] + np.arange(count),
            "write_indices": before,
            "nonpad_kv_seqlen": before + count,
        }
        expected, got, in_place = (model.step(feeds) for model in (original, apart, shared))
        worst = max(worst, float(np.abs(got - expected).max() / np.abs(expected).max()))
        same = same and bool((got == in_place).all())
    rows = sum(value.numpy().nbytes for value in shared.caches.values())
    whole = sum(value.numpy().nbytes for value in original.caches.values())
    print(json.dumps({"apart": worst, "in_place": same, "share": rows / whole}))


main()
