"""Uses the Python package `gqa2mla` as a program would. Runs in the repository, whose fixtures it reads, with an
environment in which the wheel and ONNX Runtime are installed.

    python module.py FOLDER

FOLDER is empty and holds what the calls write. Nothing but the last line is printed.
"""

import ast
import doctest
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import gqa2mla
from gqa2mla import _call

LLAMA = Path("fixtures/optimum-llama")
OUT = Path(sys.argv[1])


def raised(kind, call, *arguments, **options):
    """The exception of a call, which has to be of this kind."""
    try:
        call(*arguments, **options)
    except kind as error:
        return error
    raise AssertionError(f"{call} raised no {kind}")


def examples_run():
    for module in (gqa2mla, _call):
        result = doctest.testmod(module, extraglobs={"gqa2mla": gqa2mla, "tempfile": tempfile})
        assert result.attempted > 0 and result.failed == 0, (module, result)


def results_are_those_of_the_command():
    found = gqa2mla.inspect(LLAMA)
    assert found["sites"][1]["past_key"] == "past_key_values.1.key", found
    steps = []
    report = gqa2mla.rewrite(LLAMA, OUT / "half", rank=16, progress=lambda *step: steps.append((threading.get_ident(), step)))
    assert report["accepted"] and report["rewrite"]["cache_bytes_per_token_after"] == 256, report
    here = {thread for thread, _ in steps}
    assert here == {threading.get_ident()}, here
    assert ("rewriting", 2, 2) in [step for _, step in steps], steps
    quality = gqa2mla.validate(LLAMA, OUT / "half", token_ids="fixtures/tokens.json", test_tokens=512)
    assert quality["quality"]["rewritten_perplexity"] > quality["quality"]["original_perplexity"] * 0.5 > 0, quality
    assert gqa2mla.diff(LLAMA, LLAMA)["same"] and not gqa2mla.diff(LLAMA, OUT / "half")["same"]


def exit_codes_are_exceptions():
    missing = raised(gqa2mla.Error, gqa2mla.inspect, "no/such/model.onnx")
    assert missing.exit_code == 1 and "no/such/model.onnx" in str(missing), missing
    option = raised(gqa2mla.UsageError, gqa2mla.rewrite, LLAMA, OUT / "never", cach_ratio=0.5)
    assert option.exit_code == 2 and "--cache-ratio" in option.message, option
    assert isinstance(option, ValueError) and not option.message.startswith("error"), option
    path = raised(gqa2mla.UsageError, gqa2mla.rewrite, LLAMA, "-", no_validate=True)
    assert "standard output" in path.message, path
    gqa2mla.rewrite(LLAMA, OUT / "reported", report=OUT / "report.json")
    command = json.loads((OUT / "report.json").read_text())["command"]
    assert command.startswith("gqa2mla rewrite ") and "--report" in command, command
    refused = raised(gqa2mla.NothingToRewrite, gqa2mla.rewrite, "fixtures/dynamo18-latent", OUT / "never")
    assert refused.exit_code == 3 and refused.report is None, refused
    # What is not recognised is a result of looking.
    assert gqa2mla.inspect("fixtures/dynamo18-latent")["rejects"]
    wrong = raised(gqa2mla.ValidationFailed, gqa2mla.rewrite, LLAMA, OUT / "strict", rank=16, tolerance=1e-9)
    assert wrong.exit_code == 4 and not wrong.report["accepted"] and "strict" in wrong.message, wrong
    assert (OUT / "strict.rejected").is_dir() and not (OUT / "strict").exists()
    differs = raised(gqa2mla.ValidationFailed, gqa2mla.validate, LLAMA, OUT / "half")
    assert differs.report["passed"] is False, differs


def a_caller_can_stop_a_rewrite():
    def stop(stage, done, total):
        raise KeyError(stage)

    for options in ({}, {"rank": 16, "token_ids": "fixtures/tokens.json", "reconstruct": 20}):
        raised(KeyError, gqa2mla.rewrite, LLAMA, OUT / "stopped", progress=stop, **options)
    # In the reconstruction, whose steps are taken on several threads.
    def stop_late(stage, done, total):
        if stage.startswith("reconstructing"):
            raise KeyError(stage)

    raised(KeyError, gqa2mla.rewrite, LLAMA, OUT / "stopped", rank=16, token_ids="fixtures/tokens.json", progress=stop_late)
    assert not (OUT / "stopped").exists()
    assert not list(OUT.glob(".gqa2mla-stage*")), list(OUT.iterdir())
    # The layers that were finished belong to no run any more.
    gqa2mla.rewrite(LLAMA, OUT / "stopped", clean=True)
    assert not list(OUT.glob(".gqa2mla-work*")), list(OUT.iterdir())
    # Ctrl-C, in the main thread, while the command runs in another. Whoever starts a test in the background has it ignore the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    raised(
        KeyboardInterrupt, gqa2mla.rewrite, LLAMA, OUT / "stopped", rank=16, token_ids="fixtures/tokens.json", reconstruct=100_000
    )
    assert not (OUT / "stopped").exists()


def other_threads_run_meanwhile():
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.005):
            ticks.append(time.monotonic())

    other = threading.Thread(target=tick)
    other.start()
    started = time.monotonic()
    gqa2mla.rewrite(LLAMA, OUT / "meanwhile")
    seconds = time.monotonic() - started
    done.set()
    other.join()
    # At least one tick in ten of those that the other thread takes when it is alone.
    assert len(ticks) > seconds / 0.005 / 10, (len(ticks), seconds)


def the_stub_names_every_option():
    """The stub's keywords are the options that `--help` lists, but for those that are parameters."""
    stub = ast.parse(Path(gqa2mla.__file__).with_suffix(".pyi").read_text())
    own, bases = {}, {}
    for item in stub.body:
        if isinstance(item, ast.ClassDef):
            own[item.name] = {field.target.id for field in item.body}
            bases[item.name] = [base.id for base in item.bases if base.id in own]

    def fields(name):
        return own[name].union(*map(fields, bases[name]))

    for command in ("inspect", "calibrate", "rewrite", "compare", "validate", "bench", "tune"):
        listed = gqa2mla.run(command, help=True).split("Options:", 1)[1]
        options = {name.replace("-", "_") for name in re.findall(r"^ {2,6}(?:-\w, )?--([a-z-]+)", listed, re.M)}
        # Nothing is printed in a call, so that nothing tells how to print.
        expected = options - {"json", "help", "out", "quiet", "verbose", "color"}
        assert fields(command.capitalize() + "Options") == expected, (command, fields(command.capitalize() + "Options") ^ expected)


def the_module_is_the_command():
    def told(*arguments):
        ran = subprocess.run([sys.executable, "-m", "gqa2mla", *arguments], capture_output=True, text=True)
        return ran.returncode, ran.stdout, ran.stderr

    code, version, _ = told("--version")
    assert code == 0 and version.startswith("gqa2mla 0.1.0\nONNX Runtime ") and "packages of" in version, version
    assert told("inspect", str(LLAMA))[0] == 0
    code, _, complaint = told("rewrite", "fixtures/dynamo18-latent", "-o", str(OUT / "never"))
    assert code == 3 and complaint.startswith("error: "), complaint
    code, _, usage = told("rewrite")
    assert code == 2 and "Usage: gqa2mla rewrite" in usage, usage


for check in (
    examples_run,
    results_are_those_of_the_command,
    exit_codes_are_exceptions,
    a_caller_can_stop_a_rewrite,
    other_threads_run_meanwhile,
    the_stub_names_every_option,
    the_module_is_the_command,
):
    check()
print("every call did what it should")
