"""The workflows a run may name. Each is the same graph around its own way of thinking.

`agent_chat` asks the model. `echo` answers with the input and asks no one: the same engine and journal, for smoke
tests and for measuring them.

A run keeps the version of the graphs that it was started with. When a change to a graph or to its state would make
a saved checkpoint mean something else, give it the next version and keep the old one here for as long as runs of it
may be unfinished; runs of a version that is gone end with an error that says so, and workers leave runs of versions
that they don't know yet to newer workers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from langgraph.runtime import Runtime

from kernel.ids import new_id
from orchestrator.context import RunContext
from orchestrator.graph import Graph, build_graph
from orchestrator.state import Answer, GraphState
from orchestrator.states.think import think

GRAPH_VERSION: Final = 1
"""The version that runs are started with."""


async def echo(state: GraphState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """Says what was said last."""
    context = runtime.context
    started = time.perf_counter()
    step_id = context.enter(state, "THINK")
    said = [message.text for message in context.transcript.upto(state["position"]) if message.type == "human"]
    answer = Answer(message_id=new_id("msg"), text=said[-1] if said else "", finish_reason="stop")
    context.leave(step_id, "THINK", time.perf_counter() - started)
    return {"round": state["round"] + 1, "answer": answer}


def build_workflows(plugged_in: Mapping[str, Graph] | None = None) -> dict[int, dict[str, Graph]]:
    """All workflows by version and name, compiled. Those that are `plugged_in` have no versions of their own."""
    return {1: {**(plugged_in or {}), "agent_chat": build_graph(think), "echo": build_graph(echo)}}
