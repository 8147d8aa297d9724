"""ACT: makes the tool calls the model asked for, side by side.

Each call ends in a result for the model, whatever happens: the toolbox sees to timeouts, retries and caps. Calls
beyond the run's budget are not made, and the model is told so.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from langgraph.runtime import Runtime

from orchestrator.context import RunContext
from orchestrator.state import Call, GraphState
from orchestrator.tools.toolbox import ToolOutcome


async def act(state: GraphState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """All calls of one answer."""
    context = runtime.context
    started = time.perf_counter()
    step_id = context.enter(state, "ACT")
    left = context.budget.tool_calls_left
    granted, refused = state["calls"][:left], state["calls"][left:]
    context.budget.tool_calls += len(granted)
    async with asyncio.TaskGroup() as tasks:
        for call in granted:
            tasks.create_task(_call(context, step_id, call))
    for call in refused:
        limit = f"The run's limit of {context.budget.max_tool_calls} tool calls is reached: answer with what you know."
        _report(context, call, ToolOutcome("denied", limit, 0))
    context.leave(step_id, "ACT", time.perf_counter() - started)
    return {"tool_calls": len(granted)}


async def _call(context: RunContext, step_id: str, call: Call) -> None:
    context.log.say(
        "tool_start",
        context.named({"call_id": call["id"], "name": call["name"], "arguments": call["arguments"]}),
    )
    outcome = await context.toolbox.call(
        call["name"],
        call["arguments"],
        context.tool_context(step_id, call["id"]),
        allowed=context.actor.tools,
    )
    _report(context, call, outcome)


def _report(context: RunContext, call: Call, outcome: ToolOutcome) -> None:
    context.transcript.add_result(call["position"], call["id"], outcome.result)
    context.log.say(
        "tool_result",
        context.named(
            {
                "call_id": call["id"],
                "name": call["name"],
                "status": outcome.status,
                "result": outcome.result,
                "duration_ms": outcome.duration_ms,
            }
        ),
    )
