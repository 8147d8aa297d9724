"""A worker's counters since it started. They travel with its heartbeat to Postgres, and from there to /metrics."""

from __future__ import annotations

from dataclasses import dataclass, field

from kernel.histograms import Histogram


@dataclass(slots=True)
class Figures:
    """`pickup`: from a run's creation to its claim. `first_token`: from its creation to its first chunk of text."""

    claimed: int = 0
    resumed: int = 0
    lost: int = 0
    handed_back: int = 0
    stuck: int = 0
    pickup: Histogram = field(default_factory=Histogram)
    first_token: Histogram = field(default_factory=Histogram)
