"""Soundings: what viewers ask Postgres depends on what has happened, not on how many they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from kernel.errors import NotFound
from kernel.fanout import channel_of
from kernel.hub import Hub
from kernel.journal import SQL
from kernel.postgres import Pool
from kernel.tenants import ensure_org
from tests.kernel.test_audits import Counting
from tests.kernel.test_hub import Viewing, running_hub, whole_log
from tests.kernel.writing import FINISHED, Writer, ask, commit, worker
from tests.waiting import eventually


@pytest.fixture
def counting(own_database: Pool) -> Counting:
    return Counting(own_database)


@pytest.fixture
async def hub(counting: Counting, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    """A hub that does not audit."""
    monkeypatch.setattr("kernel.hub._AUDIT_EVERY", 3600.0)
    async with running_hub(cast(Pool, counting), redis_url) as hub:
        yield hub


async def test_who_comes_back_to_a_session_that_others_follow_asks_postgres_nothing(
    own_database: Pool, own_org: str, hub: Hub, counting: Counting, writer: Writer
) -> None:
    run = await ask(own_database, own_org)
    first = Viewing(hub, cast(Pool, counting), run)
    await first.has(b"run_queued")
    asked = counting.asked.copy()
    others = [Viewing(hub, cast(Pool, counting), run, after=1) for _ in range(50)]
    pen = writer.pen((await worker(own_database).claim(1))[0])
    for number in range(5):
        pen.say("tool_start", {"call_id": f"call {number}"})
        await pen.committed()
    await asyncio.gather(*(viewer.has(b"call 4") for viewer in others))
    late = [Viewing(hub, cast(Pool, counting), run, after=3) for _ in range(50)]
    pen.end(FINISHED)
    await asyncio.wait_for(asyncio.gather(*(viewer.task for viewer in [first, *others, *late])), 10)
    assert counting.asked == asked
    for viewer, after in ((first, 0), (others[0], 1), (late[0], 3)):
        assert viewer.got == await whole_log(own_database, run, after=after)


async def test_viewers_of_many_sessions_who_come_together_share_their_questions(
    own_database: Pool, own_org: str, hub: Hub, counting: Counting
) -> None:
    runs = [await ask(own_database, own_org) for _ in range(100)]
    viewers = [Viewing(hub, cast(Pool, counting), run, after=1) for run in runs]
    joined = [await hub.join(own_org, run.session_id) for run in runs]
    assert counting.asked[SQL.read] == 0
    assert counting.asked[SQL.last_seqs] < 20
    assert {viewer.feed.reach for viewer in joined} == {1}
    for viewer in joined:
        hub.leave(viewer)
    hub.close()
    await asyncio.gather(*(viewer.task for viewer in viewers))


async def test_a_lost_connection_to_redis_makes_only_those_read_who_missed_something(
    own_database: Pool, own_org: str, hub: Hub, counting: Counting, redis: Redis
) -> None:
    runs = [await ask(own_database, own_org) for _ in range(50)]
    viewers = [Viewing(hub, cast(Pool, counting), run) for run in runs]
    await asyncio.gather(*(viewer.has(b"run_queued") for viewer in viewers))
    [claimed] = await worker(own_database).claim(1)
    missed = next(viewer for viewer, run in zip(viewers, runs, strict=True) if run.id == claimed.id)
    asked = counting.asked.copy()
    await commit(own_database, claimed.id, claimed.session_id, claimed.epoch, 1, [("done", "{}")])  # published never
    await redis.client_kill_filter(_type="pubsub")
    await asyncio.wait_for(missed.task, 10)
    assert counting.asked[SQL.read] == asked[SQL.read] + 1
    assert counting.asked[SQL.last_seqs] - asked[SQL.last_seqs] < 20
    for viewer in viewers:
        viewer.leave()


async def test_a_place_beyond_what_is_known_is_looked_up(
    own_database: Pool, own_org: str, hub: Hub, counting: Counting
) -> None:
    run = await ask(own_database, own_org)
    viewer = await hub.join(own_org, run.session_id)
    [claimed] = await worker(own_database).claim(1)
    await commit(own_database, run.id, run.session_id, claimed.epoch, 1, [("run_started", "{}")])  # published never
    assert await hub.reach(own_org, run.session_id) == 1
    assert await hub.reach(own_org, run.session_id, at_least=2) == 2
    assert await hub.reach(own_org, run.session_id, at_least=10**9) == 2
    asked = counting.asked.copy()
    assert await hub.reach(own_org, run.session_id, at_least=1) == 2
    assert counting.asked == asked
    hub.leave(viewer)


async def test_what_is_not_there_or_not_ones_own_is_not_found_and_not_followed(
    own_database: Pool, own_org: str, hub: Hub, redis: Redis
) -> None:
    run = await ask(own_database, own_org)
    stranger = await ensure_org(own_database, f"stranger {uuid4().hex}")
    for org, session in ((stranger, run.session_id), (own_org, f"ses_{uuid4().hex}")):
        for question in (hub.reach(org, session), hub.join(org, session)):
            with pytest.raises(NotFound):
                await question

        async def forgotten(channel: str = channel_of(org, session)) -> bool:
            return bool(await redis.pubsub_numsub(channel) == [(channel.encode(), 0)])

        await eventually(forgotten, what="Redis is told to forget it")
    assert hub.viewers == 0
    assert await hub.reach(own_org, run.session_id) == 1
