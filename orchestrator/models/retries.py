"""When a model call is tried again: only for failures that may pass, and only before its first delta.

Exponential backoff with jitter, so that runs which fail together do not come back together. An endpoint that
says when to come back is obeyed, unless it asks for longer than a waiting run should hold its slot.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from orchestrator.errors import ModelError, ModelOverloaded, ModelRateLimited

LONGEST_PAUSE = 8.0
LONGEST_OBEYED = 30.0


@dataclass(frozen=True, slots=True)
class Retries:
    """`count` further tries; pauses of half to all of `base`·2ⁿ seconds, at most `LONGEST_PAUSE`."""

    count: int = 2
    base: float = 0.25

    def pause(self, failures: int, error: ModelError) -> float | None:
        """Seconds to wait after the given number of failures (from 1), or None to give up."""
        asked = error.retry_after if isinstance(error, ModelRateLimited | ModelOverloaded) else None
        if failures > self.count or not error.retryable or (asked or 0.0) > LONGEST_OBEYED:
            return None
        backoff = min(LONGEST_PAUSE, self.base * 2.0 ** (failures - 1))
        return (asked or 0.0) + backoff * random.uniform(0.5, 1.0)  # noqa: S311 # spreads load, guards nothing
