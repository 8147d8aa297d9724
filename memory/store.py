"""The `Memory` on Postgres: puts together what writes (`writing.py`), reads (`reading.py`) and recalls (`recalling/`).

A memory is in three tables: what it is, its words, and its vector in the space of the model that made it. See
migrations 0017 and 0019, and `docs/decisions/0023-memory-writes.md`.

Where the embedder is down or slow, recall goes on by words alone; remembering can't. Nothing is kept half.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import asyncpg
import structlog

from kernel.errors import Conflict
from kernel.jobs import Job
from kernel.postgres import STORE_ERRORS, Pool
from memory import reading, writing
from memory.checks import checked, checked_change
from memory.embedders.port import Embedder
from memory.errors import EmbedderUnavailable, MemoryUnavailable
from memory.indexing import Indexed, Indexer
from memory.patience import in_time
from memory.port import ALL
from memory.recalling import Recaller
from memory.records import MAX_BATCH, Changes, Filter, Kind, MemoryItem, NewMemory, RecalledItem, Scope
from memory.rerankers.port import Reranker
from memory.spaces import Space, Spaces
from memory.upkeep import Upkeep, ask_for_upkeep

log = structlog.get_logger(__name__)

T = TypeVar("T")

_MANY: Final = 500  # memories written at once, after which upkeep need not wait for its minute
_TRIES: Final = 4
_CHECKED_AT_ONCE: Final = 16  # names are looked for in texts: many at once would hold up the event loop
_EACH: Final = 0.01  # seconds of patience for each memory of a batch


class PostgresMemory:
    """The `Memory` that comes with Longhaul.

    Args:
        previous: embedders of models used before, by the models' names. While vectors of one are being replaced, recall
            asks it for the question's vector; without it those memories are found by their words.
        patience: seconds that a call waits for Postgres, and some milliseconds more for each memory of a batch.
        embedder_patience: seconds that recall waits for the query's vector; an answer's first word waits with it.
        reranker: has the last word on the order of what is recalled.
    """

    def __init__(
        self,
        pool: Pool,
        embedder: Embedder,
        *,
        previous: Mapping[str, Embedder] | None = None,
        patience: float = 5.0,
        embedder_patience: float = 2.0,
        reranker: Reranker | None = None,
    ) -> None:
        self._pool = pool
        self._embedder = embedder
        self._patience = patience
        self._indexer = Indexer(embedder)
        self._spaces = Spaces(pool, embedder)
        self._recaller = Recaller(
            pool,
            embedder,
            previous=previous,
            reranker=reranker,
            patience=patience,
            embedder_patience=embedder_patience,
        )

    async def remember(self, scope: Scope, text: str, *, kind: Kind = "fact", source: str | None = None) -> MemoryItem:
        [item] = await self.remember_all(scope, [NewMemory(text, kind, source=source)])
        return item

    async def remember_all(self, scope: Scope, memories: Sequence[NewMemory]) -> list[MemoryItem]:
        if len(memories) <= _CHECKED_AT_ONCE:
            new = checked(scope, memories)
        else:
            new = await asyncio.to_thread(checked, scope, memories)
        if not new:
            return []
        named = writing.distinct(new)
        kept = [*named.values()]
        indexed = await self._indexer.index([(memory.text, memory.context) for memory in kept])
        patience = self._patience + _EACH * len(kept)
        async with in_time(patience):
            items = await self._in_space(
                indexed, lambda space: writing.write(self._pool, scope, kept, indexed, space, timeout=patience)
            )
        if len(kept) >= _MANY:
            await self._tidy_soon()
        by_name = dict(zip(named, items, strict=True))
        return [by_name[name] for name in writing.names(new)]

    async def recall(
        self, scope: Scope, query: str, *, limit: int = 5, where: Filter = ALL, everyone: bool = False
    ) -> list[RecalledItem]:
        return await self._recaller.recall(scope, query, limit=limit, where=where, everyone=everyone)

    async def get(self, scope: Scope, memory_id: str, *, everyone: bool = False) -> MemoryItem:
        async with in_time(self._patience):
            return await reading.get(self._pool, scope, memory_id, everyone=everyone)

    async def list(
        self,
        scope: Scope,
        *,
        where: Filter = ALL,
        after: str | None = None,
        limit: int = 50,
        everyone: bool = False,
    ) -> list[MemoryItem]:
        async with in_time(self._patience):
            return await reading.page(self._pool, scope, where, after, limit, everyone=everyone)

    async def change(self, scope: Scope, memory_id: str, changes: Changes, *, everyone: bool = False) -> MemoryItem:
        old = await self.get(scope, memory_id, everyone=everyone)
        if old.ended_at is not None:
            raise Conflict(f"The memory {memory_id} is over.")
        fields: dict[str, Any] = checked_change(changes, old)
        text = fields.get("text")
        indexed = None if text in (None, old.text) else await self._indexer.index([(str(text), old.context)])
        async with in_time(self._patience):
            await self._in_space(indexed, lambda space: writing.change(self._pool, scope, old, fields, indexed, space))
            return await reading.get(self._pool, scope, memory_id, everyone=everyone)

    async def supersede(
        self, scope: Scope, memory_id: str, by: NewMemory | None, *, everyone: bool = False
    ) -> MemoryItem:
        old = await self.get(scope, memory_id, everyone=everyone)
        if old.ended_at is not None:
            return old
        owner = _owning(scope, old)
        new = None if by is None else checked(owner, [by if by.scope else replace(by, scope=old.scope)])[0]
        indexed = None if new is None else await self._indexer.index([(new.text, new.context)])

        async def write(space: Space | None) -> MemoryItem | None:
            async with self._pool.acquire() as connection, connection.transaction():
                return await writing.supersede(connection, owner, old, new, indexed, space)

        async with in_time(self._patience):
            item = await self._in_space(indexed, write)
            return item or await reading.get(self._pool, scope, memory_id, everyone=everyone)

    async def forget(self, scope: Scope, memory_ids: Sequence[str], *, everyone: bool = False) -> int:
        gone = 0
        ids = [*dict.fromkeys(memory_ids)]
        for start in range(0, len(ids), MAX_BATCH):
            async with in_time(self._patience + _EACH * len(ids)):
                gone += await writing.forget(self._pool, scope, ids[start : start + MAX_BATCH], everyone=everyone)
        return gone

    async def forget_document(self, org_id: str, document_id: str) -> int:
        return await self._forget_all(writing.SQL.forget_document, org_id, document_id)

    def export(self, org_id: str, user_id: str) -> AsyncIterator[MemoryItem]:
        return reading.export(self._pool, org_id, user_id, self._patience)

    async def erase(self, org_id: str, user_id: str) -> int:
        gone = await self._forget_all(writing.SQL.erase, org_id, user_id)
        async with in_time(self._patience):
            await self._pool.execute(writing.SQL.unshelve, org_id, user_id)
        return gone

    def background(self) -> dict[str, Callable[[Job], Awaitable[bool | None]]]:
        """What workers do for it in the background, by kind of job; see `ask_for_upkeep`."""
        return Upkeep(self._pool, self._embedder, self._spaces).handlers()

    async def _forget_all(self, statement: str, org_id: str, of: str) -> int:
        """Batch by batch: each is a transaction, and what is gone stays gone if the next one fails."""
        gone = 0
        while True:
            patience = self._patience + _EACH * writing.AT_ONCE
            async with in_time(patience):
                batch = int(await self._pool.fetchval(statement, org_id, of, writing.AT_ONCE, timeout=patience))
            gone += batch
            if batch < writing.AT_ONCE:
                return gone

    async def _in_space(self, indexed: Indexed | None, write: Callable[[Space | None], Awaitable[T]]) -> T:
        """Writes with the space that the vectors belong to; again where its table was dropped or a shelf removed just
        then."""
        for _ in range(_TRIES - 1):
            try:
                return await write(None if indexed is None else await self._own(indexed))
            except asyncpg.UndefinedTableError:
                self._spaces.forget()
            except asyncpg.SerializationError:
                pass
        return await write(None if indexed is None else await self._own(indexed))

    async def _own(self, indexed: Indexed) -> Space | None:
        try:
            return await self._spaces.own(indexed.dimensions)
        except EmbedderUnavailable as error:
            raise MemoryUnavailable(
                f"nothing was remembered: {error.message}", suggestions=error.suggestions
            ) from error

    async def _tidy_soon(self) -> None:
        try:
            await ask_for_upkeep(self._pool)
        except STORE_ERRORS as error:
            log.info("upkeep_not_asked_for", reason=repr(error), effect="done within a minute anyway")


def _owning(scope: Scope, item: MemoryItem) -> Scope:
    """The asker in the place of the memory's owner."""
    match item.scope:
        case "user":
            return replace(scope, user_id=item.owner)
        case "agent":
            return replace(scope, agent_id=item.owner)
        case "session":
            return replace(scope, session_id=item.owner)
        case "org":
            return scope
