"""Runs a command and converts its result."""

import json
import logging
import os

from . import _native
from ._errors import error_of


def run(command, *arguments, progress=None, **options):
    """Runs any command with its positional arguments and options, and returns its result.

    >>> lines = run("print", "fixtures/optimum-llama", layer=0)["lines"]
    >>> run("--version").splitlines()[0].split()[0]
    'gqa2mla'
    """
    line = ["gqa2mla", command, *_options(options)]
    if arguments:
        # Arguments after this are not options, even if they begin with a dash.
        line += ["--", *map(os.fspath, arguments)]
    exit_code, data, failure, complaints = _native.call(line, progress)
    for complaint in complaints:
        logging.getLogger(__package__).warning("%s", complaint)
    result = None if data is None else json.loads(data)
    if exit_code != 0:
        raise error_of(exit_code, failure, result)
    return result


def _options(options):
    """Converts keyword arguments to command-line options.

    >>> list(_options({"cache_ratio": 0.5, "no_validate": True, "force": False, "rank": None}))
    ['--cache-ratio=0.5', '--no-validate']

    A list of numbers becomes one option, as in ``--past 512,2048``; for a list of other values the option is repeated:

    >>> list(_options({"past": [512, 2048], "text": ["a", "b"], "input": {"scale": 2.5}}))
    ['--past=512,2048', '--text=a', '--text=b', '--input=scale=2.5']
    """
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            yield option
        elif isinstance(value, dict):
            yield from (f"{option}={key}={_word(item)}" for key, item in value.items())
        elif isinstance(value, (list, tuple)) and all(isinstance(item, (int, float)) for item in value):
            yield f"{option}={','.join(map(_word, value))}"
        elif isinstance(value, (list, tuple)):
            yield from (f"{option}={_word(item)}" for item in value)
        else:
            yield f"{option}={_word(value)}"


def _word(value):
    """The command-line text of a value."""
    return os.fspath(value) if isinstance(value, (str, os.PathLike)) else str(value)
