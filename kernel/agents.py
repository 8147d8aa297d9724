"""Agents: versioned configurations.

A change makes a new version and never touches an old one, because runs pin the version they started with and
may outlive the agent. The name is unique among an org's living agents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final

import asyncpg
import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kernel.errors import Conflict, NotFound
from kernel.ids import new_id
from kernel.postgres import Connection, Pool
from kernel.sql import statements

SQL = statements(__package__, "agents.sql")

MAX_NESTING: Final = 3
"""Levels of sub-agents below an agent."""

DEFAULT_TOOLS: Final = ("python", "http_fetch", "remember", "recall")

Name = Annotated[str, Field(min_length=1, max_length=200)]
Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Instructions = Annotated[str, Field(max_length=32_000)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelChoice(_Part):
    """Which model answers, and how. What is left out is the deployment's choice."""

    name: str | None = Field(default=None, min_length=1, max_length=200)
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000, description="longest answer, in tokens")


class MemoryConfig(_Part):
    """What is recalled before the first step."""

    recall: bool = True
    limit: int = Field(default=5, ge=1, le=20)


class AgentLimits(_Part):
    """What one run may use, which its own budget can lower and never raise; and how many may run."""

    max_steps: int = Field(default=25, ge=1, le=100)
    max_tool_calls: int = Field(default=50, ge=1, le=500)
    max_depth: int = Field(default=2, ge=0, le=4, description="levels of delegation")
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000_000)
    timeout_seconds: int = Field(default=3600, ge=1, le=86_400)
    max_running: int | None = Field(
        default=None, ge=1, le=10_000, description="runs of the agent, at whatever version, that may run at once"
    )


class _Actor(_Part):
    description: str = Field(default="", max_length=2_000)
    instructions: Instructions = ""
    model: ModelChoice | None = None
    tools: list[Slug] = Field(default=list(DEFAULT_TOOLS), max_length=64, json_schema_extra={"uniqueItems": True})
    sub_agents: list[SubAgentConfig] = Field(
        default=[], max_length=16, description="names are unique among siblings; at most 3 levels"
    )

    @field_validator("tools")
    @classmethod
    def _each_tool_once(cls, tools: list[str]) -> list[str]:
        if len(set(tools)) != len(tools):
            raise ValueError("a tool may be named only once")
        return tools

    @field_validator("sub_agents")
    @classmethod
    def _each_name_once(cls, sub_agents: list[SubAgentConfig]) -> list[SubAgentConfig]:
        names = [sub_agent.name for sub_agent in sub_agents]
        if len(set(names)) != len(names):
            raise ValueError("sub-agents of one level need different names")
        return sub_agents


class SubAgentConfig(_Actor):
    """Someone to delegate to: sees only the task it is given."""

    name: Slug


class AgentConfig(_Actor):
    """Everything that a version of an agent fixes."""

    name: Name
    memory: MemoryConfig = MemoryConfig()
    limits: AgentLimits = AgentLimits()

    @model_validator(mode="after")
    def _not_too_deep(self) -> AgentConfig:
        level, depth = self.sub_agents, 0
        while level:
            depth += 1
            if depth > MAX_NESTING:
                raise ValueError(f"sub-agents may be nested at most {MAX_NESTING} levels deep")
            level = [below for sub_agent in level for below in sub_agent.sub_agents]
        return self


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
    """
    if isinstance(db, asyncpg.Pool):
        async with db.acquire() as connection, connection.transaction():
            return await create_agent(connection, org_id, config)
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
        pydantic.ValidationError: the outcome is not a valid configuration.
    """
    async with db.acquire() as connection, connection.transaction():
        await connection.execute(SQL.lock, org_id, agent_id)
        agent = await get_agent(connection, org_id, agent_id)
        before = agent.parsed()
        config = AgentConfig.model_validate_json(orjson.dumps({**orjson.loads(agent.config), **changes}))
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
    # A release that does not know the cap could not read a configuration that names it.
    unset = {"limits": {"max_running"}} if config.limits.max_running is None else None
    return config.model_dump_json(exclude=unset)


def _found(row: asyncpg.Record | None, agent_id: str) -> Agent:
    if row is None:
        raise NotFound(f"There is no agent {agent_id}.", field="agent_id")
    return Agent(**row)


def _name_taken(name: str) -> Conflict:
    return Conflict(f"There is an agent named {name!r} already.", field="name")
