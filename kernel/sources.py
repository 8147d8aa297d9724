"""Sources: Postgres databases that an org lets its agents ask.

A source holds no address and no password: it names the org's secret that does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
from pydantic import Field

from kernel.errors import Conflict, NotFound
from kernel.ids import new_id
from kernel.postgres import Connection, Pool
from kernel.sql import statements
from kernel.tool_definitions import Definition, SecretName, Slug

SQL = statements(__package__, "sources.sql")


class SourceConfig(Definition):
    """What can be said about a source."""

    name: Slug
    description: str = Field(default="", max_length=2_000, description="for the model: what can be found there")
    secret: SecretName = Field(
        description="the org's secret with the address: postgresql://user:password@host:port/database?sslmode=…"
    )
    agent_ids: list[str] | None = Field(default=None, max_length=100, description="which agents may ask; null: all")
    max_rows: int = Field(default=200, ge=1, le=10_000, description="of one answer")
    timeout_seconds: float = Field(default=10.0, gt=0, le=120, description="of one question")


@dataclass(frozen=True, slots=True)
class Source:
    """A source as it stands. `secret` is the secret's name."""

    id: str
    org_id: str
    name: str
    description: str
    secret: str
    agent_ids: Sequence[str] | None
    max_rows: int
    timeout_seconds: float
    created_at: datetime
    updated_at: datetime


async def create_source(db: Pool | Connection, org_id: str, config: SourceConfig) -> Source:
    """Raises Conflict: the org has a source of this name."""
    row = await db.fetchrow(SQL.add, new_id("src"), org_id, *_columns(config))
    if row is None:
        raise _name_taken(config.name)
    return Source(**row)


async def get_source(db: Pool | Connection, org_id: str, source_id: str) -> Source:
    """Raises NotFound."""
    return _found(await db.fetchrow(SQL.get, org_id, source_id), source_id)


async def list_sources(
    db: Pool | Connection, org_id: str, *, before: str | None = None, limit: int = 20
) -> list[Source]:
    """The org's sources, newest first, those made before source `before`."""
    return [Source(**row) for row in await db.fetch(SQL.list, org_id, before, limit)]


async def update_source(db: Pool, org_id: str, source_id: str, changes: Mapping[str, Any]) -> Source:
    """Replaces the named fields.

    Raises:
        NotFound: no such source in the org.
        Conflict: the new name is another source's.
    """
    async with db.acquire() as connection, connection.transaction():
        source = _found(await connection.fetchrow(SQL.get_for_update, org_id, source_id), source_id)
        present = {name: getattr(source, name) for name in SourceConfig.model_fields}
        config = SourceConfig.model_validate({**present, **changes})
        try:
            row = await connection.fetchrow(SQL.change, org_id, source_id, *_columns(config))
        except asyncpg.UniqueViolationError:
            raise _name_taken(config.name) from None
    return _found(row, source_id)


async def delete_source(db: Pool | Connection, org_id: str, source_id: str) -> None:
    """Raises NotFound."""
    if await db.fetchval(SQL.delete, org_id, source_id) is None:
        raise NotFound(f"There is no source {source_id}.", field="source_id")


async def sources_open_to(db: Pool | Connection, org_id: str, agent_id: str | None) -> list[Source]:
    """The sources that this agent may ask, by name; at most 100."""
    return [Source(**row) for row in await db.fetch(SQL.open_to, org_id, agent_id)]


def _columns(config: SourceConfig) -> tuple[object, ...]:
    return (
        config.name,
        config.description,
        config.secret,
        config.agent_ids,
        config.max_rows,
        config.timeout_seconds,
    )


def _found(row: asyncpg.Record | None, source_id: str) -> Source:
    if row is None:
        raise NotFound(f"There is no source {source_id}.", field="source_id")
    return Source(**row)


def _name_taken(name: str) -> Conflict:
    return Conflict(f"There is a source named {name!r} already.", field="name")
