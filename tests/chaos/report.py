"""What the chaos says while it lasts, and the table at its end."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping

from tests.chaos.callers import Lanes
from tests.chaos.house import House
from tests.chaos.injector import Injector
from tests.chaos.verdict import Verdict

_EVERY = 10.0


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Report:
    """On one chaos, whose parts it reads."""

    def __init__(self, house: House, lanes: Lanes, injector: Injector, verdict: Verdict, *, faults: int) -> None:
        self._house = house
        self._lanes = lanes
        self._injector = injector
        self._verdict = verdict
        self._faults = faults
        self._began = time.monotonic()

    async def keep_telling(self) -> None:
        """A line every ten seconds, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY)
            lanes = self._lanes
            say(
                f"{time.monotonic() - self._began:5.0f} s · {self._injector.done.total()} of {self._faults} faults"
                f" · {len(lanes.at_work)} runs at work, {lanes.ended} ended: {_shown(self._verdict.statuses)}"
                f" · slowest recovery {max(lanes.recoveries, default=0.0):.1f} s"
            )

    def summary(self) -> None:
        """The table."""
        lanes, verdict = self._lanes, self._verdict
        say(f"\nfaults in {time.monotonic() - self._began:.0f} s: {self._injector.done.total()}")
        for kind, number in sorted(self._injector.done.items()):
            say(f"  {number:6,}  {kind}")
        say(f"runs by status: {lanes.ended}")
        for status, number in sorted(verdict.statuses.items()):
            say(f"  {number:6,}  {status}")
        say(f"attempts a run took: {_shown(verdict.attempts)}")
        say(f"streams resumed: {lanes.reconnects:,}")
        say(f"from kill -9 to the next owner, whatever came between: {_percentiles(lanes.recoveries)}")
        say(f"cancel to done: {_percentiles(lanes.cancels)}")
        say(f"SIGTERM to exit: {_percentiles(self._house.farewells)}")


def _shown(counts: Mapping[str, int] | Mapping[int, int]) -> str:
    return ", ".join(f"{key}: {number}" for key, number in sorted(counts.items(), key=str)) or "none"


def _percentiles(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    order = sorted(seconds)
    p50, p99 = (order[int(len(order) * share)] for share in (0.5, 0.99))
    return f"p50 {p50:.1f} s, p99 {p99:.1f} s, max {order[-1]:.1f} s, of {len(order)}"
