"""DELEGATE: hands tasks to sub-agents, side by side.

A sub-agent is the same graph with its own instructions, tools and transcript, under a path of its own. It spends
from a share of what its parent has left, in which a delegation counts as a tool call, and cancelling the run cancels
it. What it
answers goes back to the model like the result of a tool; so does what went wrong. A sub-agent that was at work when
the run lost its owner goes on from its own last step.
"""

from __future__ import annotations

import time
from typing import Any

from langgraph.runtime import Runtime

from kernel.agent_config import SubAgent
from orchestrator.context import RunContext
from orchestrator.ledger import LedgerEntry, side_by_side, unfinished
from orchestrator.state import GraphState


async def delegate(state: GraphState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """All delegations of one answer."""
    context = runtime.context
    started = time.perf_counter()
    step_id = context.enter(state, "DELEGATE")
    entries = unfinished(context, step_id, state["delegations"])
    at_once = {call["id"] for call in state["delegations"][: context.max_parallel_agents]}
    tasks = [(entry, *_whom(context, entry, at_once=entry.call["id"] in at_once)) for entry in entries]
    sharing = sum(agent is not None for _, agent, _ in tasks)
    await side_by_side(_hand_over(context, entry, agent, problem, sharing) for entry, agent, problem in tasks)
    context.leave(step_id, "DELEGATE", time.perf_counter() - started)
    return {}


async def _hand_over(
    context: RunContext, entry: LedgerEntry, agent: SubAgent | None, problem: str, sharing: int
) -> None:
    call = entry.call
    context.budget.called(wrongly=agent is None)
    if agent is None:
        entry.report("error", f"Error: {problem}")
        return
    assert isinstance(call["arguments"], dict)
    fields: dict[str, Any] = {"call_id": call["id"], "agent": agent.name, "path": context.child_path(agent.name, call)}
    if entry.earlier is None:
        context.log.say("delegate_start", fields | {"task": call["arguments"]["task"]})
        entry.begin("idempotent")
    status, answer = await context.run_child(context, call, agent, sharing)
    context.log.say("delegate_result", fields | {"result": answer})
    entry.finish(status, answer)


def _whom(context: RunContext, entry: LedgerEntry, *, at_once: bool) -> tuple[SubAgent | None, str]:
    """Whom a task goes to, or what is wrong with handing it over."""
    call = entry.call
    arguments = call["arguments"] if isinstance(call["arguments"], dict) else {}
    name, task = arguments.get("agent"), arguments.get("task")
    team = {agent.name: agent for agent in context.actor.sub_agents}
    if context.depth >= context.max_depth:
        return None, f"tasks can be handed down {context.max_depth} levels at most. Do it yourself."
    if not isinstance(name, str) or name not in team:
        return None, f"there is no agent {name!r}. 'agent' must be one of: {', '.join(team) or 'none'}."
    if not isinstance(task, str) or not task.strip():
        return None, "'task' must say in words what the agent is to do."
    if not at_once:
        most = context.max_parallel_agents
        return None, f"at most {most} tasks can be handed over at once. Hand this one over when those are done."
    return team[name], ""
