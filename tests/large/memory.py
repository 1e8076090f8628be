"""Measures the peak of resident memory of rewrites of large models, which take no room on disk, and fails above the bounds.

    python tests/large/memory.py [target/release/gqa2mla]

The bounds: memory grows with one layer, not with the model. The weights of one layer of a 7B model that factors are made
of take 60 MB in half precision and, one at a time, up to 100 MB in f64.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
SMALL = "--hidden 64 --inner 96 --vocabulary 128 --heads 4 --kv-heads 2 --head-size 16 --type float"
CASES = [
    ("15 GB, exact", "", "", 60),
    ("15 GB, a quarter of the cache", "", "--rank 128", 300),
    ("17,000 nodes, exact", f"--layers 250 {SMALL}", "", 150),
]


def peak(command):
    """The largest resident set of `command` in MB."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command} failed")
    return usage.ru_maxrss / 1024


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else "target/release/gqa2mla"
    above = []
    for name, sizes, options, bound in CASES:
        with tempfile.TemporaryDirectory() as folder:
            model, out = pathlib.Path(folder, "in"), pathlib.Path(folder, "out", "model.onnx")
            subprocess.run([sys.executable, HERE / "make_model.py", model, *sizes.split()], check=True)
            command = [program, "rewrite", model / "model.onnx", "-o", out, "--no-validate", *options.split()]
            found = peak([str(part) for part in command])
            print(f"{name}: {found:.0f} MB, bound {bound} MB")
            if found > bound:
                above.append(name)
    if above:
        sys.exit(f"above the bound: {', '.join(above)}")


main()
