"""`/v1/agents`: agents and their versions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import AwareDatetime, Field

from api.endpoint import Answer, Call, Endpoint, NoQuery
from api.paging import PageQuery, bad_cursor, page, read_cursor
from api.problems import invalid
from api.values import Body, View
from kernel import agents
from kernel.agent_config import (
    AgentConfig,
    AgentLimits,
    ContextConfig,
    Instructions,
    MemoryConfig,
    ModelChoice,
    Name,
    SubAgents,
)
from kernel.agents import Agent
from kernel.approval_policy import ApprovalPolicy
from kernel.ids import is_id
from kernel.json_schema import AnySchema
from kernel.postgres import Pool
from kernel.tool_definitions import Slug, ToolEntries


class AgentPatch(Body):
    """Fields of an agent to be replaced; what is left out stays."""

    name: Name = Field(default="")
    description: str = Field(default="", max_length=2_000)
    instructions: Instructions = ""
    model: ModelChoice | None = None
    tools: ToolEntries = Field(default=[])
    skills: list[Slug] = Field(default=[], max_length=32, json_schema_extra={"uniqueItems": True})
    approvals: dict[str, ApprovalPolicy] = Field(default={}, max_length=64)
    sub_agents: SubAgents = Field(default=[])
    memory: MemoryConfig = MemoryConfig()
    context: ContextConfig = ContextConfig()
    limits: AgentLimits = AgentLimits()
    response_schema: AnySchema | None = None


class AgentView(AgentConfig):
    """An agent at one of its versions."""

    id: str
    version: int
    created_at: AwareDatetime
    updated_at: AwareDatetime


class AgentPage(View):
    """Agents."""

    data: list[AgentView]
    next_cursor: str | None


class Agents:
    """The endpoints of agents."""

    def __init__(self, db: Pool) -> None:
        self._db = db

    def endpoints(self) -> Iterator[Endpoint[Any, Any]]:
        one, tag = "/v1/agents/{agent_id}", "agents"
        yield Endpoint(
            method="POST",
            path="/v1/agents",
            handler=self.create,
            tag=tag,
            summary="Create an agent",
            scope="write",
            body=AgentConfig,
            response=AgentView,
            status=201,
            problems=(409,),
            location="/v1/agents/{id}",
            idempotent=True,
        )
        yield Endpoint(
            method="GET",
            path="/v1/agents",
            handler=self.list,
            tag=tag,
            summary="List agents, newest first",
            scope="read",
            query=PageQuery,
            response=AgentPage,
        )
        yield Endpoint(
            method="GET",
            path=one,
            handler=self.get,
            tag=tag,
            summary="Get an agent at its newest version",
            scope="read",
            response=AgentView,
        )
        yield Endpoint(
            method="PATCH",
            path=one,
            handler=self.update,
            tag=tag,
            summary="Change an agent",
            description="Makes a new version unless nothing changes. Runs keep the version they started with.",
            scope="write",
            body=AgentPatch,
            response=AgentView,
            problems=(409,),
        )
        yield Endpoint(
            method="DELETE",
            path=one,
            handler=self.delete,
            tag=tag,
            summary="Delete an agent",
            description="Its unfinished runs go on. The org's default agent can't be deleted.",
            scope="write",
            status=204,
            problems=(409,),
        )
        yield Endpoint(
            method="GET",
            path=f"{one}/versions",
            handler=self.list_versions,
            tag=tag,
            summary="List an agent's versions, newest first",
            scope="read",
            query=PageQuery,
            response=AgentPage,
        )
        yield Endpoint(
            method="GET",
            path=f"{one}/versions/{{version}}",
            handler=self.get_version,
            tag=tag,
            summary="Get one version of an agent",
            scope="read",
            response=AgentView,
        )

    async def create(self, call: Call[AgentConfig, NoQuery]) -> Answer:
        return Answer(_shown(await agents.create_agent(call.db, call.org_id, call.body)))

    async def list(self, call: Call[None, PageQuery]) -> Answer:
        cursor = read_cursor(call.query.cursor, str)
        if cursor is not None and not is_id("agt", cursor[0]):
            raise bad_cursor()
        limit = call.query.limit
        found = await agents.list_agents(call.db, call.org_id, before=cursor[0] if cursor else None, limit=limit + 1)
        return Answer(page(found, limit, show=_shown, key=lambda agent: (agent.id,)))

    async def get(self, call: Call[None, NoQuery]) -> Answer:
        return Answer(_shown(await agents.get_agent(call.db, call.org_id, call.path["agent_id"])))

    async def update(self, call: Call[AgentPatch, NoQuery]) -> Answer:
        changes = call.body.model_dump(exclude_unset=True)
        if not changes:
            raise invalid(("body", "must name at least one field to change"))
        agent = await agents.update_agent(self._db, call.org_id, call.path["agent_id"], changes)
        return Answer(_shown(agent))

    async def delete(self, call: Call[None, NoQuery]) -> Answer:
        await agents.delete_agent(call.db, call.org_id, call.path["agent_id"])
        return Answer()

    async def list_versions(self, call: Call[None, PageQuery]) -> Answer:
        cursor = read_cursor(call.query.cursor, int)
        limit = call.query.limit
        found = await agents.list_versions(
            call.db,
            call.org_id,
            call.path["agent_id"],
            before=cursor[0] if cursor else None,
            limit=limit + 1,
        )
        return Answer(page(found, limit, show=_shown, key=lambda agent: (agent.version,)))

    async def get_version(self, call: Call[None, NoQuery]) -> Answer:
        agent = await agents.get_version(call.db, call.org_id, call.path["agent_id"], int(call.path["version"]))
        return Answer(_shown(agent))


def _shown(agent: Agent) -> dict[str, Any]:
    return {
        "id": agent.id,
        "version": agent.version,
        **agent.parsed().model_dump(),
        "created_at": agent.created_at,
        "updated_at": agent.updated_at,
    }
