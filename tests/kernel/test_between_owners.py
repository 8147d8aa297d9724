"""Runs that have lost one owner and have no other yet: what was asked of them is not forgotten, nobody's locks cross,
and taking them over does not cost more than reading their logs."""

from __future__ import annotations

import asyncio
import time

import orjson

from bench.queueing import queue_many
from kernel.journal import SQL
from kernel.postgres import Pool
from kernel.runs import cancel, pause
from kernel.tenants import ensure_org
from tests.history import assert_history
from tests.kernel.writing import ask, expire, log_of, worker
from tests.waiting import eventually


async def test_a_run_that_is_handed_back_before_its_owner_hears_of_a_cancel_is_ended_at_the_next_look(
    own_database: Pool, own_org: str
) -> None:
    run = await ask(own_database, own_org)
    leaving = worker(own_database)
    await leaving.claim(1)
    assert (await cancel(own_database, own_org, run.id)).outcome == "requested"
    await leaving.hand_back({run.id: 1}, "drained")
    assert [(one.run_id, one.status) for one in await leaving.end_overdue(patience=60)] == [(run.id, "cancelled")]
    await assert_history(own_database, run.id)


async def test_a_pause_does_not_keep_a_run_that_is_to_be_cancelled(own_database: Pool, own_org: str) -> None:
    run = await ask(own_database, own_org)
    cut_off = worker(own_database)
    await cut_off.claim(1)
    await pause(own_database, own_org, run.id)
    assert (await cancel(own_database, own_org, run.id)).outcome == "requested"
    await cut_off.hand_back({run.id: 1}, "store_away")
    assert [one.run_id for one in await cut_off.end_overdue(patience=60)] == [run.id]
    await assert_history(own_database, run.id)


async def test_a_commit_that_ends_one_run_and_rests_another_never_waits_in_a_circle_with_a_renewal(
    own_database: Pool, own_org: str
) -> None:
    rested, ended = sorted([await ask(own_database, own_org) for _ in range(2)], key=lambda run: run.session_id)
    await worker(own_database).claim(2)
    await pause(own_database, own_org, rested.id)
    both = rested, ended
    slices = ([run.id for run in both], [run.session_id for run in both], [1, 1], [1, 1], [1, 1])
    events = ([1, 2], [1, 1], ["run_waiting", "done"], ["{}", "{}"])
    rests = [{"slice": 1, "because": "paused"}]
    ends = [{"slice": 2, "status": "succeeded", "finish_reason": "stop", "usage": {}, "error": None}]
    texts = orjson.dumps(rests).decode(), orjson.dumps(ends).decode()
    async with own_database.acquire() as renewing, own_database.acquire() as writing:
        writer = await writing.fetchval("SELECT pg_backend_pid()")
        async with renewing.transaction():  # a renewal locks one run after the other, by session
            await renewing.execute("SELECT FROM runs WHERE id = $1 FOR NO KEY UPDATE", rested.id)
            commit = asyncio.create_task(
                writing.fetch(SQL.commit, *slices, *events, *([None] * 4), *texts, *([[]] * 18))
            )
            await eventually(
                lambda: own_database.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", writer),
                what="the commit waits for the renewal",
            )
            await renewing.execute("SELECT FROM runs WHERE id = $1 FOR NO KEY UPDATE", ended.id)
        assert [row["outcome"] for row in await commit] == ["committed", "committed"]


async def test_a_long_log_is_taken_over_and_ended_in_a_moment(own_database: Pool, own_org: str) -> None:
    run = await ask(own_database, own_org)
    mine = worker(own_database)
    await mine.claim(1)
    await own_database.execute(
        """INSERT INTO events (session_id, seq, org_id, run_id, type, data, at)
           SELECT $1, 1 + n, $2, $3, CASE WHEN n % 100 = 0 AND n < 40000 THEN 'message' ELSE 'message_chunk' END,
                  json_build_object('message_id', format('msg_%s', (n - 1) / 100), 'text', 'hello'), now()
           FROM generate_series(1, 40000) AS n""",
        *(run.session_id, own_org, run.id),
    )
    await own_database.execute("UPDATE sessions SET last_seq = 40001, head_batch = 1 WHERE id = $1", run.session_id)
    await expire(own_database, run.id)
    [again] = await mine.claim(1)
    begun = time.monotonic()
    assert (await mine.take_over(again))[1] == {"msg_399": ""}
    await expire(own_database, run.id)
    assert (await cancel(own_database, own_org, run.id)).outcome == "cancelled"
    assert time.monotonic() - begun < 3.0  # 0.2 s on an idle machine; minutes where each chunk is held against all
    assert [type for _, type, _ in await log_of(own_database, run.session_id)][-2:] == ["message_discarded", "done"]


async def test_runs_that_were_handed_back_do_not_wait_behind_those_of_an_org_that_is_held(
    own_database: Pool, own_org: str
) -> None:
    await queue_many(own_database, own_org, 300)
    leaving = worker(own_database)
    held = await leaving.claim(300)
    other = await ask(own_database, await ensure_org(own_database, "other"))
    await leaving.claim(1)
    await leaving.hand_back({run.id: 1 for run in held} | {other.id: 1}, "drained")
    await own_database.execute("UPDATE orgs SET max_running = 0 WHERE id = $1", own_org)
    assert [run.id for run in await worker(own_database, "new:2").claim(5)] == [other.id]


async def test_a_claim_that_was_held_up_on_its_way_gets_nothing(own_database: Pool, own_org: str) -> None:
    dead, queued = await ask(own_database, own_org), await ask(own_database, own_org)
    await worker(own_database, "dead:1").claim(1)
    await expire(own_database, dead.id)
    cut_off = worker(own_database, "cut off:2")
    await cut_off.beat(host="cut off", pid=2, slots=5, running=0, figures={})
    await own_database.execute("UPDATE workers SET seen_at = clock_timestamp() - interval '7 s'")
    assert await cut_off.claim(5) == []
    await cut_off.beat(host="cut off", pid=2, slots=5, running=0, figures={})
    assert [run.id for run in await cut_off.claim(5)] == [dead.id, queued.id]
