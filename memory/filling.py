"""Filling a space: every memory gets a vector in it, and words if it has none.

That is how a change of the embedding model takes place, and how memories come into the index that the release before
this one wrote, or a process whose own space was retired.

A space knows the number up to which all memories have been seen to. What is above it is looked at in windows; what
lacks something is embedded without holding any lock, and written if it is still the same by then. So a filling may
break off anywhere, and two at a time do no harm.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from typing import Final

import asyncpg
import structlog

from kernel.postgres import Connection, Pool
from kernel.sql import statements
from memory.embedders.port import Embedder
from memory.errors import EmbedderUnavailable
from memory.indexing import embedded, literal, reading
from memory.spaces import Space
from memory.words import Words, words

SQL = statements(__package__, "filling.sql")
log = structlog.get_logger(__name__)

_WINDOW: Final = 5000
_TRIES: Final = 6


class Filler:
    """Fills spaces of one model.

    Args:
        batch: memories that are embedded and written at once.
        settled: seconds after which nobody is writing any more what began so long ago.
        rest: how long to rest after each batch, in batches: an endpoint has others to serve.
        first_pause: seconds to wait, at most, after the first failure of the embedder; twice as long after the next.
    """

    def __init__(
        self,
        pool: Pool,
        embedder: Embedder,
        *,
        batch: int = 64,
        settled: float = 60.0,
        rest: float = 0.5,
        first_pause: float = 1.0,
    ) -> None:
        self._pool = pool
        self._embedder = embedder
        self._batch = batch
        self._settled = settled
        self._rest = rest
        self._first_pause = first_pause

    async def progress(self, space: Space) -> tuple[int, int]:
        """The number up to which the space is full, and that of the last memory there is."""
        row = await self._pool.fetchrow(SQL.filled_to, space.id)
        return (0, 0) if row is None else (row["filled_to"], row["last"])

    async def fill(self, space: Space) -> bool:
        """Sees to the next window of memories; whether there may be another one.

        Raises:
            EmbedderUnavailable: it failed again and again. What was done until then stays done.
            OSError, TimeoutError, asyncpg.PostgresError: Postgres is away, or the space was retired.
        """
        start, _ = await self.progress(space)
        reach = await self._pool.fetchval(SQL.reach, start, _WINDOW, self._settled)
        if reach is None:
            return False
        after = start
        while rows := await self._pool.fetch(
            SQL.lacking.format(table=space.table), after, reach, self._batch, f"{space.model}/{space.dimensions}"
        ):
            begun = time.monotonic()
            vectors = await self._vectors(space, rows)
            read = await asyncio.to_thread(_read, rows)
            async with self._pool.acquire() as connection, connection.transaction():
                await _add(connection, space, rows, vectors, read)
            after = rows[-1]["no"]
            await asyncio.sleep(self._rest * (time.monotonic() - begun))
        # Unless somebody has set it back, because of a memory that has lost its vector in the meantime.
        await self._pool.fetchval(SQL.advance, space.id, start, reach)
        return True

    async def serve(self, space: Space) -> None:
        """It is full: it takes the place of all others."""
        if await self._pool.fetchval(SQL.serve, space.id):
            log.info("space_serves", space=space.id, model=space.model, dimensions=space.dimensions)

    async def _vectors(self, space: Space, rows: Sequence[asyncpg.Record]) -> dict[int, str]:
        missing = [row for row in rows if row["vector"] is None]
        made = iter(await self._embedded([embedded((row["text"], row["context"])) for row in missing], space))
        return {row["no"]: row["vector"] or literal(next(made)) for row in rows}

    async def _embedded(self, texts: list[str], space: Space) -> list[list[float]]:
        if not texts:
            return []
        for attempt in range(_TRIES):
            try:
                vectors = await self._embedder.embed(texts)
            except EmbedderUnavailable as error:
                if attempt == _TRIES - 1:
                    raise
                pause = self._first_pause * 2**attempt * random.uniform(0.5, 1.0)  # noqa: S311
                log.info("filling_waits", space=space.id, reason=error.message, seconds=round(pause, 1))
                await asyncio.sleep(pause)
            else:
                if len(vectors[0]) == space.dimensions:
                    return vectors
                raise EmbedderUnavailable(
                    f"the model {space.model!r} made vectors of {len(vectors[0])} numbers, and now "
                    f"of {space.dimensions}: its memories can't be filled in"
                )
        raise AssertionError("unreachable")


def _read(rows: Sequence[asyncpg.Record]) -> dict[int, Words]:
    return {row["no"]: words(row["text"], row["context"]) for row in rows if row["words"]}


async def _add(
    connection: Connection,
    space: Space,
    rows: Sequence[asyncpg.Record],
    vectors: Mapping[int, str],
    read: Mapping[int, Words],
) -> None:
    """Inside a transaction: the words and vectors that are missing, of memories that are as they were."""
    await connection.execute(SQL.lock, [row["shelf"] for row in rows])
    same = await connection.fetch(
        SQL.still_lacking.format(table=space.table), [row["no"] for row in rows], [row["updated_at"] for row in rows]
    )
    wordless = [row for row in same if row["words"] and row["no"] in read]
    for org_id in sorted({row["org_id"] for row in wordless}):
        of_org = [row for row in wordless if row["org_id"] == org_id]
        await connection.execute(SQL.index, org_id, *_columns(of_org), *reading([read[row["no"]] for row in of_org]))
    without = [row for row in same if row["vector"]]
    added = SQL.add_vectors.format(table=space.table)
    await connection.execute(added, *_columns(without), [vectors[row["no"]] for row in without])


def _columns(rows: Sequence[asyncpg.Record]) -> tuple[list[int], list[int], list[str]]:
    return [row["no"] for row in rows], [row["shelf"] for row in rows], [row["kind"] for row in rows]
