"""`/v1/sources`: the databases that an org lets its agents ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pydantic import AwareDatetime, Field

from api.endpoint import Answer, Call, Endpoint, NoQuery
from api.paging import PageQuery, bad_cursor, page, read_cursor
from api.problems import invalid
from api.values import AgentId, Body, View
from kernel import sources
from kernel.ids import is_id
from kernel.postgres import Pool
from kernel.sources import Source, SourceConfig
from kernel.tool_definitions import SecretName, Slug


class NewSource(SourceConfig):
    """A source to be registered."""

    agent_ids: list[AgentId] | None = Field(default=None, max_length=100, description="which agents may ask; null: all")


class SourcePatch(Body):
    """Fields of a source to be replaced; what is left out stays."""

    name: Slug = Field(default="")
    description: str = Field(default="", max_length=2_000)
    secret: SecretName = Field(default="")
    agent_ids: list[AgentId] | None = Field(default=None, max_length=100)
    max_rows: int = Field(default=200, ge=1, le=10_000)
    timeout_seconds: float = Field(default=10.0, gt=0, le=120)


class SourceView(View):
    """A source."""

    id: str
    name: str
    description: str
    secret: str = Field(description="the name of the org's secret")
    agent_ids: list[str] | None
    max_rows: int
    timeout_seconds: float
    created_at: AwareDatetime
    updated_at: AwareDatetime


class SourcePage(View):
    """Sources."""

    data: list[SourceView]
    next_cursor: str | None


class Sources:
    """The endpoints of sources."""

    def __init__(self, db: Pool) -> None:
        self._db = db

    def endpoints(self) -> Iterator[Endpoint[Any, Any]]:
        one, tag = "/v1/sources/{source_id}", "sources"
        yield Endpoint(
            method="POST",
            path="/v1/sources",
            handler=self.create,
            tag=tag,
            summary="Register a database that agents may ask",
            description="Its role should be allowed to read what agents may see, and nothing else.",
            scope="write",
            body=NewSource,
            response=SourceView,
            status=201,
            problems=(409,),
            location="/v1/sources/{id}",
            idempotent=True,
        )
        yield Endpoint(
            method="GET",
            path="/v1/sources",
            handler=self.list,
            tag=tag,
            summary="List sources, newest first",
            scope="read",
            query=PageQuery,
            response=SourcePage,
        )
        yield Endpoint(
            method="GET", path=one, handler=self.get, tag=tag, summary="Get a source", scope="read", response=SourceView
        )
        yield Endpoint(
            method="PATCH",
            path=one,
            handler=self.update,
            tag=tag,
            summary="Change a source",
            scope="write",
            body=SourcePatch,
            response=SourceView,
            problems=(409,),
        )
        yield Endpoint(
            method="DELETE",
            path=one,
            handler=self.delete,
            tag=tag,
            summary="Forget a source",
            scope="write",
            status=204,
        )

    async def create(self, call: Call[NewSource, NoQuery]) -> Answer:
        return Answer(_shown(await sources.create_source(call.db, call.org_id, call.body)))

    async def list(self, call: Call[None, PageQuery]) -> Answer:
        cursor = read_cursor(call.query.cursor, str)
        if cursor is not None and not is_id("src", cursor[0]):
            raise bad_cursor()
        limit = call.query.limit
        found = await sources.list_sources(call.db, call.org_id, before=cursor[0] if cursor else None, limit=limit + 1)
        return Answer(page(found, limit, show=_shown, key=lambda source: (source.id,)))

    async def get(self, call: Call[None, NoQuery]) -> Answer:
        return Answer(_shown(await sources.get_source(call.db, call.org_id, call.path["source_id"])))

    async def update(self, call: Call[SourcePatch, NoQuery]) -> Answer:
        changes = call.body.model_dump(exclude_unset=True)
        if not changes:
            raise invalid(("body", "must name at least one field to change"))
        return Answer(_shown(await sources.update_source(self._db, call.org_id, call.path["source_id"], changes)))

    async def delete(self, call: Call[None, NoQuery]) -> Answer:
        await sources.delete_source(call.db, call.org_id, call.path["source_id"])
        return Answer()


def _shown(source: Source) -> dict[str, Any]:
    return {name: value for name, value in asdict(source).items() if name != "org_id"}
