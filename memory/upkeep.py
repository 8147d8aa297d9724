"""Upkeep of memories: what can be done some time after a write, by one worker at a time.

- Memories without words or vector are given them (`filling.py`); a new space is filled, and then serves.
- Vectors of large shelves are moved into the graph, some at a time: a write pays nothing for the graph, and a search
  reads from end to end only what is not in it yet. Shelves that have shrunk stay there.
- Memories of sessions that are gone are removed.
- Tables of retired spaces are dropped, once no process can write to them any more.
- Jobs that ended long ago are forgotten.

Each of these goes on where it stopped, and may stop anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

import asyncpg
import structlog

from kernel.jobs import Job, add_job, forget_old_jobs, requeue_job, say_progress
from kernel.postgres import Pool
from kernel.sql import statements
from memory.embedders.port import Embedder
from memory.errors import EmbedderUnavailable
from memory.filling import Filler
from memory.graph import Graph
from memory.spaces import Space, Spaces

SQL = statements(__package__, "upkeep.sql")
log = structlog.get_logger(__name__)

UPKEEP: Final = "memory_upkeep"
FILL: Final = "memory_fill"

_FILL_ATTEMPTS: Final = 50
_REMOVED_AT_ONCE: Final = 1000
_SHELVES_AT_ONCE: Final = 2000
_SHELVES_A_PASS: Final = 20_000
_LOCK_TIMEOUT: Final = "2s"


async def ask_for_upkeep(db: Pool) -> None:
    """Has a worker make a pass. One that waits already, or is under way, is enough."""
    await add_job(db, UPKEEP, "memory", attempts=3)


class Upkeep:
    """What the background jobs of memory do.

    Args:
        spaces: as those who write memories know them.
        seconds: that one pass spends on moving vectors into the graph; the next pass goes on.
        grace: seconds from a space's retirement to the end of its table; more than any process trusts what it knows.
    """

    def __init__(
        self,
        pool: Pool,
        embedder: Embedder,
        spaces: Spaces,
        *,
        filler: Filler | None = None,
        graph: Graph | None = None,
        seconds: float = 45.0,
        grace: float = 120.0,
    ) -> None:
        self._pool = pool
        self._embedder = embedder
        self._spaces = spaces
        self._filler = filler or Filler(pool, embedder)
        self._graph = graph or Graph(pool)
        self._seconds = seconds
        self._grace = grace
        self._walked = 0  # the last shelf of a session that was looked at

    def handlers(self) -> dict[str, Callable[[Job], Awaitable[bool | None]]]:
        """By kind of job."""
        return {UPKEEP: self.run, FILL: self.fill}

    async def run(self, job: Job | None = None) -> None:
        """One pass over everything; errors of Postgres are the caller's."""
        await forget_old_jobs(self._pool)
        await self._clear_sessions()
        await self._drop_tables()
        self._spaces.forget()
        try:
            own = await self._own()
            if own is not None and own.state == "filling":
                await add_job(self._pool, FILL, str(own.id), attempts=_FILL_ATTEMPTS)
            elif own is not None:
                while await self._filler.fill(own):
                    pass
        except EmbedderUnavailable as error:
            log.warning("memories_not_filled_in", reason=error.message, effect="tried again in a minute")
        until = time.monotonic() + self._seconds
        for space in await self._spaces.known():
            await self._graph.take_in(space, until=until)

    async def fill(self, job: Job) -> bool | None:
        """Fills a space and lets it serve. A worker of another model leaves it to those that have this one."""
        self._spaces.forget()
        space = next((one for one in await self._spaces.known() if str(one.id) == job.key), None)
        if space is None or space.state != "filling":
            return None
        if not self._is_own(space):
            await requeue_job(self._pool, job, None, delay=30.0, free=True)
            return True
        while await self._filler.fill(space):
            # Else a search of the new space would read it from end to end.
            await self._graph.take_in(space)
            done, last = await self._filler.progress(space)
            progress = {"space": space.id, "model": space.model, "filled_to": done, "last": last}
            await say_progress(self._pool, job, progress)
        await self._graph.take_in(space)
        await self._filler.serve(space)
        self._spaces.forget()
        return None

    async def _own(self) -> Space | None:
        """The space of this process' model; made, if there are memories that want one."""
        dimensions = self._embedder.dimensions
        if not dimensions:
            named = [space for space in await self._spaces.known() if space.model == self._embedder.model]
            if named:
                return named[-1]
        if not await self._pool.fetchval(SQL.any_memories):
            return None
        if not dimensions:
            [vector] = await self._embedder.embed(["memory"])
            dimensions = len(vector)
        return await self._spaces.own(dimensions)

    def _is_own(self, space: Space) -> bool:
        return space.model == self._embedder.model and self._embedder.dimensions in (0, space.dimensions)

    async def _clear_sessions(self) -> None:
        for _ in range(_SHELVES_A_PASS // _SHELVES_AT_ONCE):
            found = await self._pool.fetchrow(SQL.walk_sessions, self._walked, _SHELVES_AT_ONCE)
            assert found is not None
            for shelf in found["gone"]:
                while await self._pool.fetchval(SQL.clear_shelf, shelf, _REMOVED_AT_ONCE):
                    pass
                await self._pool.fetchval(SQL.unshelve, shelf)
            self._walked = found["last"]
            if not self._walked:  # past the last one: the next pass begins anew
                return

    async def _drop_tables(self) -> None:
        for row in await self._pool.fetch(SQL.retired_tables, self._grace):
            try:
                async with self._pool.acquire() as connection, connection.transaction():
                    await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
                    await connection.execute(f"DROP TABLE IF EXISTS {row['name']}")
                log.info("space_dropped", table=row["name"])
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                log.info("space_not_dropped", table=row["name"], effect="tried again in a minute")
