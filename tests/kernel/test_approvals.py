"""Approvals in Postgres: asked for by a run's journal, decided beside it, and no order of the two loses a run."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import asyncpg
import orjson
import pytest

from kernel.approvals import Decided, NewApproval, decide, get_approval, resolve_due
from kernel.errors import CallerError, Conflict, LeaseLost
from kernel.leases import ClaimedRun
from kernel.postgres import Pool
from kernel.runlog import RunLog
from kernel.runs import Run, cancel, pause, resume
from kernel.tenants import Principal
from tests.kernel.writing import FINISHED, Writer, ask, expire, log_of, worker

PAYMENT = NewApproval("1-act", "call_1", "", "tool", "pay", {"cents": 7}, schema={"type": "object"})


def someone(org_id: str, user: str = "mia", **more: Any) -> Principal:
    return Principal(org_id, user, frozenset({"write"}), **more)


async def claimed(database: Pool, writer: Writer, run: Run) -> tuple[ClaimedRun, RunLog]:
    [claim] = await worker(database).claim(1)
    assert claim.id == run.id
    return claim, writer.pen(claim)


async def asking(database: Pool, writer: Writer, run: Run, *approvals: NewApproval) -> RunLog:
    """A pen that has asked for these."""
    _, pen = await claimed(database, writer, run)
    pen.say("run_started", {})
    for approval in approvals:
        pen.ask(approval)
    await pen.committed()
    return pen


async def state(database: Pool, run: Run) -> tuple[str, str | None]:
    row = await database.fetchrow("SELECT status, left_because FROM runs WHERE id = $1", run.id)
    assert row is not None
    return row["status"], row["left_because"]


async def test_a_row_and_its_event_say_the_same_and_postgres_says_when(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    run = await ask(own_database, own_org)
    other = replace(PAYMENT, call_id="call_2", id="apr_" + "2" * 32, path="helper:1", role="manager", expires_seconds=5)
    await asking(own_database, writer, run, PAYMENT, other)
    events = [orjson.loads(data) for _, type, data in await log_of(own_database, run.session_id) if "approval" in type]
    for event, made in zip(events, (PAYMENT, other), strict=True):
        row = await get_approval(own_database, own_org, made.id)
        assert event["expires_at"] == row.expires_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        assert event["approval_id"] == row.id
        assert event["arguments"] == row.arguments == {"cents": 7}
        assert event.get("path", "") == row.path
        assert (row.expires_at - row.created_at).total_seconds() == made.expires_seconds


async def test_a_decision_before_the_rest_queues_the_run_and_one_after_it_does_too(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    for decided_first in (True, False):
        run = await ask(own_database, own_org)
        approval = replace(PAYMENT, id=f"apr_{int(decided_first)}" + "0" * 31)
        pen = await asking(own_database, writer, run, approval)
        woken = writer.next_runs
        if decided_first:
            assert not (await decide(own_database, someone(own_org), approval.id, "approve")).claimable
        pen.rest("approval")
        await pen.committed()
        if not decided_first:
            assert await state(own_database, run) == ("waiting", "approval")
            assert (await decide(own_database, someone(own_org), approval.id, "approve")).claimable
        assert await state(own_database, run) == ("queued", "approval")
        assert writer.next_runs - woken == decided_first
        [again] = await worker(own_database).claim(1)
        assert (again.id, again.left_by, again.attempt, again.epoch) == (run.id, "approval", 1, 2)
        taken, _ = await worker(own_database).take_over(again)
        assert [made.status for made in taken.approvals.values()] == ["approved"]
        await cancel(own_database, own_org, run.id)


async def test_however_a_rest_and_a_decision_meet_the_run_can_be_claimed(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    for number in range(25):
        run = await ask(own_database, own_org)
        approval = replace(PAYMENT, id=f"apr_{number:032x}")
        pen = await asking(own_database, writer, run, approval)
        pen.rest("approval")
        _, decided = await asyncio.gather(
            pen.committed(), decide(own_database, someone(own_org), approval.id, "approve")
        )
        assert decided.outcome == "decided"
        [again] = await worker(own_database).claim(1)
        assert again.id == run.id
        await cancel(own_database, own_org, run.id)


async def test_of_many_who_decide_at_once_one_does(own_database: Pool, own_org: str, writer: Writer) -> None:
    run = await ask(own_database, own_org)
    await asking(own_database, writer, run, PAYMENT)

    async def decided(number: int) -> Decided | CallerError:
        verdict = "deny" if number % 2 else "approve"
        try:
            return await decide(own_database, someone(own_org, f"user {number}"), PAYMENT.id, verdict)  # type: ignore[arg-type]
        except CallerError as error:
            return error

    outcomes = await asyncio.gather(*(decided(number) for number in range(8)))
    assert [type(outcome) for outcome in outcomes].count(Conflict) == 7
    assert [type for _, type, _ in await log_of(own_database, run.session_id)].count("approval_resolved") == 1


async def test_an_owner_whose_epoch_is_over_asks_for_nothing(own_database: Pool, own_org: str, writer: Writer) -> None:
    run = await ask(own_database, own_org)
    _, late = await claimed(own_database, writer, run)
    await expire(own_database, run.id)
    await worker(own_database, "host:2").claim(1)
    late.ask(PAYMENT)
    with pytest.raises(LeaseLost):
        await late.committed()
    assert await own_database.fetchval("SELECT count(*) FROM approvals") == 0


async def test_a_pause_and_a_cancel_count_while_a_run_comes_to_rest(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    run = await ask(own_database, own_org)
    pen = await asking(own_database, writer, run, PAYMENT)
    await pause(own_database, own_org, run.id)
    pen.rest("approval")
    await pen.committed()
    assert await state(own_database, run) == ("waiting", "approval")
    assert await resume(own_database, own_org, run.id) == "undecided"
    assert await pause(own_database, own_org, run.id) == "waiting"
    assert not (await decide(own_database, someone(own_org), PAYMENT.id, "deny")).claimable
    assert await state(own_database, run) == ("waiting", "paused")
    assert await resume(own_database, own_org, run.id) == "resumed"
    _, pen = await claimed(own_database, writer, run)
    pen.ask(replace(PAYMENT, call_id="call_2", id="apr_" + "2" * 32))
    await cancel(own_database, own_org, run.id)
    pen.rest("approval")
    await pen.committed()
    [ended] = await worker(own_database).end_overdue(patience=60)
    assert ended.status == "cancelled"
    assert (await get_approval(own_database, own_org, "apr_" + "2" * 32)).status == "cancelled"


async def test_a_running_run_whose_approval_expires_goes_on_at_once(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    run = await ask(own_database, own_org)
    brief = replace(PAYMENT, expires_seconds=0.0, on_expiry="fail")
    pen = await asking(own_database, writer, run, brief)
    [due] = await resolve_due(own_database)
    assert (due.outcome, due.claimable) == ("expired", False)
    assert await resolve_due(own_database) == []
    pen.rest("approval")
    await pen.committed()
    assert await state(own_database, run) == ("queued", "approval")  # its next owner ends it


async def test_what_is_due_is_left_to_the_next_look_while_its_session_is_busy(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    run = await ask(own_database, own_org)
    await asking(own_database, writer, run, replace(PAYMENT, expires_seconds=0.0))
    async with own_database.acquire() as busy, busy.transaction():
        await busy.execute("SELECT FROM sessions WHERE id = $1 FOR UPDATE", run.session_id)
        assert await resolve_due(own_database) == []
        with pytest.raises(asyncpg.QueryCanceledError):
            async with own_database.acquire() as late, late.transaction():
                await late.execute("SET LOCAL statement_timeout = 50")
                await decide(late, someone(own_org), PAYMENT.id, "approve")
    with pytest.raises(Conflict, match="expired at"):
        await decide(own_database, someone(own_org), PAYMENT.id, "approve")
    assert [due.outcome for due in await resolve_due(own_database)] == ["expired"]


async def test_the_end_of_a_run_leaves_nothing_open(own_database: Pool, own_org: str, writer: Writer) -> None:
    run = await ask(own_database, own_org)
    pen = await asking(own_database, writer, run, PAYMENT)
    pen.end(FINISHED)
    await pen.committed()
    assert (await get_approval(own_database, own_org, PAYMENT.id)).status == "cancelled"
    with pytest.raises(Conflict, match="because its run ended"):
        await decide(own_database, someone(own_org), PAYMENT.id, "approve")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE approvals SET status = 'approved'",  # without a time
        "UPDATE approvals SET kind = 'wish'",
        "UPDATE approvals SET approvers = 0",
        "UPDATE approvals SET kind = 'question', approvers = 2",
        "UPDATE approvals SET answer = '1'",
        "UPDATE approvals SET status = 'answered', decided_at = now()",
        "UPDATE approvals SET escalate_at = now()",
    ],
)
async def test_an_approval_that_cannot_be_is_refused(
    own_database: Pool, own_org: str, writer: Writer, change: str
) -> None:
    await asking(own_database, writer, await ask(own_database, own_org), PAYMENT)
    with pytest.raises(asyncpg.CheckViolationError):
        await own_database.execute(change)
