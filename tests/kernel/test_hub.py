"""The hub: what a viewer gets is the log, whatever pub/sub loses, repeats, or brings out of order."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType

import pytest
from redis.asyncio import Redis
from starlette.types import Message

from api.stream import EventStream
from kernel.fanout import Publisher, channel_of
from kernel.feed import Feed, Frames, Viewer
from kernel.hub import Hub
from kernel.postgres import Pool
from kernel.replay import read_frames
from kernel.runs import Run
from tests.kernel.writing import FINISHED, Writer, ask, commit, worker


def frames(first: int, last: int, *, size: int = 10) -> Frames:
    return Frames(first, last, "run_a", False, b"x" * size)


class Viewing:
    """A viewer of a session or a run. `blocked` holds it up like a client that does not read."""

    def __init__(self, hub: Hub, database: Pool, run: Run, *, after: int = 0, whole_session: bool = False) -> None:
        self.got = b""
        self.blocked = asyncio.Event()
        self.blocked.set()
        self._came = asyncio.Event()
        self._leaving = asyncio.Event()
        stream = EventStream(
            hub,
            database,
            org_id=run.org_id,
            session_id=run.session_id,
            run_id=None if whole_session else run.id,
            after=after,
        )
        self.task = asyncio.create_task(stream({"type": "http"}, self._receive, self._send))

    def leave(self) -> None:
        self._leaving.set()

    async def has(self, part: bytes) -> None:
        """Waits until it has received this."""
        while part not in self.got:
            self._came.clear()
            await self._came.wait()

    async def _receive(self) -> Message:
        await self._leaving.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self.blocked.wait()
        body: bytes = message.get("body", b"")
        if not body.startswith((b"retry:", b":")):
            self.got += body
            self._came.set()


@pytest.fixture
async def hub(own_database: Pool, redis_url: str) -> AsyncIterator[Hub]:
    async with running_hub(own_database, redis_url) as hub:
        yield hub


@pytest.fixture
async def publisher(redis: Redis) -> AsyncIterator[Publisher]:
    """For what the test commits by itself, to publish some of it."""
    publisher = Publisher(redis)
    task = asyncio.create_task(publisher.run())
    yield publisher
    publisher.close()
    await task


@asynccontextmanager
async def running_hub(database: Pool, redis_url: str, *, heartbeat: float = 15.0) -> AsyncIterator[Hub]:
    redis = Redis.from_url(redis_url)
    hub = Hub(redis.connection_pool, database, heartbeat=heartbeat)
    task = asyncio.create_task(hub.run())
    try:
        yield hub
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await redis.aclose()


async def whole_log(database: Pool, run: Run, after: int = 0) -> bytes:
    entries = await read_frames(database, run.org_id, run.session_id, after=after, limit=100_000)
    return b"".join(entry.data for entry in entries)


async def test_a_feed_gives_what_follows_a_cursor_without_a_gap() -> None:
    feed = Feed("org_a", "ses_a")
    for first, last in ((1, 2), (3, 3), (4, 7)):
        feed.add(frames(first, last))
    assert [entry.first for entry in feed.after(0) or ()] == [1, 3, 4]
    assert [entry.first for entry in feed.after(2) or ()] == [3, 4]
    assert feed.after(7) == []
    assert feed.after(9) == []
    assert feed.after(1) is None  # in the middle of an entry: only the log can tell
    assert feed.after(5) is None


async def test_a_hole_empties_the_ring_and_what_is_old_is_dropped() -> None:
    feed = Feed("org_a", "ses_a")
    feed.add(frames(1, 2))
    feed.add(frames(1, 2))
    assert (feed.head, feed.tail) == (1, 2)
    feed.add(frames(5, 6))
    assert (feed.head, feed.tail) == (5, 6)
    assert feed.after(2) is None
    feed.add(frames(3, 4))
    assert (feed.head, feed.tail) == (5, 6)


async def test_a_ring_that_is_full_drops_its_oldest_frames() -> None:
    feed = Feed("org_a", "ses_a")
    for seq in range(1, 101):
        feed.add(frames(seq, seq, size=10_000))
    assert feed.tail == 100
    assert 70 < feed.head < 80
    assert feed.after(50) is None
    assert len(feed.after(90) or ()) == 10


async def test_one_entry_larger_than_the_ring_is_kept() -> None:
    feed = Feed("org_a", "ses_a")
    feed.add(frames(1, 1))
    feed.add(frames(2, 2, size=1_000_000))
    assert (feed.head, feed.tail) == (2, 2)


async def test_a_live_viewer_gets_the_bytes_of_the_log(
    own_database: Pool, own_org: str, writer: Writer, hub: Hub
) -> None:
    run = await ask(own_database, own_org)
    viewing = Viewing(hub, own_database, run)
    await viewing.has(b"run_queued")
    pen = writer.pen((await worker(own_database).claim(1))[0])
    for number in range(100):
        pen.chunk(f"msg_{number}", "text")
        await pen.committed()
    pen.end(FINISHED)
    await asyncio.wait_for(viewing.task, 10)
    assert viewing.got == await whole_log(own_database, run)


async def test_what_pubsub_lost_is_filled_in_from_the_log(
    own_database: Pool, own_org: str, publisher: Publisher, hub: Hub
) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    viewing = Viewing(hub, own_database, run)
    await viewing.has(b"run_queued")
    for batch in range(1, 10):
        await commit(own_database, run.id, run.session_id, claimed.epoch, batch, [("tool_start", "{}")])
        if batch % 3 == 0:
            [last] = await read_frames(own_database, own_org, run.session_id, after=batch)
            publisher.publish(
                own_org, run.session_id, run.id, first=last.first, last=last.last, final=False, frames=last.data
            )
            await viewing.has(b"id: %d\n" % last.last)
    assert viewing.got == await whole_log(own_database, run)
    viewing.leave()
    await viewing.task


async def test_frames_that_come_twice_or_late_are_shown_once_and_in_order(
    own_database: Pool, own_org: str, writer: Writer, hub: Hub, redis: Redis
) -> None:
    run = await ask(own_database, own_org)
    channel = channel_of(own_org, run.session_id)
    pubsub = redis.pubsub()
    await pubsub.subscribe(channel)
    viewing = Viewing(hub, own_database, run)
    await viewing.has(b"run_queued")
    pen = writer.pen((await worker(own_database).claim(1))[0])
    payloads: list[bytes] = []
    for number in range(5):
        pen.say("tool_start", {"call_id": f"call {number}"})
        await pen.committed()
        while (message := await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)) is None:
            pass
        payloads.append(message["data"])
        for payload in (payloads[-1], payloads[0], payloads[number // 2]):
            await redis.publish(channel, payload)
    pen.end(FINISHED)
    await asyncio.wait_for(viewing.task, 10)
    assert viewing.got == await whole_log(own_database, run)
    await pubsub.aclose()  # type: ignore[no-untyped-call]


async def test_a_nudge_makes_viewers_look_in_the_log(
    own_database: Pool, own_org: str, publisher: Publisher, hub: Hub
) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    viewing = Viewing(hub, own_database, run)
    await viewing.has(b"run_queued")
    await commit(own_database, run.id, run.session_id, claimed.epoch, 1, [("run_started", "{}")])
    publisher.nudge(own_org, run.session_id)
    await viewing.has(b"run_started")
    viewing.leave()
    await viewing.task


async def test_a_viewer_that_fell_off_the_ring_gets_everything_from_the_log(
    own_database: Pool, own_org: str, writer: Writer, hub: Hub
) -> None:
    run = await ask(own_database, own_org)
    slow = Viewing(hub, own_database, run)
    quick = Viewing(hub, own_database, run)
    await slow.has(b"run_queued")
    slow.blocked.clear()
    pen = writer.pen((await worker(own_database).claim(1))[0])
    for number in range(60):
        pen.chunk(f"msg_{number}", "text " * 2000)
        await pen.committed()
    pen.end(FINISHED)
    await asyncio.wait_for(quick.task, 10)
    assert not slow.task.done()
    slow.blocked.set()
    await asyncio.wait_for(slow.task, 10)
    assert slow.got == quick.got == await whole_log(own_database, run)


async def test_a_killed_pubsub_connection_costs_no_event(
    own_database: Pool, own_org: str, writer: Writer, hub: Hub, redis: Redis
) -> None:
    run = await ask(own_database, own_org)
    viewing = Viewing(hub, own_database, run)
    await viewing.has(b"run_queued")
    pen = writer.pen((await worker(own_database).claim(1))[0])
    for number in range(40):
        if number % 10 == 5:
            await redis.client_kill_filter(_type="pubsub")
        pen.say("tool_start", {"call_id": f"call {number}"})
        await pen.committed()
    pen.end(FINISHED)
    await asyncio.wait_for(viewing.task, 10)
    assert viewing.got == await whole_log(own_database, run)


async def test_viewers_of_one_session_share_its_feed_and_leave_singly(
    own_database: Pool, own_org: str, writer: Writer, hub: Hub, redis: Redis
) -> None:
    run = await ask(own_database, own_org)
    viewings = [Viewing(hub, own_database, run, after=after) for after in (0, 0, 1)]
    await viewings[0].has(b"run_queued")
    await viewings[1].has(b"run_queued")
    assert await redis.pubsub_numsub(channel_of(own_org, run.session_id)) == [
        (channel_of(own_org, run.session_id).encode(), 1)
    ]
    viewings[0].leave()
    await viewings[0].task
    assert hub.viewers == 2
    pen = writer.pen((await worker(own_database).claim(1))[0])
    pen.end(FINISHED)
    await asyncio.gather(viewings[1].task, viewings[2].task)
    log = await whole_log(own_database, run)
    assert viewings[1].got == log
    assert viewings[2].got == await whole_log(own_database, run, after=1)
    assert hub.viewers == 0


async def test_a_viewer_of_one_run_gets_nothing_of_the_others_and_one_of_the_session_all(
    own_database: Pool, own_org: str, writer: Writer, hub: Hub
) -> None:
    first = await ask(own_database, own_org)
    second = await ask(own_database, own_org, session_id=first.session_id)
    of_run, of_session = Viewing(hub, own_database, second), Viewing(hub, own_database, second, whole_session=True)
    for _ in range(2):
        pen = writer.pen((await worker(own_database).claim(1))[0])
        pen.say("run_started", {"attempt": 1})
        pen.end(FINISHED)
        await pen.committed()
    await asyncio.wait_for(of_run.task, 10)
    assert first.id.encode() not in of_run.got
    assert of_run.got.count(b"event: ") == 3
    log = await whole_log(own_database, first)
    await of_session.has(log)
    of_session.leave()
    await of_session.task
    assert of_session.got == log


async def test_closing_the_hub_ends_all_streams(own_database: Pool, own_org: str, hub: Hub) -> None:
    run = await ask(own_database, own_org)
    viewings = [Viewing(hub, own_database, run) for _ in range(3)]
    for viewing in viewings:
        await viewing.has(b"run_queued")
    hub.close()
    await asyncio.gather(*(viewing.task for viewing in viewings))


async def test_a_signal_in_the_moment_before_a_viewer_waits_ends_its_stream_all_the_same(
    own_database: Pool, own_org: str, hub: Hub
) -> None:
    run = await ask(own_database, own_org)

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is Viewer.wait.__code__:
            sys.setprofile(None)
            hub.close()

    sys.setprofile(interrupt)
    try:
        await asyncio.wait_for(Viewing(hub, own_database, run).task, 5)
    finally:
        sys.setprofile(None)
    assert hub.closing


async def test_an_event_that_was_never_published_is_noticed_within_seconds(
    own_database: Pool, own_org: str, hub: Hub
) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    viewing = Viewing(hub, own_database, run)
    await viewing.has(b"run_queued")
    await commit(own_database, run.id, run.session_id, claimed.epoch, 1, [("done", "{}")])
    await asyncio.wait_for(viewing.task, 10)
    assert viewing.got == await whole_log(own_database, run)
