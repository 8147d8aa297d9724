"""RESPOND: the last word of an agent.

For the run's own agent it ends the run: final message, usage, status and `done` in one transaction. A sub-agent's
answer goes back to whoever asked. An agent whose model is lost says what it knows before it says what failed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from langchain_core.messages import AIMessage
from langgraph.runtime import Runtime

from kernel.ids import new_id
from kernel.runlog import End
from orchestrator.context import RunContext
from orchestrator.degradation import failure_answer
from orchestrator.state import GraphState, Operation


async def respond(state: GraphState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """Says the answer, or why there is none."""
    context = runtime.context
    started = time.perf_counter()
    step_id = context.enter(state, "RESPOND")
    failure, answer = state["failure"], state["answer"]
    if failure is not None:
        _say(context, state, failure_answer(context, state, failure), new_id("msg"), failure.get("operations"))
        context.log.conclude(context.path, "error", context.named(dict(failure)))
    elif answer is not None:
        # What an earlier owner of the run streamed of it has been discarded: then it comes as another message.
        message_id = answer["message_id"] if context.log.streams(answer["message_id"]) else new_id("msg")
        parsed = {"parsed": orjson.loads(answer["text"])} if answer.get("structured") else {}
        _say(context, state, answer["text"], message_id, answer.get("operations"), parsed)
    context.leave(step_id, "RESPOND", time.perf_counter() - started)
    if not context.path:
        usage = context.log.usage()
        if failure is not None:
            context.log.end(End("failed", failure["code"], usage, dict(failure)))
        else:
            context.log.end(End("succeeded", answer["finish_reason"] if answer else "stop", usage, None))
    return {}


def _say(
    context: RunContext,
    state: GraphState,
    text: str,
    message_id: str,
    operations: Sequence[Operation] | None,
    more: Mapping[str, Any] | None = None,
) -> None:
    context.transcript.add_assistant(state["position"], AIMessage(text), message_id)
    message: dict[str, Any] = {"message_id": message_id, "role": "assistant", "content": text, **(more or {})}
    if operations:
        message["operations"] = operations
    context.log.conclude(context.path, "message", context.named(message))
