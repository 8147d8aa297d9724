"""Chores: what arq does in a worker. Its loop is the second bell and the scheduler of small regular jobs.

It never carries a run. Should it die, it is started again, and running runs don't notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
from arq import cron, func
from arq.connections import ArqRedis
from arq.worker import Worker
from redis.asyncio import Redis
from redis.exceptions import RedisError

from kernel.bell import QUEUE_KEY, WAKE_JOB, decode_job, encode_job
from kernel.postgres import STORE_ERRORS
from kernel.tasks import end, side_by_side
from worker.executor import Executor
from worker.retention import Retention

log = structlog.get_logger(__name__)


class Chores:
    """`run()` is its task; it ends when cancelled.

    Args:
        each_minute: called each minute by one of all workers, such as to add a job.
    """

    def __init__(
        self,
        redis: Redis,
        executor: Executor,
        retention: Retention,
        each_minute: Sequence[Callable[[], Awaitable[object]]] = (),
    ) -> None:
        self._redis = redis
        self._executor = executor
        self._retention = retention
        self._each_minute = each_minute

    async def run(self) -> None:
        pause = 0.5
        while True:
            worker = self._arq_worker()
            try:
                await side_by_side(arq=worker.async_run())
            except (RedisError, OSError) as error:
                log.warning("arq_stopped", error=str(error), retry_in=pause, effect="bells and polls go on")
            finally:
                # What `Worker.close` does, without its signal and without closing the pool, which is ours.
                await end(*worker.tasks.values())
            await asyncio.sleep(pause)
            pause = min(pause * 2, 10.0)

    def _arq_worker(self) -> Worker:
        return Worker(
            functions=[func(self._wake, name=WAKE_JOB, keep_result=0, max_tries=1)],
            cron_jobs=[
                cron(self._tidy, name="tidy", second=17, keep_result=0, timeout=60, max_tries=1),
                cron(self._minute, name="minute", second=43, keep_result=0, timeout=30, max_tries=1),
            ],
            queue_name=QUEUE_KEY,
            redis_pool=ArqRedis(
                connection_pool=self._redis.connection_pool,
                job_serializer=encode_job,
                job_deserializer=decode_job,
                default_queue_name=QUEUE_KEY,
            ),
            job_serializer=encode_job,
            job_deserializer=decode_job,
            handle_signals=False,
            max_jobs=5,
            job_timeout=60,
            poll_delay=1.0,
            health_check_interval=60,
            health_check_key="lh:arq:health",
        )

    async def _wake(self, ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> None:
        self._executor.look()

    async def _tidy(self, ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> None:
        """One pass of retention, each minute by one of all workers."""
        try:
            await self._retention.run()
        except STORE_ERRORS as error:
            log.warning("tidy_failed", error=repr(error), effect="tried again in a minute")

    async def _minute(self, ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> None:
        for call in self._each_minute:
            try:
                await call()
            except STORE_ERRORS as error:
                log.warning("chore_failed", error=repr(error), effect="tried again in a minute")
