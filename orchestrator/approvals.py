"""What a run asks of people, and of its caller, as its states see it.

A state that needs a decision looks whether it is there, asks if it was not asked yet, and stops:

    decision = context.approvals.decision(step_id, call_id, "limit")
    if decision is None:
        context.approvals.ask(Ask(step_id, call_id, context.path, "limit", "max_tokens", {"max_tokens": 2_000}))
        raise Waits

The state is entered again when something that the run waits for was decided, perhaps not this: then all of it happens
again, and asking twice is asking once. What it does before it asks it must therefore be able to do again.

What always holds: an approval is asked for once per (step, call, kind), however many owners the run has; the run rests
only while all that it asked for and does not know the outcome of is still open.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from kernel.approvals import ApprovalKey, ApprovalKind, Decision, NewApproval
from kernel.errors import LonghaulError
from kernel.runlog import RunLog

Ask: TypeAlias = NewApproval


class ApprovalExpired(LonghaulError):
    """Nobody decided in time, and the run is to fail then."""

    code = "approval_expired"


class Approvals:
    """One per execution of a run, shared with its sub-agents. `made` is what earlier owners have asked for."""

    def __init__(self, log: RunLog, made: Mapping[ApprovalKey, Decision]) -> None:
        self._log = log
        self._made = made
        self._asked: set[ApprovalKey] = set()

    def decision(self, step_id: str, call_id: str, kind: ApprovalKind) -> Decision | None:
        """What this approval came to; None if it is open, or was never asked for.

        Raises:
            ApprovalExpired: nobody decided in time, and its policy is that the run fails then.
        """
        made = self._made.get((step_id, call_id, kind))
        if made is None or made.status == "pending":
            return None
        if made.status == "expired" and made.on_expiry == "fail":
            raise ApprovalExpired(
                "Nobody decided in time about what the run waited for.",
                suggestions=(
                    "send the request again, and decide in time",
                    "raise expires_seconds of the tool's approval policy, or have on_expiry deny",
                ),
            )
        return made

    def asked(self, step_id: str, call_id: str, kind: ApprovalKind) -> bool:
        """Whether this approval was asked for, by this owner of the run or an earlier one."""
        key = step_id, call_id, kind
        return key in self._asked or key in self._made

    def ask(self, ask: Ask) -> None:
        """Asks for a decision, unless that was done before, and notes that the run waits for it."""
        made = self._made.get(ask.key)
        if made is not None:
            self._log.wait_for(made.approval_id)
        elif ask.key not in self._asked:
            self._asked.add(ask.key)
            self._log.ask(ask)
