"""Tools that the caller runs itself: the run waits until their results are posted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kernel.tool_definitions import ClientTool
from orchestrator.kit import KitScope
from orchestrator.tools.deferred import DeferredTool, Wanted
from orchestrator.tools.tool import SchemaTool, Tool


class CallerTool(DeferredTool[Mapping[str, Any]], SchemaTool):
    """One such tool, as its definition says."""

    effect = "once"
    kind: Literal["question", "client_tool"] = "client_tool"

    def __init__(self, definition: ClientTool) -> None:
        super().__init__(definition.parameter_schema)
        self.name = definition.name
        self.description = definition.description
        self.max_result_bytes = definition.max_result_bytes
        self._result_schema = definition.result_schema
        self._expires_seconds = definition.expires_seconds

    def wanted(self, arguments: Mapping[str, Any]) -> Wanted:
        return Wanted("", self._result_schema, self.max_result_bytes, self._expires_seconds)


async def make_client_tools(definition: ClientTool, scope: KitScope) -> Sequence[Tool[Any]]:
    """The tool of one definition."""
    return [CallerTool(definition)]
