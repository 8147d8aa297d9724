"""The graph: START → THINK → {THINK | ACT | DELEGATE | RESPOND}; ACT and DELEGATE → THINK; RESPOND → END.

ACT and DELEGATE run side by side when the model asks for both; THINK follows itself where a structured answer is to
be corrected. Graphs are compiled once per process; what differs
from run to run comes with the runtime's context.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime

from orchestrator.context import RunContext
from orchestrator.state import GraphState, Route
from orchestrator.states.act import act
from orchestrator.states.delegate import delegate
from orchestrator.states.respond import respond


class State(Protocol):
    """One of the graph's four."""

    async def __call__(self, state: GraphState, runtime: Runtime[RunContext]) -> dict[str, Any]: ...


Graph: TypeAlias = "CompiledStateGraph[GraphState, RunContext, GraphState, GraphState]"


def build_graph(think: State) -> Graph:
    """The graph around one way of thinking. It can be braked before each state but the last, which takes no time."""
    graph = StateGraph(GraphState, context_schema=RunContext)
    graph.add_node("THINK", _braked(think))
    graph.add_node("ACT", _braked(act))
    graph.add_node("DELEGATE", _braked(delegate))
    graph.add_node("RESPOND", respond)
    graph.add_edge(START, "THINK")
    graph.add_conditional_edges("THINK", after_think, ["THINK", "ACT", "DELEGATE", "RESPOND"])
    graph.add_edge("ACT", "THINK")
    graph.add_edge("DELEGATE", "THINK")
    graph.add_edge("RESPOND", END)
    return graph.compile()


def _braked(visit: State) -> State:
    async def braked(state: GraphState, runtime: Runtime[RunContext]) -> dict[str, Any]:
        await runtime.context.brake.check()
        return await visit(state, runtime)

    return braked


async def after_think(state: GraphState) -> list[Route]:
    """What the model's answer leads to. Asynchronous because LangGraph would send it to a thread otherwise."""
    routes: list[Route] = []
    if state["calls"]:
        routes.append("ACT")
    if state["delegations"]:
        routes.append("DELEGATE")
    if not routes and state["answer"] is None and state["failure"] is None and state.get("drafts"):
        routes.append("THINK")
    return routes or ["RESPOND"]
