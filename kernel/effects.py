"""The effect ledger: what a run's calls have done to the world, so that no resume does it twice.

A call is known by the key `run_id:step_id:call_id`. That it was started is committed before a tool with outside
effects is let loose; its outcome is committed together with its `tool_result` event and its result, which is the
message at (path, position). A call that was started by an owner who then died has no outcome: what may be done
about it depends on its effect class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

EffectClass = Literal["read", "idempotent", "once"]
"""What a call does to the world, hence what may be done when its outcome is not known.

`read` changes nothing. `idempotent` may be sent again under the same idempotency key. `once` must not be.
"""

EffectStatus = Literal["started", "ok", "error", "denied", "unknown"]

DELEGATE: Final = "delegate"
"""What models call to hand a task to a sub-agent, and what stands for a tool in the row of a delegation. No tool may
have this name."""


@dataclass(frozen=True, slots=True)
class Effect:
    """One call's row. `starts` counts executions that this row adds to the ledger's count: 1 for a start, else 0.
    `inherited` is one that was taken over from the run that this one goes on from."""

    step_id: str
    call_id: str
    path: str
    position: int
    tool: str
    effect: EffectClass
    status: EffectStatus
    starts: int = 0
    inherited: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from the other calls of its run."""
        return self.step_id, self.call_id

    @property
    def finished(self) -> bool:
        """Whether its outcome is known, be it that nobody can know it any more."""
        return self.status != "started"
