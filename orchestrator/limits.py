"""What a step does at a limit: it stops the agent, or the run asks whether the limit may be raised.

Only the run's own agent asks. A sub-agent stops at its share; its parent then knows what came of that, and asks if it
has nothing left itself. What was decided is part of the run, so every owner finds the raised limits again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from kernel.approvals import Decision
from kernel.errors import LonghaulError
from orchestrator.approvals import Ask
from orchestrator.brake import Waits
from orchestrator.budget import CAP_OF, HIGHEST, Budget, Reached
from orchestrator.context import RunContext
from orchestrator.degradation import reached_in_words

_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        cap: {
            "type": "number" if isinstance(highest, float) else "integer",
            "exclusiveMinimum": 0,
            "maximum": highest,
        }
        for cap, highest in HIGHEST.items()
    },
    "additionalProperties": False,
    "minProperties": 1,
}


class NoPrice(LonghaulError):
    """A limit on cost can't be held, because what a model costs is not known."""

    code = "no_price"


def take_decisions(budget: Budget, decisions: Iterable[Decision]) -> None:
    """Raises the limits that somebody has allowed to be raised; who was refused once does not ask again."""
    for decision in decisions:
        if decision.kind != "limit" or decision.status == "pending":
            continue
        if decision.status == "approved":
            budget.raise_to(decision.arguments or {})
        else:
            budget.on_limit = "stop"


def reached(context: RunContext, step_id: str, cut: Reached | None = None) -> Reached | None:
    """Which limit ends the agent in this step, before another model call; None if none does. `cut`: the limit that has
    just cut a call short, which by another clock may be met an instant later.

    Raises:
        Waits: somebody was asked to raise it, and has not decided yet.
    """
    for asked in CAP_OF:
        decision = context.approvals.decision(step_id, asked, "limit")
        if decision is not None and decision.status != "approved":
            return asked
    limit = context.budget.exhausted() or cut
    if limit is None or limit not in CAP_OF or context.budget.on_limit == "stop":
        return limit
    if context.approvals.decision(step_id, limit, "limit") is not None:
        return limit  # it was raised, and not far enough
    more = context.budget.doubled(limit)
    wanted = ", ".join(f"{cap} to {value:g}" for cap, value in more.items())
    context.approvals.ask(
        Ask(
            step_id,
            limit,
            context.path,
            "limit",
            CAP_OF[limit],
            more,
            prompt=f"The run has reached {reached_in_words(context.budget, limit)}. Approve to raise {wanted}, or send "
            "other limits; deny to have it answer with what it knows.",
            schema=_SCHEMA,
        )
    )
    raise Waits
