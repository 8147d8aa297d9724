"""Skills that orgs make for their agents: versioned, named once among an org's living skills.

A change makes a version and never touches an old one. A run has the versions that were the newest when the run was
made, on every attempt. The name is for good, because agents name skills. Instructions and texts are read only when the
model opens them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
import orjson

from kernel.errors import Conflict, NotFound
from kernel.ids import new_id
from kernel.postgres import Connection, Pool
from kernel.skill_config import SkillConfig
from kernel.sql import statements

SQL = statements(__package__, "skills.sql")


@dataclass(frozen=True, slots=True)
class SkillRecord:
    """A skill at one of its versions. `config` and `files` are JSON text: all fields but name and references, and
    the references."""

    id: str
    org_id: str
    name: str
    version: int
    config: str
    files: str
    created_at: datetime
    updated_at: datetime

    def parsed(self) -> SkillConfig:
        """The skill as a model."""
        config = orjson.loads(self.config) | {"name": self.name, "references": orjson.loads(self.files)}
        return SkillConfig.model_validate_json(orjson.dumps(config))


@dataclass(frozen=True, slots=True)
class SkillSummary:
    """A skill without its texts. `tools` is JSON text of `ToolEntries`."""

    id: str
    org_id: str
    name: str
    version: int
    description: str
    tools: str
    paths: Sequence[str]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class SkillOfRun:
    """A skill as a run has it. `tools` is JSON text of `ToolEntries`, `allowed_tools` of a list of names."""

    id: str
    name: str
    version: int
    description: str
    tools: str
    allowed_tools: str
    compatibility: str | None
    has_instructions: bool
    paths: Sequence[str]


async def create_skill(db: Pool | Connection, org_id: str, config: SkillConfig) -> SkillRecord:
    """Makes a skill with version 1. Both rows are one transaction where `db` is a connection in one.

    Raises:
        Conflict: the org has a skill of this name.
    """
    if isinstance(db, asyncpg.Pool):
        async with db.acquire() as connection, connection.transaction():
            return await create_skill(connection, org_id, config)
    skill_id = new_id("skl")
    if await db.fetchval(SQL.add, skill_id, org_id, config.name) is None:
        raise Conflict(
            f"There is a skill named {config.name!r} already.",
            field="name",
            suggestions=("change that one: PATCH makes a new version",),
        )
    return await _add_version(db, org_id, skill_id, config)


async def get_skill(db: Pool | Connection, org_id: str, skill_id: str) -> SkillRecord:
    """The skill at its newest version. Raises NotFound."""
    row = await db.fetchrow(SQL.get, org_id, skill_id)
    if row is None:
        raise _missing(skill_id)
    return SkillRecord(**row)


async def find_skill(db: Pool | Connection, org_id: str, name: str) -> str | None:
    """The id of the org's skill of this name."""
    found: str | None = await db.fetchval(SQL.named, org_id, name)
    return found


async def list_skills(
    db: Pool | Connection, org_id: str, *, before: str | None = None, limit: int = 20
) -> list[SkillSummary]:
    """The org's skills, newest first, those made before skill `before`."""
    return [SkillSummary(**row) for row in await db.fetch(SQL.list, org_id, before, limit)]


async def update_skill(db: Pool | Connection, org_id: str, skill_id: str, changes: Mapping[str, Any]) -> SkillRecord:
    """Replaces the named fields. Makes a version unless that changes nothing.

    Raises:
        NotFound: no such skill in the org.
        pydantic.ValidationError: the outcome is not a valid skill.
    """
    if isinstance(db, asyncpg.Pool):
        async with db.acquire() as connection, connection.transaction():
            return await update_skill(connection, org_id, skill_id, changes)
    await db.execute(SQL.lock, org_id, skill_id)
    skill = await get_skill(db, org_id, skill_id)
    before = skill.parsed()
    config = SkillConfig.model_validate_json(orjson.dumps(before.model_dump() | dict(changes) | {"name": skill.name}))
    if config == before:
        return skill
    await db.execute(SQL.advance, org_id, skill_id)
    return await _add_version(db, org_id, skill_id, config)


async def delete_skill(db: Pool | Connection, org_id: str, skill_id: str) -> None:
    """Hides the skill from now on; runs that are there keep it.

    Raises:
        NotFound: no such skill in the org.
    """
    if await db.fetchval(SQL.delete, org_id, skill_id) is None:
        raise _missing(skill_id)


async def get_version(db: Pool | Connection, org_id: str, skill_id: str, version: int) -> SkillRecord:
    """The skill as it was at `version`; deleted skills keep theirs. Raises NotFound."""
    row = await db.fetchrow(SQL.get_version, org_id, skill_id, version)
    if row is None:
        raise NotFound(f"Skill {skill_id} has no version {version}.", field="version")
    return SkillRecord(**row)


async def list_versions(
    db: Pool | Connection, org_id: str, skill_id: str, *, before: int | None = None, limit: int = 20
) -> list[SkillSummary]:
    """The skill's versions, newest first, those below version `before`. Raises NotFound."""
    rows = await db.fetch(SQL.list_versions, org_id, skill_id, before, limit)
    if not rows and before is None:
        raise _missing(skill_id)
    return [SkillSummary(**row) for row in rows]


async def skills_of_run(db: Pool | Connection, org_id: str, run_id: str, names: Sequence[str]) -> list[SkillOfRun]:
    """Those of the org's skills with these names that there were when the run was made."""
    return [SkillOfRun(**row) for row in await db.fetch(SQL.of_run, org_id, run_id, list(names))]


async def skill_text(
    db: Pool | Connection, org_id: str, skill_id: str, version: int, path: str | None = None
) -> str | None:
    """The instructions of a version, or the text at `path`; None if there is none."""
    found: str | None
    if path is None:
        found = await db.fetchval(SQL.instructions, org_id, skill_id, version)
    else:
        found = await db.fetchval(SQL.file, org_id, skill_id, version, path)
    return found


async def _add_version(db: Connection, org_id: str, skill_id: str, config: SkillConfig) -> SkillRecord:
    document = config.model_dump(exclude={"name", "references"})
    texts = [orjson.dumps(part).decode() for part in (document, config.references)]
    row = await db.fetchrow(SQL.add_version, org_id, skill_id, *texts)
    assert row is not None
    return SkillRecord(**row)


def _missing(skill_id: str) -> NotFound:
    return NotFound(f"There is no skill {skill_id}.", field="skill_id")
