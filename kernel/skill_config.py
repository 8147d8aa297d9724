"""What a version of a skill fixes: what it is for, how it is done, the tools and the texts for it."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from kernel.tool_definitions import Definition, Slug, ToolEntries

MAIN_FILE: Final = "SKILL.md"
LONGEST_INSTRUCTIONS: Final = 65_536
LONGEST_FILE: Final = 262_144
MOST_FILES: Final = 64

_PATH: Final = r"^[A-Za-z0-9_][A-Za-z0-9_. -]{0,99}(/[A-Za-z0-9_][A-Za-z0-9_. -]{0,99}){0,7}$"
_OF_A_PATH: Final = re.compile(_PATH)


def is_file_path(path: str) -> bool:
    """Whether a skill's file may be named so: relative, with slashes, no part of it begins with a dot."""
    return len(path) <= 200 and _OF_A_PATH.fullmatch(path) is not None and path != MAIN_FILE


def _each_once(names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError("a tool may be named only once")
    return names


Description = Annotated[
    str, Field(min_length=1, max_length=1_024, pattern=r"\S", description="what it does and when to use it")
]
SkillInstructions = Annotated[
    str, Field(max_length=LONGEST_INSTRUCTIONS, description="Markdown, which the model reads when it opens the skill")
]
AllowedTools = Annotated[
    list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]],
    AfterValidator(_each_once),
    Field(max_length=64, description="tools that come with the skill where the deployment has them"),
]
License = Annotated[str, Field(min_length=1, max_length=500)]
Compatibility = Annotated[str, Field(min_length=1, max_length=500, description="what it needs around it")]
SkillMetadata = Annotated[
    dict[Annotated[str, Field(max_length=100)], Annotated[str, Field(max_length=1_000)]],
    Field(max_length=50, description="yours, kept and given back"),
]
References = Annotated[
    dict[
        Annotated[str, Field(pattern=_PATH, max_length=200)],
        Annotated[str, Field(max_length=LONGEST_FILE)],
    ],
    Field(max_length=MOST_FILES, description="texts by their paths, which the model opens when it needs them"),
]


class SkillConfig(Definition):
    """Everything that a version of a skill fixes. `references` are kept apart from the rest."""

    name: Slug
    description: Description
    instructions: SkillInstructions = ""
    tools: ToolEntries = Field(default=[])
    allowed_tools: AllowedTools = Field(default=[])
    license: License | None = None
    compatibility: Compatibility | None = None
    metadata: SkillMetadata = Field(default={})
    references: References = Field(default={})
