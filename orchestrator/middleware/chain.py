"""The layers of a worker, put around its runs, model calls and tool calls.

A layer that breaks, swallows what stops a run, or gives something that is no outcome does no harm beyond the call
that it is around: it becomes an error that names it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

import structlog
from langgraph.errors import GraphBubbleUp

from kernel.errors import LeaseLost, StoreUnavailable
from kernel.postgres import UNAVAILABLE
from orchestrator.middleware.calls import Emitted, ModelCall, RunCall, RunOutcome, ToolCall
from orchestrator.middleware.errors import MiddlewareFailed, Refused, Stopped
from orchestrator.middleware.middleware import Middleware, ModelNext, RunNext, ToolNext
from orchestrator.models.turn import Turn
from orchestrator.tools.toolbox import ToolOutcome

log = structlog.get_logger(__name__)

C = TypeVar("C", RunCall, ModelCall, ToolCall)
R = TypeVar("R", RunOutcome, Turn, ToolOutcome)

# What stops a run short of its end. No layer may make an outcome of it.
_STOPS: Final = (asyncio.CancelledError, GraphBubbleUp, LeaseLost, StoreUnavailable, *UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class _Layer(Generic[C, R]):
    """One method of one middleware, and what must come out of it. `instead` makes an outcome of what it was stopped
    by, told whether the call had been passed on; without it the error goes on outwards."""

    name: str
    around: Callable[[C, Callable[[C], Awaitable[R]]], Awaitable[R]]
    gives: type[R]
    instead: Callable[[Stopped, C, bool], R] | None = None

    def put_around(self, inner: Callable[[C], Awaitable[R]]) -> Callable[[C], Awaitable[R]]:
        async def layered(call: C) -> R:
            raised: BaseException | None = None
            passed_on = False

            async def call_next(call: C) -> R:
                nonlocal raised, passed_on
                again, passed_on, raised = passed_on, True, None
                try:
                    return await inner(call)
                except BaseException as error:
                    if again and isinstance(error, _PassedOnTwice):
                        raise  # this layer's own fault
                    raised = error
                    raise

            try:
                outcome = await self.around(call, call_next)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if error is raised:
                    raise
                if isinstance(raised, _STOPS):
                    raise raised from None
                stopped = error if isinstance(error, Refused) else self._broke(error)
                if self.instead is None:
                    raise stopped from None
                return self.instead(stopped, call, passed_on)
            if isinstance(raised, _STOPS):
                raise raised
            if isinstance(outcome, self.gives):
                return outcome
            stopped = self._broke(TypeError(f"it gave {type(outcome).__name__} in place of {self.gives.__name__}"))
            if self.instead is None:
                raise stopped
            return self.instead(stopped, call, passed_on)

        return layered

    def _broke(self, error: Exception) -> MiddlewareFailed:
        log.error("middleware_failed", middleware=self.name, exc_info=error)
        return MiddlewareFailed(self.name)


class Chain:
    """All layers of a worker.

    Args:
        middleware: by name, the outermost first.
    """

    def __init__(self, middleware: Mapping[str, Middleware] | None = None) -> None:
        self._middleware = dict(middleware or {})
        self._runs = [_Layer(n, m.around_run, RunOutcome) for n, m in self._overriding("around_run")]
        self._models = [_Layer(n, m.around_model, Turn) for n, m in self._overriding("around_model")]
        self._tools = [_Layer(n, m.around_tool, ToolOutcome, _told) for n, m in self._overriding("around_tool")]

    @property
    def empty(self) -> bool:
        """Whether there is no layer around anything."""
        return not (self._runs or self._models or self._tools)

    def around_run(self, execute: RunNext) -> RunNext:
        """`execute` with all layers around it; itself if there are none."""
        if not self._runs:
            return execute
        wrapped = _once(execute, "a run")
        for layer in reversed(self._runs):
            wrapped = layer.put_around(wrapped)
        return wrapped

    def around_model(self, ask: ModelNext) -> ModelNext:
        """`ask` with all layers around it; itself if there are none."""
        if not self._models:
            return ask
        wrapped = _until_emitted(ask)
        for layer in reversed(self._models):
            wrapped = layer.put_around(wrapped)
        return wrapped

    def around_tool(self, make: ToolNext) -> ToolNext:
        """`make` with all layers around it; itself if there are none."""
        if not self._tools:
            return make
        once = _once(make, "a tool of the effect `once`")

        async def wrapped(call: ToolCall) -> ToolOutcome:
            return await (once if call.effect == "once" else make)(call)

        outermost: ToolNext = wrapped
        for layer in reversed(self._tools):
            outermost = layer.put_around(outermost)
        return outermost

    async def aclose(self) -> None:
        """Closes all, the innermost first; one that fails to close is logged and keeps no other from closing."""
        for name, middleware in reversed(self._middleware.items()):
            try:
                await middleware.aclose()
            except Exception:
                log.exception("middleware_close_failed", middleware=name)

    def _overriding(self, method: str) -> list[tuple[str, Middleware]]:
        own = getattr(Middleware, method)
        return [(name, m) for name, m in self._middleware.items() if getattr(type(m), method) is not own]


class _PassedOnTwice(Exception):
    """A layer passed on what can't be done a second time; a bug of that layer."""


def _once(inner: Callable[[C], Awaitable[R]], what: str) -> Callable[[C], Awaitable[R]]:
    called = False

    async def once(call: C) -> R:
        nonlocal called
        if called:
            raise _PassedOnTwice(f"{what} can't be passed on twice")
        called = True
        return await inner(call)

    return once


def _until_emitted(ask: ModelNext) -> ModelNext:
    emitted = False

    async def until_emitted(call: ModelCall) -> Turn:
        if emitted:
            raise _PassedOnTwice("a model call can't be passed on again once some of its answer was emitted")

        def emit(delta: Emitted) -> None:
            nonlocal emitted
            emitted = True
            call.emit(delta)

        return await ask(replace(call, emit=emit))

    return until_emitted


def _told(stopped: Stopped, call: ToolCall, passed_on: bool) -> ToolOutcome:
    """What the model is told of a tool call that a layer stopped."""
    if isinstance(stopped, Refused):
        told = " ".join([stopped.message, *(f"{suggestion}." for suggestion in stopped.suggestions)])
        return ToolOutcome("denied" if not passed_on else "error", told, 0)
    if not passed_on:
        return ToolOutcome("error", f"{stopped.message} The tool was not called.", 0)
    text = f"{stopped.message} The tool was called, but its result is lost."
    return ToolOutcome("unknown" if call.effect == "once" else "error", text, 0)
