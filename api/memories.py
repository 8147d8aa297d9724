"""`/v1/memories`: what agents remember, for people to see, correct, search, take along and erase.

A key that stands for no one user sees and changes all memories of its org. A caller who is a user sees what an agent
that works for them would recall, and changes what is their own: only an admin writes for others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from typing import Any, Final

import orjson
from starlette.responses import StreamingResponse

from api.endpoint import Answer, Call, Endpoint, NoQuery
from api.memory_access import MemoryAccess, OfWhom
from api.memory_bodies import (
    Content,
    Erased,
    Erasure,
    ExportQuery,
    Found,
    MemoryBatch,
    MemoryContent,
    MemoryList,
    MemoryPage,
    MemoryPatch,
    MemoryQuery,
    MemoryView,
    NewMemoryBody,
    Search,
)
from api.paging import bad_cursor, page, read_cursor
from api.problems import invalid
from kernel.errors import Conflict
from kernel.ids import is_id
from kernel.jobs import cancel_jobs_of_user
from memory.documents.store import Documents
from memory.records import Changes, Filter, MemoryItem, NewMemory, ScopeKind

_SEARCH_SECONDS: Final = 15.0
_ALL_SECONDS: Final = 300.0


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
        # And what a worker is about to keep of their conversations is not kept.
        await cancel_jobs_of_user(call.db, call.org_id, user_id)
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
        newer = await memory.supersede(changer.scope, item.id, by, everyone=changer.everyone)
        if newer.id == item.id:  # by then it was over, and nothing was kept
            raise Conflict(f"The memory {item.id} is over.", suggestions=("supersede what took its place",))
        return Answer(_shown(newer))

    async def delete(self, call: Call[None, NoQuery]) -> Answer:
        item, changer = await self._access.changeable(call.principal, call.path["memory_id"])
        await (await self._access.memory()).forget(changer.scope, [item.id], everyone=changer.everyone)
        return Answer()


def _of(given: NewMemoryBody | MemoryBatch | MemoryQuery | Search) -> OfWhom:
    return OfWhom(user_id=given.user_id, agent_id=given.agent_id, session_id=given.session_id)


def _new(body: Content, scope: ScopeKind) -> NewMemory:
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
