"""THINK: recalls, assembles what the model is told, and streams its answer.

Text goes to followers as it comes. If the model then asks for tools, the text was its reasoning: the chunks are
taken back and it is said again as `tool_thinking`. A model that fails ends the run through RESPOND, with an
error that says what to do.

Where the agent has a `response_schema`, an answer that does not fit is taken back too, and THINK follows THINK to have
it corrected. So each correction is a step like any other: it is checkpointed, spends from the budget, and may be what a
limit forbids or asks about.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import structlog
from langchain_core.messages import AIMessage, BaseMessage
from langgraph.runtime import Runtime

from kernel.agent_config import ModelChoice
from kernel.effects import DELEGATE
from kernel.ids import new_id
from kernel.leases import Spent
from memory.errors import MemoryUnavailable
from orchestrator.context import RunContext
from orchestrator.degradation import failure, limited
from orchestrator.errors import BadResponseSchema, InvalidAnswer, ModelError, PromptTooLong
from orchestrator.limits import reached
from orchestrator.middleware.calls import Emitted, ModelCall
from orchestrator.middleware.errors import Stopped
from orchestrator.models.provider import ChatProvider, ResponseFormat
from orchestrator.models.turn import ReasoningDelta, Restart, TextDelta, Turn
from orchestrator.prompt import delegate_schema, recalled_fields, recalled_line, system_prompt
from orchestrator.state import Answer, Call, GraphState
from orchestrator.structured import MOST_REPAIRS, AnswerSchema, correction

log = structlog.get_logger(__name__)


class _Spent(Exception):
    """What was left of a limit went into the summary of what has to go from the context."""


async def think(state: GraphState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """One model call."""
    context = runtime.context
    started = time.perf_counter()
    step_id = context.enter(state, "THINK")
    recalled = state["recalled"]
    if recalled is None:
        recalled = await _recall(context, state)
    limit = reached(context, step_id)
    if limit is None:
        try:
            async with asyncio.timeout(context.budget.left("max_seconds")) as clock:
                changed = await _ask(context, state, recalled)
        except _Spent:
            limit = reached(context, step_id)
        except TimeoutError:
            if not clock.expired():
                raise
            context.log.discard_open(context.path)
            limit = reached(context, step_id, "time_limit")
    if limit is not None:
        changed = limited(context, state, limit)
    context.leave(step_id, "THINK", time.perf_counter() - started)
    if state.get("drafts"):
        changed = {"drafts": [], **changed}  # a run that needs no correction has nothing of it in its checkpoints
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
        shown = [recalled_fields(item) for item in items]
        context.log.say("memory_recalled", context.named({"items": shown}), urgent=False)
    return [recalled_line(item) for item in items]


async def _ask(context: RunContext, state: GraphState, recalled: list[str]) -> dict[str, Any]:
    try:
        schema = None if context.actor.response_schema is None else AnswerSchema(context.actor.response_schema)
        turn, message_id = await _stream(context, state, recalled, schema)
        _spend(context, turn)
        if schema is None or _asks_for_tools(turn):
            return _taken(context, state, turn, message_id)
        return _fitted(context, state, turn, message_id, schema)
    except (ModelError, PromptTooLong, InvalidAnswer, BadResponseSchema, Stopped) as error:
        context.log.discard_open(context.path)
        return {
            "calls": [],
            "delegations": [],
            "failure": failure(context, error, retryable=isinstance(error, ModelError) and error.retryable),
        }


def _fitted(
    context: RunContext, state: GraphState, turn: Turn, message_id: str, schema: AnswerSchema
) -> dict[str, Any]:
    """What a text leads to that has to fit `schema`: an answer, or its correction.

    Raises:
        InvalidAnswer: it was to be corrected often enough.
    """
    read = schema.read(turn.message.text)
    if isinstance(read, str):
        if read != turn.message.text:  # it stood in a code fence: what was streamed is not what is answered
            context.log.discard_open(context.path)
        reason = turn.finish_reason or "stop"
        answer = Answer(message_id=message_id, text=read, finish_reason=reason, structured=True)
        return {"calls": [], "delegations": [], "answer": answer}
    context.log.discard_open(context.path)
    drafts = [*state.get("drafts", ()), read.draft()]
    if len(drafts) > MOST_REPAIRS:
        raise read.error(len(drafts), turn.finish_reason)
    return {"calls": [], "delegations": [], "drafts": drafts}


def _spend(context: RunContext, turn: Turn) -> None:
    usage = turn.usage
    cost = context.prices.cost(turn.model, usage.input_tokens, usage.output_tokens, usage.cached_tokens)
    context.budget.spend(Spent(1, usage.input_tokens, usage.output_tokens, cost))
    spent = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "cost": cost}
    context.log.conclude(context.path, "usage", context.named(spent | {"model": turn.model}))


def _taken(context: RunContext, state: GraphState, turn: Turn, message_id: str) -> dict[str, Any]:
    """What a turn leads to: an answer, or calls."""
    position = state["position"]
    calls = _calls(turn.message, position + 1)
    if not calls:
        reason = turn.finish_reason or "stop"
        if reason == "length" and context.budget.left("max_tokens") == 0:
            reason = "token_limit"
        answer = Answer(message_id=message_id, text=turn.message.text, finish_reason=reason)
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
) -> tuple[Turn, str]:
    """One model call: the turn, and the id of the message as which its text was streamed."""
    actor = context.actor
    request = context.run.request
    system = system_prompt(actor.instructions, request.get("variables") or {}, recalled, actor.kit.sections)
    tools = actor.kit.schemas
    if actor.sub_agents and context.depth < context.max_depth:
        tools = [*tools, delegate_schema(actor.sub_agents)]
    corrections = [message for draft in state.get("drafts", ()) for message in correction(draft)]
    told = await context.window.tell(context, system, state["position"], tools, corrections)
    if told.spent and context.budget.exhausted() is not None:
        raise _Spent
    messages, tools = told.messages, told.tools
    choice = _within_budget(context, actor.model)
    chat = await context.models.choose(choice, context.vault)
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
        model = choice.model_copy(update={"name": call.model}) if call.model != named else choice
        chosen = chat if model is choice else await context.models.choose(model, context.vault)
        return await _read(chosen, call.messages, call.tools, response_format, call.emit)

    named = actor.model.name or context.models.default
    turn = await layers.ask_model(ask, path=context.path, model=named, messages=messages, tools=tools, emit=emit)
    return turn, message_id


def _within_budget(context: RunContext, choice: ModelChoice) -> ModelChoice:
    """The model, with no longer answer than there are tokens left."""
    left = context.budget.left("max_tokens")
    if left is None:
        return choice
    return choice.model_copy(update={"max_tokens": min(choice.max_tokens or int(left), max(int(left), 1))})


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
