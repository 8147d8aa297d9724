"""The job of a document: takes its newest version in, or removes what is left of it.

One job at most is open for a document, so what is done to it is done in order. Whatever breaks off is done again from
the beginning, and finds what is there already: a passage is known by its text, so nothing is there twice and nothing is
embedded twice. New passages go in before those that are not in the document any more go out, and the version before is
served until then. The job ends in the transaction that settles the document: an upload that comes in between finds
either an open job, which goes on with it, or none, and adds one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import orjson
import structlog

from kernel.blobs import BlobMissing, BlobPlace, Blobs
from kernel.errors import LonghaulError, StoreUnavailable
from kernel.jobs import Job, JobLost, add_job, finish_job, requeue_job, say_progress
from kernel.postgres import Pool
from kernel.settings import Settings
from memory.documents.formats import Format
from memory.documents.parsing import ParserLimits, Reading, read_document
from memory.documents.passages import Passage
from memory.documents.records import ATTEMPTS, JOB, scope_of
from memory.documents.refusals import DocumentRefused
from memory.documents.store import SQL
from memory.port import Memory
from memory.records import MAX_CONTEXT, MAX_SOURCE, Filter, MemoryItem, NewMemory, Scope, ScopeKind

log = structlog.get_logger(__name__)

BATCH: Final = 100
"""Passages that are embedded and written at once: between batches a deletion or another upload is noticed."""

_PAGE: Final = 200
_AGAIN: Final = 600.0


class WorkersDied(LonghaulError):
    """Nobody has lived to the end of it."""

    code = "not_taken_in"


class _Superseded(Exception):
    """There is a newer version, or the document was deleted."""


@dataclass(frozen=True, slots=True)
class _Work:
    """The version of a document that is to be taken in."""

    id: str
    org_id: str
    scope: ScopeKind
    owner: str | None
    name: str
    user_id: str | None
    served: int | None
    version: int
    blob: str
    format: Format
    charset: str | None
    size: int

    @property
    def keeper(self) -> Scope:
        return scope_of(self.org_id, self.scope, self.owner)


class Ingestion:
    """The handler of jobs of the kind `document`."""

    def __init__(
        self, db: Pool, memory: Memory, blobs: Blobs, limits: ParserLimits | None = None, *, batch: int = BATCH
    ) -> None:
        self._db = db
        self._memory = memory
        self._blobs = blobs
        self._limits = limits or ParserLimits()
        self._batch = batch

    @classmethod
    def from_settings(cls, settings: Settings, db: Pool, memory: Memory) -> Ingestion:
        return cls(db, memory, Blobs(BlobPlace.from_settings(settings)))

    async def __call__(self, job: Job) -> bool:
        """Goes on until nothing is left to do for the document. The job is finished then."""
        while True:
            row = await self._db.fetchrow(SQL.work, job.key)
            if row is None or row["status"] == "deleting":
                return await self._removed(job)
            if row["status"] in ("ready", "failed") or row["blob"] is None:
                if await self._settled(job):
                    return True
                continue
            work = _work(row)
            try:
                await self._take_in(job, work)
                return True
            except _Superseded:
                continue
            except DocumentRefused as refused:
                if await self._fail(job, work, refused):
                    return True
            except JobLost:
                raise
            except Exception as error:
                if job.attempt < job.attempts or not await self._fail(job, work, error):
                    raise
                log.exception("document_given_up", document_id=work.id, org_id=work.org_id)
                return True

    async def buried(self, job: Job) -> None:
        """Settles a document after its job was ended because each of its workers died: nothing half taken in stays."""
        row = await self._db.fetchrow(SQL.work, job.key)
        if row is None or row["status"] in ("ready", "failed"):
            return
        if row["status"] == "deleting" or row["blob"] is None:
            await add_job(self._db, JOB, job.key, org_id=job.org_id, attempts=ATTEMPTS, delay=_AGAIN)
            return
        await self._fail(
            None, _work(row), WorkersDied("Each worker that took the document in died while it was at it.")
        )

    async def _take_in(self, job: Job, work: _Work) -> None:
        await self._say(job, work, "parsing", 0, 1)
        reading = await read_document(await self._bytes(work), work.format, work.charset, self._limits)
        there = {item.text: item for item in await self._passages(work)}
        wanted = _memories(work, reading, there)
        fresh = [new for new in wanted if not _is_kept(there.get(new.text), new)]
        await self._say(job, work, "embedding", len(wanted) - len(fresh), len(wanted))
        fresh = await self._move(work, there, fresh)
        for start in range(0, len(fresh), self._batch):
            await self._memory.remember_all(work.keeper, fresh[start : start + self._batch])
            done = len(wanted) - len(fresh) + min(start + self._batch, len(fresh))
            await self._say(job, work, "embedding", done, len(wanted))
        texts = {new.text for new in wanted}
        await self._forget(work, [item.id for text, item in there.items() if text not in texts])
        facts = orjson.dumps(dict(reading.facts)).decode()
        async with self._db.acquire() as db, db.transaction():
            if not await db.fetchval(SQL.serve, work.id, work.version, len(wanted), facts):
                raise _Superseded
            await db.execute(SQL.drop_versions, work.org_id, work.id)
            await finish_job(db, job)
        log.info("document_ready", document_id=work.id, org_id=work.org_id, passages=len(wanted), new=len(fresh))

    async def _bytes(self, work: _Work) -> bytes:
        try:
            async with self._blobs.open(work.blob) as pieces:
                return b"".join([piece async for piece in pieces])
        except BlobMissing:
            row = await self._db.fetchrow(SQL.work, work.id)
            if row is None or row["blob"] != work.blob:
                raise _Superseded from None
            raise StoreUnavailable(f"The bytes of {work.id} are missing in the store.") from None

    async def _passages(self, work: _Work) -> Sequence[MemoryItem]:
        """Those that are there, of whichever version."""
        where = Filter(kinds=("knowledge",), scopes=(work.scope,), document_ids=(work.id,))
        found: list[MemoryItem] = []
        while True:
            after = found[-1].id if found else None
            page = await self._memory.list(work.keeper, where=where, after=after, limit=_PAGE)
            found += page
            if len(page) < _PAGE:
                return found

    async def _move(self, work: _Work, there: Mapping[str, MemoryItem], fresh: Sequence[NewMemory]) -> list[NewMemory]:
        """Gives passages that only stand elsewhere now their new places; what is left to be written."""
        moved = [new for new in fresh if (item := there.get(new.text)) is not None and item.context == new.context]
        if not moved:
            return list(fresh)
        rows = await self._db.fetch(
            *(SQL.move, work.org_id, work.id, [there[new.text].id for new in moved], [new.place for new in moved]),
            *([new.page for new in moved], [new.source for new in moved]),
        )
        # A backend that keeps memories elsewhere has none of them: it writes them anew.
        done = {row["id"] for row in rows}
        return [new for new in fresh if new.text not in there or there[new.text].id not in done]

    async def _forget(self, work: _Work, memory_ids: Sequence[str]) -> None:
        for start in range(0, len(memory_ids), _PAGE):
            await self._memory.forget(work.keeper, memory_ids[start : start + _PAGE])

    async def _say(self, job: Job, work: _Work, stage: str, done: int, total: int) -> None:
        """Records how far it is. Raises _Superseded, JobLost."""
        async with self._db.acquire() as db, db.transaction():
            if not await db.fetchval(SQL.stage, work.id, work.version, stage):
                raise _Superseded
            await say_progress(db, job, {"stage": stage, "done": done, "total": total})

    async def _fail(self, job: Job | None, work: _Work, error: Exception) -> bool:
        """The version can't be taken in: nothing of it stays. False if there is a newer one by now. `job` is finished
        with that, unless it is over."""
        if work.served is None:
            await self._memory.forget_document(work.org_id, work.id)
        else:
            added = [item.id for item in await self._passages(work) if _came_in(item) > work.served]
            await self._forget(work, added)
        told = orjson.dumps(_told(error)).decode()
        async with self._db.acquire() as db, db.transaction():
            if not await db.fetchval(SQL.fail, work.id, work.version, told):
                return False
            await db.execute(SQL.drop_versions, work.org_id, work.id)
            if job is not None:
                await finish_job(db, job)
        log.info("document_refused", document_id=work.id, org_id=work.org_id, code=_told(error)["code"])
        return True

    async def _settled(self, job: Job) -> bool:
        async with self._db.acquire() as db, db.transaction():
            if await db.fetchval(SQL.settled, job.key) is False:
                return False
            await finish_job(db, job)
            return True

    async def _removed(self, job: Job) -> bool:
        """Whatever fails is tried again for as long as it takes: nobody else would remove what is left."""
        try:
            await self._remove(job)
        except (LonghaulError, OSError, TimeoutError) as error:
            if isinstance(error, JobLost) or job.attempt < job.attempts:
                raise
            log.warning("document_not_removed_yet", document_id=job.key, org_id=job.org_id, error=repr(error))
            await requeue_job(self._db, job, _told(error), delay=_AGAIN, free=True)
        return True

    async def _remove(self, job: Job) -> None:
        if job.org_id is not None:
            await self._memory.forget_document(job.org_id, job.key)
        async with self._db.acquire() as db, db.transaction():
            await db.execute(SQL.remove, job.key)
            await finish_job(db, job)


def _work(row: asyncpg.Record) -> _Work:
    fields = dict(row)
    del fields["status"]
    return _Work(**fields)


def _memories(work: _Work, reading: Reading, there: Mapping[str, MemoryItem]) -> list[NewMemory]:
    """The passages as they are to be. Each says in which version it came."""
    wanted = []
    for place, passage in enumerate(reading.passages):
        text = passage.text.strip()
        came_in = _came_in(there[text]) if text in there else work.version
        wanted.append(
            NewMemory(
                text=text,
                kind="knowledge",
                scope=work.scope,
                source=_source(work.name, passage),
                provenance="person",
                thread=work.id,
                place=place,
                context=" > ".join(filter(None, (work.name, passage.context)))[:MAX_CONTEXT],
                document_id=work.id,
                page=passage.page,
                metadata={"document_version": came_in},
            )
        )
    return wanted


def _came_in(item: MemoryItem) -> int:
    return int((item.metadata or {}).get("document_version") or 0)


def _is_kept(item: MemoryItem | None, new: NewMemory) -> bool:
    """Whether a passage is there as it is to be."""
    if item is None:
        return False
    return (item.context, item.place, item.page, item.source, item.thread) == (
        *(new.context, new.place, new.page, new.source, new.thread),
    )


def _source(name: str, passage: Passage) -> str:
    """What an answer cites: the document and the section."""
    section = (passage.context or "").rpartition(" > ")[2]
    return (f"{name}, {section}" if section else name)[:MAX_SOURCE]


def _told(error: Exception) -> dict[str, Any]:
    if isinstance(error, LonghaulError):
        return {"code": error.code, "message": error.message, "suggestions": list(error.suggestions)}
    return {"code": "internal", "message": f"{type(error).__name__} inside Longhaul; the worker's log has it."}
