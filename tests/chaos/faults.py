"""The faults and their schedule: drawn from a seed alone, before anything runs."""

from __future__ import annotations

import random
from dataclasses import dataclass

WEIGHTS = {
    # processes
    "kill a worker": 10,
    "freeze a worker": 8,
    "tell a worker to go": 8,
    "kill an API": 4,
    "freeze an API": 3,
    "tell an API to go": 4,
    # Redis
    "restart Redis": 3,
    "flush Redis": 5,
    "kill clients of Redis": 5,
    "cut Redis off": 3,
    "stall Redis": 3,
    "delay Redis": 3,
    "drop replies of Redis": 4,
    "refuse at Redis": 2,
    # Postgres
    "restart Postgres": 1,
    "crash Postgres": 1,
    "end backends": 5,
    "cut Postgres off": 4,
    "stall Postgres": 4,
    "delay Postgres": 3,
    "drop replies of Postgres": 6,
    "refuse at Postgres": 2,
    # callers
    "cancel runs": 7,
    "disconnect followers": 7,
}
"""How often each kind is drawn, relative to the others."""

_LONGEST = {
    "freeze a worker": 1.6,
    "freeze an API": 0.7,
    "stall Redis": 0.8,
    "delay Redis": 0.8,
    "refuse at Redis": 0.8,
    "stall Postgres": 0.7,
    "delay Postgres": 0.7,
    "refuse at Postgres": 0.5,
}
"""How long those last that last, in leases."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`at` and `lasts` are seconds; `chance`, from 0 to 1, says whom it hits."""

    at: float
    kind: str
    lasts: float
    chance: float


def draw(seed: int, count: int, seconds: float, *, lease: float) -> list[Fault]:
    """So many faults, spread over so many seconds. How long they last goes by the workers' leases, in seconds."""
    rng = random.Random(f"faults {seed}")
    kinds = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count)
    if count >= len(WEIGHTS):  # each kind at least once
        kinds = [*WEIGHTS, *kinds[len(WEIGHTS) :]]
        rng.shuffle(kinds)
    times = sorted(rng.uniform(0, seconds) for _ in kinds)
    return [
        Fault(at, kind, rng.uniform(0.1, 1.0) * _LONGEST.get(kind, 0.0) * lease, rng.random())
        for at, kind in zip(times, kinds, strict=True)
    ]
