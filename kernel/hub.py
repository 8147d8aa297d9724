"""Fan-out, the receiving side: one pub/sub connection for a whole API process, and one feed per followed session.

Pub/sub may lose anything, so nothing is taken on trust. Whenever a feed may have missed something (it is new, a
nudge came, the connection to Redis is new) its log is *sounded*: Postgres is asked how far it reaches, for hundreds
of feeds at once. Every feed is sounded every few seconds anyway, and every second as long as Redis is away. Who is
behind then reads the log. So what viewers cost the stores depends on what happens, not on how many they are.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable
from itertools import islice
from typing import Final

import structlog
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from kernel.errors import NotFound
from kernel.fanout import channel_of
from kernel.feed import Feed, Frames, Viewer
from kernel.journal import SQL
from kernel.postgres import STORE_ERRORS, Pool
from kernel.tasks import side_by_side

log = structlog.get_logger(__name__)

_LINGER: Final = 5.0
_AUDIT_EVERY: Final = 5.0
_ALONE_AUDIT_EVERY: Final = 1.0
_PING_EVERY: Final = 10.0
_PATIENCE: Final = 1.0
_SOUNDING_SECONDS: Final = 5.0
_BLIND_SECONDS: Final = 2.0
_AT_ONCE: Final = 500
_TICK: Final = 0.25


class Hub:
    """All feeds of one process. `run()` is its task."""

    def __init__(self, redis_pool: ConnectionPool, db: Pool, *, heartbeat: float) -> None:
        self._redis_pool = redis_pool
        self._db = db
        self._feeds: dict[str, Feed] = {}
        self._idle: dict[Feed, float] = {}  # without viewers, since when
        self._connection: AbstractConnection | None = None
        self._closing = False
        # Words for Redis, in order: a feed that is forgotten and made anew ends up subscribed.
        self._orders: list[tuple[str, str]] = []
        self._ordered = asyncio.Event()
        self._unsounded: dict[Feed, None] = {}
        self._asked = asyncio.Event()
        self._last_told = 0.0  # when a store last told of any session
        self._to_audit: list[Feed] = []
        self._share = 1
        self._next_audit = time.monotonic() + _AUDIT_EVERY
        # A wheel of viewers, one slot of which gets its heartbeat at each tick: never all of them at once.
        self._wheel: list[set[Viewer]] = [set() for _ in range(max(1, round(heartbeat / _TICK)))]
        self._tick_seconds = heartbeat / len(self._wheel)
        self._turn = 0
        self._viewers = 0

    @property
    def viewers(self) -> int:
        """How many streams are open."""
        return self._viewers

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

    async def reach(self, org_id: str, session_id: str, *, at_least: int = 0) -> int:
        """The last seq of the session's log; at least that, where the log has it, even if its news is still on the way.

        Raises:
            NotFound: no such session in the org.
            OSError, TimeoutError, asyncpg.PostgresError: the log can't be asked.
        """
        feed = self._feed(org_id, session_id)
        if not feed.viewers:
            self._idle[feed] = time.monotonic()
        if not feed.sure or feed.reach < at_least:
            await self._until_sounded(feed)
        return feed.reach

    async def join(self, org_id: str, session_id: str) -> Viewer:
        """A new viewer of the session; `leave` must follow. From here on its feed tells of all that is in the log.

        Raises:
            As `reach` does.
        """
        feed = self._feed(org_id, session_id)
        self._turn = (self._turn + 1) % len(self._wheel)
        viewer = Viewer(feed, self._turn)
        self._viewers += 1
        feed.viewers.add(viewer)  # before anything is awaited: a feed without viewers is forgotten
        self._wheel[viewer.slot].add(viewer)
        self._idle.pop(feed, None)
        try:
            if not feed.sure:
                await self._until_sounded(feed)
        except BaseException:
            self.leave(viewer)
            raise
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """The viewer is gone."""
        feed = viewer.feed
        feed.viewers.discard(viewer)
        self._wheel[viewer.slot].discard(viewer)
        self._viewers -= 1
        if not feed.viewers and self._feeds.get(feed.channel) is feed:
            self._idle[feed] = time.monotonic()

    async def run(self) -> None:
        """Receives until cancelled."""
        await side_by_side(
            receive=self._receive_always(), order=self._send_orders(), sound=self._sound_always(), tick=self._tick()
        )

    # -- feeds -----------------------------------------------------------------------------------------------

    def _feed(self, org_id: str, session_id: str) -> Feed:
        channel = channel_of(org_id, session_id)
        feed = self._feeds.get(channel)
        if feed is None:
            feed = self._feeds[channel] = Feed(org_id, session_id)
            self._order("SUBSCRIBE", (channel,))
        return feed

    def _forget(self, feeds: Iterable[Feed]) -> None:
        for feed in feeds:
            self._idle.pop(feed, None)
            if self._feeds.pop(feed.channel, None) is not None:
                self._order("UNSUBSCRIBE", (feed.channel,))

    async def _until_sounded(self, feed: Feed) -> None:
        """Returns once the log was asked how far it reaches: after Redis has subscribed us, if it does so in time."""
        sounded = feed.sounded()
        if feed.subscribed or self._connection is None:
            self._sound((feed,))
        else:
            await asyncio.wait((sounded,), timeout=_PATIENCE)
            if not sounded.done():
                self._sound((feed,))
        await asyncio.shield(sounded)

    def _sound(self, feeds: Iterable[Feed]) -> None:
        self._unsounded.update(dict.fromkeys(feeds))
        if self._unsounded:
            self._asked.set()

    async def _sound_always(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            while self._unsounded:
                asked = {feed: feed.doubts for feed in islice(self._unsounded, _AT_ONCE)}
                for feed in asked:
                    del self._unsounded[feed]
                try:
                    async with asyncio.timeout(_SOUNDING_SECONDS):
                        rows = await self._db.fetch(SQL.last_seqs, [feed.session_id for feed in asked])
                except STORE_ERRORS as error:
                    self._failed(asked, error)
                    continue
                self._last_told = time.monotonic()
                found = {(row["org_id"], row["id"]): row["last_seq"] for row in rows}
                for feed, doubts in asked.items():
                    self._sounded(feed, found.get((feed.org_id, feed.session_id)), doubts)

    def _failed(self, asked: Iterable[Feed], error: Exception) -> None:
        # With Redis away too nothing can be shown here: another process may be better off, or this one later.
        blind = self._connection is None and time.monotonic() - self._last_told > _BLIND_SECONDS
        log.warning("sounding_failed", error=str(error), streams_ended=blind)
        for feed in asked:
            feed.fail(error)
            if blind:
                feed.close()

    def _sounded(self, feed: Feed, reach: int | None, doubts: int) -> None:
        if reach is None:  # deleted, or there was none
            feed.fail(NotFound(f"There is no session {feed.session_id}.", field="session_id"))
            feed.close()
            self._forget((feed,))
        elif feed.doubts == doubts:
            feed.learn(reach)
        else:
            self._sound((feed,))

    # -- the connection ------------------------------------------------------------------------------------

    def _order(self, word: str, channels: Iterable[str] = ("",)) -> None:
        self._orders += [(word, channel) for channel in channels]
        self._ordered.set()

    async def _send_orders(self) -> None:
        while True:
            await self._ordered.wait()
            self._ordered.clear()
            orders, self._orders = self._orders, []
            while orders and self._connection is not None:
                word = orders[0][0]
                size = next((place for place, order in enumerate(orders[:_AT_ONCE]) if order[0] != word), _AT_ONCE)
                batch, orders = orders[:size], orders[size:]
                await self._command(self._connection, word, *(channel for _, channel in batch if channel))

    async def _command(self, connection: AbstractConnection, *words: str) -> None:
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
                feed.subscribed = False
                feed.doubt()
            self._next_audit = 0.0
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    async def _receive(self) -> None:
        connection: AbstractConnection = self._redis_pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            self._connection = connection
            self._orders.clear()
            self._order("SUBSCRIBE", self._feeds)
            while True:
                self._last_told = time.monotonic()
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
                self._doubt(feed)
                return
            if data:
                feed.add(frames)
            else:
                self._doubt(feed)
        elif answer[0] == b"subscribe":
            feed.subscribed = True
            self._doubt(feed)

    def _doubt(self, feed: Feed) -> None:
        feed.doubt()
        self._sound((feed,))

    # -- the ticker ----------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        slot = 0
        next_ping = time.monotonic() + _PING_EVERY
        while True:
            await asyncio.sleep(self._tick_seconds)
            now = time.monotonic()
            slot = (slot + 1) % len(self._wheel)
            for viewer in self._wheel[slot]:
                viewer.beat = True
                viewer.wake()
            if now >= next_ping:
                next_ping = now + _PING_EVERY
                self._order("PING")
            self._audit(now)
            self._forget([feed for feed, since in self._idle.items() if now - since > _LINGER])

    def _audit(self, now: float) -> None:
        """Sounds some feeds, all of them in turn: a message may be lost without a sign, as when its sender died."""
        every = _AUDIT_EVERY if self._connection is not None else _ALONE_AUDIT_EVERY
        if not self._to_audit and now >= self._next_audit:
            self._next_audit = now + every
            self._to_audit = [feed for feed in self._feeds.values() if feed.viewers]
            self._share = math.ceil(len(self._to_audit) * self._tick_seconds / every)
        some = self._to_audit[-self._share :]
        del self._to_audit[-self._share :]
        self._sound(some)
