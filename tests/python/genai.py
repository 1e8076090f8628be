"""Generates greedily with onnxruntime-genai: python genai.py FOLDER TOKENS PROMPTS

PROMPTS is a JSON list of batches, each a list of prompts of one length. Prints the tokens of each batch, and the bytes
that the caches take a token at the end of it."""

import json
import sys

import numpy
import onnxruntime_genai as genai


def generate(model, batch, count):
    params = genai.GeneratorParams(model)
    length = len(batch[0]) + count
    params.set_search_options(do_sample=False, min_length=length, max_length=length, batch_size=len(batch))
    generator = genai.Generator(model, params)
    generator.append_tokens(numpy.array(batch, dtype=numpy.int32))
    while not generator.is_done():
        generator.generate_next_token()
    tokens = [generator.get_sequence(i).tolist() for i in range(len(batch))]
    cached, layer = 0, 0
    while True:
        try:
            sides = [generator.get_output(f"present.{layer}.{side}") for side in ("key", "value")]
        except Exception:
            break
        # A shared buffer is as long as the search may get; what grows holds all tokens but the last.
        cached += sum(side.nbytes / (side.shape[0] * side.shape[2]) for side in sides)
        layer += 1
    return {"tokens": tokens, "cache_bytes": cached, "layers": layer}


def main():
    folder, count, batches = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    model = genai.Model(folder)
    print(json.dumps([generate(model, batch, count) for batch in batches]))


main()
