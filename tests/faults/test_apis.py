"""Followers at several API processes: Redis fails them all at once, or one of the processes goes."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from cli.embedded import EmbeddedRedis
from cli.rehearsal import Hang, Reply
from tests.e2e.caller import Caller
from tests.faults.crew import log_bytes
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack


@pytest.fixture
async def redis_server(unsteady_redis: EmbeddedRedis) -> AsyncIterator[EmbeddedRedis]:
    """The Redis of `pair`; runs again after the test."""
    yield unsteady_redis
    if unsteady_redis.pid is None:
        await unsteady_redis.start()


async def test_followers_at_two_apis_get_the_same_bytes_while_redis_loses_connections_data_and_itself(
    pair: Stack, pair_caller: Caller, model: ScriptedModel, redis_server: EmbeddedRedis
) -> None:
    script = model.script(Reply(tokens=[f"word{number} " for number in range(100)], token_delay=0.01))
    first, second = [program.url for program in pair.programs if program.url]
    async with pair_caller.at(first).following("go on", model=script) as here:
        run_id = (await here.until("run_started")).data["run_id"]
        async with pair_caller.at(second).stream(f"/v1/runs/{run_id}/events") as there:
            await there.until("message_chunk")
            async with Redis.from_url(redis_server.url) as redis:
                for kind in ("normal", "pubsub"):
                    await redis.execute_command("CLIENT", "KILL", "TYPE", kind)
                await there.until("message_chunk")
                await redis.flushall()
            await there.until("message_chunk")
            await redis_server.kill()
            await there.until("message_chunk")
            await redis_server.start()
            await asyncio.gather(here.rest(), there.rest())
    assert here.frames == there.frames == await log_bytes(pair, here.events[0].data["session_id"])
    history = await assert_history(pair.database, run_id)
    assert (history.run["status"], history.run["epoch"]) == ("succeeded", 1)


async def test_an_api_that_is_told_to_go_ends_silent_streams_at_once_and_they_go_on_elsewhere(
    pair: Stack, pair_caller: Caller, model: ScriptedModel
) -> None:
    leaving = await pair.add_api()
    there = pair_caller.at(leaving.url)
    silent, talking = model.script(Reply(tokens=["one", "two"], fault=Hang(1))), model.script(said("a b c d e"))
    session = await pair_caller.session()
    async with (
        there.following("say nothing", model=silent) as stream,
        there.stream(f"/v1/sessions/{session}/events") as empty,
    ):
        run_id = (await stream.until("message_chunk")).data["run_id"]
        told = time.monotonic()
        leaving.send(signal.SIGTERM)
        await asyncio.gather(stream.rest(), empty.rest())
        assert await leaving.wait() == 0
        assert time.monotonic() - told < 3
    assert stream.ended
    assert empty.ended
    # What happens while nobody follows is there for whoever comes back.
    next_run = await pair_caller.start("and now?", session=stream.events[0].data["session_id"], model=talking)
    await pair_caller.post(f"/v1/runs/{run_id}/cancel")
    await pair_caller.finished(next_run["id"])
    last = str(stream.events[-1].seq)
    async with pair_caller.stream(f"/v1/sessions/{next_run['session_id']}/events", Last_Event_ID=last) as rest:
        await rest.until("done", status="cancelled")
        await rest.until("done", status="succeeded")
    assert stream.frames + rest.frames == await log_bytes(pair, next_run["session_id"])
    for id in (run_id, next_run["id"]):
        await assert_history(pair.database, id)
