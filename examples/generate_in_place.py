"""Greedy decoding with a model that writes its caches in place: no step copies a cache.

    gqa2mla rewrite MODEL -o in-place.onnx --cache-io inplace
    python examples/generate_in_place.py in-place.onnx --ids 504,3575,282,4649,314 --tokens 16

Every past input of such a model has space for the new tokens after the cached ones, and its present has the same shape. A step
binds both to the first S rows of one buffer [1, 1, capacity, r]; the model writes the last T of them. These rows are contiguous
because a cache has one latent head and the batch size is one. States of constant size, such as those of convolutions, are
passed from step to step as in generate.py. It prints a JSON list with the generated token ids.
"""

import argparse
import json

import numpy as np
import onnxruntime as ort

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64}


def present_of(past):
    return past.replace("past_key_values", "present").replace("past", "present")


class Cache:
    """The buffer of one cache. The past and the present of a step are views of its first rows."""

    def __init__(self, port, capacity):
        self.past, self.present = port.name, present_of(port.name)
        self.rows = np.zeros((capacity, port.shape[3]), TYPES[port.type])

    def bind(self, binding, length):
        view = (self.rows.dtype.type, [1, 1, length, self.rows.shape[1]], self.rows.ctypes.data)
        binding.bind_input(self.past, "cpu", 0, *view)
        binding.bind_output(self.present, "cpu", 0, *view)

    def keep(self, results):
        pass


class State:
    """A state of constant size: zeros at first, then the output of the previous step."""

    def __init__(self, port):
        self.past, self.present = port.name, present_of(port.name)
        if not all(isinstance(size, int) for size in port.shape[1:]):
            raise SystemExit(f"{port.name} is no state of constant size and is not written in place: use examples/generate.py")
        self.value = ort.OrtValue.ortvalue_from_numpy(np.zeros([1, *port.shape[1:]], TYPES[port.type]))

    def bind(self, binding, length):
        binding.bind_ortvalue_input(self.past, self.value)
        binding.bind_output(self.present)

    def keep(self, results):
        self.value = results[self.present]


def generate(session, prompt, count):
    inputs = {port.name: port for port in session.get_inputs()}
    in_place = session.get_modelmeta().custom_metadata_map.get("gqa2mla.in_place", "").splitlines()
    if not in_place:
        raise SystemExit("no cache of this model is written in place: use examples/generate.py")
    pasts = [name for name in inputs if name.startswith("past")]
    capacity = len(prompt) + count
    caches = [Cache(inputs[n], capacity) if n in in_place else State(inputs[n]) for n in pasts]
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
        results = dict(zip(["logits"] + [cache.present for cache in caches], binding.get_outputs()))
        for cache in caches:
            cache.keep(results)
        text.append(int(results["logits"].numpy()[0, -1].argmax()))
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
