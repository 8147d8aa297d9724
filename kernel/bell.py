"""The bell: tells workers that there may be work, and carries what callers ask of a run to the one that has it.

It decides nothing. Work is claimed in Postgres, and workers look there every second or so anyway: a bell that is
lost costs a little latency, one that rings twice costs an empty look.

Two ways lead to a worker. A list that workers block on wakes one of them within about a millisecond. An arq job
named `wake` goes with it, at most one at a time: arq's own loop picks it up later, should the list be lost, and
its scheduler runs the workers' chores. arq keeps running jobs in its queue and reads only the first hundred, so
a job of ours only wakes the executor and ends; arq is imported here and in `worker`, nowhere else.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import orjson
import structlog
from arq.connections import ArqRedis
from redis.asyncio import Redis
from redis.exceptions import RedisError

from kernel.leases import Asked
from kernel.tasks import end

log = structlog.get_logger(__name__)

BELL_KEY: Final = "lh:bell"
REQUEST_CHANNEL: Final = "lh:requests"
QUEUE_KEY: Final = "lh:arq"
WAKE_JOB: Final = "wake"

# More tokens than any fleet can use at once; older ones are stale.
_MOST_TOKENS: Final = 256
_ARQ_PAUSE: Final = 0.5


def encode_job(job: dict[str, Any]) -> bytes:
    """arq's jobs as JSON; its default is pickle, which whoever writes to Redis could turn into code."""
    return orjson.dumps(job, default=list)


def decode_job(data: bytes) -> dict[str, Any]:
    """The reverse of `encode_job`."""
    job = orjson.loads(data)
    assert isinstance(job, dict)
    return job


def read_request(data: bytes) -> tuple[str, Asked] | None:
    """The run and what is asked of it; None for what is no request of ours."""
    what, _, run_id = data.decode(errors="replace").partition(" ")
    return (run_id, what) if what in ("cancelled", "paused") else None  # type: ignore[return-value]


class Bell:
    """Rings. Never raises: a caller whose run is in Postgres has nothing to gain from an error here."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._arq = ArqRedis(
            connection_pool=redis.connection_pool,
            job_serializer=encode_job,
            job_deserializer=decode_job,
            default_queue_name=QUEUE_KEY,
        )
        self._arq_due = asyncio.Event()
        self._arq_task: asyncio.Task[None] | None = None

    async def ring(self, times: int = 1) -> None:
        """Wakes up to `times` workers with a free slot."""
        try:
            pipe = self._redis.pipeline(transaction=False)
            pipe.rpush(BELL_KEY, *([b"1"] * min(times, _MOST_TOKENS)))
            pipe.ltrim(BELL_KEY, -_MOST_TOKENS, -1)
            await pipe.execute()
        except (RedisError, OSError) as error:
            log.warning("bell_not_rung", error=str(error), effect="runs start at the next poll")
        self._arq_due.set()
        if self._arq_task is None:
            self._arq_task = asyncio.create_task(self._enqueue_wakes(), name="arq-wake")

    async def ask(self, run_id: str, what: Asked) -> None:
        """Tells the worker that has `run_id` what is recorded in Postgres: that its caller wants it so."""
        try:
            await self._redis.publish(REQUEST_CHANNEL, f"{what} {run_id}")
        except (RedisError, OSError) as error:
            log.warning("request_not_sent", run_id=run_id, error=str(error), effect="seen by the heartbeat's next look")

    async def aclose(self) -> None:
        """Stops the task that enqueues arq's jobs. The Redis client belongs to the caller."""
        if self._arq_task is not None:
            await end(self._arq_task)

    async def _enqueue_wakes(self) -> None:
        while True:
            await self._arq_due.wait()
            self._arq_due.clear()
            try:
                # The fixed id makes it one job however often it is rung.
                await self._arq.enqueue_job(WAKE_JOB, _job_id=WAKE_JOB, _queue_name=QUEUE_KEY)
            except (RedisError, OSError) as error:
                log.warning("arq_not_reached", error=str(error), effect="none while the list bell rings")
            await asyncio.sleep(_ARQ_PAUSE)
