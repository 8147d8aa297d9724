"""Whatever races in a session, exactly one of its unfinished runs is the head, and its log stays whole."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable

import pytest

from kernel.errors import Conflict
from kernel.postgres import Pool
from kernel.runlog import End
from kernel.runs import IfBusy, InputMessage, NewRun, cancel, submit
from tests.kernel.writing import FINISHED, Writer, ask, log_of, worker

CANCELLED = End("cancelled", "cancelled", {"input_tokens": 0, "output_tokens": 0, "cost": 0.0}, None)


async def check_heads(database: Pool) -> None:
    """The head invariants of every session."""
    broken = await database.fetch(
        """SELECT s.id, s.head_run_id, r.heads, r.waiting FROM sessions s LEFT JOIN LATERAL (
               SELECT array_agg(id) FILTER (WHERE head) AS heads,
                      array_agg(id ORDER BY turn) FILTER (WHERE finished_at IS NULL) AS waiting
               FROM runs WHERE session_id = s.id) r ON true
           WHERE s.head_run_id IS DISTINCT FROM r.waiting[1]
              OR r.heads IS DISTINCT FROM CASE WHEN s.head_run_id IS NOT NULL THEN ARRAY[s.head_run_id] END"""
    )
    assert broken == []


async def finish_all(database: Pool, writer: Writer) -> None:
    """A worker that ends everything it can claim, until nothing is left."""
    idle = 0
    mine = worker(database)
    while idle < 3:
        claimed = await mine.claim(5)
        idle = 0 if claimed else idle + 1
        for run in claimed:
            pen = writer.pen(run)
            pen.say("run_started", {"attempt": run.attempt})
            asked = await mine.requests([run.id])
            pen.end(CANCELLED if asked else FINISHED)
            await pen.committed()


@pytest.mark.parametrize("seed", range(4))
async def test_submits_cancels_and_ends_that_race_leave_one_head(
    own_database: Pool, own_org: str, writer: Writer, seed: int
) -> None:
    chance = random.Random(seed)
    sessions = [(await ask(own_database, own_org)).session_id for _ in range(3)]
    known: list[str] = []

    async def send(if_busy: IfBusy) -> None:
        try:
            known.append((await ask(own_database, own_org, session_id=chance.choice(sessions), if_busy=if_busy)).id)
        except Conflict:
            assert if_busy == "reject"

    async def withdraw() -> None:
        if known:
            await cancel(own_database, own_org, chance.choice(known))

    for _ in range(12):
        acts: list[Awaitable[None]] = [send(chance.choice(["enqueue", "reject", "interrupt"])) for _ in range(5)]
        acts += [withdraw() for _ in range(2)]
        acts += [finish_all(own_database, writer) for _ in range(2)]
        chance.shuffle(acts)
        await asyncio.gather(*acts)
        await check_heads(own_database)

    await finish_all(own_database, writer)
    await check_heads(own_database)
    assert await own_database.fetchval("SELECT count(*) FROM runs WHERE finished_at IS NULL") == 0
    for session_id in sessions:
        log = await log_of(own_database, session_id)
        assert [seq for seq, _, _ in log] == list(range(1, len(log) + 1))
    per_run = await own_database.fetch("SELECT count(*) FROM events WHERE type = 'done' GROUP BY run_id")
    assert {row["count"] for row in per_run} == {1}
    assert len(per_run) == await own_database.fetchval("SELECT count(*) FROM runs")


async def test_a_run_that_comes_while_the_last_one_ends_is_never_stranded(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    session_id = (await ask(own_database, own_org)).session_id
    for _ in range(40):
        [claimed] = await worker(own_database).claim(1)
        pen = writer.pen(claimed)
        pen.end(FINISHED)
        await asyncio.gather(pen.committed(), ask(own_database, own_org, session_id=session_id))
        await check_heads(own_database)


async def test_an_interrupt_ends_what_waits_and_asks_what_runs(own_database: Pool, own_org: str) -> None:
    first = await ask(own_database, own_org)
    second = await ask(own_database, own_org, session_id=first.session_id)
    await worker(own_database).claim(1)
    third = await ask(own_database, own_org, session_id=first.session_id, if_busy="interrupt")
    rows = await own_database.fetch("SELECT id, status, cancel_requested_at IS NOT NULL AS asked FROM runs")
    assert {row["id"]: (row["status"], row["asked"]) for row in rows} == {
        first.id: ("running", True),
        second.id: ("cancelled", False),
        third.id: ("queued", False),
    }
    types = [type for _, type, _ in await log_of(own_database, first.session_id)]
    assert types == ["run_queued", "run_queued", "done", "run_queued"]
    await check_heads(own_database)


async def test_a_cancel_that_races_with_the_end_leaves_one_done(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    for _ in range(25):
        run = await ask(own_database, own_org)
        [claimed] = await worker(own_database).claim(1)
        pen = writer.pen(claimed)
        pen.end(FINISHED)
        outcome, _ = await asyncio.gather(cancel(own_database, own_org, run.id), pen.committed())
        assert outcome.outcome in ("requested", "finished")
        types = [type for _, type, _ in await log_of(own_database, run.session_id)]
        assert types == ["run_queued", "done"]


async def test_new_sessions_and_runs_of_many_callers_at_once_are_all_taken_in(own_database: Pool, own_org: str) -> None:
    new = NewRun([InputMessage("user", "hello")], workflow="echo")
    taken = await asyncio.gather(
        *(submit(own_database, org_id=own_org, user_id=None, session_id=None, new=new) for _ in range(100))
    )
    assert len({one.run.id for one in taken}) == 100
    assert all(one.head and one.complete and one.seq == 1 for one in taken)
    await check_heads(own_database)
