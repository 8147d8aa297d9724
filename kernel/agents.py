"""Agents: versioned configurations.

A change makes a new version and never touches an old one, because runs pin the version they started with and
may outlive the agent. The name is unique among an org's living agents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
import orjson

from kernel.agent_config import AgentConfig, stored
from kernel.errors import Conflict, NotFound
from kernel.ids import new_id
from kernel.postgres import Connection, Pool
from kernel.sql import statements
from kernel.sub_agents import pinned

SQL = statements(__package__, "agents.sql")


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent at one of its versions. `config` is the JSON text of an `AgentConfig`."""

    id: str
    org_id: str
    version: int
    config: str
    created_at: datetime
    updated_at: datetime

    def parsed(self) -> AgentConfig:
        """The configuration as a model."""
        return AgentConfig.model_validate_json(self.config)


async def create_agent(db: Pool | Connection, org_id: str, config: AgentConfig) -> Agent:
    """Makes an agent with version 1. Both rows are one transaction where `db` is a connection in one.

    Raises:
        Conflict: the org has an agent of this name.
        InvalidInput: a sub-agent is an agent of the org that can't be one.
    """
    if isinstance(db, asyncpg.Pool):
        async with db.acquire() as connection, connection.transaction():
            return await create_agent(connection, org_id, config)
    config = await pinned(db, org_id, config)
    agent_id = new_id("agt")
    if await db.fetchval(SQL.add, agent_id, org_id, config.name, config.limits.max_running) is None:
        raise _name_taken(config.name)
    row = await db.fetchrow(SQL.add_version, org_id, agent_id, _stored(config))
    assert row is not None
    return Agent(**row)


async def get_agent(db: Pool | Connection, org_id: str, agent_id: str) -> Agent:
    """The agent at its newest version. Raises NotFound."""
    return _found(await db.fetchrow(SQL.get, org_id, agent_id), agent_id)


async def list_agents(db: Pool | Connection, org_id: str, *, before: str | None = None, limit: int = 20) -> list[Agent]:
    """The org's agents, newest first, those made before agent `before`."""
    return [Agent(**row) for row in await db.fetch(SQL.list, org_id, before, limit)]


async def update_agent(db: Pool, org_id: str, agent_id: str, changes: Mapping[str, Any]) -> Agent:
    """Replaces the named fields of the configuration. Makes a version unless that changes nothing.

    Raises:
        NotFound: no such agent in the org.
        Conflict: the new name is another agent's.
        InvalidInput: a sub-agent is an agent of the org that can't be one.
        pydantic.ValidationError: the outcome is not a valid configuration.
    """
    async with db.acquire() as connection, connection.transaction():
        await connection.execute(SQL.lock, org_id, agent_id)
        agent = await get_agent(connection, org_id, agent_id)
        before = agent.parsed()
        config = AgentConfig.model_validate_json(orjson.dumps({**orjson.loads(agent.config), **changes}))
        config = await pinned(connection, org_id, config, agent_id)
        if config == before:
            return agent
        try:
            await connection.execute(SQL.advance, org_id, agent_id, config.name, config.limits.max_running)
        except asyncpg.UniqueViolationError:
            raise _name_taken(config.name) from None
        row = await connection.fetchrow(SQL.add_version, org_id, agent_id, _stored(config))
        assert row is not None
        return Agent(**row)


async def delete_agent(db: Pool | Connection, org_id: str, agent_id: str) -> None:
    """Hides the agent from now on; its runs go on and keep their version.

    Raises:
        NotFound: no such agent in the org.
        Conflict: it is the org's default agent.
    """
    if await db.fetchval(SQL.delete, org_id, agent_id) is None:
        await get_agent(db, org_id, agent_id)
        raise Conflict(
            "The org's default agent can't be deleted.",
            suggestions=("change it instead: PATCH makes a new version",),
        )


async def get_version(db: Pool | Connection, org_id: str, agent_id: str, version: int) -> Agent:
    """The agent as it was at `version`; deleted agents keep theirs. Raises NotFound."""
    row = await db.fetchrow(SQL.get_version, org_id, agent_id, version)
    if row is None:
        raise NotFound(f"Agent {agent_id} has no version {version}.", field="version")
    return Agent(**row)


async def list_versions(
    db: Pool | Connection, org_id: str, agent_id: str, *, before: int | None = None, limit: int = 20
) -> list[Agent]:
    """The agent's versions, newest first, those below version `before`. Raises NotFound."""
    rows = await db.fetch(SQL.list_versions, org_id, agent_id, before, limit)
    if not rows and before is None:
        raise NotFound(f"There is no agent {agent_id}.", field="agent_id")
    return [Agent(**row) for row in rows]


def _stored(config: AgentConfig) -> str:
    return orjson.dumps(stored(config)).decode()


def _found(row: asyncpg.Record | None, agent_id: str) -> Agent:
    if row is None:
        raise NotFound(f"There is no agent {agent_id}.", field="agent_id")
    return Agent(**row)


def _name_taken(name: str) -> Conflict:
    return Conflict(f"There is an agent named {name!r} already.", field="name")
