"""DELEGATE: hands tasks to sub-agents, side by side.

A sub-agent is the same graph with its own instructions, tools and transcript, under a path of its own. It spends
from the run's budget, in which a delegation counts as a tool call, and cancelling the run cancels it. What it
answers goes back to the model like the result of a tool; so does what went wrong. A sub-agent that was at work when
the run lost its owner goes on from its own last step.
"""

from __future__ import annotations

import time
from typing import Any

from langgraph.runtime import Runtime

from orchestrator.context import RunContext
from orchestrator.ledger import LedgerEntry, side_by_side, unfinished
from orchestrator.state import GraphState


async def delegate(state: GraphState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """All delegations of one answer."""
    context = runtime.context
    started = time.perf_counter()
    step_id = context.enter(state, "DELEGATE")
    await side_by_side(_hand_over(context, entry) for entry in unfinished(context, step_id, state["delegations"]))
    context.leave(step_id, "DELEGATE", time.perf_counter() - started)
    return {}


async def _hand_over(context: RunContext, entry: LedgerEntry) -> None:
    call = entry.call
    arguments = call["arguments"] if isinstance(call["arguments"], dict) else {}
    name, task = arguments.get("agent"), arguments.get("task")
    team = {agent.name: agent for agent in context.actor.sub_agents}
    if context.depth >= context.max_depth:
        entry.report("error", "Error: delegation is not possible any deeper. Do it yourself.")
    elif not isinstance(name, str) or name not in team:
        known = ", ".join(team) or "none"
        entry.report("error", f"Error: there is no agent {name!r}. 'agent' must be one of: {known}.")
    elif not isinstance(task, str) or not task.strip():
        entry.report("error", "Error: 'task' must say in words what the agent is to do.")
    else:
        fields: dict[str, Any] = {"call_id": call["id"], "agent": name, "path": context.child_path(name, call)}
        if entry.earlier is None:
            context.log.say("delegate_start", fields | {"task": task})
            entry.begin("idempotent")
        status, answer = await context.run_child(context, call, team[name])
        context.log.say("delegate_result", fields | {"result": answer})
        entry.finish(status, answer)
