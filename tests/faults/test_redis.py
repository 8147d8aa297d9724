"""Redis in trouble, again and again and for longer: followers miss nothing, and every way to a worker comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import cycle
from typing import Any

import pytest
from redis.asyncio import Redis

from cli.embedded import EmbeddedRedis
from cli.rehearsal import Reply
from kernel.bell import BELL_KEY, QUEUE_KEY, REQUEST_CHANNEL, WAKE_JOB, encode_job
from tests.e2e.caller import Caller
from tests.faults.crew import log_bytes, staff
from tests.history import assert_history
from tests.scripts import ScriptedModel
from tests.stack import Stack
from tests.waiting import eventually

ABSENCE = 5.0
"""Seconds. Long enough for several tries to reach it on each way."""


@pytest.fixture
async def server(unsteady_redis: EmbeddedRedis) -> AsyncIterator[EmbeddedRedis]:
    """The Redis of `pair`; runs again after the test."""
    yield unsteady_redis
    if unsteady_redis.pid is None:
        await unsteady_redis.start()


async def test_a_follower_that_is_cut_off_after_every_event_misses_nothing_while_redis_is_in_trouble(
    pair: Stack, pair_caller: Caller, model: ScriptedModel, server: EmbeddedRedis
) -> None:
    await staff(pair, 1)
    apis = cycle([pair_caller.at(program.url) for program in pair.programs if program.url and program.alive])
    script = model.script(Reply(tokens=[f"word{number} " for number in range(120)], token_delay=0.02))
    run = await pair_caller.start(model=script)

    async def trouble() -> None:
        while True:
            for kind in ("normal", "pubsub"):
                async with Redis.from_url(server.url) as redis:
                    await redis.execute_command("CLIENT", "KILL", "TYPE", kind)
                await asyncio.sleep(0.15)
            async with Redis.from_url(server.url) as redis:
                await redis.flushall()
            await asyncio.sleep(0.15)
            await server.kill()
            await server.start()
            await asyncio.sleep(0.15)

    troubling = asyncio.create_task(trouble())
    got, last, ended = b"", 0, False
    try:
        while not ended:
            async with next(apis).stream(f"/v1/runs/{run['id']}/events", Last_Event_ID=str(last)) as stream:
                event = await stream.next()
            assert event is not None
            assert event.seq == last + 1
            got, last, ended = got + event.frame, event.seq, event.type == "done"
    finally:
        troubling.cancel()
        await asyncio.wait([troubling])
    assert last > 50
    assert got == await log_bytes(pair, run["session_id"])
    history = await assert_history(pair.database, run["id"])
    assert (history.run["status"], history.run["epoch"]) == ("succeeded", 1)


async def test_after_a_longer_absence_runs_were_not_disturbed_and_all_ways_to_a_worker_are_open_again(
    pair: Stack, pair_caller: Caller, model: ScriptedModel, server: EmbeddedRedis
) -> None:
    await staff(pair, 1)
    script = model.script(Reply(tokens=["tick "] * 100, token_delay=0.1))
    async with pair_caller.following(model=script) as stream:
        running = (await stream.until("message_chunk")).data["run_id"]
        await server.kill()
        gone = time.monotonic()
        while time.monotonic() < gone + ABSENCE:
            began = time.monotonic()
            run = await pair_caller.run("meanwhile", workflow="echo")
            assert run["status"] == "succeeded"
            assert time.monotonic() - began < 5
            await stream.until("message_chunk")
        await server.start()
        await stream.rest()
    assert stream.frames == await log_bytes(pair, stream.events[0].data["session_id"])
    history = await assert_history(pair.database, running)
    assert (history.run["status"], history.run["epoch"]) == ("succeeded", 1)

    async with Redis.from_url(pair.redis_url) as redis:

        async def bells_are_listened_for() -> bool:
            return any(client["cmd"] == "blpop" for client in await redis.client_list())

        async def cancels_are_heard() -> bool:
            return bool((await redis.pubsub_numsub(REQUEST_CHANNEL))[0][1])

        async def arq_works() -> bool:
            return not await redis.zcard(QUEUE_KEY)

        await eventually(bells_are_listened_for, what="the worker waits for bells")
        await eventually(cancels_are_heard, what="the worker has subscribed to what callers ask")
        await redis.delete(BELL_KEY)
        job: dict[str, Any] = {"t": None, "f": WAKE_JOB, "a": [], "k": {}, "et": int(time.time() * 1000)}
        await redis.set("arq:job:probe", encode_job(job))
        await redis.zadd(QUEUE_KEY, {"probe": job["et"]})
        await eventually(arq_works, what="arq takes its jobs")
    async with pair_caller.following("and live events?", workflow="echo") as after:
        await after.rest()
    assert after.events[-1].data["status"] == "succeeded"
