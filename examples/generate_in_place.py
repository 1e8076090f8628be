"""Generates greedily with a model that writes its caches in place: no step copies a cache.

    gqa2mla rewrite MODEL -o in-place.onnx --cache-io inplace
    python examples/generate_in_place.py in-place.onnx --ids 504,3575,282,4649,314 --tokens 16

Every past input of such a model has room for the new tokens behind the cached ones, and its present has the same shape. A
step binds both to the first S rows of one buffer [1, 1, capacity, r]; the model writes the last T of them. These rows lie
side by side because a cache holds one latent head and the batch is one sequence. Prints one JSON list of token ids.
"""

import argparse
import json

import numpy as np
import onnxruntime as ort

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8, "tensor(int64)": np.int64}


class Cache:
    """The rows of one cache: the past of a step and its present are views of them."""

    def __init__(self, port, capacity):
        self.past, self.present = port.name, port.name.replace("past_key_values", "present")
        self.rows = np.zeros((capacity, port.shape[3]), TYPES[port.type])

    def bind(self, binding, length):
        view = (self.rows.dtype.type, [1, 1, length, self.rows.shape[1]], self.rows.ctypes.data)
        binding.bind_input(self.past, "cpu", 0, *view)
        binding.bind_output(self.present, "cpu", 0, *view)


def generate(session, prompt, count):
    inputs = {port.name: port for port in session.get_inputs()}
    in_place = session.get_modelmeta().custom_metadata_map.get("gqa2mla.in_place", "").splitlines()
    if not in_place or any(name.startswith("past") and name not in in_place for name in inputs):
        raise SystemExit("not every cache of this model is written in place: use examples/generate.py")
    caches = [Cache(inputs[name], len(prompt) + count) for name in in_place]
    text, length = list(prompt), 0
    while len(text) < len(prompt) + count:
        new = np.array([text[length:]], np.int64)
        positions = np.arange(length, len(text))[None]
        length = len(text)
        binding = session.io_binding()
        binding.bind_output("logits")
        feeds = {"input_ids": new, "attention_mask": np.ones((1, length)), "position_ids": positions}
        for name, value in feeds.items():
            if name in inputs:
                binding.bind_cpu_input(name, value.astype(TYPES[inputs[name].type]))
        for cache in caches:
            cache.bind(binding, length)
        session.run_with_iobinding(binding)
        text.append(int(binding.get_outputs()[0].numpy()[0, -1].argmax()))
    return text[len(prompt) :]


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("model")
    arguments.add_argument("--ids", required=True, type=lambda text: [int(i) for i in text.split(",")])
    arguments.add_argument("--tokens", type=int, default=16)
    given = arguments.parse_args()
    session = ort.InferenceSession(given.model, providers=["CPUExecutionProvider"])
    print(json.dumps(generate(session, given.ids, given.tokens)))


main()
