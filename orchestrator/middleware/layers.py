"""The layers around the calls of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from langchain_core.messages import BaseMessage

from orchestrator.kit import Kit
from orchestrator.middleware.calls import Emitted, ModelCall, RunCall, ToolCall
from orchestrator.middleware.chain import Chain
from orchestrator.middleware.middleware import ModelNext
from orchestrator.models.turn import Turn
from orchestrator.tools.tool import ToolContext
from orchestrator.tools.toolbox import CheckedCall, ToolOutcome


@dataclass(frozen=True, slots=True)
class Layers:
    """`run` is the run as its innermost layer saw it."""

    chain: Chain
    run: RunCall

    async def ask_model(
        self,
        ask: ModelNext,
        *,
        path: str,
        model: str,
        messages: Sequence[BaseMessage],
        tools: Sequence[dict[str, Any]],
        emit: Callable[[Emitted], None],
    ) -> Turn:
        """What `ask` gives, through all layers."""
        return await self.chain.around_model(ask)(ModelCall(self.run, path, model, messages, tools, emit))

    async def call_tool(
        self,
        kit: Kit,
        checked: CheckedCall,
        arguments: Mapping[str, Any] | str,
        context: ToolContext,
        *,
        path: str,
        may_become: Callable[[CheckedCall, Mapping[str, Any]], bool],
    ) -> ToolOutcome:
        """What the tool gives, through all layers. `arguments` are those that were checked, as they were given;
        `may_become` says whether a layer may put others in their place."""
        given = arguments if isinstance(arguments, Mapping) else orjson.loads(arguments.strip() or "{}")

        async def make(call: ToolCall) -> ToolOutcome:
            if call.arguments is given:
                return await kit.toolbox.make(checked, context)
            again = kit.toolbox.check(checked.tool.name, call.arguments, allowed=kit.allowed(checked.tool.name))
            if isinstance(again, ToolOutcome):
                return again
            if not may_become(again, call.arguments):
                return ToolOutcome("denied", _NEEDS_APPROVAL, 0)
            return await kit.toolbox.make(again, context)

        call = ToolCall(self.run, path, checked.tool.name, checked.effect, given, context)
        return await self.chain.around_tool(make)(call)


_NEEDS_APPROVAL = (
    "This deployment changed the arguments of this call into some that a person has to approve, so it was not made. "
    "Go on without it."
)
