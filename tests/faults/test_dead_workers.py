"""Workers that were killed are missed long before their leases run out; those that only seem dead are left alone."""

from __future__ import annotations

import signal
import time

import pytest

from cli.rehearsal import Hang, Reply
from kernel.leases import Leases
from tests.conftest import MakeStack
from tests.e2e.caller import calling
from tests.faults.crew import PATIENT_MODEL, holder, org_with_key, staff, writes
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack
from tests.waiting import eventually
from worker.vigil import SETTLE_SECONDS, Vigil

LEASE = 12.0


@pytest.fixture(scope="module")
async def leased(make_stack: MakeStack) -> Stack:
    """One API; leases that last much longer than it takes to miss a worker."""
    return await make_stack(
        workers=0, LONGHAUL_LEASE_SECONDS=f"{LEASE:g}", LONGHAUL_LEASE_RENEW_SECONDS="0.4", **PATIENT_MODEL
    )


async def until_settled(stack: Stack) -> None:
    """Right after the server's start nobody is taken for dead."""

    async def settled() -> bool:
        return bool(
            await stack.database.fetchval(
                "SELECT pg_postmaster_start_time() < clock_timestamp() - make_interval(secs => $1)", SETTLE_SECONDS
            )
        )

    await eventually(settled, what="the server has been up for long enough")


@pytest.mark.parametrize("restarted", [False, True], ids=["by another worker", "by the one that takes its place"])
async def test_a_killed_workers_run_goes_on_before_its_lease_is_over(
    leased: Stack, model: ScriptedModel, restarted: bool
) -> None:
    await staff(leased, 1 if restarted else 2)
    await until_settled(leased)
    script = model.script(Reply(tokens=["half"], fault=Hang(1)), said("whole"))
    async with calling(leased.url, (await org_with_key(leased))[1]) as caller, caller.following(model=script) as stream:
        first = holder(leased, (await stream.until("run_started")).data)
        await stream.until("message_chunk")
        began = time.monotonic()
        await first.kill()
        if restarted:
            await leased.add_worker()
        resumed = await stream.until("run_resumed")
        assert time.monotonic() - began < LEASE - 0.4  # the shortest time for which it can have had its lease
        await stream.rest()
    assert resumed.data["reason"] == "its worker died"
    history = await assert_history(leased.database, resumed.data["run_id"])
    assert (history.run["status"], history.run["attempt"]) == ("succeeded", 2)


async def test_a_frozen_worker_is_not_taken_for_dead(leased: Stack, model: ScriptedModel) -> None:
    await staff(leased, 2)
    await until_settled(leased)
    script = model.script(Reply(tokens=["on "] * 150, token_delay=0.02))
    async with calling(leased.url, (await org_with_key(leased))[1]) as caller, caller.following(model=script) as stream:
        frozen = holder(leased, (await stream.until("run_started")).data)
        await stream.until("message_chunk")
        frozen.send(signal.SIGSTOP)

        async def silent() -> bool:
            return bool(
                await leased.database.fetchval(
                    "SELECT seen_at < now() - interval '3 seconds' FROM workers WHERE pid = $1", frozen.pid
                )
            )

        await eventually(silent, what="the frozen worker was not seen for long enough to be taken for dead")
        frozen.send(signal.SIGCONT)
        events = await stream.rest()
    history = await assert_history(leased.database, events[0].data["run_id"])
    assert (history.run["status"], history.run["epoch"]) == ("succeeded", 1)


async def test_a_worker_whose_connections_break_keeps_its_runs(leased: Stack, model: ScriptedModel) -> None:
    await staff(leased, 2)
    await until_settled(leased)
    script = model.script(Reply(tokens=["on "] * 150, token_delay=0.02))
    async with calling(leased.url, (await org_with_key(leased))[1]) as caller, caller.following(model=script) as stream:
        mine = holder(leased, (await stream.until("run_started")).data)
        await stream.until("message_chunk")
        await leased.database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks"
            " WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        await writes(mine, "heartbeat_failed")
        events = await stream.rest()
    history = await assert_history(leased.database, events[0].data["run_id"])
    assert (history.run["status"], history.run["epoch"]) == ("succeeded", 1)


async def test_a_cancel_does_not_wait_for_a_frozen_workers_lease(leased: Stack, model: ScriptedModel) -> None:
    await staff(leased, 2)
    script = model.script(Reply(tokens=["on "] * 500, token_delay=0.02))
    async with calling(leased.url, (await org_with_key(leased))[1]) as caller, caller.following(model=script) as stream:
        frozen = holder(leased, (await stream.until("run_started")).data)
        await stream.until("message_chunk")
        frozen.send(signal.SIGSTOP)
        began = time.monotonic()
        await caller.post(f"/v1/runs/{stream.events[0].data['run_id']}/cancel", expect=202)
        events = await stream.rest()
        assert time.monotonic() - began < 2
        frozen.send(signal.SIGCONT)
        await writes(frozen, "run_lost")
    history = await assert_history(leased.database, events[0].data["run_id"])
    assert history.run["status"] == "cancelled"
    assert history.types[-2:] == ["message_discarded", "done"]


async def test_only_workers_that_are_gone_are_buried(leased: Stack) -> None:
    await staff(leased, 1)
    await until_settled(leased)
    await leased.database.execute(
        "INSERT INTO workers (id, host, pid, slots, running, seen_at)"
        " VALUES ('gone:1', 'gone', 1, 1, 0, now() - interval '1 minute')"
    )

    async def buried() -> bool:
        return not await leased.database.fetchval("SELECT EXISTS (SELECT FROM workers WHERE id = 'gone:1')")

    await eventually(buried, what="the dead worker is off the list")
    async with leased.database.acquire() as connection:
        late = Leases(connection, worker="late:1", lease_seconds=LEASE)
        assert await late.hold_name()
        await late.beat(host="late", pid=2, slots=1, running=0, figures={})
        await connection.execute("UPDATE workers SET seen_at = now() - interval '1 minute' WHERE id = 'late:1'")
        judge = Leases(leased.database, worker="judge:1", lease_seconds=LEASE)
        assert await judge.missing(silent_seconds=5) == []
        assert await judge.bury(["late:1"], silent_seconds=5, settle_seconds=1) == ([], 0)
        await connection.execute("SELECT pg_advisory_unlock_all()")
        assert await judge.missing(silent_seconds=5) == ["late:1"]
        assert await judge.bury(["late:1"], silent_seconds=90, settle_seconds=1) == ([], 0)
        assert await judge.bury(["late:1"], silent_seconds=5, settle_seconds=1e9) == ([], 0)
        assert await judge.bury(["late:1"], silent_seconds=5, settle_seconds=1) == (["late:1"], 0)


def test_a_worker_is_dead_when_it_was_missing_for_a_while_and_nothing_disturbed_the_view() -> None:
    vigil = Vigil()
    assert vigil.looked(10.0, 10.1, ["a"]) == []
    assert vigil.looked(11.0, 11.1, ["a", "b"]) == []
    assert vigil.looked(12.2, 12.3, ["a", "b"]) == ["a"]
    assert vigil.looked(12.6, 12.7, ["b"]) == []
    assert vigil.looked(13.2, 13.3, ["a", "b"]) == ["b"]


def test_after_a_slow_look_nobody_is_judged_until_all_had_time_to_come_back() -> None:
    vigil = Vigil()
    assert vigil.looked(10.0, 10.1, ["a"]) == []
    assert vigil.looked(12.2, 15.0, ["a"]) == []  # it took almost three seconds
    assert not vigil.calm(15.1)
    assert vigil.looked(15.2, 15.3, ["a"]) == []
    assert vigil.calm(15.0 + SETTLE_SECONDS)
    assert vigil.looked(20.2, 20.3, ["a"]) == []
    assert vigil.looked(22.4, 22.5, ["a"]) == ["a"]
    vigil.disturbed(23.0)
    assert vigil.looked(24.0, 24.1, ["a"]) == []
