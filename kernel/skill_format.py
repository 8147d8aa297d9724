"""SKILL.md: the open Agent Skills format (https://agentskills.io/specification), read from what strangers write.

A file begins with a front matter in YAML between two lines `---`; what follows is Markdown for the model. All that is
wrong with a file is said at once.

The YAML is read as the format's own reference implementation does it: every scalar is a text. That knows no types that
a text could be turned into, and aliases, with which a small file can describe a huge value, are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import yaml

from kernel.skill_config import LONGEST_INSTRUCTIONS

LONGEST_FRONT_MATTER: Final = 16_384
_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_FENCE: Final = re.compile(r"\A\ufeff?---[ \t]*\n(.*?)^---[ \t]*$\n?", re.DOTALL | re.MULTILINE)
_FIELDS: Final = frozenset(("name", "description", "license", "compatibility", "metadata", "allowed-tools"))
_TOOL: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LIMITS: Final = {"name": 64, "description": 1_024, "license": 500, "compatibility": 500}


class BadSkillFile(ValueError):
    """A SKILL.md that does not keep to the format. `problems` says all that is wrong with it."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class SkillFile:
    """A SKILL.md. `name` is as written, with hyphens; `slug` is what agents call the skill.

    `allowed_tools` are those entries of `allowed-tools` that can be names of tools here; patterns such as
    `Bash(git:*)`, which mean tools of other products, are left out.
    """

    name: str
    description: str
    body: str
    license: str | None = None
    compatibility: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    allowed_tools: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        return slug(self.name)


def slug(name: str) -> str:
    """The name by which agents call a skill: `pdf-forms` is `pdf_forms` to them."""
    return name.replace("-", "_")


def read_skill(text: str) -> SkillFile:
    """Reads a SKILL.md.

    Raises:
        BadSkillFile: it does not keep to the format.
    """
    fenced = _FENCE.match(text.replace("\r\n", "\n"))
    if fenced is None:
        raise BadSkillFile(["it must begin with a front matter: YAML between two lines that are ---"])
    if len(fenced[1]) > LONGEST_FRONT_MATTER:
        raise BadSkillFile([f"the front matter is longer than {LONGEST_FRONT_MATTER} characters"])
    given = _mapping(fenced[1])
    problems: list[str] = []
    body = text.replace("\r\n", "\n")[fenced.end() :].strip()
    if len(body) > LONGEST_INSTRUCTIONS:
        problems.append(f"the text is longer than {LONGEST_INSTRUCTIONS} characters: move parts into references/")
    problems += [
        f"{name}: is no field of the format; fields of your own belong under metadata"
        for name in given
        if name not in _FIELDS
    ]
    texts = {name: _text(given, name, problems) for name in _LIMITS}
    problems += [f"{name}: is missing" for name in ("name", "description") if name not in given]
    if (name := texts["name"]) is not None:
        if not _NAME.fullmatch(name):
            problems.append("name: must be lowercase letters, digits and single hyphens between them")
        elif not name[0].isalpha():
            problems.append("name: must begin with a letter, or agents can't name it")
    metadata = _metadata(given.get("metadata"), problems)
    allowed = _allowed(given.get("allowed-tools"), problems)
    if problems:
        raise BadSkillFile(problems)
    return SkillFile(
        name=texts["name"] or "",
        description=texts["description"] or "",
        body=body,
        license=texts["license"],
        compatibility=texts["compatibility"],
        metadata=metadata,
        allowed_tools=allowed,
    )


class _TextsOnly(yaml.BaseLoader):
    """Every scalar is a text; no aliases, no key twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[object, object]:
        assert isinstance(node, yaml.MappingNode)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a text", problem_mark=key.start_mark)
            if key.value in seen:
                problem = f"{key.value[:64]!r} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _mapping(text: str) -> dict[str, object]:
    try:
        loaded = yaml.load(text, Loader=_TextsOnly)  # noqa: S506  # safer than the safe loader: texts, lists, mappings
    except yaml.MarkedYAMLError as error:
        # The front matter begins on the file's second line; marks count from 0.
        where = f"line {error.problem_mark.line + 2}: " if error.problem_mark else ""
        raise BadSkillFile([f"the front matter is not valid YAML: {where}{error.problem or error.context}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise BadSkillFile(["the front matter is not valid YAML"]) from None
    if not isinstance(loaded, dict):
        raise BadSkillFile(["the front matter must be a mapping of fields to values"])
    return {str(name)[:64]: value for name, value in loaded.items()}


def _text(given: Mapping[str, object], name: str, problems: list[str]) -> str | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        problems.append(f"{name}: must be a text")
        return None
    value = value.strip()
    if not value:
        problems.append(f"{name}: must not be empty")
    elif len(value) > _LIMITS[name]:
        problems.append(f"{name}: must not be longer than {_LIMITS[name]} characters")
    elif "\x00" in value:
        problems.append(f"{name}: must not contain NUL")
    else:
        return value
    return None


def _metadata(value: object, problems: list[str]) -> dict[str, str]:
    if value is None or value == "":
        return {}
    if not isinstance(value, dict) or not all(
        isinstance(key, str) and isinstance(text, str) and len(key) <= 100 and len(text) <= 1_000
        for key, text in value.items()
    ):
        problems.append("metadata: must be a mapping of texts of at most 1000 characters")
        return {}
    if len(value) > 50:
        problems.append("metadata: must not have more than 50 entries")
    return dict(value)


def _allowed(value: object, problems: list[str]) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        names = re.findall(r"[^\s,(]+(?:\([^)]*\))?", value)
    elif isinstance(value, list) and all(isinstance(name, str) for name in value):
        names = value  # not the format, but common
    else:
        problems.append("allowed-tools: must be a text of names with spaces between them")
        return ()
    usable = dict.fromkeys(name for name in names if _TOOL.fullmatch(name))
    if len(usable) > 64:
        problems.append("allowed-tools: must not have more than 64 entries")
    return tuple(usable)
