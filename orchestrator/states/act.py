"""ACT: makes the tool calls the model asked for, side by side.

Each call ends in a result for the model, whatever happens: the toolbox sees to timeouts, retries and caps. That a
call which changes something outside was let loose is committed before it is; a call whose outcome was lost with an
earlier owner of the run is made again only if that does no harm.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

from langgraph.runtime import Runtime

from orchestrator.context import RunContext
from orchestrator.ledger import LedgerEntry, side_by_side, unfinished
from orchestrator.state import GraphState
from orchestrator.tools.toolbox import ToolOutcome


async def act(state: GraphState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """All calls of one answer."""
    context = runtime.context
    started = time.perf_counter()
    step_id = context.enter(state, "ACT")
    await side_by_side(_call(context, entry) for entry in unfinished(context, step_id, state["calls"]))
    context.leave(step_id, "ACT", time.perf_counter() - started)
    return {}


async def _call(context: RunContext, entry: LedgerEntry) -> None:
    call, kit = entry.call, context.actor.kit
    checked = kit.toolbox.check(call["name"], call["arguments"], allowed=kit.names)
    effect = "read" if isinstance(checked, ToolOutcome) else checked.effect
    if entry.earlier is not None and "once" in (entry.earlier.effect, effect):
        entry.report("unknown", _LOST)
        return
    about = {"call_id": call["id"], "name": call["name"], "arguments": call["arguments"]}
    context.log.say("tool_start", context.named(about))
    if isinstance(checked, ToolOutcome):
        entry.report(checked.status, checked.result)
        return
    # From before its row is written: a call that was never let loose must not look like one whose outcome is lost.
    with context.brake.unrepeatable() if effect == "once" else nullcontext():
        entry.begin(effect)
        if effect != "read":
            await context.log.committed()
        outcome = await kit.toolbox.make(checked, context.tool_context(entry.step_id, call["id"]))
        entry.report(outcome.status, outcome.result, duration_ms=outcome.duration_ms)


_LOST = (
    "The process that made this call died before it could tell the outcome: it may or may not have been done, and "
    "nobody can tell. It was not made again. Find out whether it was done before you do it again."
)
