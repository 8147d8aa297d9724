"""Fan-out, the receiving side: one pub/sub connection for a whole API process.

Each followed session has one feed: a short ring of ready frames, contiguous by seq. Every viewer is a cursor on
it and costs no more than that. Pub/sub may lose anything, so nothing is taken on trust: a viewer whose next
frame is not in the ring reads the log, and it is told to look there whenever the feed may have missed something
(a hole, a nudge, a new connection to Redis) and every few seconds as long as Redis is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from kernel.fanout import channel_of
from kernel.journal import SQL
from kernel.postgres import STORE_ERRORS, Pool
from kernel.tasks import side_by_side

log = structlog.get_logger(__name__)

_RING_BYTES: Final = 256 * 1024
_LINGER: Final = 5.0
_AUDIT_EVERY: Final = 5.0
_PING_EVERY: Final = 10.0


@dataclass(frozen=True, slots=True)
class Frames:
    """The ready frames of events `first` to `last`, all of one run; `final` if the run's `done` is the last."""

    first: int
    last: int
    run_id: str
    final: bool
    data: bytes


class Viewer:
    """One follower of a feed: something to wake. `beat` is set when a heartbeat is due, `stale` when the log has
    something for it; `known` is the last seq that it has, or was told to look for."""

    __slots__ = ("_future", "beat", "closed", "known", "stale")

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None
        self.known = 0
        self.beat = False
        self.closed = False
        self.stale = True

    def wake(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        """Returns after the next `wake`."""
        self._future = asyncio.get_running_loop().create_future()
        try:
            await self._future
        finally:
            self._future = None


class Feed:
    """What is known of one followed session."""

    __slots__ = ("_bytes", "_ring", "channel", "idle_since", "org_id", "session_id", "subscribed", "viewers")

    def __init__(self, org_id: str, session_id: str) -> None:
        self.org_id = org_id
        self.session_id = session_id
        self.channel = channel_of(org_id, session_id)
        self.subscribed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.viewers: set[Viewer] = set()
        self.idle_since = 0.0
        self._ring: deque[Frames] = deque()
        self._bytes = 0

    @property
    def tail(self) -> int:
        """The last seq in the ring, 0 when it is empty."""
        return self._ring[-1].last if self._ring else 0

    @property
    def head(self) -> int:
        """The first seq in the ring, 0 when it is empty."""
        return self._ring[0].first if self._ring else 0

    def add(self, frames: Frames) -> None:
        """Takes in what arrived; a hole empties the ring, so that it stays contiguous."""
        if self._ring and frames.first != self.tail + 1:
            if frames.last <= self.tail:
                return
            self._ring.clear()
            self._bytes = 0
        self._ring.append(frames)
        self._bytes += len(frames.data)
        while self._bytes > _RING_BYTES and len(self._ring) > 1:
            self._bytes -= len(self._ring.popleft().data)
        for viewer in self.viewers:
            viewer.wake()

    def close(self) -> None:
        """Ends all its streams."""
        for viewer in self.viewers:
            viewer.closed = True
            viewer.wake()

    def distrust(self) -> None:
        """Something may have been missed: all viewers look in the log."""
        for viewer in self.viewers:
            viewer.stale = True
            viewer.wake()

    def reaches(self, seq: int) -> None:
        """The log reaches to `seq`: viewers whom the ring can't bring there look in the log, each of them once."""
        if seq <= self.tail:
            return
        for viewer in self.viewers:
            if viewer.known < seq:
                viewer.known = seq
                viewer.stale = True
                viewer.wake()

    def after(self, cursor: int) -> list[Frames] | None:
        """The frames that follow `cursor`, without a gap; [] if there are none yet, None if the log must tell."""
        if not self._ring or self.tail <= cursor:
            return []
        found: list[Frames] = []
        for frames in reversed(self._ring):
            found.append(frames)
            if frames.first <= cursor + 1:
                break
        if found[-1].first != cursor + 1:
            return None
        found.reverse()
        return found


class Hub:
    """All feeds of one process. `run()` is its task."""

    def __init__(self, redis_pool: ConnectionPool, db: Pool, *, heartbeat: float) -> None:
        self._redis_pool = redis_pool
        self._db = db
        self._heartbeat = heartbeat
        self._feeds: dict[str, Feed] = {}
        self._connection: AbstractConnection | None = None
        self._closing = False

    @property
    def viewers(self) -> int:
        """How many streams are open."""
        return sum(len(feed.viewers) for feed in self._feeds.values())

    @property
    def closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Ends all streams; safe in a signal handler of the loop's thread."""
        self._closing = True
        # Not here and now: the signal may have come between a viewer's last look and its wait.
        asyncio.get_running_loop().call_soon_threadsafe(self._end_streams)

    def _end_streams(self) -> None:
        for feed in self._feeds.values():
            feed.close()

    @asynccontextmanager
    async def follow(
        self, org_id: str, session_id: str, *, patience: float = 1.0
    ) -> AsyncIterator[tuple[Feed, Viewer]]:
        """Follows a session. On entry the feed is subscribed, unless Redis does not answer for `patience` seconds.

        Read the log after entry and then take from the feed: nothing falls between.
        """
        channel = channel_of(org_id, session_id)
        feed = self._feeds.get(channel)
        is_new = feed is None
        if feed is None:
            feed = self._feeds[channel] = Feed(org_id, session_id)
        viewer = Viewer()
        feed.viewers.add(viewer)  # before anything is awaited: a feed without viewers is forgotten
        try:
            if is_new:
                await self._command("SUBSCRIBE", channel)
            if not feed.subscribed.done():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(feed.subscribed), patience)
            yield feed, viewer
        finally:
            feed.viewers.discard(viewer)
            feed.idle_since = time.monotonic()

    async def run(self) -> None:
        """Receives until cancelled."""
        await side_by_side(receive=self._receive_always(), tick=self._tick())

    # -- the connection ------------------------------------------------------------------------------------

    async def _command(self, *words: str) -> None:
        connection = self._connection
        if connection is not None:
            try:
                await connection.send_command(*words, check_health=False)
            except (RedisError, OSError):
                await connection.disconnect(nowait=True)  # the receiver notices and starts anew

    async def _receive_always(self) -> None:
        pause = 0.05
        while True:
            try:
                await self._receive()
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("pubsub_lost", error=str(error), sessions=len(self._feeds), retry_in=pause)
            finally:
                if self._connection is not None:
                    pause = 0.05
                self._connection = None
            for feed in self._feeds.values():
                if feed.subscribed.done():
                    feed.subscribed = asyncio.get_running_loop().create_future()
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    async def _receive(self) -> None:
        connection: AbstractConnection = self._redis_pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            self._connection = connection
            channels = list(self._feeds)
            for start in range(0, len(channels), 500):
                await connection.send_command("SUBSCRIBE", *channels[start : start + 500], check_health=False)
            while True:
                # Pings come back even when nothing else does: silence means a dead connection.
                answer = await connection.read_response(disable_decoding=True, timeout=_PING_EVERY * 3)
                if answer is None:
                    raise TimeoutError(f"Redis was silent for {_PING_EVERY * 3:g} s")
                self._handle(answer)
        finally:
            await connection.disconnect(nowait=True)

    def _handle(self, answer: object) -> None:
        if not isinstance(answer, list) or len(answer) < 3:
            return  # a pong
        feed = self._feeds.get(answer[1].decode())
        if feed is None:
            return
        if answer[0] == b"message":
            head, _, data = answer[2].partition(b"\n")
            try:
                first, last, run_id, final = head.split(b" ")
                frames = Frames(int(first), int(last), run_id.decode(), final == b"1", data)
            except ValueError:
                log.warning("pubsub_message_malformed", session_id=feed.session_id, effect="its log is read instead")
                feed.distrust()
                return
            if data:
                feed.add(frames)
            else:
                feed.distrust()
        elif answer[0] == b"subscribe":
            if not feed.subscribed.done():
                feed.subscribed.set_result(None)
            feed.distrust()

    # -- the ticker ----------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        next_beat = time.monotonic() + self._heartbeat
        next_audit = time.monotonic() + _AUDIT_EVERY
        next_ping = time.monotonic() + _PING_EVERY
        while True:
            await asyncio.sleep(min(1.0, self._heartbeat))
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + self._heartbeat
                for feed in self._feeds.values():
                    for viewer in feed.viewers:
                        viewer.beat = True
                        viewer.wake()
            if now >= next_ping:
                next_ping = now + _PING_EVERY
                await self._command("PING")
            if self._connection is None:
                for feed in self._feeds.values():
                    feed.distrust()
            elif now >= next_audit:
                next_audit = now + _AUDIT_EVERY
                await self._audit()
            await self._forget_idle(now)

    async def _audit(self) -> None:
        """Compares every feed with the log: a message may be lost with no sign of it, as when its sender died."""
        followed = {feed.session_id: feed for feed in self._feeds.values() if feed.viewers}
        if not followed:
            return
        try:
            rows = await self._db.fetch(SQL.last_seqs, list(followed))
        except STORE_ERRORS as error:
            log.warning("hub_audit_failed", error=str(error))
            return
        for row in rows:
            followed.pop(row["id"]).reaches(row["last_seq"])
        for feed in followed.values():  # these sessions were deleted
            feed.close()

    async def _forget_idle(self, now: float) -> None:
        idle = [feed for feed in self._feeds.values() if not feed.viewers and now - feed.idle_since > _LINGER]
        for feed in idle:
            if feed.viewers:  # somebody came while others were being forgotten
                continue
            del self._feeds[feed.channel]
            await self._command("UNSUBSCRIBE", feed.channel)
            if feed.channel in self._feeds:  # a new feed, whose SUBSCRIBE may have gone out first
                await self._command("SUBSCRIBE", feed.channel)
