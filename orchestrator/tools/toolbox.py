"""The toolbox: all tools of a process, and the only way to call one.

A call never raises, except when the caller itself is cancelled: whatever goes wrong becomes an outcome with words
that let the model go on. What always holds: a tool runs only if it is allowed and its arguments are valid; one
attempt takes no longer than the tool's timeout; a tool whose effect is `once` is not started again after the
outside may have seen it; a result fits its cap and can be stored; no secret that the run's tools name is in it.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
import traceback
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
import structlog

from kernel.effects import DELEGATE, EffectClass
from orchestrator.tools.errors import ToolFailure, UnknownTool
from orchestrator.tools.results import clean, clip, render
from orchestrator.tools.tool import BadArguments, SchemaTool, Tool, ToolContext

log = structlog.get_logger(__name__)

Status = Literal["ok", "error", "denied", "unknown"]

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BACKOFF_FIRST: Final = 0.25
_BACKOFF_LONGEST: Final = 8.0
_PROBLEMS_SHOWN: Final = 10
_ERROR_BYTES: Final = 16_384
_LAST_WORDS_SECONDS: Final = 2.0
"""How long a tool that was cancelled may take to clean up before it is left to itself."""


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """How a call ended.

    `ok`: done. `error`: not done, and `result` says why. `denied`: this agent may not call the tool.
    `unknown`: nobody can tell whether it was done, and it must not be done twice.
    `result` is text for the model, JSON unless the tool returned plain text. `duration_ms` covers all attempts.
    """

    status: Status
    result: str
    duration_ms: int


@dataclass(frozen=True, slots=True)
class CheckedCall:
    """A call that may be made: its tool is allowed and its arguments are valid. What `Toolbox.check` gives."""

    tool: Tool[Any]
    arguments: Any

    @property
    def effect(self) -> EffectClass:
        return self.tool.effect


@dataclass(frozen=True, slots=True)
class _Attempt:
    status: Status
    result: str
    again: bool = False


class Toolbox:
    """Holds tools by name; safe for any number of calls at once.

    Args:
        tools: names must differ.
        sleep: waits between two attempts; given by tests that watch it.

    Raises:
        ValueError: two tools of one name, a name that models can't call, arguments that take unknown fields, a
            cap that holds no result.
    """

    def __init__(
        self, tools: Iterable[Tool[Any]], *, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    ) -> None:
        self._tools: dict[str, Tool[Any]] = {}
        self._schemas: dict[str, dict[str, Any]] = {}
        self._sleep = sleep
        self._stuck: set[asyncio.Task[Any]] = set()
        for tool in tools:
            self._add(tool)

    def _add(self, tool: Tool[Any]) -> None:
        if not _NAME.fullmatch(tool.name):
            raise ValueError(f"tool name {tool.name!r}: 1 to 64 of letters, digits, _ and -")
        if tool.name == DELEGATE:
            raise ValueError(f"no tool may be named {DELEGATE!r}: that is how models hand over tasks")
        if tool.name in self._tools:
            raise ValueError(f"two tools are named {tool.name!r}")
        if not isinstance(tool, SchemaTool) and tool.arguments.model_config.get("extra") != "forbid":
            raise ValueError(f"tool {tool.name!r}: its arguments must forbid unknown fields")
        if tool.max_result_bytes < 256:
            raise ValueError(f"tool {tool.name!r}: max_result_bytes must be at least 256")
        self._tools[tool.name] = tool
        # Made once: generating a schema takes longer than everything else that precedes a model call.
        function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters()}
        self._schemas[tool.name] = {"type": "function", "function": function}

    def joined(self, tools: Iterable[Tool[Any]]) -> Toolbox:
        """This toolbox with some tools more, for one agent. Closing it closes nothing: these tools hold nothing.

        Raises:
            ValueError: as for the constructor.
        """
        box = _Joined((), sleep=self._sleep)
        box._stuck = self._stuck
        box._tools.update(self._tools)
        box._schemas.update(self._schemas)
        for tool in tools:
            box._add(tool)
        return box

    @property
    def names(self) -> tuple[str, ...]:
        """All tools there are, in the order they were given."""
        return tuple(self._tools)

    def tool(self, name: str) -> Tool[Any]:
        """The tool itself, for its effect class and limits.

        Raises:
            UnknownTool: there is none of this name.
        """
        if name not in self._tools:
            raise self._unknown([name])
        return self._tools[name]

    def schemas(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The named tools in OpenAI function-tool format. The dicts are shared: do not change them.

        Raises:
            UnknownTool: lists every name that is not there.
        """
        missing = [name for name in names if name not in self._schemas]
        if missing:
            raise self._unknown(missing)
        return [self._schemas[name] for name in names]

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any] | str,
        context: ToolContext,
        *,
        allowed: Collection[str],
    ) -> ToolOutcome:
        """Checks a call and makes it."""
        checked = self.check(name, arguments, allowed=allowed)
        return checked if isinstance(checked, ToolOutcome) else await self.make(checked, context)

    def check(
        self, name: str, arguments: Mapping[str, Any] | str, *, allowed: Collection[str]
    ) -> CheckedCall | ToolOutcome:
        """A call that may be made, or why it may not. `arguments` may be the raw text that a model wrote."""
        tool = self._tools.get(name)
        if tool is None or name not in allowed:
            usable = ", ".join(known for known in self._tools if known in allowed) or "none"
            shown = clean(name[:64])
            if tool is None:
                return ToolOutcome("error", f"There is no tool named {shown!r}. The tools there are: {usable}.", 0)
            return ToolOutcome("denied", f"The tool {shown!r} is not allowed here. Allowed: {usable}.", 0)
        try:
            return CheckedCall(tool, _validated(tool, arguments))
        except _WrongCall as wrong:
            return ToolOutcome("error", clip(clean(str(wrong)), _ERROR_BYTES), 0)

    async def make(self, call: CheckedCall, context: ToolContext) -> ToolOutcome:
        """Runs the tool, more than once where that is allowed and may help."""
        started = time.perf_counter()
        ended = await self._make(call.tool, call.arguments, context)
        return ToolOutcome(ended.status, ended.result, round((time.perf_counter() - started) * 1000))

    async def aclose(self) -> None:
        """Closes every tool; one that fails to close is logged and keeps no other from closing."""
        for tool in self._tools.values():
            try:
                await tool.aclose()
            except Exception:
                log.exception("tool_close_failed", tool=tool.name)

    async def _make(self, tool: Tool[Any], arguments: Any, context: ToolContext) -> _Attempt:
        for attempt in range(tool.retries + 1):
            ended = await self._attempt(tool, arguments, context)
            if not ended.again:
                return ended
            if attempt < tool.retries:
                await self._sleep(_backoff(attempt))
        if tool.retries:
            return _Attempt(ended.status, f"{ended.result}\n(tried {tool.retries + 1} times)")
        return ended

    async def _attempt(self, tool: Tool[Any], arguments: Any, context: ToolContext) -> _Attempt:
        once = tool.effect == "once"
        try:
            await context.vault.ready()
            value = await self._within(tool, tool.run(arguments, context), context)
            return _Attempt("ok", render(value, tool.max_result_bytes, context.vault.redact))
        except ToolFailure as failure:
            return _failed(failure, context, once=once)
        except _TimedOut:
            text = f"The tool {tool.name!r} did not answer within {tool.timeout:g} s."
            return _Attempt("unknown", f"{text} {_MAYBE_DONE}") if once else _Attempt("error", text, True)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Something inside the tool was cancelled, not this call: a bug like any other.
            _log_broken(tool, context)
        except Exception:
            _log_broken(tool, context)
        text = f"The tool {tool.name!r} broke because of a fault of its own."
        if once:
            return _Attempt("unknown", f"{text} {_MAYBE_DONE}")
        return _Attempt("error", f"{text} Go on without it, or try other arguments.")

    async def _within(self, tool: Tool[Any], running: Coroutine[Any, Any, Any], context: ToolContext) -> Any:
        """What the tool returns within its time. In a task of its own, so that a tool that won't be cancelled holds
        nobody up: it is left to itself.

        Raises:
            _TimedOut: it took longer.
        """
        task = asyncio.create_task(_contained(running), name=f"tool {tool.name}")
        try:
            await asyncio.wait((task,), timeout=tool.timeout)
            if task.done():
                return task.result()
            await self._cancel(task, tool, context)
        except asyncio.CancelledError:
            if not task.done():
                await self._cancel(task, tool, context)
            raise
        raise _TimedOut

    async def _cancel(self, task: asyncio.Task[Any], tool: Tool[Any], context: ToolContext) -> None:
        task.cancel()
        await asyncio.wait((task,), timeout=_LAST_WORDS_SECONDS)
        if not task.done():
            log.error("tool_stuck", **_names(tool, context))
            self._stuck.add(task)
            task.add_done_callback(self._stuck.discard)
        task.add_done_callback(_forget)

    def _unknown(self, names: Sequence[str]) -> UnknownTool:
        return UnknownTool(
            f"no such tools: {', '.join(names)}",
            suggestions=[f"use one of: {', '.join(self._tools) or 'none'}"],
        )


class _Joined(Toolbox):
    """The tools that it was joined from are another's to close."""

    async def aclose(self) -> None:
        return


class _TimedOut(Exception):
    """A tool took longer than it may."""


async def _contained(running: Coroutine[Any, Any, Any]) -> Any:
    """A tool that calls sys.exit() must not take the worker with it."""
    try:
        return await running
    except SystemExit as exit:
        raise RuntimeError("the tool wanted to end the process") from exit


def _forget(task: asyncio.Task[Any]) -> None:
    """Nobody asks any more how it ended."""
    if not task.cancelled():
        task.exception()


_MAYBE_DONE: Final = "It may or may not have been done. Do not call it again for the same purpose; find out first."


class _WrongCall(Exception):
    """The model called a tool wrongly. The text tells it how to correct itself."""


def _validated(tool: Tool[Any], raw: Mapping[str, Any] | str) -> Any:
    """The arguments as the tool wants them. A model that has nothing to say writes an empty text."""
    given: object = raw
    if isinstance(raw, str):
        try:
            given = orjson.loads(raw) if raw.strip() else {}
        except ValueError as error:
            raise _WrongCall(
                f"The arguments of {tool.name!r} are not valid JSON ({error}). "
                f"Call it again with one JSON object: {_expected(tool)}."
            ) from None
    if not isinstance(given, Mapping):
        raise _WrongCall(f"The arguments of {tool.name!r} must be one JSON object: {_expected(tool)}.") from None
    try:
        return tool.parse(given)
    except BadArguments as error:
        lines = [f"- {line}" for line in error.lines[:_PROBLEMS_SHOWN]]
        if len(error.lines) > _PROBLEMS_SHOWN:
            lines.append(f"- and {len(error.lines) - _PROBLEMS_SHOWN} more")
        raise _WrongCall(
            f"The arguments of {tool.name!r} are not valid:\n" + "\n".join(lines) + "\n"
            f"Expected: {_expected(tool)}. Correct them and call again."
        ) from None


def _expected(tool: Tool[Any]) -> str:
    schema = tool.parameters()
    fields, required = schema.get("properties") or {}, schema.get("required") or ()
    if not fields:
        return "{} (no fields)"
    return ", ".join(f"{name} ({'required' if name in required else 'optional'})" for name in fields)


def _failed(failure: ToolFailure, context: ToolContext, *, once: bool) -> _Attempt:
    text = clip(context.vault.redact(clean(failure.message)), _ERROR_BYTES)
    if not failure.retryable:
        return _Attempt("error", text)
    if once and failure.reached:
        return _Attempt("unknown", f"{text}\n{_MAYBE_DONE}")
    return _Attempt("error", text, again=True)


def _backoff(attempt: int) -> float:
    """Seconds before the next attempt: a random part of a doubling ceiling, so that calls that failed together
    do not come back together ("full jitter")."""
    ceiling = min(_BACKOFF_LONGEST, _BACKOFF_FIRST * 2**attempt)
    return random.uniform(0, ceiling)  # noqa: S311  # not a secret


def _log_broken(tool: Tool[Any], context: ToolContext) -> None:
    """Logs the exception at hand, without the secrets that its text may hold."""
    told = traceback.format_exc()
    struck = context.vault.redact(told)
    if struck == told:
        log.exception("tool_broke", **_names(tool, context))
    else:
        log.error("tool_broke", exception=struck, **_names(tool, context))


def _names(tool: Tool[Any], context: ToolContext) -> dict[str, str]:
    """What a log line may say about a call. Never its arguments."""
    return {"tool": tool.name, "org_id": context.org_id, "run_id": context.run_id, "call_id": context.call_id}
