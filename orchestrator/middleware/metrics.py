"""`metrics`: how many runs, model calls and tool calls there were, how they ended, and how long they took."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from orchestrator.host import PluginHost
from orchestrator.measures import Measured
from orchestrator.middleware.calls import ModelCall, RunCall, RunOutcome, ToolCall
from orchestrator.middleware.middleware import Middleware, ModelNext, RunNext, ToolNext
from orchestrator.models.turn import Turn
from orchestrator.tools.toolbox import ToolOutcome

R = TypeVar("R")


class Metrics(Middleware):
    """`/metrics` shows them as `longhaul_run_attempts`, `longhaul_model_calls`, `longhaul_tool_calls` and their
    `…_seconds`."""

    def __init__(self, host: PluginHost) -> None:
        self._measures = host.measures

    async def around_run(self, call: RunCall, call_next: RunNext) -> RunOutcome:
        return await self._measured("runs", call.workflow, call_next(call), lambda outcome: outcome.status)

    async def around_model(self, call: ModelCall, call_next: ModelNext) -> Turn:
        return await self._measured("models", call.model, call_next(call), lambda _: "ok")

    async def around_tool(self, call: ToolCall, call_next: ToolNext) -> ToolOutcome:
        return await self._measured("tools", call.name, call_next(call), lambda outcome: outcome.status)

    async def _measured(self, what: Measured, name: str, work: Awaitable[R], how: Callable[[R], str]) -> R:
        started = time.perf_counter()
        outcome = "stopped"  # by something outside
        try:
            given = await work
            outcome = how(given)
            return given
        except Exception as error:
            outcome = str(getattr(error, "code", "stopped"))
            raise
        finally:
            self._measures.count(what, name, outcome, time.perf_counter() - started)
