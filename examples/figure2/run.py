"""Compares two models with the same cache while only their keys and values are trained, as figure 2 of TransMLA
(arXiv 2502.07864) does: grouped-query attention (GQA), and its exact rewrite to latent attention with a factor for every
query head (MLA). Both read the same examples in the same order.

    python run.py MODEL.onnx OUT [--tokenizer FILE] [--steps 60] [--batch 8] [--rates 0.001 0.003 0.01]

Each arm is trained once with each rate. OUT/problems.jsonl has the examples, OUT/<arm>-<rate>.json the losses, and
OUT/figure.html the curves of the best run of each arm. The command gqa2mla must be built with the feature `train`.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def run(*words):
    """Runs a command, and shows what fails."""
    subprocess.run([str(word) for word in words], check=True)


def best(reports):
    """The report with the lowest held-out loss."""
    return min(reports, key=lambda file: json.loads(file.read_text())["tuned"]["best"]["loss"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--tokenizer", type=pathlib.Path, help="default: beside the model")
    parser.add_argument("--command", default="gqa2mla")
    parser.add_argument("--count", type=int, default=600, help="number of examples")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.003, 0.01])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = options.tokenizer or options.model.parent / "tokenizer.json"
    examples = options.out / "problems.jsonl"
    with examples.open("w") as file:
        subprocess.run([sys.executable, HERE / "problems.py", "--count", str(options.count)], check=True, stdout=file)
    latent = options.out / "mla.onnx"
    run(options.command, "rewrite", options.model, "-o", latent, "--per-head")

    def trained(arm, model, rate, *more):
        report = options.out / f"{arm}-{rate}.json"
        run(
            options.command, "tune", model, "--objective", "next-token", "--train", "kv",
            "--examples", examples, "--tokenizer", tokenizer, "--rate", rate,
            "--steps", options.steps, "--batch", options.batch, "-o", options.out / "trained.onnx",
            "--report", report, "--report", report.with_suffix(".html"), *more,
        )  # fmt: skip
        return report

    chosen = {"gqa": best([trained("gqa", options.model, rate) for rate in options.rates])}
    beside = ["--beside", chosen["gqa"]]
    chosen["mla"] = best([trained("mla", latent, rate, *beside) for rate in options.rates])
    for arm, report in chosen.items():
        tuned = json.loads(report.read_text())["tuned"]
        first, last = tuned["checks"][0], tuned["best"]
        print(
            f"{arm}: {report.stem}: held-out loss {first['loss']:.4f} -> {last['loss']:.4f} at step {last['step']}, "
            f"right answers {first['right']:.1%} -> {last['right']:.1%}"
        )
    shutil.copy(chosen["mla"].with_suffix(".html"), options.out / "figure.html")


if __name__ == "__main__":
    main()
