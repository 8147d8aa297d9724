"""Becomes another program that dies with its parent: `python -I -S launch.py PARENT_PID PROGRAM ARGUMENT…`.

A worker that is killed can't end the programs it started. On Linux the kernel does it; elsewhere the end of their
stdin has to be hint enough. Runs on its own: it imports nothing of this project.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            sys.exit(1)
    try:
        os.execvp(program[0], program)  # noqa: S606  # the operator's program
    except OSError as error:
        sys.exit(f"{program[0]}: {error.strerror}")
