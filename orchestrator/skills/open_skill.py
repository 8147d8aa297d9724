"""How a model gets at what its skills have to read: a list of them in the prompt, and a tool that opens one.

Progressive disclosure: until a skill is opened it costs its name and description, and its texts until they are asked
for. The tool reads from documents that were put together before; it never makes a path out of what the model says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import Field

from kernel.skill_config import MAIN_FILE
from kernel.skill_format import slug
from orchestrator.skills.skill import Skill
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.tool import Arguments, JSONValue, Tool, ToolContext, model_parameters

PAGE: Final = 32_000
"""Characters of a text that one call gives."""

_MOST_LISTED: Final = 100


class OpenSkillArguments(Arguments):
    """What to open."""

    name: Annotated[str, Field(min_length=1, max_length=64, description="of the skill")]
    file: Annotated[
        str | None, Field(max_length=200, description="path of one of its files; without it, the instructions")
    ] = None
    offset: Annotated[int, Field(ge=0, le=10_000_000, description="characters to skip, to read on in a long text")] = 0


# Of all agents that have skills: making a schema takes longer than all else that precedes a model call.
_PARAMETERS: Final = model_parameters(OpenSkillArguments)


class OpenSkill(Tool[OpenSkillArguments]):
    """Opens the skills of one agent. Made for a run; holds nothing that would have to be closed."""

    name = "open_skill"
    description = (
        "Opens one of your skills: its instructions and the list of its files, or the text of one of these files. "
        "Read a skill's instructions before you do what it is for."
    )
    arguments = OpenSkillArguments
    effect = "read"
    timeout = 15.0
    retries = 2
    max_result_bytes = 4 * PAGE + 16_384

    def __init__(self, skills: Sequence[Skill]) -> None:
        self._skills: Mapping[str, Skill] = {skill.name: skill for skill in skills if skill.document is not None}

    def parameters(self) -> dict[str, Any]:
        return _PARAMETERS

    async def run(self, arguments: OpenSkillArguments, context: ToolContext) -> JSONValue:
        skill = self._skills.get(slug(arguments.name))
        if skill is None or skill.document is None:
            raise ToolFailure(
                f"There is no skill {arguments.name!r} to open. Those that there are: {', '.join(self._skills)}."
            )
        path = None if arguments.file in (None, "", MAIN_FILE) else (arguments.file or "").removeprefix("./")
        text = await skill.document.read(path)
        if text is None:
            raise ToolFailure(
                f"The skill {skill.name!r} has no text {path!r}. "
                + (f"It has: {_listed(skill.document.paths)}." if skill.document.paths else "It has no files.")
            )
        if arguments.offset and arguments.offset >= len(text):
            raise ToolFailure(f"This text has only {len(text)} characters: use a smaller offset.")
        end = arguments.offset + PAGE
        shown = text[arguments.offset : end]
        if len(text) > end:
            shown += f"\n\n[{len(text) - end} more characters: open it again with offset {end}]"
        elif path is None:
            shown += _appendix(skill)
        return shown


def library(skills: Sequence[Skill]) -> Skill | None:
    """What lists those skills that have no prompt of their own, and opens those that have something to read."""
    listed = [skill for skill in skills if not skill.prompt]
    documents = [skill for skill in skills if skill.document is not None]
    if not listed and not documents:
        return None
    lines = []
    if documents:
        lines.append(
            "Skills are instructions for particular tasks. Before you do what one of these is for, open it with "
            f"{OpenSkill.name} and follow it:"
        )
        lines += [_line(skill) for skill in documents]
    if bare := [skill for skill in listed if skill.document is None]:
        lines.append("Skills whose tools you have:")
        lines += [_line(skill) for skill in bare]
    return Skill(
        name=OpenSkill.name,
        description="Opens skills.",
        prompt="\n".join(lines),
        tools=[OpenSkill(documents)] if documents else (),
    )


def _line(skill: Skill) -> str:
    return f"- {skill.name}: {' '.join(skill.description.split())}"


def _appendix(skill: Skill) -> str:
    parts = []
    if skill.compatibility:
        parts.append(f"Needs: {skill.compatibility}")
    if skill.document is not None and skill.document.paths:
        parts.append(f"Files that {OpenSkill.name} gives: {_listed(skill.document.paths)}")
    return "\n\n---\n" + "\n".join(parts) if parts else ""


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _MOST_LISTED} more" if len(paths) > _MOST_LISTED else ""
    return ", ".join(paths[:_MOST_LISTED]) + more
