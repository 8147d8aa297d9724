"""A run that is followed on the stream that its POST answers with: who owns it, and what has happened since when."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bench.crew import until
from bench.http import BenchFailed, Exchange

RESUMED = b"event: run_resumed\n"
DONE = b"event: done\n"

_STARTED = b"event: run_started\n"
_RUN_ID = re.compile(rb'"run_id":"(run_[0-9a-f]{32})"')
_WORKER = re.compile(rb'"worker":"([^"]+)"')
_CANCELLED = re.compile(rb'"status" ?: ?"cancelled"')


class Run:
    """One run. Places are bytes of its stream."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self._body = exchange.body

    @property
    def id(self) -> str:
        found = _RUN_ID.search(self._body)
        if found is None:
            raise BenchFailed(f"no run in {bytes(self._body[:300])!r}")
        return found[1].decode()

    @property
    def end(self) -> int:
        """How much of its stream is there."""
        return len(self._body)

    @property
    def owned_since(self) -> int:
        """Where its present owner has announced itself; -1 if none has."""
        return max(self._body.rfind(_STARTED), self._body.rfind(RESUMED))

    @property
    def worker(self) -> str:
        """Its present owner, as host:pid."""
        found = _WORKER.search(self._body, self.owned_since)
        if found is None:
            raise BenchFailed(f"no worker in {self.tail()!r}")
        return found[1].decode()

    @property
    def cancelled(self) -> bool:
        return _CANCELLED.search(self._body, self._body.rfind(DONE)) is not None

    def has(self, needle: bytes, since: int) -> bool:
        """Whether `needle` has come since a place. Raises BenchFailed if the run has ended."""
        if self._body.find(DONE, max(0, since)) >= 0:
            raise BenchFailed(f"a run has ended early: {self.tail()!r}")
        return since >= 0 and self._body.find(needle, since) >= 0

    def resumed(self, reason: str) -> bool:
        """Whether its present owner has it from another, for that reason."""
        event = self._body[self.owned_since :].partition(b"\n\n")[0]
        return event.startswith(RESUMED) and f'"reason":"{reason}"'.encode() in event

    def tail(self) -> bytes:
        """The end of its stream."""
        return bytes(self._body[-500:])


async def until_shown(runs: Iterable[Run], sign: bytes) -> None:
    """Waits until each has shown `sign` under its present owner."""

    async def shown() -> bool:
        return all(run.has(sign, run.owned_since) for run in runs)

    await until(shown, 15, "all runs are at work")
