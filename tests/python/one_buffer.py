"""Runs a rewritten model whose caches are written in place, past and present of each bound to one buffer, beside the
original and beside the same rewrite that appends: python one_buffer.py ORIGINAL APPEND INPLACE.

Graph optimizations are off. Prints JSON: `original` and `append`, the largest logit difference from each, relative to the
largest logit; and `rest`, whether every buffer holds what it held outside of the new rows after each step.
"""

import json
import sys

import numpy as np
import onnxruntime as ort

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64}
STEPS = [5, 1, 1, 3, 1]
SPARE = 4
UNREAD = 77


def open_model(path):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def present_of(past):
    return past.replace("past_key_values", "present")


def plain(session, tokens, past):
    total = past + tokens.shape[1]
    feeds = {"input_ids": tokens, "attention_mask": np.ones((1, total)), "position_ids": np.arange(past, total)[None]}
    ports = {port.name: port for port in session.get_inputs()}
    return {name: value.astype(TYPES[ports[name].type]) for name, value in feeds.items() if name in ports}


def appended(path, steps):
    """The logits of every step, with each present fed as the next past."""
    session = open_model(path)
    pasts = [port for port in session.get_inputs() if port.name.startswith("past")]
    names = [port.name for port in session.get_outputs()]
    caches = {p.name: np.zeros((1, p.shape[1], 0, p.shape[3]), TYPES[p.type]) for p in pasts}
    logits, length = [], 0
    for tokens in steps:
        results = dict(zip(names, session.run(None, {**plain(session, tokens, length), **caches})))
        caches = {p.name: results[present_of(p.name)] for p in pasts}
        length += tokens.shape[1]
        logits.append(results["logits"])
    return logits


def one_buffer(path, steps):
    """The logits of every step, and whether the rows that are not new stay as they were."""
    session = open_model(path)
    noted = session.get_modelmeta().custom_metadata_map["gqa2mla.in_place"].splitlines()
    pasts = [port for port in session.get_inputs() if port.name.startswith("past")]
    assert sorted(noted) == sorted(port.name for port in pasts), noted
    capacity = sum(STEPS) + SPARE
    buffers = {p.name: np.full((capacity, p.shape[3]), UNREAD, TYPES[p.type]) for p in pasts}
    logits, length, rest = [], 0, True
    for tokens in steps:
        before = {name: rows.copy() for name, rows in buffers.items()}
        total = length + tokens.shape[1]
        binding = session.io_binding()
        binding.bind_output("logits")
        for name, value in plain(session, tokens, length).items():
            binding.bind_cpu_input(name, value)
        for name, rows in buffers.items():
            view = (rows.dtype.type, [1, 1, total, rows.shape[1]], rows.ctypes.data)
            binding.bind_input(name, "cpu", 0, *view)
            binding.bind_output(present_of(name), "cpu", 0, *view)
        session.run_with_iobinding(binding)
        for name, rows in buffers.items():
            rest = rest and np.array_equal(rows[:length], before[name][:length])
            rest = rest and bool((rows[total:] == UNREAD).all()) and not (rows[length:total] == UNREAD).all()
        length = total
        logits.append(binding.get_outputs()[0].numpy())
    return logits, rest


def apart(logits, others):
    largest = max(np.abs(other).max() for other in others)
    return float(max(np.abs(a.astype(np.float64) - b).max() for a, b in zip(logits, others)) / largest)


def main():
    original, append, in_place = sys.argv[1:]
    random = np.random.default_rng(7)
    steps = [random.integers(0, 128, (1, length)) for length in STEPS]
    logits, rest = one_buffer(in_place, steps)
    told = {"original": apart(logits, appended(original, steps)), "append": apart(logits, appended(append, steps))}
    print(json.dumps({**told, "rest": bool(rest)}))


main()
