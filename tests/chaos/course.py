"""One run's course through the chaos, as its caller knows it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tests.faults.plans import Plan

_AT = re.compile(rb'"at":"([^"]+)"')


@dataclass(slots=True, eq=False)
class Course:
    """`deaths` are killed workers by pid, `hurt` those that were killed or frozen; `report` takes findings."""

    plan: Plan
    deaths: Mapping[int, float]
    hurt: set[int]
    report: Callable[[str], None]
    run_id: str = ""
    session_id: str = ""
    cancelled_at: float | None = None
    owners: list[int] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def acknowledged(self) -> bool:
        return bool(self.run_id)

    def finding(self, text: str) -> None:
        """Something that must not be."""
        self.report(f"run {self.run_id or '(not taken in)'} of plan {self.plan['name']}: {text}")

    def owned_by(self, pid: int, frame: bytes) -> None:
        """A worker said that it has started or resumed the run. Each follower tells of it."""
        if pid in self.owners:
            return
        if self.owners and self.owners[-1] in self.deaths and (at := _AT.search(frame)):
            resumed = datetime.fromisoformat(at[1].decode()).timestamp()
            self.recoveries.append(resumed - self.deaths[self.owners[-1]])
        self.owners.append(pid)
