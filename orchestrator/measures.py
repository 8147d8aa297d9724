"""Counts and times by name, which a worker's heartbeat takes along for /metrics.

Names come from callers too (those of models and tools), so only so many are kept apart; the rest are `other`.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

from kernel.histograms import Histogram

Measured: TypeAlias = Literal["runs", "models", "tools", "handlers", "extractions"]

_MOST_NAMES: Final = 100


class Measures:
    """What happened in this process since it started. Written by one thread; `shown` may be called by another."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Measured, str, str], int] = {}
        self._seconds: dict[tuple[Measured, str], Histogram] = {}
        self._names: dict[Measured, set[str]] = {}

    def count(self, measured: Measured, name: str, outcome: str, seconds: float | None = None) -> None:
        """One more, and how long it took where that is of interest."""
        names = self._names.setdefault(measured, set())
        if name not in names:
            if len(names) >= _MOST_NAMES:
                name = "other"
            names.add(name)
        key = (measured, name, outcome)
        self._counts[key] = self._counts.get(key, 0) + 1
        if seconds is not None:
            if (histogram := self._seconds.get((measured, name))) is None:
                histogram = self._seconds[measured, name] = Histogram()
            histogram.observe(seconds)

    def shown(self) -> dict[str, Any]:
        """`{measured: {name: {"outcomes": {outcome: count}, "seconds": histogram or None}}}`"""
        shown: dict[str, Any] = {}
        for (measured, name, outcome), count in list(self._counts.items()):
            of_name = shown.setdefault(measured, {}).setdefault(name, {"outcomes": {}, "seconds": None})
            of_name["outcomes"][outcome] = count
        for (measured, name), histogram in list(self._seconds.items()):
            shown[measured][name]["seconds"] = histogram.shown()
        return shown
