"""The vigil: tells dead workers from those that only could not be heard.

A worker that was killed leaves its name unheld at once, and a worker that lost its connection does so too, until it
has made a new one. What tells them apart is time, and whether the one who looks was disturbed itself: a network or a
server that stalls does so for all, and the others come back a moment later than oneself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

SETTLE_SECONDS: Final = 5.0
"""After a disturbance: how long nobody is judged, and nobody's runs are taken over."""

_SLOW_SECONDS: Final = 1.0
_WATCH_SECONDS: Final = 2.0


class Vigil:
    """One per worker. Times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._calm_from = 0.0
        self._missing_since: dict[str, float] = {}

    def calm(self, now: float) -> bool:
        """Whether this worker's view of the others is to be trusted."""
        return now >= self._calm_from

    def disturbed(self, now: float) -> None:
        """Postgres could not be reached."""
        self._calm_from = now + SETTLE_SECONDS
        self._missing_since.clear()

    def looked(self, begun: float, now: float, missing: Sequence[str]) -> list[str]:
        """A look that began at `begun` found these workers missing. Returns those that are dead."""
        if now - begun > _SLOW_SECONDS:
            self.disturbed(now)
        if not self.calm(now):
            return []
        self._missing_since = {worker: self._missing_since.get(worker, now) for worker in missing}
        return [worker for worker, since in self._missing_since.items() if now - since >= _WATCH_SECONDS]
