"""Postgres behind a network that stalls, delays, cuts and loses answers, and that restarts: nothing is lost or doubled,
callers are told quickly to come back, and afterwards all is as before, connections too.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.embedded import EmbeddedServers
from cli.rehearsal import Hang, Reply
from kernel.postgres import UNAVAILABLE
from migrations.runner import migrate
from tests.e2e.caller import Answer, Caller, Event, Stream, calling
from tests.faults.crew import PATIENT_MODEL, log_bytes, org_with_key
from tests.faults.proxy import Proxy, before_postgres, serving
from tests.history import assert_history
from tests.scripts import ScriptedModel
from tests.stack import Stack
from tests.waiting import eventually

POOL = 5
LEASE = 4.0
QUICKLY = 12.0
"""Seconds within which a caller must be told that Postgres is away."""

STEADY = Reply(tokens=[f"word{number} " for number in range(150)], token_delay=0.02)


@dataclass(frozen=True, slots=True)
class Remote:
    """A stack of two APIs and two workers whose Postgres is behind `network`."""

    servers: EmbeddedServers
    network: Proxy
    stack: Stack
    caller: Caller

    @property
    def urls(self) -> list[str]:
        """Those of the API processes."""
        return [program.url for program in self.stack.programs if program.url]

    async def reachable(self) -> bool:
        """Whether the server answers the tests' own pool, which meets its restarts, too."""
        try:
            return bool(await self.stack.database.fetchval("SELECT true"))
        except UNAVAILABLE:
            return False

    async def connections(self) -> int:
        """How many the stack's processes have, as the server sees it."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name <> 'tests'"
        )
        return int(await self.stack.database.fetchval(f"{query} AND backend_type = 'client backend'"))


@pytest.fixture(scope="module")
async def remote(folder: Path, redis_url: str, model: ScriptedModel) -> AsyncIterator[Remote]:
    async with EmbeddedServers(folder / "remote") as servers:
        await migrate(servers.database_url)
        network, database_url = before_postgres(folder / "network", servers.database_url)
        async with serving(network):
            stack = Stack(
                folder / "remote-stack",
                database_url=servers.database_url,
                redis_url=f"{redis_url}?db=15",
                model_url=model.url,
                environment={
                    **PATIENT_MODEL,
                    "DATABASE_URL": database_url,
                    "LONGHAUL_LEASE_SECONDS": f"{LEASE:g}",
                    "LONGHAUL_LEASE_RENEW_SECONDS": "1",
                    "LONGHAUL_DATABASE_POOL": str(POOL),
                },
            )
            await stack.start(apis=2, workers=2)
            async with calling(stack.url, (await org_with_key(stack))[1]) as caller:
                yield Remote(servers, network, stack, caller)
            await network.heal()
            await stack.stop()


@pytest.fixture(autouse=True)
async def _all_well_again(remote: Remote) -> AsyncIterator[None]:
    """After a test nothing is wrong with the network, every process lives, and answers."""
    yield
    await remote.network.heal()
    assert all(program.alive or program.exit_code == 0 for program in remote.stack.programs)
    for program in remote.stack.programs:
        if program.url:
            await remote.stack.until_ready(program)
            await remote.caller.at(program.url).get("/v1/runs")


async def test_while_nothing_passes_callers_are_told_quickly_to_come_back(remote: Remote) -> None:
    caller = remote.caller
    run = await caller.run("before", workflow="echo")
    hello = {"input": "hello", "workflow": "echo"}
    remote.network.stall()

    async def timed(call: Awaitable[Answer]) -> tuple[Answer, float]:
        began = time.monotonic()
        return await call, time.monotonic() - began

    calls = [
        caller.call("GET", f"/v1/runs/{run['id']}"),
        caller.call("GET", f"/v1/runs/{run['id']}/events?after=1"),
        caller.post("/v1/runs", hello, Idempotency_Key="stalled"),
        *(caller.call("GET", "/v1/runs") for _ in range(3 * POOL)),  # more than there are connections
    ]
    for answer, seconds in await asyncio.gather(*map(timed, calls)):
        assert (answer.status, "Retry-After" in answer.headers) == (503, True), answer
        assert seconds < QUICKLY
    assert (await caller.call("GET", "/health")).status == 200
    await remote.network.heal()
    again = await caller.post("/v1/runs", hello, Idempotency_Key="stalled", expect=202)
    await caller.finished(again.json()["id"])
    await assert_history(remote.stack.database, again.json()["id"])


async def test_runs_do_not_notice_a_stall_that_is_shorter_than_their_leases(
    remote: Remote, model: ScriptedModel
) -> None:
    async with remote.caller.following(model=model.script(STEADY)) as stream:
        run_id = (await stream.until("message_chunk")).data["run_id"]
        for _ in range(2):
            remote.network.stall()
            await asyncio.sleep(0.3 * LEASE)
            await remote.network.heal()
            await stream.until("message_chunk")
        await stream.rest()
    await whole(remote, stream, run_id)


async def test_runs_go_on_after_a_stall_that_is_longer_than_their_leases(remote: Remote, model: ScriptedModel) -> None:
    async with remote.caller.following(model=model.script(STEADY)) as stream:
        run_id = (await stream.until("message_chunk")).data["run_id"]
        remote.network.stall()
        await asyncio.sleep(1.3 * LEASE)
        await remote.network.heal()
        await stream.rest()
    events = await to_the_end(remote, stream, run_id)
    history = await assert_history(remote.stack.database, run_id)
    assert history.run["status"] == "succeeded"
    assert history.of("message")[0].data["content"] == "".join(STEADY.tokens)
    assert b"".join(event.frame for event in events) == await log_bytes(remote.stack, history.run["session_id"])


async def test_a_run_whose_worker_could_not_reach_postgres_for_long_is_handed_back_and_has_died_of_nothing(
    remote: Remote, model: ScriptedModel
) -> None:
    script = model.script(Reply(tokens=["half"], fault=Hang(1)), STEADY)
    async with remote.caller.following(model=script) as stream:
        run_id = (await stream.until("message_chunk")).data["run_id"]
        remote.network.stall()
        await asyncio.sleep(3 * LEASE)
        await remote.network.heal()
        await stream.rest()
    events = await to_the_end(remote, stream, run_id)
    history = await assert_history(remote.stack.database, run_id)
    assert (history.run["status"], history.run["epoch"]) == ("succeeded", 2)
    assert (history.run["attempt"], history.run["deaths"]) == (1, 0)
    [resumed] = history.of("run_resumed")
    assert resumed.data["reason"] == "its worker could not reach Postgres"
    assert b"".join(event.frame for event in events) == await log_bytes(remote.stack, history.run["session_id"])


async def test_a_worker_leaves_in_time_although_postgres_is_silent(remote: Remote, model: ScriptedModel) -> None:
    leaving = remote.stack.workers[-1]
    async with remote.caller.following(model=model.script(STEADY)) as stream:
        run_id = (await stream.until("message_chunk")).data["run_id"]
        remote.network.stall()
        leaving.send(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await leaving.wait() == 0
        await remote.network.heal()
        await remote.stack.add_worker()
        await stream.rest()
    events = await to_the_end(remote, stream, run_id)
    history = await assert_history(remote.stack.database, run_id)
    assert history.run["status"] == "succeeded"
    assert b"".join(event.frame for event in events) == await log_bytes(remote.stack, history.run["session_id"])


async def test_a_run_whose_commits_are_never_answered_is_the_same_run(remote: Remote, model: ScriptedModel) -> None:
    lost = 0

    async def lose_answers() -> None:
        nonlocal lost
        while True:
            await remote.network.drop_reply(b"committed")
            lost += 1

    async with remote.caller.following(model=model.script(STEADY)) as stream:
        run_id = (await stream.until("message_chunk")).data["run_id"]
        losing = asyncio.create_task(lose_answers())
        await stream.rest()
        losing.cancel()
    assert lost > 5
    await whole(remote, stream, run_id)


async def test_a_run_whose_acknowledgement_was_lost_on_the_way_is_taken_in_once(remote: Remote) -> None:
    body = {"input": "only once, please", "workflow": "echo"}
    statuses = []
    for _ in range(4):
        lost = remote.network.drop_reply()
        statuses.append((await remote.caller.post("/v1/runs", body, Idempotency_Key="lost")).status)
        await lost
    await remote.network.heal()
    answer = await remote.caller.post("/v1/runs", body, Idempotency_Key="lost", expect=202)
    assert set(statuses) <= {202, 503}
    await remote.caller.finished(answer.json()["id"])
    query = "SELECT count(*) FROM messages WHERE role = 'user' AND content::text LIKE '%only once, please%'"
    assert await remote.stack.database.fetchval(query) == 1


@pytest.mark.parametrize("how", ["stops in order", "crashes"])
async def test_what_was_acknowledged_survives_that_postgres(remote: Remote, model: ScriptedModel, how: str) -> None:
    postgres, caller = remote.servers.postgres, remote.caller
    script = model.script(STEADY)
    acknowledged: list[str] = []
    back = asyncio.Event()

    async def keep_asking(number: int) -> None:
        """Takes runs in, before, while and after it is away; a few more when it is back."""
        more = 2
        while more:
            more -= back.is_set()
            answer = await caller.at(remote.urls[number % 2]).post("/v1/runs", {"input": "hello", "workflow": "echo"})
            assert answer.status in (202, 503)
            if answer.status == 202:
                acknowledged.append(answer.json()["id"])
            else:
                assert int(answer.headers["Retry-After"]) >= 1
                await asyncio.sleep(0.1)

    async with caller.following(model=script) as stream:
        run_id = (await stream.until("message_chunk")).data["run_id"]
        asking = asyncio.gather(*(keep_asking(number) for number in range(4)))
        await (postgres.stop if how == "stops in order" else postgres.kill)()
        await postgres.start()
        back.set()
        await asking
        await stream.rest()
    events = await to_the_end(remote, stream, run_id)
    await eventually(remote.reachable, what="the tests' own pool is well again")
    history = await assert_history(remote.stack.database, run_id)
    assert (history.run["status"], history.run["epoch"]) == ("succeeded", 1)
    assert b"".join(event.frame for event in events) == await log_bytes(remote.stack, history.run["session_id"])
    assert len(acknowledged) >= 8
    for taken_in in acknowledged:
        assert (await caller.finished(taken_in))["status"] == "succeeded"
        await assert_history(remote.stack.database, taken_in)


async def test_no_connection_is_left_behind(remote: Remote, model: ScriptedModel) -> None:
    caller, most = remote.caller, len(remote.stack.programs) * (POOL + 1)
    for bad in ("cut", "stall", "refuse", "drop_reply") * 2:
        runs = [asyncio.create_task(caller.post("/v1/runs", {"input": "hi", "workflow": "echo"})) for _ in range(20)]
        getattr(remote.network, bad)()
        await asyncio.sleep(0.5)
        await remote.network.heal()
        for answer in await asyncio.gather(*runs):
            assert answer.status in (202, 503)
            if answer.status == 202:
                await caller.finished(answer.json()["id"])

    async def few() -> bool:
        return await remote.connections() <= most and remote.network.connections <= most

    await eventually(few, what=f"no more than {most} connections are open")


async def to_the_end(remote: Remote, stream: Stream, run_id: str) -> list[Event]:
    """The run's events to `done`: a stream whose API can't read the log ends, and its follower comes back."""
    events = list(stream.events)
    while events[-1].type != "done":
        async with remote.caller.stream(f"/v1/runs/{run_id}/events", Last_Event_ID=str(events[-1].seq)) as more:
            events += await more.rest()
    return events


async def whole(remote: Remote, stream: Stream, run_id: str) -> None:
    """The run has succeeded in its first attempt, and its follower has got every byte once."""
    history = await assert_history(remote.stack.database, run_id)
    assert (history.run["status"], history.run["epoch"]) == ("succeeded", 1)
    assert history.of("message")[0].data["content"] == "".join(STEADY.tokens)
    assert stream.frames == await log_bytes(remote.stack, history.run["session_id"])
