"""The kit of one agent: all the tools that it may call in a run, and what its skills tell it.

It is put together when the agent starts: tools of the process by name, those that the agent or the caller defined, and
those of its skills. An agent that names only tools of the process costs nothing here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import structlog

from kernel.tool_definitions import McpServer, ToolDefinition, ToolEntry
from orchestrator.skills.skill import Skills
from orchestrator.tools.errors import BadKit
from orchestrator.tools.tool import Tool, Vault
from orchestrator.tools.toolbox import Toolbox
from orchestrator.window.references import OPEN_RESULT

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class KitScope:
    """For whom a kit is put together."""

    org_id: str
    session_id: str
    run_id: str
    vault: Vault


Maker: TypeAlias = Callable[[Any, KitScope], Awaitable[Sequence[Tool[Any]]]]
"""Makes the tools of one definition. What goes wrong in it is one of the `LonghaulError`s, and ends the agent."""


@dataclass(frozen=True, slots=True)
class Kit:
    """`names` are the tools that may be called, `schemas` what the model is told of them, `sections` what belongs into
    the system prompt."""

    toolbox: Toolbox
    names: tuple[str, ...]
    schemas: Sequence[dict[str, Any]]
    sections: tuple[str, ...] = ()

    def allowed(self, name: str) -> tuple[str, ...]:
        """The tools that may be called where the model asks for `name`: an agent may always open what it was told."""
        return (*self.names, OPEN_RESULT) if name == OPEN_RESULT else self.names


class Outfitter:
    """Puts kits together. One per worker.

    Args:
        toolbox: the tools of this process.
        skills: where skills are found.
        makers: by the type of a definition.
    """

    def __init__(self, toolbox: Toolbox, skills: Skills, makers: Mapping[str, Maker]) -> None:
        self._toolbox = toolbox
        self._skills = skills
        self._makers = makers

    @property
    def tools(self) -> Toolbox:
        """The tools of this process."""
        return self._toolbox

    @property
    def skills(self) -> Skills:
        """Where skills are found."""
        return self._skills

    async def kit(self, entries: Sequence[ToolEntry], skills: Sequence[str], scope: KitScope) -> Kit:
        """The kit of an agent with these tools and skills. Of two tools with one name the agent's own is taken.

        Raises:
            UnknownTool, UnknownSkill: it names what is not there.
            BadKit: a definition can't be used as it stands.
        """
        names: dict[str, None] = {}
        own: dict[str, Tool[Any]] = {}
        sections: list[str] = []

        wanted: list[str | ToolDefinition | Tool[Any]] = [*entries]
        for skill in await self._skills.find(scope.org_id, scope.run_id, skills) if skills else ():
            if skill.prompt:
                sections.append(skill.prompt)
            wanted += skill.tools
        made = await self._all_made([entry for entry in wanted if not isinstance(entry, str | Tool)], scope)
        for entry in wanted:
            if isinstance(entry, str):
                names.setdefault(entry)
                continue
            for tool in [entry] if isinstance(entry, Tool) else made[id(entry)]:
                if isinstance(entry, McpServer) and tool.name in self._toolbox.names:
                    # Its server has chosen the name, which must not end the run.
                    log.warning("mcp_tool_left_out", server=entry.name, tool=tool.name, error="the name is taken")
                elif tool.name not in names:
                    names[tool.name] = None
                    own[tool.name] = tool
        if shadowed := [name for name in own if name in self._toolbox.names]:
            raise BadKit(
                f"A tool of this deployment has the name that a definition gives: {', '.join(shadowed)}.",
                suggestions=("give the defined tool another name",),
            )
        toolbox = self._toolbox.joined(own.values()) if own else self._toolbox
        return Kit(toolbox, tuple(names), toolbox.schemas(tuple(names)), tuple(sections))

    async def _all_made(
        self, definitions: Sequence[ToolDefinition], scope: KitScope
    ) -> Mapping[int, Sequence[Tool[Any]]]:
        """The tools of each definition, by its identity. Side by side: a server that hangs holds up no other."""
        if not definitions:
            return {}
        try:
            async with asyncio.TaskGroup() as tasks:
                making = {id(one): tasks.create_task(self._made(one, scope)) for one in definitions}
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return {key: task.result() for key, task in making.items()}

    async def _made(self, definition: ToolDefinition, scope: KitScope) -> Sequence[Tool[Any]]:
        maker = self._makers.get(definition.type)
        if maker is None:
            raise BadKit(f"This worker has no tools of the type {definition.type!r}.")
        return await maker(definition, scope)
