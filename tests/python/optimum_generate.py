"""Generates greedily with Optimum's ORTModelForCausalLM: python optimum_generate.py FOLDER TOKENS PROMPTS

PROMPTS is a JSON list of batches, each a list of prompts, padded on the left where they are shorter. Prints the tokens
of each batch with and without IO binding, and the bytes that the caches take a token."""

import json
import sys

import torch
from optimum.onnxruntime import ORTModelForCausalLM


def padded(batch):
    longest = max(map(len, batch))
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in batch]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch]
    return torch.tensor(ids), torch.tensor(mask)


def generate(model, batch, count):
    ids, mask = padded(batch)
    tokens = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=count,
        pad_token_id=0,
    )
    out = model(input_ids=ids, attention_mask=mask)
    cached = sum(side.nbytes / (side.shape[0] * side.shape[2]) for layer in out.past_key_values for side in layer)
    return {"tokens": tokens.tolist(), "cache_bytes": cached}


def main():
    folder, count, batches = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    results = []
    for binding in (False, True):
        model = ORTModelForCausalLM.from_pretrained(folder, use_io_binding=binding)
        results.append([generate(model, batch, count) for batch in batches])
    print(json.dumps(results))


main()
