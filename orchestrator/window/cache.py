"""The copies of windows in Redis. They may be lost at any moment: whoever asks for one that is not there, is not of
this moment, or does not come in time, takes what Postgres has."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from kernel.windows import window_key
from orchestrator.window.record import Window, unpack

log = structlog.get_logger(__name__)

PATIENCE: Final = 0.1
"""Seconds that a run waits for Redis before it asks Postgres."""

_REST: Final = 5.0
_MOST_BYTES: Final = 2 * 1_048_576
_FAULTS: Final = (RedisError, OSError, TimeoutError)


class WindowCache:
    """`ttl` is in seconds. After a fault Redis is left alone for a few seconds."""

    def __init__(self, redis: Redis, ttl: int) -> None:
        self._redis = redis
        self._ttl = ttl
        self._rests_until = 0.0

    async def get(self, org_id: str, session_id: str, *, turn: int, version: int) -> Window | None:
        """The window after `turn`, at `version` or later; its time to live begins anew. One round trip."""
        if time.monotonic() < self._rests_until:
            return None
        try:
            async with asyncio.timeout(PATIENCE):
                data = await self._redis.getex(window_key(org_id, session_id), ex=self._ttl)
        except _FAULTS as error:
            self._rest(error)
            return None
        window = None if data is None else unpack(data)
        if window is None or window.turn != turn or window.version < version:
            return None
        return window

    async def put(self, org_id: str, session_id: str, window: Window) -> None:
        """Keeps a window. Says nothing where it can't: an older copy is known by its turn and version."""
        if time.monotonic() < self._rests_until:
            return
        data = window.pack()
        key = window_key(org_id, session_id)
        try:
            async with asyncio.timeout(1.0):
                if len(data) > _MOST_BYTES:
                    await self._redis.delete(key)
                else:
                    await self._redis.set(key, data, ex=self._ttl)
        except _FAULTS as error:
            self._rest(error)

    def _rest(self, error: BaseException) -> None:
        self._rests_until = time.monotonic() + _REST
        log.warning("window_cache_away", error=repr(error), effect="windows are read from Postgres")
