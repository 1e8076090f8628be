"""Types of the functions: they take a keyword argument for each option of the command, with the same value."""

import os
from typing import Any, Callable, Dict, Literal, Mapping, Optional, Sequence, Union

from typing_extensions import TypedDict, Unpack

from ._errors import Error as Error
from ._errors import NothingToRewrite as NothingToRewrite
from ._errors import UsageError as UsageError
from ._errors import ValidationFailed as ValidationFailed

Path = Union[str, os.PathLike[str]]
Share = Union[float, str]
"""A number such as 0.5, or a percentage such as "50%"."""
Lengths = Union[int, Sequence[int], Literal["none"]]
Progress = Optional[Callable[[str, int, int], object]]
"""Called with the name of a stage, the number of steps done and the total number of steps."""
Report = Dict[str, Any]
"""The result that the command prints with --json."""

class RuntimeOptions(TypedDict, total=False):
    runtime: Literal["auto", "ort", "tract"]
    onnxruntime: Path
    provider: Literal["cpu", "cuda"]
    threads: int
    input: Mapping[str, Union[float, Path]]

class ProofOptions(RuntimeOptions, total=False):
    prompt_ids: Sequence[int]
    tolerance: float
    seed: int

class TextOptions(TypedDict, total=False):
    text: Union[Path, Sequence[Path]]
    tokenizer: Path
    token_ids: Path

class FactorOptions(TextOptions, total=False):
    factors: Literal["weights", "plain", "weighted", "calibrated", "transmla"]
    calibration: Path
    calibration_tokens: int
    length: int
    context: int
    force: bool
    reconstruct: int

class InspectOptions(TypedDict, total=False):
    why: bool

class CalibrateOptions(TextOptions, RuntimeOptions, total=False):
    calibration_tokens: int
    length: int
    force: bool

class RewriteOptions(FactorOptions, ProofOptions, total=False):
    rank: int
    cache_ratio: Share
    max_perplexity_increase: Share
    max_kl: float
    cache_bits: Literal[4, 6, 8, 16]
    keep_heads: bool
    allow_partial: bool
    target: Literal["matmul", "gqa", "auto"]
    form: Literal["absorbed", "expanded", "joint"]
    new_tokens: Literal["latent", "prompt", "exact"]
    cache_io: Literal["append", "inplace"]
    per_head: bool
    layout: Literal["uniform", "free"]
    distill: int
    file: Path
    serving: Literal["auto", "genai", "optimum", "transformers-js", "triton", "none"]
    report: Path
    bench: bool
    clean: bool
    dry_run: bool
    explain: bool
    no_validate: bool

class CompareOptions(FactorOptions, RuntimeOptions, total=False):
    clean: bool
    cache_ratios: Union[Share, Sequence[Share]]
    ways: Union[str, Sequence[str]]
    cache_bits: Union[int, Sequence[int]]
    freq_fold: int
    test_text: Path
    test_token_ids: Path
    test_tokens: int

class ValidateOptions(TextOptions, ProofOptions, total=False):
    test_tokens: int
    length: int

class TuneOptions(TextOptions, total=False):
    teacher: Path
    examples: Path
    objective: Literal["distill", "next-token"]
    train: Literal["factors", "kv", "layers"]
    steps: int
    rate: float
    length: int
    chunk: int
    context: int
    batch: int
    tokens: int
    seed: int
    force: bool
    report: Union[Path, Sequence[Path]]
    beside: Union[Path, Sequence[Path]]

class BenchOptions(RuntimeOptions, total=False):
    past: Lengths
    prefill: Lengths
    batch: Union[int, Sequence[int]]
    rounds: int
    io: Literal["shared", "bound", "copied"]

def inspect(model: Path, **options: Unpack[InspectOptions]) -> Report: ...
def calibrate(model: Path, out: Path, *, progress: Progress = None, **options: Unpack[CalibrateOptions]) -> Report: ...
def rewrite(model: Path, out: Path, *, progress: Progress = None, **options: Unpack[RewriteOptions]) -> Report: ...
def validate(
    original: Path, rewritten: Path, *, progress: Progress = None, **options: Unpack[ValidateOptions]
) -> Report: ...
def bench(*models: Path, progress: Progress = None, **options: Unpack[BenchOptions]) -> Report: ...
def compare(model: Path, *, progress: Progress = None, **options: Unpack[CompareOptions]) -> Report: ...
def tune(model: Path, out: Path, *, progress: Progress = None, **options: Unpack[TuneOptions]) -> Report: ...
def diff(before: Path, after: Path) -> Report: ...
def run(command: str, *arguments: Path, progress: Progress = None, **options: Any) -> Any: ...
