"""Workers that are told to go: what they never began is begun elsewhere, and a silent Redis does not hold them."""

from __future__ import annotations

import asyncio
import os
import signal

from cli.embedded import EmbeddedRedis
from kernel.leases import Leases
from kernel.runs import InputMessage, NewRun, submit
from tests.e2e.caller import Caller
from tests.faults.crew import staff
from tests.history import assert_history
from tests.stack import Stack
from tests.waiting import eventually


async def test_a_run_that_was_handed_back_before_it_was_announced_starts_as_if_nothing_had_been(
    mortal: Stack, caller: Caller
) -> None:
    await staff(mortal, 0)
    run = await caller.start("hello", workflow="echo")
    leaving = Leases(mortal.database, worker="leaving:1", lease_seconds=10)
    [claimed] = await leaving.claim(1)
    assert claimed.id == run["id"]
    assert await leaving.hand_back({claimed.id: claimed.epoch}, "drained") == [run["id"]]
    await staff(mortal, 1)
    await caller.finished(run["id"])
    history = await assert_history(mortal.database, run["id"])
    assert history.types[:2] == ["run_queued", "run_started"]
    assert history.of("run_resumed") == []
    assert history.of("run_started")[0].data["attempt"] == 1
    assert (history.run["status"], history.run["attempt"], history.run["epoch"]) == ("succeeded", 1, 2)


async def test_workers_that_are_told_to_go_amid_their_claims_leave_no_run_behind(mortal: Stack, caller: Caller) -> None:
    session = await caller.session()
    org_id = await mortal.database.fetchval("SELECT org_id FROM sessions WHERE id = $1", session)

    async def take_in() -> str:
        new = NewRun([InputMessage("user", "in between")], workflow="echo")
        return (await submit(mortal.database, org_id=org_id, user_id=None, session_id=None, new=new)).run.id

    runs: list[str] = []
    for _ in range(2):
        [leaving] = await staff(mortal, 1)
        coming = asyncio.gather(*(take_in() for _ in range(30)))
        await caller.start("a bell", workflow="echo", session=session)
        leaving.send(signal.SIGTERM)
        runs += await coming
        assert await leaving.wait() == 0
        assert await mortal.database.fetchval("SELECT count(*) FROM runs WHERE status = 'running'") == 0
    await staff(mortal, 1)
    for run_id in runs:
        await succeeded(mortal, run_id)
    charged = await mortal.database.fetchval("SELECT max(attempt) FROM runs WHERE id = ANY ($1)", runs)
    assert charged == 1


async def succeeded(stack: Stack, run_id: str) -> None:
    """Waits for the run's end and checks it."""

    async def ended() -> bool:
        return bool(await stack.database.fetchval("SELECT finished_at FROM runs WHERE id = $1", run_id))

    await eventually(ended, what=f"{run_id} has ended")
    assert (await assert_history(stack.database, run_id)).run["status"] == "succeeded"


async def test_a_worker_leaves_in_time_although_redis_is_silent(
    pair: Stack, pair_caller: Caller, unsteady_redis: EmbeddedRedis
) -> None:
    [leaving] = await staff(pair, 1)
    assert (await pair_caller.run(workflow="echo"))["status"] == "succeeded"
    pid = unsteady_redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        run = await pair_caller.run("in silence", workflow="echo")
        leaving.send(signal.SIGTERM)
        async with asyncio.timeout(13):  # a grace of 3 s and 10 s more
            assert await leaving.wait() == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    await assert_history(pair.database, run["id"])
    await staff(pair, 1)
