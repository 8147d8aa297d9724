"""Retention: what nobody will ask for again is removed, a little at a time.

One pass goes through all policies, in batches of bounded size, for a bounded time, and rests after each batch for as
long as that took: behind, it goes right on; far behind, the next pass does. Every batch is one statement and one
transaction of its own, so no lock outlives a statement, whatever this process is doing. Two processes are never at it
at the same time: a batch that finds another one at work does nothing. A pass may break off anywhere.

- Chunks and checkpoints of a run go some time after its end: its `message` events hold the text.
- Events of old runs go up to the session's floor, which rises first: below it nothing is shown any more.
- Idle sessions go with all that belongs to them, but for what agents have remembered.
- Bytes of files that no session has any more go from the blob store.
- Entries of the audit log go when they are old enough.
- Idempotency keys go after a day, workers that have not been seen for an hour.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Final

import structlog

from kernel.errors import StoreUnavailable
from kernel.files import Files
from kernel.postgres import Pool
from kernel.settings import Settings
from kernel.sql import statements

SQL = statements(__package__, "retention.sql")
log = structlog.get_logger(__name__)

LOCK: Final = 0x4B454550
"""Key of the advisory lock that a batch holds; any constant, "KEEP" in ASCII."""

Batch = Callable[["Removed"], Awaitable[bool]]

_RUNS: Final = 200
_SESSIONS: Final = 100
_SESSIONS_LOOKED_AT: Final = 1_000


@dataclass(frozen=True, slots=True)
class Policies:
    """How many seconds things are kept: chunks and checkpoints after the run's end, its events after the same, sessions
    after the last thing that happened in them, entries of the audit log after they were written. None is for ever."""

    chunks: float | None
    events: float | None
    sessions: float | None
    audit: float | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Policies:
        """Those of `settings`, where 0 is for ever."""
        return cls(
            settings.retain_chunks or None,
            settings.retain_events or None,
            settings.retain_sessions or None,
            settings.retain_audit or None,
        )

    @property
    def slim_after(self) -> float | None:
        """When a run's chunks and checkpoints go: with its events at the latest."""
        return min((age for age in (self.chunks, self.events) if age is not None), default=None)


@dataclass(slots=True)
class Removed:
    """What a pass has removed. `checkpoints` counts their pending writes too, `rows` all that went with sessions."""

    runs: int = 0
    chunks: int = 0
    checkpoints: int = 0
    events: int = 0
    sessions: int = 0
    rows: int = 0
    keys: int = 0
    blobs: int = 0
    audit: int = 0


class Retention:
    """Passes over what is due.

    Args:
        files: whose bytes are tidied up too.
        rows: removed in one transaction at most. Marks on runs that are dealt with come on top, 200 at most.
        seconds: after so many a pass ends, done or not, but not before each policy has had a batch.
    """

    def __init__(
        self, db: Pool, policies: Policies, *, files: Files | None = None, rows: int = 2_000, seconds: float = 40.0
    ) -> None:
        self._db = db
        self._files = files
        self._policies = policies
        self._rows = rows
        self._seconds = seconds
        self._below: tuple[list[str], list[str]] | None = None  # sessions whose floor has risen, and the runs in it
        self._walked = ""  # the last session that was looked at
        self._idle: list[str] = []

    async def run(self) -> Removed:
        """One pass.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError: Postgres is away; what was removed so far stays removed.
        """
        begun = time.monotonic()
        removed = Removed()
        await self._db.execute(SQL.forget_dead_workers)
        batches: list[Batch] = [self._forget_keys, self._sweep_blobs, self._shorten_logs, self._forget_sessions]
        batches.append(self._forget_audit)
        while batches:
            batches = [batch for batch in batches if await _at_ease(batch, removed)]
            if time.monotonic() - begun >= self._seconds:
                break
        counts = asdict(removed)
        if any(counts.values()):
            log.info("retention", **counts, seconds=round(time.monotonic() - begun, 3), behind=bool(batches))
        return removed

    # Each of these is a batch: one transaction, or one of each kind. True: there may be more to do.

    async def _shorten_logs(self, removed: Removed) -> bool:
        more = False
        if (age := self._policies.slim_after) is not None:
            more = await self._slim_runs(age, removed)
        if (age := self._policies.events) is not None:  # of runs that are slim by now
            more = await self._forget_events(age, removed) or more
        return more

    async def _slim_runs(self, age: float, removed: Removed) -> bool:
        row = await self._db.fetchrow(SQL.slim_runs, LOCK, age, _RUNS, self._rows)
        assert row is not None
        removed.runs += row["runs"]
        removed.chunks += row["chunks"]
        removed.checkpoints += row["checkpoints"]
        return bool(row["runs"] >= _RUNS or row["chunks"] + row["checkpoints"] >= self._rows)

    async def _forget_events(self, age: float, removed: Removed) -> bool:
        if self._below is None:
            row = await self._db.fetchrow(SQL.raise_floors, LOCK, age, _RUNS)
            assert row is not None
            self._below = (row["sessions"], row["runs"]) if row["sessions"] else None
            return self._below is not None
        events: int = await self._db.fetchval(SQL.forget_events, LOCK, *self._below, self._rows)
        removed.events += events
        if events < self._rows:
            self._below = None
        return True

    async def _forget_sessions(self, removed: Removed) -> bool:
        age = self._policies.sessions
        if age is None:
            return False
        if not self._idle:
            row = await self._db.fetchrow(SQL.idle_sessions, age, self._walked, _SESSIONS_LOOKED_AT)
            assert row is not None
            self._walked, self._idle = row["last"], row["idle"]
            return bool(row["looked_at"])  # past the last one: the next pass begins anew
        row = await self._db.fetchrow(SQL.empty_sessions, LOCK, age, self._idle[:_SESSIONS], self._rows)
        assert row is not None
        removed.rows += row["total"]
        removed.sessions += row["sessions"]
        if row["total"] < self._rows:
            del self._idle[:_SESSIONS]
        return True

    async def _sweep_blobs(self, removed: Removed) -> bool:
        if self._files is None:
            return False
        await self._files.forget_calls()
        try:
            blobs = await self._files.sweep()
        except StoreUnavailable as error:
            log.warning("blobs_not_swept", error=error.message, effect="tried again in a minute")
            return False
        removed.blobs += blobs
        return blobs > 0

    async def _forget_audit(self, removed: Removed) -> bool:
        if self._policies.audit is None:
            return False
        entries: int = await self._db.fetchval(SQL.forget_audit, LOCK, self._policies.audit, self._rows)
        removed.audit += entries
        return entries >= self._rows

    async def _forget_keys(self, removed: Removed) -> bool:
        keys: int = await self._db.fetchval(SQL.forget_idempotency_keys, LOCK, self._rows)
        removed.keys += keys
        return keys >= self._rows


async def _at_ease(batch: Batch, removed: Removed) -> bool:
    """Runs a batch, and rests for as long where there may be more to do."""
    begun = time.monotonic()
    more = await batch(removed)
    if more:
        await asyncio.sleep(time.monotonic() - begun)
    return more
