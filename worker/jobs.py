"""The background jobs of a worker: takes those that are due, one after another in each of a few slots.

They share the process with runs, so handlers are kind to the event loop: what takes long goes to a thread or a child
process. At the worker's end a job that is under way is put back at once and costs no attempt.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final

import structlog

from kernel.errors import CallerError, LonghaulError
from kernel.jobs import (
    Job,
    JobLost,
    bury_jobs,
    fail_job,
    finish_job,
    renew_job,
    requeue_job,
    take_job,
)
from kernel.postgres import STORE_ERRORS, Pool, patiently
from kernel.tasks import end

log = structlog.get_logger(__name__)

Handler = Callable[[Job], Awaitable[bool | None]]
"""Does a job. True if it has finished the job itself, in a transaction of its own (`kernel.jobs.finish_job`)."""

LEASE: Final = 60.0
_RENEW: Final = 15.0
_LONGEST_PAUSE: Final = 3600.0
_FAREWELL: Final = 2.0
_APART_POLLS: Final = 5


class JobOverdue(LonghaulError):
    """The handler took longer than any of its kind should."""

    code = "job_overdue"


class Jobs:
    """`run()` is its task; cancelled, it puts back what it is at, and ends.

    Args:
        handlers: by the kind of job. Errors: a `CallerError` is final, since the same job will not do better; anything
            else is tried again, later each time.
        seconds: that one attempt may take; a handler that hangs gives its slot back then.
        apart: kinds that may take hours. Each has a slot of its own and all the time it wants, and keeps no other kind
            waiting.
        buried: by the kind of job, is told of those that were ended because each of their workers died.
    """

    def __init__(
        self,
        db: Pool,
        handlers: Mapping[str, Handler],
        *,
        worker: str,
        slots: int = 2,
        poll_seconds: float = 1.0,
        first_pause: float = 5.0,
        seconds: float = 7200.0,
        apart: Collection[str] = (),
        buried: Mapping[str, Callable[[Job], Awaitable[None]]] | None = None,
    ) -> None:
        self._db = db
        self._handlers = dict(handlers)
        self._worker = worker
        self._slots = slots
        self._poll = poll_seconds
        self._first_pause = first_pause
        self._seconds = seconds
        self._apart = [kind for kind in self._handlers if kind in apart]
        self._buried = dict(buried or {})

    async def run(self) -> None:
        usual = [kind for kind in self._handlers if kind not in self._apart]
        kinds = [*([usual] * self._slots if usual else []), *([kind] for kind in self._apart)]
        slots = [asyncio.create_task(self._slot(each), name=f"jobs {number}") for number, each in enumerate(kinds)]
        try:
            await asyncio.gather(*slots)
        finally:
            await end(*slots)

    async def _slot(self, kinds: Collection[str]) -> None:
        while True:
            try:
                for job in await bury_jobs(self._db, kinds):
                    await self._bury(job)
                job_taken = await take_job(self._db, kinds, worker=self._worker, lease_seconds=LEASE)
                if job_taken is not None:
                    await self._do(job_taken)
                    continue
            except STORE_ERRORS as error:
                log.warning("jobs_not_taken", error=repr(error))
            except Exception:  # a job must not end a worker, which has runs of hours
                log.exception("jobs_not_taken")
            # Workers that were started together do not ask together. What takes hours need not begin within a second.
            pause = self._poll * (_APART_POLLS if kinds and set(kinds) <= set(self._apart) else 1)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311

    async def _bury(self, job: Job) -> None:
        log.error("job_buried", **_named(job))
        if (settle := self._buried.get(job.kind)) is None:
            return
        try:
            await settle(job)
        except Exception as error:
            log.exception("job_not_settled", error=repr(error), **_named(job))

    async def _do(self, job: Job) -> None:
        renewing = asyncio.create_task(self._renew(job), name=f"renew {job.id}")
        work = asyncio.ensure_future(self._handlers[job.kind](job))
        limit = None if job.kind in self._apart else self._seconds
        try:
            await asyncio.wait([renewing, work], timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not renewing.done():
                work.cancel()
                await asyncio.wait([work], timeout=_FAREWELL)
                overdue: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
                overdue.set_exception(JobOverdue(f"It took longer than {self._seconds:g} s."))
                await self._conclude(job, overdue)
                return
            if not work.done():
                log.warning("job_lost", **_named(job))
                return
            await self._conclude(job, work)
        except asyncio.CancelledError:
            await end(work)
            await self._put_back(job)
            raise
        finally:
            await end(renewing, work)

    async def _conclude(self, job: Job, work: asyncio.Future[bool | None]) -> None:
        try:
            if work.cancelled():  # from within: nobody has asked this worker to end
                raise RuntimeError("the handler gave itself up")
            if not work.result():
                await patiently(lambda: finish_job(self._db, job))
            log.info("job_done", **_named(job))
        except JobLost:
            log.warning("job_lost", **_named(job))
        except CallerError as error:
            log.info("job_failed", error=error.message, **_named(job))
            told = _told(error)
            await patiently(lambda: fail_job(self._db, job, told))
        except Exception as error:
            if isinstance(error, LonghaulError):
                log.warning("job_failed", error=error.message, **_named(job))
            else:
                log.exception("job_failed", **_named(job))
            told = _told(error)
            if job.attempt >= job.attempts:
                await patiently(lambda: fail_job(self._db, job, told))
                return
            pause = min(self._first_pause * 4 ** (job.attempt - 1), _LONGEST_PAUSE)
            await patiently(
                lambda: requeue_job(self._db, job, told, delay=pause * random.uniform(0.75, 1.25))  # noqa: S311
            )

    async def _renew(self, job: Job) -> None:
        """Ends when the job is lost."""
        while True:
            await asyncio.sleep(_RENEW)
            try:
                if not await renew_job(self._db, job, lease_seconds=LEASE):
                    return
            except STORE_ERRORS as error:
                log.warning("job_not_renewed", error=repr(error), **_named(job))

    async def _put_back(self, job: Job) -> None:
        try:
            async with asyncio.timeout(_FAREWELL):
                await requeue_job(self._db, job, None, delay=0.0, free=True)
        except STORE_ERRORS as error:
            log.warning(
                "job_not_put_back", error=repr(error), effect="taken again when its lease is over", **_named(job)
            )


def _told(error: BaseException) -> dict[str, Any]:
    if isinstance(error, LonghaulError):
        return {"code": error.code, "message": error.message, "suggestions": list(error.suggestions)}
    return {"code": "internal", "message": f"{type(error).__name__} inside Longhaul; the worker's log has it."}


def _named(job: Job) -> dict[str, Any]:
    return {"job_id": job.id, "kind": job.kind, "key": job.key, "org_id": job.org_id, "attempt": job.attempt}
