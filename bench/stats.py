"""Medians and percentiles of what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some measurements, and their p95. Of rates, where low is bad, `edge` is the slowest."""

    median: float
    edge: float


def latency(values: Iterable[float]) -> Spread:
    """Median and p95."""
    ordered = sorted(values)
    return Spread(percentile(ordered, 0.5), percentile(ordered, 0.95))


def rate(values: Iterable[float]) -> Spread:
    """Median and minimum."""
    ordered = sorted(values)
    return Spread(percentile(ordered, 0.5), ordered[0])


def percentile(ordered: list[float], share: float) -> float:
    """Of a sorted list that is not empty, with linear interpolation (Hyndman and Fan, type 7)."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
