"""Hundreds of viewers at one API process: they come and go together, and each gets the bytes of its log."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import orjson
import pytest
from redis.asyncio import Redis

from cli.rehearsal import Reply
from kernel.settings import Settings
from tests.api.test_process import environment
from tests.conftest import MakeStack
from tests.e2e.caller import Caller, Stream, calling
from tests.faults.crew import log_bytes, org_with_key
from tests.history import assert_history
from tests.scripts import ScriptedModel
from tests.stack import Stack

VIEWERS = 300
SESSIONS = 60
WORDS = [f"word{number} " for number in range(200)]


@pytest.fixture(scope="module")
async def crowded(make_stack: MakeStack) -> Stack:
    """An API that has a small share of Postgres, and a worker."""
    return await make_stack(LONGHAUL_DATABASE_POOL="2", LONGHAUL_MODEL_IDLE_TIMEOUT="60")


@pytest.fixture
async def callers(crowded: Stack) -> AsyncIterator[list[Caller]]:
    """Callers of three orgs."""
    async with AsyncExitStack() as stack:
        keys = [(await org_with_key(crowded))[1] for _ in range(3)]
        yield [await stack.enter_async_context(calling(crowded.url, key)) for key in keys]


class Crowd:
    """Viewers of sessions, several of each; every other one comes with a stream token."""

    def __init__(self) -> None:
        self.sessions: list[tuple[Caller, str]] = []
        self._places: list[tuple[Caller, str, str]] = []

    @classmethod
    async def of(cls, callers: list[Caller]) -> Crowd:
        crowd = cls()
        for number in range(SESSIONS):
            caller = callers[number % len(callers)]
            session = await caller.session()
            token = (await caller.post(f"/v1/sessions/{session}/stream-token", expect=201)).json()
            crowd.sessions.append((caller, session))
            paths = [f"/v1/sessions/{session}/events", token["url"]]
            crowd._places += [(caller, session, paths[place % 2]) for place in range(VIEWERS // SESSIONS)]
        return crowd

    @asynccontextmanager
    async def watching(self, after: list[int] | None = None) -> AsyncIterator[list[tuple[str, Stream]]]:
        """All of them, each with the id of its session. `after` says what each has already."""
        lasts = after or [0] * len(self._places)
        async with AsyncExitStack() as streams:

            async def come(place: tuple[Caller, str, str], last: int) -> tuple[str, Stream]:
                caller, session, path = place
                headers = {"Last_Event_ID": str(last)} if last else {}
                stream = caller.stream(path, key="token=" not in path, **headers)
                return session, await streams.enter_async_context(stream)

            yield list(await asyncio.gather(*map(come, self._places, lasts)))


async def test_each_of_hundreds_of_viewers_gets_its_log_and_their_end_is_in_order(
    crowded: Stack, callers: list[Caller], model: ScriptedModel
) -> None:
    api = await crowded.add_api()
    there = [caller.at(api.url) for caller in callers]
    crowd = await Crowd.of(there)
    async with crowd.watching() as viewers:
        runs = await asyncio.gather(
            *(caller.start(session=session, workflow="echo") for caller, session in crowd.sessions)
        )
        await asyncio.gather(*(stream.until("done") for _, stream in viewers))
        api.send(signal.SIGTERM)
        # Reading to the end fails unless the last chunk came: a connection that is cut off has none.
        await asyncio.gather(*(stream.rest() for _, stream in viewers))
        assert await api.wait() == 0
    logs = {session: await log_bytes(crowded, session) for _, session in crowd.sessions}
    for session, stream in viewers:
        assert stream.ended
        assert stream.frames == logs[session]
    for run in runs:
        await assert_history(crowded.database, run["id"])


async def test_hundreds_who_are_cut_off_together_come_back_together_and_miss_nothing(
    crowded: Stack, callers: list[Caller], model: ScriptedModel
) -> None:
    crowd = await Crowd.of(callers)
    script = model.script(Reply(tokens=WORDS, token_delay=0.005))
    talking = {session: caller for caller, session in crowd.sessions[:10]}
    async with crowd.watching() as viewers:
        runs = [await caller.start(session=session, model=script) for session, caller in talking.items()]
        await asyncio.gather(*(stream.until("message_chunk") for session, stream in viewers if session in talking))
    got = [stream.frames for _, stream in viewers]
    last = [stream.events[-1].seq if stream.events else 0 for _, stream in viewers]
    async with crowd.watching(last) as again:
        runs += [await caller.start(session=session, workflow="echo") for caller, session in crowd.sessions[10:]]
        await asyncio.gather(*(stream.until("done") for _, stream in again))
    logs = {session: await log_bytes(crowded, session) for _, session in crowd.sessions}
    for before, (session, stream) in zip(got, again, strict=True):
        assert before + stream.frames == logs[session]
    for run in runs:
        await assert_history(crowded.database, run["id"])


async def test_hundreds_of_viewers_outlive_redis_connections_and_are_told_what_they_missed(
    crowded: Stack, callers: list[Caller], model: ScriptedModel
) -> None:
    crowd = await Crowd.of(callers)
    caller, session = crowd.sessions[0]
    async with crowd.watching() as viewers:
        async with (
            Redis.from_url(crowded.redis_url) as redis,
            caller.following(session=session, model=model.script(Reply(tokens=WORDS, token_delay=0.005))) as stream,
        ):
            for _ in range(3):
                await stream.until("message_chunk")
                await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            events = await stream.rest()
        run_ids = [events[0].data["run_id"]]
        for other, its_session in crowd.sessions[1:]:
            run_ids.append((await other.start(session=its_session, workflow="echo"))["id"])
        await asyncio.gather(*(stream.until("done") for _, stream in viewers))
    logs = {session: await log_bytes(crowded, session) for _, session in crowd.sessions}
    for session, stream in viewers:
        assert stream.frames == logs[session]
    for run_id in run_ids:
        await assert_history(crowded.database, run_id)


@pytest.mark.parametrize(("option", "few"), [("-Sn", False), ("-n", True)])
async def test_an_api_opens_as_many_files_as_the_system_allows_and_says_if_these_are_few(
    settings: Settings, option: str, few: bool
) -> None:
    api = await asyncio.create_subprocess_exec(
        *("sh", "-c", f'ulimit {option} 300 && exec "$0" -P -m api', sys.executable),
        env=environment(settings),
        stderr=asyncio.subprocess.PIPE,
    )
    assert api.stderr is not None
    lines = []
    async for line in api.stderr:
        lines.append(orjson.loads(line))
        if lines[-1]["event"] == "Application startup complete.":
            api.terminate()
    assert await api.wait() == 0
    said = {line["event"]: line for line in lines}
    assert (said["open_files"]["limit"] == 300) == few
    assert (said.get("few_open_files", {}).get("limit") == 300) == few
