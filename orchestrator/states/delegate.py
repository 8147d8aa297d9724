"""DELEGATE: hands tasks to sub-agents, side by side.

A sub-agent is the same graph with its own instructions, tools and transcript, under a path of its own. It spends
from the run's budget, in which a delegation counts as a tool call, and cancelling the run cancels it. What it
answers goes back to the model like the result of a tool; so does what went wrong.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from langgraph.runtime import Runtime

from orchestrator.context import RunContext
from orchestrator.state import Call, GraphState


async def delegate(state: GraphState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """All delegations of one answer."""
    context = runtime.context
    started = time.perf_counter()
    step_id = context.enter(state, "DELEGATE")
    left = context.budget.tool_calls_left
    granted, refused = state["delegations"][:left], state["delegations"][left:]
    context.budget.tool_calls += len(granted)
    async with asyncio.TaskGroup() as tasks:
        for call in granted:
            tasks.create_task(_hand_over(context, call))
    for call in refused:
        limit = (
            f"Error: the run's limit of {context.budget.max_tool_calls} calls is reached: answer with what you know."
        )
        context.transcript.add_result(call["position"], call["id"], limit)
    context.leave(step_id, "DELEGATE", time.perf_counter() - started)
    return {"tool_calls": len(granted)}


async def _hand_over(context: RunContext, call: Call) -> None:
    arguments = call["arguments"] if isinstance(call["arguments"], dict) else {}
    name, task = arguments.get("agent"), arguments.get("task")
    team = {agent.name: agent for agent in context.actor.sub_agents}
    if context.depth >= context.max_depth:
        result = "Error: delegation is not possible any deeper. Do it yourself."
    elif not isinstance(name, str) or name not in team:
        result = f"Error: there is no agent {name!r}. 'agent' must be one of: {', '.join(team) or 'none'}."
    elif not isinstance(task, str) or not task.strip():
        result = "Error: 'task' must say in words what the agent is to do."
    else:
        path = context.child_path(name, call)
        fields: dict[str, Any] = {"call_id": call["id"], "agent": name, "path": path}
        context.log.say("delegate_start", fields | {"task": task})
        result = await context.run_child(context, call, team[name])
        context.log.say("delegate_result", fields | {"result": result})
    context.transcript.add_result(call["position"], call["id"], result)
