"""Runs a command to which the system refuses one kind of call.

    python refused_call.py STEP ERRNO COMMAND...

STEP is one of STEPS, ERRNO a name such as EIO. A seccomp filter answers the calls; what the command starts is refused as
well. Exits with 77 where the system takes no filter, or where the calls of this processor are not listed.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

# Numbers of the calls of each step: x86_64, aarch64. A call that a processor does not have is left out.
STEPS = {
    "make a folder": ([83, 258], [34]),
    "create a file": ([257], [56]),
    "write": ([1, 18, 20], [64, 68, 66]),
    "copy a range": ([326], [285]),
    "set a length": ([77], [46]),
    "flush": ([74, 75], [82, 83]),
    "lock": ([73], [32]),
    "permissions": ([90, 91, 268], [52, 53]),
    "rename": ([82, 264, 316], [38, 276]),
    "remove": ([84, 87, 263], [35]),
}
LOAD, JUMP_EQUAL, JUMP_GREATER, JUMP_SET, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
ALLOW, ERROR = 0x7FFF0000, 0x00050000
O_CREAT = 0o100


def argument(number):
    """Where the filter finds the low half of an argument of the call."""
    return 16 + 8 * number


def filter_of(step, number):
    """The program: for each call of the step, what else has to hold of it; then the error."""
    lines = []
    for call in STEPS[step][["x86_64", "aarch64"].index(platform.machine())]:
        # Standard output and error go on; files that exist are opened.
        further = {"write": (LOAD, argument(0), JUMP_GREATER, 2), "create a file": (LOAD, argument(2), JUMP_SET, O_CREAT)}
        checks = [(LOAD, 0, 0, 0), (JUMP_EQUAL, call, 0, 3 if step in further else 1)]
        if step in further:
            load, at, jump, value = further[step]
            checks += [(load, at, 0, 0), (jump, value, 0, 1)]
        lines += [*checks, (RETURN, ERROR | number, 0, 0)]
    lines.append((RETURN, ALLOW, 0, 0))
    return b"".join(struct.pack("HBBI", code, yes, no, value) for code, value, yes, no in lines), len(lines)


def main():
    step, name, command = sys.argv[1], sys.argv[2], sys.argv[3:]
    if platform.machine() not in ("x86_64", "aarch64"):
        sys.exit(77)
    program, length = filter_of(step, getattr(errno, name))
    buffer = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", length, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, seccomp, with_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(seccomp, with_filter, header, 0, 0):
        sys.exit(77)
    os.execv(command[0], command)


main()
