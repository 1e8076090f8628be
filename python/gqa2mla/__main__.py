"""The command ``gqa2mla``."""

import sys

from . import _native


def main():
    """Runs the command line of this process, and returns its exit code."""
    return _native.main(["gqa2mla", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
