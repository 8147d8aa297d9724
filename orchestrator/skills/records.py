"""Skills that orgs keep as records, as a run finds them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import orjson
from pydantic import TypeAdapter

from kernel.postgres import UNAVAILABLE, Pool
from kernel.skills import SkillOfRun, skill_text, skills_of_run
from kernel.tool_definitions import ToolEntries, ToolEntry
from orchestrator.skills.skill import Skill
from orchestrator.tools.errors import ToolFailure

_ENTRIES: Final[TypeAdapter[list[ToolEntry]]] = TypeAdapter(ToolEntries)


class OrgSkills:
    """Finds the skills of orgs.

    Args:
        tools: names of the process' tools; of those that a skill may use where they are, the others are left out.
    """

    def __init__(self, db: Pool, tools: Collection[str]) -> None:
        self._db = db
        self._tools = frozenset(tools)

    async def find(self, org_id: str, run_id: str, names: Sequence[str]) -> dict[str, Skill]:
        """Those of the org's skills with these names that there were when the run was made."""
        found = await skills_of_run(self._db, org_id, run_id, names)
        return {skill.name: self._skill(org_id, skill) for skill in found}

    def _skill(self, org_id: str, found: SkillOfRun) -> Skill:
        tools: list[Any] = _ENTRIES.validate_json(found.tools)
        tools += [name for name in orjson.loads(found.allowed_tools) if name in self._tools and name not in tools]
        readable = found.has_instructions or found.paths
        return Skill(
            name=found.name,
            description=found.description,
            tools=tools,
            document=_Record(self._db, org_id, found) if readable else None,
            compatibility=found.compatibility,
        )


class _Record:
    """The texts of one version of a skill."""

    def __init__(self, db: Pool, org_id: str, skill: SkillOfRun) -> None:
        self._db = db
        self._org_id = org_id
        self._skill = skill

    @property
    def paths(self) -> Sequence[str]:
        return self._skill.paths

    async def read(self, path: str | None) -> str | None:
        if path is not None and path not in self._skill.paths:
            return None
        try:
            return await skill_text(self._db, self._org_id, self._skill.id, self._skill.version, path)
        except UNAVAILABLE as error:
            raise ToolFailure("Skills are out of reach at the moment.", retryable=True) from error
