"""Fan-out, the sending side: committed events to whoever follows the session, as ready-made SSE bytes.

One Redis message per session and commit. Its first line says which seqs it holds, of which run, and whether
the run ends in it: `<first> <last> <run id> <1 or 0>`; then come the frames. A message without frames is a
nudge: it says how far the log has got (last 0: unknown) and makes followers read it.

Sending never holds up the journal. What could not be sent becomes a nudge, sent once Redis is back; the
frames are in Postgres.
"""

from __future__ import annotations

import asyncio
from collections import deque

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

log = structlog.get_logger(__name__)

# Frames that wait here beyond this many bytes are dropped in favour of nudges.
_MOST_WAITING = 16 * 1_048_576


def channel_of(org_id: str, session_id: str) -> str:
    """The pub/sub channel of a session."""
    return f"lh:{org_id}:events:{session_id}"


class Publisher:
    """Sends what it is given, in order. `run()` is its task."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._bytes = 0
        self._nudges: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._closing = False

    def publish(
        self, org_id: str, session_id: str, run_id: str, *, first: int, last: int, final: bool, frames: bytes
    ) -> None:
        """Queues the frames of events `first` to `last`, all of one run."""
        channel = channel_of(org_id, session_id)
        if self._bytes > _MOST_WAITING:
            self._nudges[channel] = None
            return
        payload = b"%d %d %s %d\n%s" % (first, last, run_id.encode(), final, frames)
        self._waiting.append((channel, payload))
        self._bytes += len(payload)
        self._wake.set()

    def nudge(self, org_id: str, session_id: str) -> None:
        """Makes the session's followers look in its log."""
        self._nudges[channel_of(org_id, session_id)] = None
        self._wake.set()

    def close(self) -> None:
        """Lets `run()` end once everything has been sent, or can't be."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """Sends until closed."""
        pause = 0.05
        while not (self._closing and not self._waiting and not self._nudges):
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._send()
                pause = 0.05
            except (RedisError, OSError) as error:
                if self._closing:
                    return
                log.warning("publish_failed", error=str(error), sessions=len(self._nudges), retry_in=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)
                self._wake.set()

    async def _send(self) -> None:
        while self._waiting or self._nudges:
            batch = list(self._waiting)
            self._waiting.clear()
            self._bytes = 0
            nudges, self._nudges = self._nudges, {}
            pipe = self._redis.pipeline(transaction=False)
            for channel, payload in batch:
                pipe.publish(channel, payload)
            for channel in nudges:
                pipe.publish(channel, b"0 0 - 0\n")
            try:
                await pipe.execute()
            except BaseException:
                # What may not have arrived is owed a nudge.
                self._nudges = {**nudges, **dict.fromkeys(channel for channel, _ in batch), **self._nudges}
                raise
