"""Shares, caps and charges with real workers."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import structlog.testing

from bench.queueing import queue_many
from cli.rehearsal import Reply
from kernel.leases import ClaimedRun
from kernel.postgres import Pool
from kernel.shares import Used, list_shares, set_share
from kernel.tenants import ensure_org
from tests.e2e.caller import calling
from tests.e2e.conftest import OwnStack, new_key
from tests.history import assert_history
from tests.kernel.writing import worker
from tests.scripts import ScriptedModel
from tests.waiting import eventually
from worker.charges import Charges

SHORT = Reply(tokens=["tick "] * 5, token_delay=0.05)


async def test_another_org_with_2000_queued_runs_does_not_delay_the_first_run_of_this_one(
    own: OwnStack, model: ScriptedModel
) -> None:
    stack = await own.stack(workers=2, LONGHAUL_SLOTS="3")
    crowd = await ensure_org(stack.database, "crowd")
    await queue_many(stack.database, crowd, 2000, request={"model": {"name": model.script(SHORT)}})

    async def busy() -> bool:
        return bool(await stack.database.fetchval("SELECT count(*) = 6 FROM runs WHERE status = 'running'"))

    await eventually(busy, what="every slot is taken")
    async with calling(stack.url, await new_key(stack)) as caller:
        for _ in range(3):
            asked = time.monotonic()
            async with caller.following(workflow="echo") as stream:
                await stream.until("run_started")
                waited = time.monotonic() - asked
                await stream.rest()
            assert waited < 1.0
            await assert_history(stack.database, stream.events[0].data["run_id"])
    await set_share(stack.database, "crowd", max_running=0)
    assert await stack.database.fetchval("SELECT count(*) FROM runs WHERE status = 'queued' AND org_id = $1", crowd)

    async def empty() -> bool:
        return bool(await stack.database.fetchval("SELECT count(*) = 0 FROM runs WHERE status = 'running'"))

    await eventually(empty, what="what ran has ended")


async def test_a_place_that_comes_free_under_a_cap_is_taken_at_once(own: OwnStack, model: ScriptedModel) -> None:
    stack = await own.stack(LONGHAUL_SLOTS="5")
    org = await ensure_org(stack.database, "one by one")
    await set_share(stack.database, "one by one", max_running=1)
    async with calling(stack.url, await new_key(stack, org_id=org)) as caller:
        script = model.script(Reply(tokens=["a", "b"], token_delay=0.02))
        began = time.monotonic()
        queued = [await caller.start(model=script) for _ in range(12)]
        runs = [await caller.finished(run["id"]) for run in queued]
        assert time.monotonic() - began < 8, "places were found by the look once a second"
    for run in runs:
        await assert_history(stack.database, run["id"])
    for earlier, later in pairwise(sorted(runs, key=lambda run: str(run["started_at"]))):
        assert earlier["finished_at"] <= later["started_at"]


async def test_what_a_run_uses_is_charged_to_its_org_while_it_runs_and_when_it_ends(
    own: OwnStack, model: ScriptedModel
) -> None:
    stack = await own.stack()
    org = await ensure_org(stack.database, "payer")

    async def charged() -> float:
        return next(share.charged for share in await list_shares(stack.database) if share.name == "payer")

    async with calling(stack.url, await new_key(stack, org_id=org)) as caller:
        script = model.script(Reply(tokens=["tick "] * 45, token_delay=0.05, usage=(40_000, 500)))
        run = await caller.start(model=script)
        await eventually(charged, what="an instalment is charged")
        assert (await caller.get(f"/v1/runs/{run['id']}"))["status"] == "running"
        await caller.finished(run["id"])
        await assert_history(stack.database, run["id"])

        async def all_charged() -> bool:
            return await charged() >= 10 + 5 + 2

        await eventually(all_charged, what="seconds and tokens are charged")
        assert await charged() < 10 + 5 + 15


async def claimed(database: Pool, org: str, runs: int) -> list[ClaimedRun]:
    await queue_many(database, org, runs)
    return await worker(database).claim(runs)


async def test_charges_that_cannot_be_written_are_written_later(own_database: Pool) -> None:
    org = await ensure_org(own_database, "payer")
    charges = Charges(own_database)
    runs = await claimed(own_database, org, 3)
    for run in runs:
        charges.begin(run, lambda: Used(seconds=2.0))
    charges.end(runs[0])
    await own_database.execute("ALTER FUNCTION charge_lanes RENAME TO charge_lanes_away")
    with structlog.testing.capture_logs() as logs:
        await charges.flush()
    assert [entry["event"] for entry in logs] == ["charges_not_written"]
    await own_database.execute("ALTER FUNCTION charge_lanes_away RENAME TO charge_lanes")
    for run in runs:
        charges.end(run)
    await charges.flush()
    await charges.flush()
    assert [share.charged for share in await list_shares(own_database)] == [6.0]


async def test_charges_are_written_by_themselves_and_each_second_counts_once(own_database: Pool) -> None:
    org = await ensure_org(own_database, "payer")
    charges = Charges(own_database)
    task = asyncio.create_task(charges.run())
    [run] = await claimed(own_database, org, 1)
    used = Used(seconds=5.0)
    charges.begin(run, lambda: used)

    async def charged(units: float) -> bool:
        return [share.charged for share in await list_shares(own_database)] == [units]

    await eventually(lambda: charged(5.0))
    used = Used(seconds=7.0, output_tokens=100)
    charges.end(run)
    await eventually(lambda: charged(8.0))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
