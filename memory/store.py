"""Memories in Postgres: one table, and one statement to recall.

Recall fuses two arms. The text arm takes memories that share terms with the query and ranks them by how much of
the query they cover; the dense arm takes memories whose vector is nearer to the query's than unrelated texts are.
The score is their weighted mean. A memory that neither arm finds relevant does not come back, however few there
are, so that not every question drags the same five facts along.

Where the embedder is down or slow, recall goes on with the text arm alone; remembering can't.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import orjson
import structlog

from kernel.errors import InvalidInput, NotFound
from kernel.ids import new_id
from kernel.postgres import UNAVAILABLE, Pool
from kernel.sql import statements
from memory.embedders.port import Embedder
from memory.errors import EmbedderUnavailable, MemoryUnavailable
from memory.records import MAX_ITEMS, MAX_QUERY, MAX_SOURCE, MAX_TEXT, Kind, MemoryItem, RecalledItem, Scope
from memory.terms import RANK_WEIGHTS, document, owner_tag, question, terms

log = structlog.get_logger(__name__)

SQL = statements(__package__, "memories.sql")

_LEAST_SHARE = 0.2  # of the query's terms: one in five, or of a long query a few
_AT_ONCE = 2000  # characters; reading more of them would hold up the event loop for milliseconds


class PostgresMemory:
    """The `Memory` that comes with Longhaul.

    Args:
        patience: seconds that a call waits for Postgres.
        embedder_patience: seconds that recall waits for the query's vector; an answer's first word waits with it.
    """

    def __init__(
        self, pool: Pool, embedder: Embedder, *, patience: float = 5.0, embedder_patience: float = 2.0
    ) -> None:
        self._pool = pool
        self._embedder = embedder
        self._patience = patience
        self._embedder_patience = embedder_patience

    async def remember(self, scope: Scope, text: str, *, kind: Kind = "fact", source: str | None = None) -> MemoryItem:
        text = _bounded(text, "text", MAX_TEXT)
        if not text:
            raise InvalidInput("there is nothing to remember", field="text")
        origin = _bounded(source or "", "source", MAX_SOURCE) or None
        try:
            [vector] = await self._embedder.embed([text])
        except EmbedderUnavailable as error:
            raise MemoryUnavailable(
                f"nothing was remembered: {error.message}", suggestions=error.suggestions
            ) from error
        tag = owner_tag(scope.org_id, scope.user_id)
        search = _document(text, tag) if len(text) <= _AT_ONCE else await asyncio.to_thread(_document, text, tag)
        async with self._in_time():
            row = await self._pool.fetchrow(
                SQL.upsert_memory,
                new_id("mem"),
                scope.org_id,
                scope.user_id,
                scope.agent_id,
                scope.session_id,
                scope.run_id,
                kind,
                text,
                origin,
                _literal(vector),
                _space(self._embedder, vector),
                search,
                hashlib.sha256(text.encode()).digest(),
            )
        assert row is not None
        return MemoryItem(**row)

    async def recall(self, scope: Scope, query: str, *, limit: int = 5) -> list[RecalledItem]:
        if not 1 <= limit <= MAX_ITEMS:
            raise InvalidInput(f"limit must be 1 to {MAX_ITEMS}", field="limit")
        query = _clipped(_clean(query))
        found = list(terms(query))
        vector = await self._query_vector(scope, query)
        if not found and vector is None:
            return []
        asked = question(found, owner_tag(scope.org_id, None))
        asked_of_user = question(found, owner_tag(scope.org_id, scope.user_id)) if scope.user_id is not None else None
        async with self._in_time():
            rows = await self._pool.fetch(
                SQL.recall,
                scope.org_id,
                scope.user_id,
                asked.tsquery,
                asked_of_user.tsquery if asked_of_user else None,
                asked.scale,
                _literal(vector) if vector else None,
                _space(self._embedder, vector) if vector else None,
                self._embedder.nearness.floor,
                self._embedder.nearness.weight if vector else 0.0,
                _LEAST_SHARE,
                limit,
                RANK_WEIGHTS,
            )
        return [RecalledItem(**row) for row in rows]

    async def _query_vector(self, scope: Scope, query: str) -> list[float] | None:
        """The vector to look near, or None: nothing is known by it, or there is nobody to make it in time."""
        if not query:
            return None
        if not self._embedder.local:
            # A look into the index is nothing beside a call over the network, which most new orgs can be spared.
            async with self._in_time():
                if not await self._pool.fetchval(SQL.has_memories, scope.org_id, scope.user_id):
                    return None
        try:
            async with asyncio.timeout(self._embedder_patience):
                [vector] = await self._embedder.embed([query])
        except (EmbedderUnavailable, TimeoutError) as error:
            log.warning("recall_without_vector", org_id=scope.org_id, reason=str(error) or "too slow")
            return None
        return vector if any(vector) else None

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """What can go wrong between us and Postgres becomes an error that a run may live without."""
        try:
            async with asyncio.timeout(self._patience):
                yield
        except asyncpg.ForeignKeyViolationError as error:
            raise NotFound("there is no such org", field="org_id") from error
        except asyncpg.IntegrityConstraintViolationError:
            raise  # a bug of ours, not of the weather
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            raise MemoryUnavailable(
                f"memories can't be reached: {type(error).__name__}",
                suggestions=("try again", "check Postgres and that its migrations have run"),
            ) from error


def _document(text: str, tag: str) -> str:
    return document(terms(text), tag)


def _space(embedder: Embedder, vector: Sequence[float]) -> str:
    """The name of what vectors are comparable in: a model may be asked for vectors of several lengths."""
    return f"{embedder.model}/{len(vector)}"


def _literal(vector: Sequence[float]) -> str:
    return orjson.dumps(vector).decode()


def _bounded(text: str, field: str, longest: int) -> str:
    text = _clean(text)
    if len(text) > longest:
        raise InvalidInput(f"{field} has {len(text)} characters; at most {longest} can be kept", field=field)
    return text


def _clean(text: str) -> str:
    """Without what UTF-8 and Postgres cannot hold, trimmed."""
    return text.encode("utf-8", "ignore").decode().replace("\x00", "").strip()


def _clipped(query: str) -> str:
    """Of a long query the beginning and the end: there the question is, with the matter in between."""
    half = MAX_QUERY // 2
    return query if len(query) <= MAX_QUERY else f"{query[:half]} {query[-half:]}"
