"""Becomes another program, tied to the life of the process that started it.

Run as a script: `python -I -S launch.py PARENT_PID SIGNAL UID:GID|- PROGRAM ARGUMENT…`. It drops root where
asked, tells the kernel to send SIGNAL when the parent dies, and replaces itself by PROGRAM, keeping its pid.
A script of its own rather than code between fork and exec, because that is unsafe in a threaded parent; and
the order matters: changing the user clears the parent-death signal, so it is set last.

Only Linux has the parent-death signal. Elsewhere leftovers are found by their pid file at the next start.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    parent, death_signal, user = int(arguments[0]), int(arguments[1]), arguments[2]
    program = arguments[3:]
    # Before the user changes: another user may not be able to read the standard library.
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if user != "-":
        uid, gid = (int(part) for part in user.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if libc is not None and libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        sys.stderr.write(f"prctl: {os.strerror(ctypes.get_errno())}\n")
    if os.getppid() != parent:  # it died before the kernel knew whom to watch
        sys.exit(1)
    try:
        os.execvp(program[0], program)  # noqa: S606  # the point of this script
    except OSError as error:
        sys.stderr.write(f"{program[0]}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
