"""The workflows a run may name. Each is the same graph around its own way of thinking.

`agent_chat` asks the model. `echo` answers with the input and asks no one: the same engine and journal, for smoke
tests and for measuring them.
"""

from __future__ import annotations

import time
from typing import Any

from langgraph.runtime import Runtime

from kernel.ids import new_id
from orchestrator.context import RunContext
from orchestrator.graph import Graph, build_graph
from orchestrator.state import Answer, GraphState
from orchestrator.states.think import think


async def echo(state: GraphState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """Says what was said last."""
    context = runtime.context
    started = time.perf_counter()
    step_id = context.enter(state, "THINK")
    said = [message.text for message in context.transcript.upto(state["position"]) if message.type == "human"]
    answer = Answer(message_id=new_id("msg"), text=said[-1] if said else "", finish_reason="stop")
    context.leave(step_id, "THINK", time.perf_counter() - started)
    return {"round": state["round"] + 1, "answer": answer}


def build_workflows() -> dict[str, Graph]:
    """All workflows, compiled."""
    return {"agent_chat": build_graph(think), "echo": build_graph(echo)}
