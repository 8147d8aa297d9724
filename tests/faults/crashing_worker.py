"""`python -m tests.faults.crashing_worker`: workers that die where the environment variable `CRASH_AT` says.

`CRASH_AT="after_commit:7 before_tool:2"` forks one worker for each of its words, all loaded once; they differ from
`python -m worker` in nothing else. Ends with 0 when each has died at its point or was told to stop. Those that froze
at theirs go on at SIGCONT.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from cli.launch import PR_SET_PDEATHSIG
from tests.faults.crash_points import arm
from worker.__main__ import main


def fork(crash_at: str) -> int:
    """Starts one worker; its pid."""
    pid = os.fork()
    if pid:
        return pid
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        arm(crash_at)
        main()
    except SystemExit as ended:
        os._exit(int(ended.code or 0))
    except BaseException as error:
        sys.stderr.write(f"{crash_at}: {error!r}\n")
        sys.stderr.flush()
        os._exit(70)
    os._exit(0)


def run() -> int:
    """Forks them all and waits for them. What it is told, it hands on."""
    crew = [fork(crash_at) for crash_at in os.environ["CRASH_AT"].split()]

    def hand_on(number: int, frame: object) -> None:
        for pid in crew:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        signal.signal(number, hand_on)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in crew]
    return 0 if set(codes) <= {0, -signal.SIGKILL} else 1


if __name__ == "__main__":
    sys.exit(run())
