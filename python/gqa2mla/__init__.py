"""Makes the KV caches of ONNX language models smaller: the command ``gqa2mla`` as functions.

Each function runs the command of its name and returns what the command prints with ``--json``, as dictionaries and lists:

>>> import gqa2mla, tempfile
>>> found = gqa2mla.inspect("fixtures/optimum-llama")
>>> found["recognised"], found["cache_bytes_per_token"]
(2, 512)

Keywords are the command's options: ``cache_ratio=0.5`` is ``--cache-ratio 0.5``, and ``no_validate=True`` is ``--no-validate``.
``gqa2mla rewrite --help`` lists them, and so does the type stub that editors read.

>>> with tempfile.TemporaryDirectory() as folder:
...     report = gqa2mla.rewrite("fixtures/optimum-llama", folder + "/model.onnx", rank=16)
>>> report["rewrite"]["cache_bytes_per_token_after"], report["rewrite"]["exact"]
(256, False)

If the exit code is not 0, an exception with the code and the message is raised:

>>> try:
...     gqa2mla.rewrite("fixtures/dynamo18-latent", "out/refused.onnx")
... except gqa2mla.NothingToRewrite as error:
...     print(error.exit_code)
3

Nothing is printed. Other messages of the command, for example that it has removed the leftovers of a killed run, go to the
logger ``gqa2mla``.
"""

import logging
import os
import site
import sys

from . import _native
from ._call import run
from ._errors import Error, NothingToRewrite, UsageError, ValidationFailed

__all__ = [
    "Error",
    "NothingToRewrite",
    "UsageError",
    "ValidationFailed",
    "bench",
    "calibrate",
    "compare",
    "diff",
    "inspect",
    "rewrite",
    "run",
    "tune",
    "validate",
]


def _packages():
    """The folders of installed packages, never the working directory, even if ``sys.path`` contains it."""
    yield os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    yield from site.getsitepackages()
    if site.ENABLE_USER_SITE:
        yield site.getusersitepackages()


_native.loaded(sys.executable or "", list(_packages()))
logging.getLogger(__name__).addHandler(logging.NullHandler())


def inspect(model, **options):
    """Lists every attention of a model: ``sites``, and ``rejects`` with the reason and the node.

    No exception is raised if there is no attention, or if some are not recognised.

    >>> [site["kv_heads"] for site in gqa2mla.inspect("fixtures/optimum-llama")["sites"]]
    [2, 2]
    """
    try:
        return run("inspect", model, **options)
    except NothingToRewrite as found:
        if found.report is None:
            raise
        return found.report


def calibrate(model, out, *, progress=None, **options):
    """Runs a model on a text and writes statistics for ``rewrite(calibration=out)``."""
    return run("calibrate", model, out=out, progress=progress, **options)


def rewrite(model, out, *, progress=None, **options):
    """Rewrites a model or a folder, writes it to ``out``, and validates it.

    ``progress`` is called in the thread of the caller, with the name of the stage, the number of steps done and the total
    number of steps. An exception that it raises stops the rewrite, and so does Ctrl-C; nothing is written then.

    Raises ``NothingToRewrite`` if attentions are not recognised, and ``ValidationFailed``, whose ``report`` is the result, if
    the rewritten model does not pass its validation.

    >>> stages = []
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = gqa2mla.rewrite(
    ...         "fixtures/optimum-llama", folder, progress=lambda stage, done, total: stages.append(stage)
    ...     )
    >>> report["validation"]["passed"], "validating" in stages
    (True, True)
    """
    return run("rewrite", model, out=out, progress=progress, **options)


def validate(original, rewritten, *, progress=None, **options):
    """Runs two models on the same prompts and compares their logits, or measures their loss on a text (``text=``).

    Raises ``ValidationFailed``, whose ``report`` is the comparison, if they differ by more than the tolerance.
    """
    return run("validate", original, rewritten, progress=progress, **options)


def bench(*models, progress=None, **options):
    """Measures the times of decode steps and prefills, and the memory, of several models.

    >>> timed = gqa2mla.bench("fixtures/optimum-llama", past=[8, 16], prefill="none", rounds=1)
    >>> [phase["past"] for phase in timed["phases"]]
    [8, 16]
    """
    return run("bench", *models, progress=progress, **options)


def compare(model, *, progress=None, **options):
    """Compresses a model by several methods to several sizes, and measures the loss of each on a text."""
    return run("compare", model, progress=progress, **options)


def tune(model, out, *, progress=None, **options):
    """Trains the factors of a rewritten model on a text or on examples, to match its ``teacher`` or to predict the next token.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = gqa2mla.rewrite("fixtures/optimum-llama", folder + "/half.onnx", rank=16)
    ...     told = gqa2mla.tune(
    ...         folder + "/half.onnx", folder + "/tuned.onnx", teacher="fixtures/optimum-llama",
    ...         token_ids="fixtures/tokens.json", length=32, steps=4,
    ...     )
    >>> len(told["tuned"]["losses"])
    4
    """
    return run("tune", model, out=out, progress=progress, **options)


def diff(before, after):
    """The nodes, initializers and interface in which two models differ, and whether they are the ``same``."""
    return run("diff", before, after, exit_zero=True)
