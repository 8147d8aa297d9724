"""`/v1/memories`: what agents remember, for people to see, correct, search, take along and erase.

A key that stands for no one user sees and changes all memories of its org. A caller who is a user sees what an agent
that works for them would recall, and changes what is their own: only an admin writes for others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import AwareDatetime, Field, model_validator
from starlette.responses import StreamingResponse

from api.endpoint import Answer, Call, Endpoint, NoQuery
from api.memory_access import MemoryAccess, OfWhom
from api.paging import PageQuery, bad_cursor, page, read_cursor
from api.problems import invalid
from api.values import Body, Metadata, Query, View
from kernel.ids import is_id
from memory.documents.store import Documents
from memory.records import (
    MAX_CONTEXT,
    MAX_ENTITIES,
    MAX_ITEMS,
    MAX_QUERY,
    MAX_SOURCE,
    MAX_TEXT,
    Changes,
    Filter,
    Kind,
    MemoryItem,
    NewMemory,
    ScopeKind,
)

_MOST_AT_ONCE: Final = 500
_SEARCH_SECONDS: Final = 15.0
_ALL_SECONDS: Final = 300.0

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT, pattern=r"\S")]
Source = Annotated[str, Field(min_length=1, max_length=MAX_SOURCE, pattern=r"\S")]
Entities = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=MAX_ENTITIES)]
UserId = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]


class _Content(Body):
    text: Text
    kind: Kind = "fact"
    source: Source | None = None
    confidence: float = Field(default=1.0, ge=0, le=1)
    valid_from: AwareDatetime | None = None
    valid_until: AwareDatetime | None = Field(default=None, description="from then on it is not recalled")
    entities: Entities | None = Field(
        default=None, description="names and numbers it is about; null: found in the text"
    )
    context: str | None = Field(
        default=None, min_length=1, max_length=MAX_CONTEXT, pattern=r"\S", description="further words to find it by"
    )
    metadata: Metadata | None = None

    @model_validator(mode="after")
    def _in_order(self) -> _Content:
        if self.valid_from is not None and self.valid_until is not None and self.valid_until < self.valid_from:
            raise ValueError("valid_until must not be before valid_from")
        return self


class MemoryContent(_Content):
    """A memory that takes another's place, in the same scope."""


class NewMemoryBody(_Content):
    """A memory to be kept. Without a scope it is the user's, or the org's where there is no user."""

    scope: ScopeKind | None = None
    user_id: UserId | None = Field(
        default=None, description="whose it is; a caller who is a user can only name themself"
    )
    agent_id: str | None = Field(default=None, pattern=r"^agt_[0-9a-f]{32}$")
    session_id: str | None = Field(default=None, pattern=r"^ses_[0-9a-f]{32}$")


class MemoryBatch(Body):
    """Memories of one scope, kept all or none."""

    memories: list[_Content] = Field(min_length=1, max_length=_MOST_AT_ONCE)
    scope: ScopeKind | None = None
    user_id: UserId | None = None
    agent_id: str | None = Field(default=None, pattern=r"^agt_[0-9a-f]{32}$")
    session_id: str | None = Field(default=None, pattern=r"^ses_[0-9a-f]{32}$")


class MemoryPatch(Body):
    """Fields of a memory to be replaced; what is left out stays."""

    text: Text = Field(default="")
    kind: Kind = "fact"
    source: Source | None = None
    confidence: float = Field(default=1.0, ge=0, le=1)
    valid_from: AwareDatetime | None = None
    valid_until: AwareDatetime | None = None
    entities: Entities = Field(default=[])
    metadata: Metadata | None = None


class Search(Body):
    """What to look for, and among which memories."""

    query: str = Field(
        min_length=1, max_length=20_000, description=f"its first and last {MAX_QUERY // 2} characters count"
    )
    limit: int = Field(default=10, ge=1, le=MAX_ITEMS)
    kinds: list[Kind] = Field(default=[], max_length=5)
    scopes: list[ScopeKind] = Field(default=[], max_length=4)
    document_ids: list[Annotated[str, Field(pattern=r"^doc_[0-9a-f]{32}$")]] = Field(default=[], max_length=100)
    user_id: UserId | None = Field(default=None, description="what an agent would recall that works for this user")
    agent_id: str | None = Field(default=None, pattern=r"^agt_[0-9a-f]{32}$")
    session_id: str | None = Field(default=None, pattern=r"^ses_[0-9a-f]{32}$")


class Erasure(Body):
    """Whose memories are to go."""

    user_id: UserId


class MemoryQuery(PageQuery):
    """Which memories to list."""

    kind: Kind | None = None
    scope: ScopeKind | None = None
    document_id: str | None = Field(default=None, pattern=r"^doc_[0-9a-f]{32}$")
    user_id: UserId | None = None
    agent_id: str | None = Field(default=None, pattern=r"^agt_[0-9a-f]{32}$")
    session_id: str | None = Field(default=None, pattern=r"^ses_[0-9a-f]{32}$")
    ended: bool = Field(default=False, description="also those that are over")


class ExportQuery(Query):
    """Whose memories."""

    user_id: UserId


class MemoryView(View):
    """A memory."""

    id: str
    scope: ScopeKind
    owner: str | None = Field(description="the id of the user, agent or session; null for the org")
    kind: Kind
    text: str
    source: str | None
    provenance: Literal["person", "tool", "model"] = Field(description="who says so")
    confidence: float
    valid_from: AwareDatetime | None
    valid_until: AwareDatetime | None
    ended_at: AwareDatetime | None = Field(description="since when it counts no more")
    superseded_by: str | None
    entities: list[str]
    thread: str | None
    place: int | None
    context: str | None
    document_id: str | None
    page: int | None
    metadata: dict[str, Any] | None
    agent_id: str | None
    session_id: str | None
    run_id: str | None
    created_at: AwareDatetime
    updated_at: AwareDatetime


class MemoryPage(View):
    """Memories."""

    data: list[MemoryView]
    next_cursor: str | None


class MemoryList(View):
    """Memories that were kept, in the order in which they came."""

    data: list[MemoryView]


class FoundView(View):
    """A memory that answers a query."""

    id: str
    text: str
    kind: Kind
    score: float = Field(description="in (0, 1]; compares results of one search only")
    created_at: AwareDatetime
    scope: ScopeKind
    source: str | None
    provenance: Literal["person", "tool", "model"]
    confidence: float
    valid_from: AwareDatetime | None
    document_id: str | None
    page: int | None
    thread: str | None
    place: int | None
    metadata: dict[str, Any] | None


class Found(View):
    """What answers a query, best first."""

    data: list[FoundView]


class Erased(View):
    """How many memories there were."""

    erased: int


class Memories:
    """The endpoints of memories. `documents` are erased with their users' memories."""

    def __init__(self, access: MemoryAccess, documents: Documents) -> None:
        self._access = access
        self._documents = documents

    def endpoints(self) -> Iterator[Endpoint[Any, Any]]:
        one, tag = "/v1/memories/{memory_id}", "memories"
        yield Endpoint(
            method="POST",
            path="/v1/memories",
            handler=self.create,
            tag=tag,
            summary="Keep a memory",
            description="The same text again in the same scope updates what is there.",
            scope="write",
            body=NewMemoryBody,
            response=MemoryView,
            status=201,
            location="/v1/memories/{id}",
            problems=(403, 404, 503),
            seconds=_SEARCH_SECONDS,
        )
        yield Endpoint(
            method="POST",
            path="/v1/memories/batch",
            handler=self.create_all,
            tag=tag,
            summary="Keep many memories of one scope, all or none",
            scope="write",
            body=MemoryBatch,
            response=MemoryList,
            status=201,
            problems=(403, 404, 503),
            seconds=60.0,
        )
        yield Endpoint(
            method="GET",
            path="/v1/memories",
            handler=self.list,
            tag=tag,
            summary="List memories, newest first",
            scope="read",
            query=MemoryQuery,
            response=MemoryPage,
            problems=(403, 404, 503),
        )
        yield Endpoint(
            method="POST",
            path="/v1/memories/search",
            handler=self.search,
            tag=tag,
            summary="Search memories, as an agent recalls them",
            scope="read",
            body=Search,
            response=Found,
            problems=(403, 404, 503),
            seconds=_SEARCH_SECONDS,
        )
        yield Endpoint(
            method="GET",
            path="/v1/memories/export",
            handler=self.export,
            tag=tag,
            summary="All memories of a user, a JSON object on each line",
            scope="read",
            query=ExportQuery,
            media_type="application/x-ndjson",
            problems=(403, 503),
            seconds=None,
        )
        yield Endpoint(
            method="POST",
            path="/v1/memories/erase",
            handler=self.erase,
            tag=tag,
            summary="Remove all memories of a user for good",
            scope="write",
            body=Erasure,
            response=Erased,
            problems=(403, 503),
            seconds=_ALL_SECONDS,
        )
        yield Endpoint(
            method="GET",
            path=one,
            handler=self.get,
            tag=tag,
            summary="Get a memory",
            scope="read",
            response=MemoryView,
            problems=(503,),
        )
        yield Endpoint(
            method="PATCH",
            path=one,
            handler=self.update,
            tag=tag,
            summary="Correct a memory in place",
            scope="write",
            body=MemoryPatch,
            response=MemoryView,
            problems=(403, 409, 503),
            seconds=_SEARCH_SECONDS,
        )
        yield Endpoint(
            method="POST",
            path=f"{one}/supersede",
            handler=self.supersede,
            tag=tag,
            summary="Put a memory in another's place",
            description="The old one stays readable, with its end, and is recalled no more.",
            scope="write",
            body=MemoryContent,
            response=MemoryView,
            status=201,
            problems=(403, 409, 503),
            seconds=_SEARCH_SECONDS,
        )
        yield Endpoint(
            method="DELETE",
            path=one,
            handler=self.delete,
            tag=tag,
            summary="Remove a memory for good",
            scope="write",
            status=204,
            problems=(403, 503),
        )

    async def create(self, call: Call[NewMemoryBody, NoQuery]) -> Answer:
        body = call.body
        writer = await self._access.writer(call.principal, _of(body), body.scope)
        memory = await self._access.memory()
        [item] = await memory.remember_all(writer.scope, [_new(body, writer.kind)])
        return Answer(_shown(item))

    async def create_all(self, call: Call[MemoryBatch, NoQuery]) -> Answer:
        body = call.body
        writer = await self._access.writer(call.principal, _of(body), body.scope)
        memory = await self._access.memory()
        items = await memory.remember_all(writer.scope, [_new(one, writer.kind) for one in body.memories])
        return Answer({"data": [_shown(item) for item in items]})

    async def list(self, call: Call[None, MemoryQuery]) -> Answer:
        query = call.query
        cursor = read_cursor(query.cursor, str)
        if cursor is not None and not is_id("mem", cursor[0]):
            raise bad_cursor()
        reader = await self._access.reader(call.principal, _of(query))
        memory = await self._access.memory()
        where = Filter(
            kinds=(query.kind,) if query.kind else (),
            scopes=(query.scope,) if query.scope else (),
            document_ids=(query.document_id,) if query.document_id else (),
            ended=query.ended,
        )
        found = await memory.list(
            reader.scope,
            where=where,
            after=cursor[0] if cursor else None,
            limit=query.limit + 1,
            everyone=reader.everyone,
        )
        return Answer(page(found, query.limit, show=_shown, key=lambda item: (item.id,)))

    async def search(self, call: Call[Search, NoQuery]) -> Answer:
        body = call.body
        reader = await self._access.reader(call.principal, _of(body))
        memory = await self._access.memory()
        where = Filter(kinds=body.kinds, scopes=body.scopes, document_ids=body.document_ids)
        found = await memory.recall(reader.scope, body.query, limit=body.limit, where=where, everyone=reader.everyone)
        return Answer({"data": [asdict(item) for item in found]})

    async def export(self, call: Call[None, ExportQuery]) -> Answer:
        user_id = call.query.user_id
        await self._access.reader(call.principal, OfWhom(user_id=user_id))
        items = (await self._access.memory()).export(call.org_id, user_id)

        async def lines() -> AsyncIterator[bytes]:
            async for item in items:
                yield orjson.dumps(_shown(item), option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)

        return Answer(app=StreamingResponse(lines(), media_type="application/x-ndjson"))

    async def erase(self, call: Call[Erasure, NoQuery]) -> Answer:
        user_id = call.body.user_id
        await self._access.writer(call.principal, OfWhom(user_id=user_id), "user")
        # First: what a worker may still take in of them is removed by their jobs.
        await self._documents.delete_of_user(call.org_id, user_id)
        erased = await (await self._access.memory()).erase(call.org_id, user_id)
        return Answer({"erased": erased})

    async def get(self, call: Call[None, NoQuery]) -> Answer:
        item, _ = await self._access.visible(call.principal, call.path["memory_id"])
        return Answer(_shown(item))

    async def update(self, call: Call[MemoryPatch, NoQuery]) -> Answer:
        given = call.body.model_fields_set
        if not given:
            raise invalid(("body", "must name at least one field to change"))
        fields = {name: getattr(call.body, name) for name in given}
        item, changer = await self._access.changeable(call.principal, call.path["memory_id"])
        memory = await self._access.memory()
        changes = Changes(given=frozenset(given), **fields)
        return Answer(_shown(await memory.change(changer.scope, item.id, changes, everyone=changer.everyone)))

    async def supersede(self, call: Call[MemoryContent, NoQuery]) -> Answer:
        item, changer = await self._access.changeable(call.principal, call.path["memory_id"])
        memory = await self._access.memory()
        by = _new(call.body, item.scope)
        return Answer(_shown(await memory.supersede(changer.scope, item.id, by, everyone=changer.everyone)))

    async def delete(self, call: Call[None, NoQuery]) -> Answer:
        item, changer = await self._access.changeable(call.principal, call.path["memory_id"])
        await (await self._access.memory()).forget(changer.scope, [item.id], everyone=changer.everyone)
        return Answer()


def _of(given: NewMemoryBody | MemoryBatch | MemoryQuery | Search) -> OfWhom:
    return OfWhom(user_id=given.user_id, agent_id=given.agent_id, session_id=given.session_id)


def _new(body: _Content, scope: ScopeKind) -> NewMemory:
    return NewMemory(
        text=body.text,
        kind=body.kind,
        scope=scope,
        source=body.source,
        provenance="person",
        confidence=body.confidence,
        valid_from=body.valid_from,
        valid_until=body.valid_until,
        entities=body.entities,
        context=body.context,
        metadata=body.metadata,
    )


def _shown(item: MemoryItem) -> dict[str, Any]:
    return {**asdict(item), "entities": [*item.entities]}
