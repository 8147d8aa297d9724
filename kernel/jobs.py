"""Background jobs: what has to be done some time after it was asked for, by any worker.

A job lives in Postgres, so that it can be added in the transaction that makes it necessary. Of one kind and key one
job is open at most. A worker takes it under a lease; if it dies, another one takes it again. A handler may therefore
be called more than once for the same job, and must be written for that: what it has done already, it does not do twice.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import asyncpg
import orjson

from kernel.errors import LonghaulError
from kernel.ids import new_id
from kernel.postgres import Connection, Pool
from kernel.sql import statements

SQL = statements(__package__, "jobs.sql")

_KEPT: Final = 7 * 86400.0  # seconds
_FORGOTTEN_AT_ONCE: Final = 1000

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class JobLost(LonghaulError):
    """The job is no longer this worker's: cancelled, or taken over. Stop, and write nothing more."""

    code = "job_lost"


@dataclass(frozen=True, slots=True)
class Job:
    """A job that a worker has taken. `attempt` counts from 1; the last one is `attempts`."""

    id: str
    org_id: str | None
    kind: str
    key: str
    payload: dict[str, Any]
    attempt: int
    attempts: int


@dataclass(frozen=True, slots=True)
class JobState:
    """What has become of a job. `error` holds {"code", "message"} of the last attempt that failed."""

    id: str
    org_id: str | None
    kind: str
    key: str
    payload: dict[str, Any]
    status: JobStatus
    attempt: int
    attempts: int
    progress: dict[str, Any] | None
    error: dict[str, Any] | None
    created_at: datetime
    not_before: datetime
    finished_at: datetime | None


async def add_job(
    db: Pool | Connection,
    kind: str,
    key: str,
    payload: dict[str, Any] | None = None,
    *,
    org_id: str | None = None,
    attempts: int = 5,
    delay: float = 0.0,
) -> str:
    """Adds a job to be done in `delay` seconds; the id of it, or of the open one of this kind and key.

    Of an open job nothing is changed: its payload stays as it is.
    """
    arguments = (new_id("job"), org_id, kind, key, _text(payload or {}), attempts, delay)
    while True:
        found = await db.fetchval(SQL.add_job, *arguments) or await db.fetchval(SQL.open_job, kind, key)
        if found is not None:  # else it has just been finished
            return str(found)


async def take_job(db: Pool, kinds: Collection[str], *, worker: str, lease_seconds: float) -> Job | None:
    """The next job that is due, now this worker's; None if there is none."""
    row = await db.fetchrow(SQL.take_job, worker, lease_seconds, [*kinds])
    return None if row is None else _job(row)


async def bury_jobs(db: Pool, kinds: Collection[str]) -> list[Job]:
    """Ends jobs whose worker died in their last attempt; these."""
    return [_job(row) for row in await db.fetch(SQL.bury_jobs, [*kinds])]


async def renew_job(db: Pool, job: Job, *, lease_seconds: float) -> bool:
    """Whether the job is still this worker's; if so, for `lease_seconds` more."""
    return bool(await db.fetchval(SQL.renew_job, job.id, job.attempt, lease_seconds))


async def say_progress(
    db: Pool | Connection, job: Job, progress: dict[str, Any], *, lease_seconds: float = 60.0
) -> None:
    """Records how far it is.

    Raises:
        JobLost: it is no longer this worker's.
    """
    text = _text(progress)
    if not await db.fetchval(SQL.progress_job, job.id, job.attempt, text, lease_seconds):
        raise JobLost(f"Job {job.id} is no longer this worker's.")


async def finish_job(db: Pool | Connection, job: Job) -> None:
    """It is done. In the transaction of its last write, the job is done exactly when that is.

    Raises:
        JobLost: it is no longer this worker's.
    """
    if not await db.fetchval(SQL.finish_job, job.id, job.attempt):
        raise JobLost(f"Job {job.id} is no longer this worker's.")


async def fail_job(db: Pool, job: Job, error: dict[str, Any]) -> None:
    """It can't be done. Says nothing where it is no longer this worker's."""
    await db.fetchval(SQL.fail_job, job.id, job.attempt, _text(error))


async def requeue_job(db: Pool, job: Job, error: dict[str, Any] | None, *, delay: float, free: bool = False) -> None:
    """It is to be tried again in `delay` seconds; `free` if the attempt does not count."""
    text = None if error is None else _text(error)
    await db.fetchval(SQL.requeue_job, job.id, job.attempt, text, delay, free)


async def cancel_jobs(db: Pool | Connection, kind: str, key: str) -> bool:
    """Ends the open job of this kind and key; whether there was one. A worker that is at it notices within its lease,
    and can't finish it."""
    return bool(await db.fetch(SQL.cancel_jobs, kind, key))


async def cancel_jobs_of_user(db: Pool | Connection, org_id: str, user_id: str) -> int:
    """Ends open jobs that are about runs of this user, and forgets what they have found; how many."""
    return len(await db.fetch(SQL.cancel_jobs_of_user, org_id, user_id))


async def get_job(db: Pool | Connection, kind: str, key: str) -> JobState | None:
    """The latest job of this kind and key."""
    row = await db.fetchrow(SQL.get_job, kind, key)
    if row is None:
        return None
    fields = dict(row)
    for name in ("payload", "progress", "error"):
        fields[name] = None if fields[name] is None else orjson.loads(fields[name])
    return JobState(**fields)


async def forget_jobs(db: Pool, *, after: float, limit: int) -> int:
    """Removes jobs that ended `after` seconds ago, `limit` at most; how many."""
    return int((await db.execute(SQL.forget_jobs, after, limit)).split()[-1])


async def forget_old_jobs(db: Pool) -> int:
    """Removes all jobs that ended a week ago; how many. A deployment may end hundreds a second: one batch is not
    enough."""
    gone = 0
    while (batch := await forget_jobs(db, after=_KEPT, limit=_FORGOTTEN_AT_ONCE)) == _FORGOTTEN_AT_ONCE:
        gone += batch
    return gone + batch


def _job(row: asyncpg.Record) -> Job:
    fields = dict(row)
    fields["payload"] = orjson.loads(fields["payload"])
    return Job(**fields)


def _text(value: dict[str, Any]) -> str:
    """As JSON that Postgres keeps: messages of others may hold NUL and halves of surrogate pairs."""
    return orjson.dumps(_keepable(value)).decode()


def _keepable(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "ignore").decode().replace("\x00", "")
        case dict():
            return {_keepable(key): _keepable(each) for key, each in value.items()}
        case list() | tuple():
            return [_keepable(each) for each in value]
        case _:
            return value
