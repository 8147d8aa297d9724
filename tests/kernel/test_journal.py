"""The journal: group commit, merged chunks, refusals under an old epoch, batches that are sent twice."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from kernel.checkpoints import CheckpointWriteRow
from kernel.errors import LeaseLost
from kernel.postgres import Pool
from kernel.runlog import End, NewMessage, NewStep
from tests.kernel.writing import FINISHED, Writer, ask, checkpoint, commit, expire, log_of, worker
from tests.waiting import eventually


async def test_what_many_runs_have_pending_goes_into_one_commit(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    for _ in range(20):
        await ask(own_database, own_org)
    pens = [writer.pen(run) for run in await worker(own_database).claim(20)]
    for pen in pens:
        pen.say("run_started", {"attempt": 1})
        pen.say("state_entered", {"state": "THINK"})
    await asyncio.gather(*(pen.committed() for pen in pens))
    assert writer.journal.figures.events == 40
    assert writer.journal.figures.commits == 1
    for pen in pens:
        events = await log_of(own_database, pen.owner.session_id)
        assert [(seq, type) for seq, type, _ in events] == [(1, "run_queued"), (2, "run_started"), (3, "state_entered")]


async def test_while_a_batch_is_written_the_next_one_gathers(own_database: Pool, own_org: str, writer: Writer) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    pen = writer.pen(claimed)
    async with own_database.acquire() as blocker, blocker.transaction():
        await blocker.execute("SELECT FROM sessions WHERE id = $1 FOR UPDATE", run.session_id)
        pen.say("run_started", {})
        first = asyncio.create_task(pen.committed())
        while await own_database.fetchval("SELECT NOT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
            pass
        for _ in range(50):
            pen.say("tool_start", {})
    await first
    await pen.committed()
    assert writer.journal.figures.commits == 2
    assert len(await log_of(own_database, run.session_id)) == 52


async def test_chunks_of_a_message_that_wait_together_are_one_event(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    pen = writer.pen(claimed)
    for text in ("one ", "two ", "three"):
        pen.chunk("msg_a", text)
    pen.chunk("msg_b", "other", path="sub:1")
    pen.chunk("msg_a", " four")
    await pen.committed()
    chunks = [
        orjson.loads(data) for _, type, data in await log_of(own_database, run.session_id) if type != "run_queued"
    ]
    assert chunks == [
        {"message_id": "msg_a", "text": "one two three"},
        {"message_id": "msg_b", "text": "other", "path": "sub:1"},
        {"message_id": "msg_a", "text": " four"},
    ]


async def test_a_first_chunk_takes_what_waited_for_company_along(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    pen = writer.pen(claimed)
    pen.say("run_started", {}, urgent=False)
    pen.say("state_entered", {}, urgent=False)
    pen.chunk("msg_a", "first")
    await pen.committed()
    assert writer.journal.figures.commits == 1
    types = [type for _, type, _ in await log_of(own_database, run.session_id)]
    assert types == ["run_queued", "run_started", "state_entered", "message_chunk"]


async def test_an_event_that_is_not_urgent_is_written_soon_without_company(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    writer.pen(claimed).say("run_started", {}, urgent=False)

    async def written() -> bool:
        return writer.journal.figures.commits == 1

    await eventually(written)
    assert writer.journal.figures.events == 1


async def test_a_refused_epoch_writes_nothing_and_the_others_of_its_batch_are_written(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    runs = [await ask(own_database, own_org) for _ in range(3)]
    claimed = {run.id: run for run in await worker(own_database, "old:1").claim(3)}
    pens = [writer.pen(claimed[run.id]) for run in runs]
    stale = pens[1]
    await expire(own_database, runs[1].id)
    [again] = await worker(own_database, "new:2").claim(1)
    assert (again.id, again.epoch, again.attempt) == (runs[1].id, 2, 2)

    for pen in pens:
        pen.record_message(NewMessage(f"msg_{pen.owner.run_id[4:]}", "", 1, "assistant", "hi"))
        pen.record_step(NewStep("0-think", "", "THINK", 0.1))
        pen.stage_checkpoint(checkpoint(pen.owner.run_id))
        pen.stage_writes([CheckpointWriteRow(pen.owner.run_id, "", "c1", "t1", 0, "ch", "msgpack", b"v", "")], "THINK")
        pen.say("run_started", {})
    outcomes = await asyncio.gather(*(pen.committed() for pen in pens), return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [type(None), LeaseLost, type(None)]
    assert writer.journal.figures.commits == 1
    assert writer.lost == 1
    assert stale.lost
    for table, wanted in (("steps", 1), ("checkpoints", 1), ("checkpoint_writes", 1)):
        key = "thread_id" if table != "steps" else "run_id"
        for run in runs:
            count = await own_database.fetchval(f"SELECT count(*) FROM {table} WHERE {key} = $1", run.id)
            assert count == (0 if run is runs[1] else wanted), table
    for run in runs:
        messages = await own_database.fetchval("SELECT count(*) FROM messages WHERE run_id = $1", run.id)
        assert (messages, len(await log_of(own_database, run.session_id))) == ((1, 1) if run is runs[1] else (2, 2))


async def test_a_pen_whose_epoch_is_over_stays_refused(own_database: Pool, own_org: str, writer: Writer) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    pen = writer.pen(claimed)
    await expire(own_database, run.id)
    await worker(own_database, "other:2").claim(1)
    pen.say("run_started", {})
    with pytest.raises(LeaseLost):
        await pen.committed()
    pen.say("tool_start", {})
    pen.end(FINISHED)
    with pytest.raises(LeaseLost):
        await pen.committed()
    assert len(await log_of(own_database, run.session_id)) == 1
    assert await own_database.fetchval("SELECT status FROM runs WHERE id = $1", run.id) == "running"


async def test_a_batch_that_is_sent_twice_is_taken_once(own_database: Pool, own_org: str) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    events = [("run_started", "{}"), ("state_entered", "{}")]
    first = await commit(own_database, run.id, run.session_id, claimed.epoch, 1, events)
    again = await commit(own_database, run.id, run.session_id, claimed.epoch, 1, events)
    assert (first["outcome"], first["first_seq"]) == ("committed", 2)
    assert again["outcome"] == "repeated"
    assert len(await log_of(own_database, run.session_id)) == 3
    later = await commit(own_database, run.id, run.session_id, claimed.epoch, 2, events)
    assert (later["outcome"], later["first_seq"]) == ("committed", 4)


async def test_a_batch_out_of_its_order_is_refused(own_database: Pool, own_org: str) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    skipped = await commit(own_database, run.id, run.session_id, claimed.epoch, 2, [("run_started", "{}")])
    assert skipped["outcome"] == "refused"
    assert len(await log_of(own_database, run.session_id)) == 1


async def test_the_last_batch_of_a_run_that_is_sent_twice_is_taken_once_although_the_head_moved_on(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    run = await ask(own_database, own_org)
    after = await ask(own_database, own_org, session_id=run.session_id)
    [claimed] = await worker(own_database).claim(5)
    pen = writer.pen(claimed)
    pen.end(FINISHED)
    await pen.committed()
    assert writer.next_runs == 1
    again = await commit(own_database, run.id, run.session_id, claimed.epoch, 1, [("done", "{}")])
    assert again["outcome"] == "repeated"
    types = [type for _, type, _ in await log_of(own_database, run.session_id)]
    assert types == ["run_queued", "run_queued", "done"]
    [head] = await worker(own_database).claim(5)
    assert head.id == after.id


async def test_a_commit_whose_connection_broke_is_sent_again_and_written_once(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    pen = writer.pen(claimed)
    async with own_database.acquire() as blocker, blocker.transaction():
        await blocker.execute("SELECT FROM sessions WHERE id = $1 FOR UPDATE", run.session_id)
        pen.say("run_started", {})
        written = asyncio.create_task(pen.committed())
        ended = 0
        while not ended:
            ended = await own_database.fetchval(
                """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                   WHERE datname = current_database() AND query LIKE '%journal_commit%' AND wait_event_type = 'Lock'"""
            )
    await written
    assert [type for _, type, _ in await log_of(own_database, run.session_id)] == ["run_queued", "run_started"]


async def until_ended(database: Pool, run_id: str) -> None:
    async def ended() -> bool:
        return bool(await database.fetchval("SELECT finished_at FROM runs WHERE id = $1", run_id))

    await eventually(ended, what="the run has ended")


async def test_data_that_the_database_refuses_ends_its_run_and_harms_no_other(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    runs = [await ask(own_database, own_org) for _ in range(3)]
    claimed = {run.id: run for run in await worker(own_database).claim(3)}
    pens = [writer.pen(claimed[run.id]) for run in runs]
    pens[0].record_step(NewStep("0-x", "", "NO_SUCH_STATE", 0.1))
    pens[0].stage_checkpoint(checkpoint(runs[0].id))
    for pen in pens:
        pen.say("run_started", {})
    outcomes = await asyncio.gather(*(pen.committed() for pen in pens), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LeaseLost, type(None), type(None)]
    await until_ended(own_database, runs[0].id)
    assert [len(await log_of(own_database, run.session_id)) for run in runs] == [3, 2, 2]
    log = await log_of(own_database, runs[0].session_id)
    assert [type for _, type, _ in log] == ["run_queued", "error", "done"]
    assert orjson.loads(log[1][2])["code"] == "unstorable"
    assert await own_database.fetchval("SELECT status FROM runs WHERE id = $1", runs[0].id) == "failed"


async def test_text_that_was_begun_is_discarded_when_its_run_produces_what_the_database_refuses(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    pen = writer.pen(claimed)
    pen.chunk(f"msg_{run.id[4:]}", "half")
    await pen.committed()
    pen.record_step(NewStep("0-x", "", "NO_SUCH_STATE", 0.1))
    pen.stage_checkpoint(checkpoint(run.id))
    with pytest.raises(LeaseLost):
        await pen.committed()
    await until_ended(own_database, run.id)
    log = await log_of(own_database, run.session_id)
    assert [type for _, type, _ in log] == ["run_queued", "message_chunk", "message_discarded", "error", "done"]


async def test_what_a_step_concludes_is_written_with_its_checkpoint_and_not_before(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    pen = writer.pen(claimed)
    pen.conclude("", "usage", {"input_tokens": 1, "output_tokens": 2, "cost": 0.0})
    pen.record_message(NewMessage(f"msg_{run.id[4:]}", "", 1, "assistant", "hi"))
    pen.record_step(NewStep("0-think", "", "THINK", 0.1))
    pen.say("tool_start", {})
    await pen.committed()
    assert [type for _, type, _ in await log_of(own_database, run.session_id)] == ["run_queued", "tool_start"]
    assert await own_database.fetchval("SELECT count(*) FROM messages WHERE position = 1") == 0

    pen.stage_checkpoint(checkpoint(run.id))
    await pen.committed()
    types = [type for _, type, _ in await log_of(own_database, run.session_id)]
    assert types == ["run_queued", "tool_start", "usage"]
    assert await own_database.fetchval("SELECT count(*) FROM messages WHERE position = 1") == 1
    assert await own_database.fetchval("SELECT count(*) FROM steps") == 1
    assert await own_database.fetchval("SELECT count(*) FROM checkpoints") == 1


async def test_of_the_checkpoints_of_a_thread_that_wait_together_only_the_newest_is_written(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    pen = writer.pen(claimed)
    for number in (1, 2):
        for thread in (run.id, f"{run.id}/helper:2"):
            pen.stage_checkpoint(checkpoint(thread, number))
    await pen.committed()
    rows = await own_database.fetch("SELECT thread_id, checkpoint_id FROM checkpoints ORDER BY thread_id")
    assert [tuple(row) for row in rows] == [(run.id, "c2"), (f"{run.id}/helper:2", "c2")]


async def test_text_that_postgres_cannot_keep_is_written_readably(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    pen = writer.pen(claimed)
    pen.chunk("msg_a", "nul \x00 here")
    pen.say("tool_result", {"result": "half \ud800 pair"})
    await pen.committed()
    data = [orjson.loads(data) for _, _, data in await log_of(own_database, run.session_id)]
    assert data[1]["text"] == "nul \ufffd here"
    assert "half" in data[2]["result"]


async def test_the_end_discards_open_messages_and_drops_what_would_never_be_read(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    pen = writer.pen(claimed)
    pen.chunk("msg_a", "begun")
    pen.stage_checkpoint(checkpoint(run.id))
    pen.end(FINISHED)
    pen.say("tool_start", {})
    await pen.committed()
    types = [type for _, type, _ in await log_of(own_database, run.session_id)]
    assert types == ["run_queued", "message_chunk", "message_discarded", "done"]
    row = await own_database.fetchrow("SELECT status, finish_reason, head FROM runs WHERE id = $1", run.id)
    assert row is not None
    assert tuple(row) == ("succeeded", "stop", False)
    assert await own_database.fetchval("SELECT count(*) FROM checkpoints") == 0


async def test_of_two_ends_the_first_counts(own_database: Pool, own_org: str, writer: Writer) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    pen = writer.pen(claimed)
    pen.end(FINISHED)
    pen.end(End("expired", "deadline", FINISHED.usage, {"code": "deadline"}))
    await pen.committed()
    assert await own_database.fetchval("SELECT status FROM runs WHERE id = $1", run.id) == "succeeded"
    assert [type for _, type, _ in await log_of(own_database, run.session_id)] == ["run_queued", "done"]


async def test_a_late_batch_is_not_taken_for_one_of_an_earlier_owner_who_left_the_run_at_rest(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    run = await ask(own_database, own_org)
    first = worker(own_database, "first:1")
    [claimed] = await first.claim(1)
    pen = writer.pen(claimed)
    pen.say("run_started", {})
    await pen.committed()
    pen.rest("paused")
    await pen.committed()  # its batch 2
    second = worker(own_database, "second:2")
    [claimed] = await second.claim(1)
    await second.hand_back({run.id: claimed.epoch}, "drained")
    late = await commit(own_database, run.id, run.session_id, claimed.epoch, 2, [("tool_start", "{}")])
    assert late["outcome"] == "refused"
