"""ACT: makes the tool calls the model asked for, side by side.

Each call ends in a result for the model, whatever happens: the toolbox sees to timeouts, retries and caps. That a
call which changes something outside was let loose is committed before it is; a call whose outcome was lost with an
earlier owner of the run is made again only if that does no harm.

A call that somebody has to approve, or to answer, is asked about at once and not made. The others are; then, if
something is still open, the state stops, to be entered again when it is decided. Calls that are done are left out then.
What people and callers send is struck of the run's secrets like what tools return: it may be what a service has said.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson
from langgraph.runtime import Runtime
from pydantic import BaseModel

from kernel.approval_policy import ApprovalPolicy
from kernel.approvals import Decision
from kernel.errors import StoreUnavailable
from orchestrator.approvals import Ask
from orchestrator.brake import Waits
from orchestrator.context import RunContext
from orchestrator.ledger import LedgerEntry, side_by_side, unfinished
from orchestrator.state import GraphState
from orchestrator.tools.deferred import DeferredTool
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.results import as_text, clip
from orchestrator.tools.toolbox import CheckedCall, ToolOutcome
from orchestrator.window.references import OPEN_RESULT


async def act(state: GraphState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """All calls of one answer."""
    context = runtime.context
    started = time.perf_counter()
    step_id = context.enter(state, "ACT")
    await side_by_side(_call(context, entry) for entry in unfinished(context, step_id, state["calls"]))
    context.leave(step_id, "ACT", time.perf_counter() - started)
    return {}


async def _call(context: RunContext, entry: LedgerEntry) -> None:
    call, kit = entry.call, context.actor.kit
    arguments = call["arguments"]
    checked = kit.toolbox.check(call["name"], arguments, allowed=kit.allowed(call["name"]))
    context.budget.called(wrongly=isinstance(checked, ToolOutcome))
    effect = "read" if isinstance(checked, ToolOutcome) else checked.effect
    if entry.earlier is not None and "once" in (entry.earlier.effect, effect):
        entry.report("unknown", _LOST)
        return
    preface, approved, shown = "", False, arguments
    if isinstance(checked, CheckedCall) and (policy := _policy(context, checked, arguments)) is not None:
        decision = await _struck(context, _decided(context, entry, checked, policy))
        if decision.status != "approved":
            entry.report("denied", _refusal(decision))
            return
        if decision.arguments is not None:
            arguments, shown = decision.arguments, _struck_value(context, decision.arguments)
            checked = kit.toolbox.check(call["name"], arguments, allowed=kit.allowed(call["name"]))
        preface, approved = _preface(context, decision), True
    if isinstance(checked, CheckedCall) and isinstance(checked.tool, DeferredTool):
        await _await_answer(context, entry, checked, arguments, preface)
        return
    _say_start(context, entry, shown)
    if isinstance(checked, ToolOutcome):
        entry.report(checked.status, preface + checked.result)
        return
    # From before its row is written: a call that was never let loose must not look like one whose outcome is lost.
    with context.brake.unrepeatable() if effect == "once" else nullcontext():
        entry.begin(effect)
        if effect != "read" or checked.tool.name == OPEN_RESULT:  # what it opens must have been committed, too
            await context.log.committed()
        outcome = await _made(context, entry, checked, arguments, approved=approved)
        entry.report(outcome.status, preface + outcome.result, duration_ms=outcome.duration_ms)


async def _made(
    context: RunContext, entry: LedgerEntry, checked: CheckedCall, arguments: Any, *, approved: bool
) -> ToolOutcome:
    """The call, cut short where the run's time for work is over."""

    def may_become(changed: CheckedCall, given: Mapping[str, Any]) -> bool:
        return approved or _policy(context, changed, given) is None

    kit, about = context.actor.kit, context.tool_context(entry.step_id, entry.call["id"])
    started = time.perf_counter()
    try:
        async with asyncio.timeout(context.budget.left("max_seconds")) as clock:
            if (layers := context.layers) is None:
                return await kit.toolbox.make(checked, about)
            return await layers.call_tool(kit, checked, arguments, about, path=context.path, may_become=may_become)
    except TimeoutError:
        if not clock.expired():
            raise
    status: Literal["error", "unknown"] = "unknown" if checked.effect == "once" else "error"
    return ToolOutcome(status, _OUT_OF_TIME, round((time.perf_counter() - started) * 1000))


_OUT_OF_TIME = "The run's time for work was over, so this call was cut short."


def _say_start(context: RunContext, entry: LedgerEntry, arguments: Any) -> None:
    about = {"call_id": entry.call["id"], "name": entry.call["name"], "arguments": arguments}
    context.log.say("tool_start", context.named(about))


# -- approval ----------------------------------------------------------------------------------------------------------


def _policy(context: RunContext, checked: CheckedCall, arguments: Any) -> ApprovalPolicy | None:
    """The policy by which this call needs approval; None if it needs none. A question asks a person anyway."""
    policies = context.actor.approvals
    if not policies or (isinstance(checked.tool, DeferredTool) and checked.tool.kind == "question"):
        return None
    others = None if checked.tool.name == OPEN_RESULT else policies.get("*")  # it only reads what was told already
    policy = policies.get(checked.tool.name) or others
    if policy is None or not any(policy.asks(reading) for reading in _readings(checked, arguments)):
        return None
    return policy


def _readings(checked: CheckedCall, arguments: Any) -> Iterator[Any]:
    """The arguments as the model wrote them, and as the tool takes them. A condition that either fits asks: else
    "500" would slip past one about numbers, and what is left out past one about its default."""
    given = _given(arguments)
    yield given
    taken = checked.arguments
    if isinstance(taken, BaseModel):
        yield taken.model_dump(mode="json", by_alias=True, exclude_unset=True, fallback=str)
        yield taken.model_dump(mode="json", by_alias=True, exclude_none=True, fallback=str)
    elif isinstance(given, Mapping):
        properties = checked.tool.parameters().get("properties")
        about = properties.items() if isinstance(properties, Mapping) else ()
        defaults = {name: one["default"] for name, one in about if isinstance(one, Mapping) and "default" in one}
        if not defaults.keys() <= given.keys():
            yield {**defaults, **given}


def _given(arguments: Any) -> Any:
    """Checked arguments as JSON: a model that has nothing to say may have written an empty text."""
    return arguments if isinstance(arguments, Mapping) else orjson.loads(arguments.strip() or "{}")


def _decided(context: RunContext, entry: LedgerEntry, checked: CheckedCall, policy: ApprovalPolicy) -> Decision:
    """What became of the approval of a call.

    Raises:
        Waits: nothing yet.
    """
    decision = context.approvals.decision(entry.step_id, entry.call["id"], "tool")
    if decision is None:
        context.approvals.ask(
            Ask(
                entry.step_id,
                entry.call["id"],
                context.path,
                "tool",
                entry.call["name"],
                _given(entry.call["arguments"]),
                prompt=policy.prompt or f"{context.actor.name} wants to call {entry.call['name']}.",
                schema=checked.tool.parameters(),
                approvers=policy.approvers,
                **_terms(policy),
            )
        )
        raise Waits
    return decision


def _terms(policy: ApprovalPolicy) -> dict[str, Any]:
    """Who may decide, until when, and what then."""
    terms: dict[str, Any] = {
        "role": policy.role,
        "expires_seconds": policy.expires_seconds,
        "on_expiry": policy.on_expiry,
    }
    if policy.escalate is not None:
        terms |= {"escalate_seconds": policy.escalate.after_seconds, "escalate_role": policy.escalate.role}
    return terms


def _preface(context: RunContext, decision: Decision) -> str:
    """What the model is told before the result of a call that was approved."""
    lines = []
    if decision.arguments is not None:
        shown = clip(context.vault.redact(orjson.dumps(decision.arguments).decode()), _MOST_SHOWN)
        lines.append(f"A person changed the arguments of this call before it was made. It was made with: {shown}")
    if decision.comment:
        lines.append(f"The person who approved this call said: {decision.comment}")
    return "".join(f"{line}\n" for line in lines)


def _refusal(decision: Decision) -> str:
    if decision.status == "expired":
        return "Nobody approved this call in time, so it was not made. Go on without it, or say what you need it for."
    why = f" The reason: {decision.comment}" if decision.comment else ""
    return f"A person refused this call, so it was not made.{why} Do not call it again with the same arguments."


async def _struck(context: RunContext, decision: Decision) -> Decision:
    """A decision without the run's secrets in its texts. Its arguments and its answer are struck where they are shown.

    Raises:
        StoreUnavailable: the secrets can't be read; the decision is still there when the run goes on.
    """
    try:
        await context.vault.ready()
    except ToolFailure as failure:
        raise StoreUnavailable(failure.message) from None
    strike = context.vault.redact
    return replace(
        decision,
        comment=decision.comment and strike(decision.comment),
        error=decision.error and strike(decision.error),
    )


def _struck_value(context: RunContext, value: Any) -> Any:
    match value:
        case str():
            return context.vault.redact(value)
        case dict():
            return {_struck_value(context, key): _struck_value(context, item) for key, item in value.items()}
        case list():
            return [_struck_value(context, item) for item in value]
    return value


# -- answers from outside ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Words:
    """What the model is told when there is no answer; `denied` and `expired` with the statuses of such results."""

    denied: str
    expired: str


_WORDS: Mapping[str, _Words] = {
    "question": _Words(
        "The person who was asked does not want to answer.",
        "Nobody answered in time. Go on without an answer, and say what you have assumed.",
    ),
    "client_tool": _Words(
        "The caller refused this call.",
        "The caller did not post a result in time: it may or may not have been done. Find out before you do it again.",
    ),
}


async def _await_answer(
    context: RunContext, entry: LedgerEntry, checked: CheckedCall, arguments: Any, preface: str
) -> None:
    """Reports the answer.

    Raises:
        Waits: there is none yet.
    """
    tool = checked.tool
    assert isinstance(tool, DeferredTool)
    key = entry.step_id, entry.call["id"], tool.kind
    decision = context.approvals.decision(*key)
    if decision is None:
        if not context.approvals.asked(*key):
            _say_start(context, entry, _struck_value(context, arguments))
        context.approvals.ask(_question(context, entry, checked, arguments))
        raise Waits
    decision = await _struck(context, decision)
    entry.effect = tool.effect
    words = _WORDS[tool.kind]
    if decision.status == "answered" and decision.error is None:
        answer = context.vault.redact(as_text(decision.answer))
        entry.report("ok", preface + clip(answer, tool.max_result_bytes), starts=1)
    elif decision.status == "answered":
        entry.report("error", preface + clip(str(decision.error), tool.max_result_bytes), starts=1)
    elif decision.status == "denied":
        entry.report(
            "denied", preface + words.denied + (f" The reason: {decision.comment}" if decision.comment else "")
        )
    else:
        entry.report("unknown" if tool.effect == "once" else "error", preface + words.expired, starts=1)


def _question(context: RunContext, entry: LedgerEntry, checked: CheckedCall, arguments: Any) -> Ask:
    tool = checked.tool
    assert isinstance(tool, DeferredTool)
    wanted = tool.wanted(checked.arguments)
    policy = context.actor.approvals.get(tool.name) if tool.kind == "question" else None
    terms = {"expires_seconds": wanted.expires_seconds} if policy is None else _terms(policy)
    return Ask(
        entry.step_id,
        entry.call["id"],
        context.path,
        tool.kind,
        tool.name,
        _given(arguments),
        prompt=wanted.prompt,
        schema=wanted.schema,
        max_bytes=wanted.max_bytes,
        **terms,
    )


_MOST_SHOWN = 4_096
_LOST = (
    "The process that made this call died before it could tell the outcome: it may or may not have been done, and "
    "nobody can tell. It was not made again. Find out whether it was done before you do it again."
)
