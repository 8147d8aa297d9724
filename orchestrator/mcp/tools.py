"""A server's tools as tools of ours, and the one that stands in for them while the server can't be reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import structlog

from kernel.effects import EffectClass
from kernel.json_schema import SchemaError
from kernel.tool_definitions import McpServer
from orchestrator.mcp.listing import ListedTool
from orchestrator.mcp.names import names
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.results import as_text
from orchestrator.tools.tool import Arguments, JSONValue, SchemaTool, Tool, ToolContext

log = structlog.get_logger(__name__)

_MOST: Final = 128


class Calls(Protocol):
    """Where the tools of one server are called."""

    async def call(
        self, tool: str, arguments: Mapping[str, Any], *, effect: EffectClass, key: str, seconds: float
    ) -> JSONValue:
        """The result of a call.

        Raises:
            ToolFailure: there is none.
        """

    @property
    def spare(self) -> float:
        """Seconds that a call may take beyond its own, for the session to be opened."""


class McpTool(SchemaTool):
    """One tool of a server. Holds nothing of a run, so that all runs with the same definition share it.

    Raises:
        SchemaError: what the server says it takes is no usable schema.
    """

    retries = 1

    def __init__(self, name: str, listed: ListedTool, definition: McpServer, calls: Calls) -> None:
        if listed.schema.get("type") != "object":
            raise SchemaError('must have "type": "object" at its top')
        super().__init__(listed.schema)
        self.name = name
        self.description = listed.description
        self.effect = definition.effects.get(listed.name, listed.hinted)
        self.timeout = definition.timeout + calls.spare
        self.max_result_bytes = definition.max_result_bytes
        self._listed = listed
        self._seconds = definition.timeout
        self._calls = calls

    async def run(self, arguments: Mapping[str, Any], context: ToolContext) -> JSONValue:
        return await self._calls.call(
            self._listed.name,
            arguments,
            effect=self.effect,
            key=context.idempotency_key,
            seconds=self._seconds,
        )


class Unavailable(Tool[Arguments]):
    """Says why the tools of a server are not there."""

    arguments = Arguments
    effect = "read"

    def __init__(self, definition: McpServer, why: str) -> None:
        self.name = f"{definition.name[:52]}_unavailable"
        self.description = (
            f"The tools of the MCP server {definition.name!r} can't be used at the moment. {why} "
            "Go on without them, and say so where it matters. Calling this only repeats it."
        )[:2_000]
        self._why = why

    async def run(self, arguments: Arguments, context: ToolContext) -> JSONValue:
        raise ToolFailure(f"{self._why} Go on without its tools.")


def tools_of(
    definition: McpServer, listed: Sequence[ListedTool], calls: Calls, redact: Callable[[str], str]
) -> list[Tool[Any]]:
    """The tools that the definition lets through. Those that can't be used are left out, with a line in the log, and
    so are those that tell what `redact` strikes out: a server may echo the credential that it was sent."""
    wanted = listed if definition.tools is None else [tool for tool in listed if tool.name in definition.tools]
    unique = list({tool.name: tool for tool in wanted}.values())[:_MOST]
    if missing := sorted(set(definition.tools or ()) - {tool.name for tool in listed}):
        log.warning("mcp_tools_not_there", server=definition.name, tools=missing)
    if len(unique) < len(wanted):
        log.warning("mcp_tools_left_out", server=definition.name, kept=len(unique), of=len(wanted))
    tools: list[Tool[Any]] = []
    for tool, name in zip(unique, names(definition.name, [tool.name for tool in unique]), strict=True):
        told = as_text([tool.name, tool.description, tool.schema])
        try:
            if redact(told) != told:
                raise SchemaError("tells a secret")
            tools.append(McpTool(name, tool, definition, calls))
        except SchemaError as error:
            log.warning("mcp_tool_left_out", server=definition.name, tool=redact(tool.name)[:128], error=str(error))
    return tools
