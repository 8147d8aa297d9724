"""The graph of a space, through which large shelves are searched: which vectors are in it.

A write puts no vector into the graph, which would cost several times as much as all else. Vectors of large shelves are
moved into it afterwards: a few thousand one by one, as `HNSW` takes them; where very many wait, the index is taken
away and built anew over all of them, which is several times as fast. While that goes on, a search compares the vectors
one by one, as it did before: slower, and exact.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import asyncpg
import structlog

from kernel.postgres import Connection, Pool
from kernel.sql import statements
from memory.spaces import Space

SQL = statements(__package__, "graph.sql")
log = structlog.get_logger(__name__)

_MARKED_AT_ONCE: Final = 2000  # with no index there is nothing to it
_BUILD_SECONDS: Final = 6 * 3600.0
_LOCK_TIMEOUT: Final = "2s"


class Graph:
    """Moves vectors into the graphs of spaces.

    Args:
        large: memories from which on a shelf is searched through the graph.
        step: vectors that are moved in one transaction; each takes a millisecond or two.
        bulk: so many waiting vectors are put there by building the index anew, if they are more than twice as many as
            are in it.
        rest: how long to rest after each step, in steps.
        build_memory: what the building of an index may take of the server's memory.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        large: int = 10_000,
        step: int = 200,
        bulk: int = 20_000,
        rest: float = 0.25,
        build_memory: str = "512MB",
    ) -> None:
        self._pool = pool
        self._large = large
        self._step = step
        self._bulk = bulk
        self._rest = rest
        self._build_memory = build_memory

    async def take_in(self, space: Space, *, until: float | None = None) -> int:
        """Moves what waits; how many were moved one by one. `until` of the monotonic clock; a building is not broken
        off by it."""
        shelves = [row["id"] for row in await self._pool.fetch(SQL.large_shelves, self._large)]
        if not shelves:
            return 0
        if await self._many_wait(space, shelves) or not await self._pool.fetchval(_in(space, SQL.is_built)):
            await self._build(space, shelves)
        moved = 0
        for shelf in shelves:
            while until is None or time.monotonic() < until:
                begun = time.monotonic()
                step = await self._move(space, shelf, self._step)
                moved += step
                if step < self._step:
                    break
                await asyncio.sleep(self._rest * (time.monotonic() - begun))
        return moved

    async def _many_wait(self, space: Space, shelves: list[int]) -> bool:
        if await self._pool.fetchval(_in(space, SQL.waiting), shelves, self._bulk) < self._bulk:
            return False
        row = await self._pool.fetchrow(_in(space, SQL.share), shelves)
        assert row is not None
        return bool(row["waiting"] * 3 > row["all"] * 2)

    async def _move(self, space: Space, shelf: int, most: int) -> int:
        return int((await self._pool.execute(_in(space, SQL.move), shelf, most)).split()[-1])

    async def _build(self, space: Space, shelves: list[int]) -> None:
        async with self._pool.acquire() as connection:
            if not await connection.fetchval(SQL.lock, space.id):
                return  # another worker is at it
            try:
                begun = time.monotonic()
                if not await self._taken_away(connection, space):
                    return
                for shelf in shelves:
                    while await self._move(space, shelf, _MARKED_AT_ONCE) == _MARKED_AT_ONCE:
                        pass
                await self._built(connection, space)
                log.info("graph_built", space=space.id, seconds=round(time.monotonic() - begun, 1))
            finally:
                await connection.execute(SQL.unlock, space.id)

    async def _taken_away(self, connection: Connection, space: Space) -> bool:
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
                await connection.execute(_in(space, SQL.drop))
        except asyncpg.LockNotAvailableError:
            log.info("graph_not_built", space=space.id, effect="tried again in a minute")
            return False
        return True

    async def _built(self, connection: Connection, space: Space) -> None:
        # No transaction may be open for this, so the settings are taken back by hand.
        await connection.execute(f"SET maintenance_work_mem = '{self._build_memory}'")
        try:
            try:
                await connection.execute(_in(space, SQL.build), timeout=_BUILD_SECONDS)
            except asyncpg.DiskFullError:  # of shared memory, which side by side building wants
                await connection.execute(_in(space, SQL.drop))
                await connection.execute("SET max_parallel_maintenance_workers = 0")
                await connection.execute(_in(space, SQL.build), timeout=_BUILD_SECONDS)
        finally:
            await connection.execute("RESET maintenance_work_mem; RESET max_parallel_maintenance_workers")


def _in(space: Space, statement: str) -> str:
    return statement.format(table=space.table)
