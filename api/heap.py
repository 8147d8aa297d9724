"""Giving memory back: what a burst of requests or streams took and freed again.

glibc returns freed memory to the system from the end of its heap only, and one small block that stays there holds all
that is below it. `malloc_trim` returns every free page. It takes 0.4 ms for an API process as it usually is, and tens
of milliseconds for a large heap, during which nothing else happens; so it is called in quiet moments alone, and as
rarely as it is slow. Where the C library has no such function nothing is done.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from typing import Final

_QUIET: Final = 5  # requests that ended since the last look
_SOONEST_SECONDS: Final = 5.0
_SHARE: Final = 0.001  # of the time, at most


class Heap:
    """The heap of this process, in the care of one caller that looks after it every second or so.

    Args:
        trim: returns free pages to the system; None where that can't be done.
        clock: seconds, monotonic.
    """

    def __init__(self, trim: Callable[[], object] | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._trim = trim
        self._clock = clock
        self._not_before = clock() + _SOONEST_SECONDS
        self._seen = 0
        self._trimmed_at = (0, 0)

    @classmethod
    def of_this_process(cls) -> Heap:
        return cls(_malloc_trim())

    def look_after(self, requests: int, connections: int) -> None:
        """Trims if it is time, few requests have ended since the last call, and anything at all since the last trim.

        Args:
            requests: how many have ended so far.
            connections: how many are open. Streams that their clients leave end no request.
        """
        quiet, self._seen = requests - self._seen < _QUIET, requests
        idle = (requests, connections) == self._trimmed_at
        if self._trim is None or not quiet or idle or self._clock() < self._not_before:
            return
        begun = self._clock()
        self._trim()
        ended = self._clock()
        self._trimmed_at = (requests, connections)
        self._not_before = ended + max(_SOONEST_SECONDS, (ended - begun) / _SHARE)


def _malloc_trim() -> Callable[[], object] | None:
    if sys.platform != "linux":
        return None
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:  # musl
        return None
    trim.argtypes, trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return lambda: trim(0)
