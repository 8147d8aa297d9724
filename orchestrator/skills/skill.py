"""A skill, and the port through which those of an agent are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kernel.errors import LonghaulError
from kernel.tool_definitions import ToolDefinition
from orchestrator.tools.tool import Tool


@dataclass(frozen=True, slots=True)
class Skill:
    """What an agent that has it gets.

    `prompt` is for the system prompt: what the skill is good for, and how to use it or how to learn that. `tools` are
    names of tools that the process has, definitions, or tools themselves.
    """

    name: str
    description: str
    prompt: str = ""
    tools: Sequence[str | ToolDefinition | Tool[Any]] = ()


class UnknownSkill(LonghaulError):
    """An agent names skills that are not there."""

    code = "unknown_skill"


class Skills(Protocol):
    """Where skills are found."""

    async def find(self, org_id: str, names: Sequence[str]) -> list[Skill]:
        """The skills of these names, in their order; the org's own come before those of the deployment.

        Raises:
            UnknownSkill: names all that are not there.
        """
