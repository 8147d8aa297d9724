"""A skill, and the port through which those of an agent are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kernel.errors import LonghaulError
from kernel.tool_definitions import ToolDefinition
from orchestrator.tools.tool import Tool


class Document(Protocol):
    """What a skill has to read: its instructions, and texts that they refer to. Read when the model asks for it."""

    @property
    def paths(self) -> Sequence[str]:
        """The texts that can be read, in order."""

    async def read(self, path: str | None) -> str | None:
        """The text at `path`, the instructions for None; None if there is no such text.

        Raises:
            ToolFailure: it can't be read at the moment.
        """


@dataclass(frozen=True, slots=True)
class Skill:
    """What an agent that has it gets.

    `prompt` is for the system prompt: what the skill is good for and how to use it. A skill without one is listed there
    by its description, and its `document` is opened when it is needed. `tools` are names of tools that the process has,
    definitions, or tools themselves.
    """

    name: str
    description: str
    prompt: str = ""
    tools: Sequence[str | ToolDefinition | Tool[Any]] = ()
    document: Document | None = None
    compatibility: str | None = None


class UnknownSkill(LonghaulError):
    """An agent names skills that are not there."""

    code = "unknown_skill"


class Skills(Protocol):
    """Where skills are found."""

    async def find(self, org_id: str, run_id: str, names: Sequence[str]) -> list[Skill]:
        """The skills of these names, in their order, as the run has them on every attempt; the org's own come before
        those of the deployment. What lets the model open them may follow as a skill of its own.

        Raises:
            UnknownSkill: names all that are not there.
        """
