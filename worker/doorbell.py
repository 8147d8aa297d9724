"""The doorbell: what wakes the executor, and how callers' requests reach it.

A bell in Redis wakes within a millisecond or so. Redis may be away: a look in Postgres every second covers every
bell that was lost, and the heartbeat every request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from kernel.bell import BELL_KEY, REQUEST_CHANNEL, read_request
from kernel.tasks import side_by_side
from worker.executor import Executor

log = structlog.get_logger(__name__)

_POLL_EVERY = 1.0


class Doorbell:
    """`run()` is its task; it ends when cancelled. `redis` must not time out blocking reads."""

    def __init__(self, redis: Redis, executor: Executor) -> None:
        self._redis = redis
        self._executor = executor

    async def run(self) -> None:
        await side_by_side(
            polls=self._poll(),
            bells=self._again_and_again(self._bells),
            requests=self._again_and_again(self._requests),
        )

    async def _poll(self) -> None:
        while True:
            self._executor.look()
            await asyncio.sleep(_POLL_EVERY)

    async def _bells(self) -> None:
        while True:
            await self._executor.until_free()
            rung: Any = await self._redis.blpop([BELL_KEY], timeout=5)  # type: ignore[misc]  # typed for both twins
            if rung is not None:
                self._executor.woken()

    async def _requests(self) -> None:
        async with self._redis.pubsub() as channel:
            await channel.subscribe(REQUEST_CHANNEL)
            while True:
                message = await channel.get_message(ignore_subscribe_messages=True, timeout=5.0)
                if message is not None and (request := read_request(message["data"])) is not None:
                    self._executor.ask(*request)

    async def _again_and_again(self, listen: Callable[[], Awaitable[None]]) -> None:
        pause = 0.1
        while True:
            try:
                await listen()
            except (RedisError, OSError) as error:
                log.warning("doorbell_lost", error=str(error), effect="polling Postgres")
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)
