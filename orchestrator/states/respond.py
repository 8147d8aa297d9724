"""RESPOND: the last word of an agent.

For the run's own agent it ends the run: final message, usage, status and `done` in one transaction. A sub-agent's
answer goes back to whoever asked.
"""

from __future__ import annotations

import time
from typing import Any

import orjson
from langchain_core.messages import AIMessage
from langgraph.runtime import Runtime

from kernel.ids import new_id
from kernel.runlog import End
from orchestrator.context import RunContext
from orchestrator.state import GraphState


async def respond(state: GraphState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """Says the answer, or why there is none."""
    context = runtime.context
    started = time.perf_counter()
    step_id = context.enter(state, "RESPOND")
    failure, answer = state["failure"], state["answer"]
    if failure is not None:
        context.log.conclude(context.path, "error", context.named(dict(failure)))
    elif answer is not None:
        # What an earlier owner of the run streamed of it has been discarded: then it comes as another message.
        message_id = answer["message_id"] if context.log.streams(answer["message_id"]) else new_id("msg")
        context.transcript.add_assistant(state["position"], AIMessage(answer["text"]), message_id)
        message: dict[str, Any] = {"message_id": message_id, "role": "assistant", "content": answer["text"]}
        if answer.get("structured"):
            message["parsed"] = orjson.loads(answer["text"])
        context.log.conclude(context.path, "message", context.named(message))
    context.leave(step_id, "RESPOND", time.perf_counter() - started)
    if not context.path:
        usage = context.log.usage()
        if failure is not None:
            context.log.end(End("failed", failure["code"], usage, dict(failure)))
        else:
            context.log.end(End("succeeded", answer["finish_reason"] if answer else "stop", usage, None))
    return {}
