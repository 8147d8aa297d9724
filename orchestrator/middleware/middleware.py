"""The base of all layers. One instance serves all runs of a worker at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from orchestrator.middleware.calls import ModelCall, RunCall, RunOutcome, ToolCall
from orchestrator.models.turn import Turn
from orchestrator.tools.toolbox import ToolOutcome

RunNext: TypeAlias = Callable[[RunCall], Awaitable[RunOutcome]]
ModelNext: TypeAlias = Callable[[ModelCall], Awaitable[Turn]]
ToolNext: TypeAlias = Callable[[ToolCall], Awaitable[ToolOutcome]]


class Middleware:
    """Override what you need; what you don't costs nothing.

    Each method gets a call and `call_next`, which passes it on inwards and gives the outcome. A method may pass on
    another call, give another outcome, give one without passing the call on, or raise `Refused`. Any other exception
    of its own is a bug: the run fails with `middleware_failed`, or the model is told that its tool call failed.

    What stops a run from outside (it is cancelled or paused, or its worker has lost it) goes through all layers as an
    exception of `call_next`. Tidy up with `try … finally`; it can't be swallowed.
    """

    async def around_run(self, call: RunCall, call_next: RunNext) -> RunOutcome:
        """Around one attempt of a run, which may last for hours. `call_next` works once, and returns when the answer
        has been said: another outcome changes what outer layers see, not the answer."""
        return await call_next(call)

    async def around_model(self, call: ModelCall, call_next: ModelNext) -> Turn:
        """Around one call of a model; `call_next` may be called again as long as nothing was emitted.

        Raises (from `call_next`):
            ModelError: the model gave no complete answer.
        """
        return await call_next(call)

    async def around_tool(self, call: ToolCall, call_next: ToolNext) -> ToolOutcome:
        """Around one call of a tool; for one of the effect `once`, `call_next` works once."""
        return await call_next(call)

    async def aclose(self) -> None:
        """Called when the worker stops, after its last run."""
