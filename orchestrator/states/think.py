"""THINK: recalls, assembles what the model is told, and streams its answer.

Text goes to followers as it comes. If the model then asks for tools, the text was its reasoning: the chunks are
taken back and it is said again as `tool_thinking`. A model that fails ends the run through RESPOND, with an
error that says what to do.

Where the agent has a `response_schema`, an answer that does not fit is taken back too, and the model is asked to
correct it. Each correction is a model call like any other: it spends from the budget and counts as a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import structlog
from langchain_core.messages import AIMessage, BaseMessage
from langgraph.runtime import Runtime

from kernel.effects import DELEGATE
from kernel.ids import new_id
from memory.errors import MemoryUnavailable
from orchestrator.context import RunContext
from orchestrator.errors import BadResponseSchema, InvalidAnswer, ModelError, PromptTooLong
from orchestrator.middleware.calls import Emitted, ModelCall
from orchestrator.middleware.errors import Stopped
from orchestrator.models.provider import ChatProvider, ResponseFormat
from orchestrator.models.turn import ReasoningDelta, Restart, TextDelta, Turn
from orchestrator.prompt import delegate_schema, model_input, system_prompt
from orchestrator.state import Answer, Call, GraphState
from orchestrator.structured import MOST_REPAIRS, AnswerSchema

log = structlog.get_logger(__name__)


async def think(state: GraphState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """One model call."""
    context = runtime.context
    started = time.perf_counter()
    step_id = context.enter(state, "THINK")
    recalled = state["recalled"]
    if recalled is None:
        recalled = await _recall(context, state)
    reached = context.budget.exhausted(state["round"])
    if reached is not None:
        changed = _limited(context, state, reached)
    else:
        changed = await _ask(context, state, recalled)
    context.leave(step_id, "THINK", time.perf_counter() - started)
    return {"recalled": recalled, "round": state["round"] + 1, **changed}


async def _recall(context: RunContext, state: GraphState) -> list[str]:
    if not context.actor.memory.recall:
        return []
    asked = " ".join(m.text for m in context.transcript.upto(state["position"]) if m.type == "human")
    try:
        items = await context.memory.recall(context.scope(), asked, limit=context.actor.memory.limit)
    except MemoryUnavailable as error:
        # An answer without memory is worth more than none.
        log.warning("recall_failed", run_id=context.run.id, error=error.message)
        return []
    if items:
        shown = [{"id": item.id, "kind": item.kind, "text": item.text, "score": round(item.score, 3)} for item in items]
        context.log.say("memory_recalled", context.named({"items": shown}), urgent=False)
    return [item.text for item in items]


async def _ask(context: RunContext, state: GraphState, recalled: list[str]) -> dict[str, Any]:
    """Asks until there is an answer that can be used: once, and again for each correction of a structured answer."""
    corrections: list[BaseMessage] = []
    asked = 0
    try:
        schema = None if context.actor.response_schema is None else AnswerSchema(context.actor.response_schema)
        while True:
            turn, message_id = await _stream(context, state, recalled, schema, corrections)
            _spend(context, turn)
            asked += 1
            if schema is None or _asks_for_tools(turn):
                return {"round": state["round"] + asked, **_taken(context, state, turn, message_id)}
            read = schema.read(turn.message.text)
            if isinstance(read, str):
                if read != turn.message.text:  # it stood in a code fence: what was streamed is not what is answered
                    context.log.discard_open(context.path)
                reason = turn.finish_reason or "stop"
                answer = Answer(message_id=message_id, text=read, finish_reason=reason, structured=True)
                return {"round": state["round"] + asked, "calls": [], "delegations": [], "answer": answer}
            context.log.discard_open(context.path)
            reached = context.budget.exhausted(state["round"] + asked)
            if reached is not None or asked > MOST_REPAIRS:
                raise read.error(asked, turn.finish_reason, reached)
            corrections += read.correction()
    except (ModelError, PromptTooLong, InvalidAnswer, BadResponseSchema, Stopped) as error:
        context.log.discard_open(context.path)
        return {
            "round": state["round"] + max(asked, 1),
            "calls": [],
            "delegations": [],
            "failure": {
                "code": error.code,
                "message": error.message,
                "retryable": isinstance(error, ModelError) and error.retryable,
                "suggestions": list(error.suggestions),
            },
        }


def _spend(context: RunContext, turn: Turn) -> None:
    usage = turn.usage
    context.budget.spend_tokens(usage.input_tokens, usage.output_tokens)
    spent = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "cost": 0.0}
    context.log.conclude(context.path, "usage", context.named(spent | {"model": turn.model}))


def _taken(context: RunContext, state: GraphState, turn: Turn, message_id: str) -> dict[str, Any]:
    """What a turn leads to: an answer, or calls."""
    position = state["position"]
    calls = _calls(turn.message, position + 1)
    if not calls:
        answer = Answer(message_id=message_id, text=turn.message.text, finish_reason=turn.finish_reason or "stop")
        return {"calls": [], "delegations": [], "answer": answer}
    if turn.message.text:
        context.log.discard_open(context.path)
        context.log.conclude(context.path, "tool_thinking", context.named({"text": turn.message.text}))
    context.transcript.add_assistant(position, turn.message)
    return {
        "position": position + 1 + len(calls),
        "calls": [call for call in calls if call["name"] != DELEGATE],
        "delegations": [call for call in calls if call["name"] == DELEGATE],
    }


async def _stream(
    context: RunContext,
    state: GraphState,
    recalled: list[str],
    schema: AnswerSchema | None,
    corrections: Sequence[BaseMessage],
) -> tuple[Turn, str]:
    """One model call: the turn, and the id of the message as which its text was streamed."""
    actor = context.actor
    request = context.run.request
    system = system_prompt(actor.instructions, request.get("variables") or {}, recalled, actor.kit.sections)
    tools = actor.kit.schemas
    if actor.sub_agents and context.depth < context.max_depth:
        tools = [*tools, delegate_schema(actor.sub_agents)]
    chat = await context.models.choose(actor.model, context.vault)
    messages = [*model_input(system, context.history, context.transcript.upto(state["position"])), *corrections]
    message_id = new_id("msg")
    response_format = None if schema is None else schema.format

    def emit(piece: Emitted) -> None:
        nonlocal message_id
        match piece:
            case TextDelta():
                context.log.chunk(message_id, piece.text, context.path)
            case ReasoningDelta():
                context.log.say("tool_thinking", context.named({"text": piece.text}))
            case Restart():
                context.log.discard_open(context.path)
                message_id = new_id("msg")

    if (layers := context.layers) is None:
        return await _read(chat, messages, tools, response_format, emit), message_id

    async def ask(call: ModelCall) -> Turn:
        model = actor.model.model_copy(update={"name": call.model}) if call.model != named else actor.model
        chosen = chat if model is actor.model else await context.models.choose(model, context.vault)
        return await _read(chosen, call.messages, call.tools, response_format, call.emit)

    named = actor.model.name or context.models.default
    turn = await layers.ask_model(ask, path=context.path, model=named, messages=messages, tools=tools, emit=emit)
    return turn, message_id


async def _read(
    chat: ChatProvider,
    messages: Sequence[BaseMessage],
    tools: Sequence[dict[str, Any]],
    response_format: ResponseFormat | None,
    emit: Callable[[Emitted], None],
) -> Turn:
    turn: Turn | None = None
    async with aclosing(chat.stream_turn(messages, tools=tools, response_format=response_format)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Turn):
                turn = piece
            else:
                emit(piece)
    assert turn is not None
    return turn


def _asks_for_tools(turn: Turn) -> bool:
    return bool(turn.message.tool_calls or turn.message.invalid_tool_calls)


def _calls(message: AIMessage, position: int) -> list[Call]:
    """The calls the model asks for, in its order; those with malformed arguments carry the raw text.

    Their ids are keys of the effect ledger. A `Turn` has only ids that are unique in it, printable and short, whatever
    the model sent.
    """
    asked: list[tuple[str | None, str, dict[str, Any] | str]] = [
        (call["id"], call["name"], call["args"]) for call in message.tool_calls
    ]
    asked += [(call["id"], call["name"] or "", call["args"] or "") for call in message.invalid_tool_calls]
    return [
        Call(id=id or "", name=name, arguments=arguments, position=position + place)
        for place, (id, name, arguments) in enumerate(asked)
    ]


_LIMITS = {
    "step_limit": ("the limit of {steps} steps", "raise limits.max_steps of the agent or budget.max_steps of the run"),
    "token_limit": ("the token budget", "raise limits.max_tokens of the agent or budget.max_tokens of the run"),
}


def _limited(context: RunContext, state: GraphState, reached: str) -> dict[str, Any]:
    """Answers with what is known when a limit is reached, rather than with nothing."""
    what, remedy = _LIMITS[reached]
    results = [m.text for m in context.transcript.upto(state["position"]) if m.type == "tool"]
    known = "\n".join(f"- {text[:500]}" for text in results[-5:]) or "- nothing yet"
    text = (
        f"I stopped because I reached {what.format(steps=context.budget.max_steps)} before I was done. "
        f"What I found so far:\n{known}\nTo go on: {remedy}, then send the request again."
    )
    answer = Answer(message_id=new_id("msg"), text=text, finish_reason=reached)
    return {"calls": [], "delegations": [], "answer": answer}
