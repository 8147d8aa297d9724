"""Redis may be cut off, emptied, restarted, silent or gone: no event is missed, and every run is done."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.asyncio import Redis

from cli.embedded import EmbeddedRedis
from cli.embedded.directory import DataDirectory
from cli.rehearsal import Reply
from tests.conftest import MakeStack
from tests.e2e.caller import Caller, calling
from tests.e2e.conftest import new_key
from tests.e2e.test_streams import log_of
from tests.history import assert_history
from tests.scripts import ScriptedModel
from tests.stack import Stack

STEADY = Reply(tokens=[f"word{number} " for number in range(150)], token_delay=0.01)
SLOW = Reply(tokens=["tick "] * 2000, token_delay=0.01)


@dataclass(frozen=True, slots=True)
class Shaky:
    """A stack on a Redis of its own."""

    stack: Stack
    redis: EmbeddedRedis

    async def command(self, *words: str) -> None:
        client = Redis.from_url(self.redis.url)
        await client.execute_command(*words)
        await client.aclose()


@pytest.fixture(scope="module")
async def shaky(folder: Path, make_stack: MakeStack) -> AsyncIterator[Shaky]:
    data = DataDirectory(folder / "shaky")
    data.create()
    redis = EmbeddedRedis(data)
    await redis.start()
    try:
        stack = await make_stack(redis_url=redis.url)
        yield Shaky(stack, redis)
        await stack.stop()
    finally:
        await redis.stop()


@pytest.fixture
async def caller(shaky: Shaky) -> AsyncIterator[Caller]:
    async with calling(shaky.stack.url, await new_key(shaky.stack)) as caller:
        yield caller


@pytest.fixture
def stack(shaky: Shaky) -> Stack:
    """For the report of a failure."""
    return shaky.stack


async def cut_off(shaky: Shaky) -> None:
    for kind in ("pubsub", "normal"):
        await shaky.command("CLIENT", "KILL", "TYPE", kind)


async def empty(shaky: Shaky) -> None:
    await shaky.command("FLUSHALL")


async def restart(shaky: Shaky) -> None:
    await shaky.redis.stop()
    await shaky.redis.start()


async def crash(shaky: Shaky) -> None:
    await shaky.redis.kill()
    await shaky.redis.start()


TROUBLE: dict[str, Callable[[Shaky], Awaitable[None]]] = {
    "its connections are killed": cut_off,
    "it is emptied": empty,
    "it restarts": restart,
    "it crashes": crash,
}


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_viewers_get_every_event_when(shaky: Shaky, caller: Caller, model: ScriptedModel, trouble: str) -> None:
    async with caller.following(model=model.script(STEADY)) as first:
        run = (await first.until("message_chunk")).data
        async with caller.stream(f"/v1/sessions/{run['session_id']}/events") as second:
            await second.until("message_chunk")
            await TROUBLE[trouble](shaky)
            await asyncio.gather(first.rest(), second.until("done"))
    assert first.frames == second.frames == await log_of(shaky.stack.database, run["session_id"])
    await assert_history(shaky.stack.database, run["run_id"])
    # And all is as before: a bell is heard, an event is live.
    async with caller.following(workflow="echo") as after:
        await after.rest()
    assert after.events[-1].data["status"] == "succeeded"


@asynccontextmanager
async def absent(shaky: Shaky) -> AsyncIterator[None]:
    await shaky.redis.stop()
    yield
    await shaky.redis.start()


async def test_while_it_is_gone_runs_are_taken_in_executed_followed_and_cancelled(
    shaky: Shaky, caller: Caller, model: ScriptedModel
) -> None:
    async with absent(shaky):
        began = time.monotonic()
        async with caller.following("no redis", workflow="echo") as stream:
            await stream.rest()
        assert time.monotonic() - began < 5
        assert stream.events[-1].data["status"] == "succeeded"

        async with caller.following(model=model.script(SLOW)) as stream:
            run_id = (await stream.until("message_chunk")).data["run_id"]
            began = time.monotonic()
            await caller.post(f"/v1/runs/{run_id}/cancel", expect=202)
            await stream.rest()
            assert time.monotonic() - began < 4
        assert stream.events[-1].data["status"] == "cancelled"
        assert stream.frames == await log_of(shaky.stack.database, stream.events[0].data["session_id"])
        await assert_history(shaky.stack.database, run_id)

        assert (await caller.run("waited for", workflow="echo"))["answer"] == "waited for"
    assert (await caller.run("back again", workflow="echo"))["answer"] == "back again"


async def test_a_running_run_does_not_notice_that_it_is_gone(
    shaky: Shaky, caller: Caller, model: ScriptedModel
) -> None:
    async with caller.following(model=model.script(STEADY)) as stream:
        run_id = (await stream.until("message_chunk")).data["run_id"]
        async with absent(shaky):
            run = await caller.finished(run_id)
            await stream.rest()
    assert run["status"] == "succeeded"
    history = await assert_history(shaky.stack.database, run_id)
    assert history.run["epoch"] == 1
    assert stream.frames == await log_of(shaky.stack.database, run["session_id"])


async def test_when_it_is_silent_runs_go_on_and_viewers_read_the_log(
    shaky: Shaky, caller: Caller, model: ScriptedModel
) -> None:
    pid = shaky.redis.pid
    assert pid is not None
    async with caller.following(model=model.script(STEADY)) as stream:
        run_id = (await stream.until("message_chunk")).data["run_id"]
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.wait_for(stream.rest(), 20)
            run = await caller.run("in silence", workflow="echo")
        finally:
            os.kill(pid, signal.SIGCONT)
    assert run["answer"] == "in silence"
    assert stream.events[-1].data["status"] == "succeeded"
    assert stream.frames == await log_of(shaky.stack.database, stream.events[0].data["session_id"])
    await assert_history(shaky.stack.database, run_id)


async def test_the_processes_have_outlived_all_this(shaky: Shaky) -> None:
    assert all(program.alive for program in shaky.stack.programs)
