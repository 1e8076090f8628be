"""Trains a small language model on the bytes of a text, for measurements on another geometry than that of SmolLM2: Qwen3's
attention with H=8, G=2, d=64, q/k norm and biases in the projections.

    python train_small.py train.txt CHECKPOINT          # transformers 4.57.6 and torch 2.6.0; minutes on two cores
    optimum-cli export onnx --model CHECKPOINT --task text-generation-with-past MODEL
    python train_small.py --ids test.txt test.npy       # the bytes of a text as token ids

Tokens are bytes, so that there is no tokenizer: give texts as token ids.
"""

import argparse
import pathlib
import time

import numpy as np


def ids(text):
    return np.frombuffer(pathlib.Path(text).read_bytes(), dtype=np.uint8).astype(np.int64)


def train(text, out, steps, length, batch, rate):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=256, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, head_dim=64, attention_bias=True, max_position_embeddings=length,
        tie_word_embeddings=True, rope_theta=10000.0,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    tokens = torch.from_numpy(ids(text))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.05)
    started = time.time()
    for step in range(steps):
        starts = torch.randint(len(tokens) - length, (batch,))
        rows = torch.stack([tokens[start : start + length] for start in starts])
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}: {loss.item():.3f} nats a byte, {time.time() - started:.0f} s", flush=True)
    model.save_pretrained(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text")
    parser.add_argument("out")
    parser.add_argument("--ids", action="store_true", help="write the token ids of the text instead")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    options = parser.parse_args()
    if options.ids:
        np.save(options.out, ids(options.text))
    else:
        train(options.text, options.out, options.steps, options.length, options.batch, options.rate)


if __name__ == "__main__":
    main()
