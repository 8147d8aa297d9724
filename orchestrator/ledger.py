"""The effect ledger as a step sees it: which of its calls are done, which an earlier owner of the run had begun, and
the rows that it writes about them.

A call's outcome, its result and the event that says so are handed to the run's pen in one go, without an `await`
between them, so they commit together or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass

from kernel.effects import Effect, EffectClass, EffectStatus
from orchestrator.brake import Waits
from orchestrator.context import RunContext
from orchestrator.state import Call


@dataclass(slots=True)
class LedgerEntry:
    """One call that has no outcome yet. `earlier` is the row of an owner that began it and is gone.

    `effect` is the class that it was let loose under; one that never was has done nothing.
    """

    context: RunContext
    step_id: str
    call: Call
    earlier: Effect | None
    effect: EffectClass = "read"

    def begin(self, effect: EffectClass) -> None:
        """Writes that the call is let loose. If it is not a read, that must be committed before it is."""
        self.effect = effect
        self.context.log.record_effect(self._row("started", starts=1))

    def report(self, status: EffectStatus, result: str, *, duration_ms: int = 0, starts: int = 0) -> None:
        """Writes the outcome with its event `tool_result`. `starts` is 1 for a call that somebody else has made."""
        call = self.call
        about = {"call_id": call["id"], "name": call["name"], "status": status, "result": result}
        self.context.log.say("tool_result", self.context.named(about | {"duration_ms": duration_ms}))
        self.finish(status, result, starts=starts)

    def finish(self, status: EffectStatus, result: str, *, starts: int = 0) -> None:
        """Writes the outcome, and the result for the model."""
        message = self.context.transcript.add_result(self.call["position"], self.call["id"], result)
        self.context.log.record_effect(self._row(status, starts=starts), message)

    def _row(self, status: EffectStatus, *, starts: int = 0) -> Effect:
        call = self.call
        path, position = self.context.path, call["position"]
        return Effect(self.step_id, call["id"], path, position, call["name"], self.effect, status, starts)


def unfinished(context: RunContext, step_id: str, calls: Sequence[Call]) -> list[LedgerEntry]:
    """Those of a step's calls that are still to be made, in order. Calls beyond the run's budget are denied here.

    What an earlier owner finished is left out: its result is in the transcript. What it began is counted already.
    """
    entries = []
    for call in calls:
        entry = LedgerEntry(context, step_id, call, context.run.effects.get((step_id, call["id"])))
        if entry.earlier is not None and entry.earlier.finished:
            continue
        if entry.earlier is None and not context.budget.take_call():
            limit = context.budget.limit("max_tool_calls") or 0
            entry.report("denied", _DENIED.format(limit=limit))
            continue
        entries.append(entry)
    return entries


_DENIED = (
    "The run's limit of {limit:.0f} tool calls is reached: answer with what you know. If you are asked to go on, the "
    "limit has been raised, and you may make this call again."
)


async def side_by_side(calls: Iterable[Coroutine[None, None, None]]) -> None:
    """Makes calls at the same time. If one fails, the others are cancelled; if one waits, they go on to their own end.

    Raises:
        Exception: that of the one that failed first, as it is: what stops a run must reach the engine by its name.
        Waits: at least one does, and all others are done.
    """
    waiting: list[Waits] = []

    async def carried_out(call: Coroutine[None, None, None]) -> None:
        try:
            await call
        except Waits as wait:
            waiting.append(wait)

    try:
        async with asyncio.TaskGroup() as tasks:
            for call in calls:
                tasks.create_task(carried_out(call))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    if waiting:
        raise waiting[0]
