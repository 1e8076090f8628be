"""The command ``gqa2mla``."""

import os
import sys

from . import _native


def main():
    """Runs the command line of this process, and returns its exit code."""
    # As the program in Rust does.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return _native.main(["gqa2mla", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
