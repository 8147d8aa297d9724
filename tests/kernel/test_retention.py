"""Retention: what is old goes, in small batches and without locks; what is young, unfinished or needed stays."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import uuid4

import asyncpg
import pytest

from kernel.checkpoints import CheckpointRow
from kernel.ids import new_id
from kernel.postgres import Pool
from kernel.replay import end_seq, read_at_floor, read_frames, read_page
from kernel.runlog import NewMessage, NewStep
from kernel.runs import Run, answer_of, cancel, get_run
from kernel.sessions import create_session, get_session
from kernel.tenants import ensure_org
from tests.history import assert_history
from tests.kernel.writing import FINISHED, Writer, ask, worker
from worker.retention import LOCK, Policies, Removed, Retention

DAY = 86_400.0
USUAL = Policies(chunks=900.0, events=30 * DAY, sessions=None)
EVERYTHING = Policies(chunks=900.0, events=30 * DAY, sessions=60 * DAY)


async def finished(
    database: Pool,
    writer: Writer,
    org: str,
    *,
    session_id: str | None = None,
    pieces: int = 4,
    seconds_ago: float = 0.0,
    asked: str = "hello",
) -> Run:
    """A run that answered in so many chunks, each an event of its own, after it took back one answer."""
    run = await ask(database, org, session_id=session_id, text=asked)
    [claimed] = await worker(database).claim(1)
    assert claimed.id == run.id
    pen = writer.pen(claimed)
    pen.say("run_started", {"attempt": 1})
    pen.say("state_entered", {"state": "THINK", "step_id": "s1", "path": ""})
    void, answer = new_id("msg"), new_id("msg")
    pen.chunk(void, "never mind")
    pen.discard(void)
    words = [f"word{number} " for number in range(pieces)]
    for word in words:
        pen.chunk(answer, word)
        pen.chunk(f"{answer}-between", "x")  # so that they don't merge
    pen.discard(f"{answer}-between")
    for path in ("", "/helper:2"):
        pen.stage_checkpoint(CheckpointRow(f"{run.id}{path}", "", "c1", None, "msgpack", b"state", b"metadata"))
    await database.execute(
        """INSERT INTO checkpoint_writes
           SELECT $1, thread || $2, '', 'c1', 'task', n, 'channel', 'msgpack', 'value'
           FROM unnest($3::text[]) AS thread, generate_series(1, 3) AS n""",
        *(org, "", [run.id, f"{run.id}/helper:2"]),
    )
    await pen.committed()
    pen.record_message(NewMessage(answer, "", 1, "assistant", "".join(words)))
    pen.record_step(NewStep("s1", "", "THINK", 0.1))
    pen.record_step(NewStep("s2", "", "RESPOND", 0.1))
    pen.say("state_entered", {"state": "RESPOND", "step_id": "s2", "path": ""})
    pen.say("message", {"message_id": answer, "role": "assistant", "content": "".join(words)})
    pen.end(FINISHED)
    await pen.committed()
    if seconds_ago:
        await age(database, run, seconds_ago)
    return run


async def age(database: Pool, run: Run, seconds: float) -> None:
    """Moves the run, and so its end, into the past."""
    await database.execute(
        """UPDATE runs SET finished_at = finished_at - make_interval(secs => $2),
               started_at = started_at - make_interval(secs => $2), created_at = created_at - make_interval(secs => $2)
           WHERE id = $1""",
        *(run.id, seconds),
    )


async def types(database: Pool, run: Run) -> list[str]:
    """The types of the run's events that are in Postgres."""
    rows = await database.fetch("SELECT type FROM events WHERE run_id = $1 ORDER BY seq", run.id)
    return [row["type"] for row in rows]


async def checkpoint_rows(database: Pool, run: Run) -> int:
    """How many checkpoints and pending writes the run has."""
    count: int = await database.fetchval(
        """SELECT (SELECT count(*) FROM checkpoints WHERE starts_with(thread_id, $1))
                + (SELECT count(*) FROM checkpoint_writes WHERE starts_with(thread_id, $1))""",
        run.id,
    )
    return count


async def floor_of(database: Pool, session_id: str) -> int:
    floor: int = await database.fetchval("SELECT floor_seq FROM sessions WHERE id = $1", session_id)
    return floor


async def rows_of(database: Pool, session_id: str) -> dict[str, int]:
    """How many rows of each table belong to the session."""
    return {
        table: await database.fetchval(f"SELECT count(*) FROM {table} WHERE {column} = $1", session_id)
        for table, column in (
            ("sessions", "id"),
            ("runs", "session_id"),
            ("messages", "session_id"),
            ("events", "session_id"),
        )
    }


# -- chunks and checkpoints ----------------------------------------------------------------------------------


async def test_a_finished_run_loses_its_chunks_and_checkpoints_and_keeps_the_rest(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    run = await finished(own_database, writer, own_org, seconds_ago=901)
    before = await types(own_database, run)
    assert await checkpoint_rows(own_database, run) == 8
    removed = await Retention(own_database, USUAL).run()
    assert removed == Removed(runs=1, chunks=9, checkpoints=8)
    assert await types(own_database, run) == [type for type in before if type != "message_chunk"]
    assert await checkpoint_rows(own_database, run) == 0
    assert (await answer_of(own_database, own_org, run.id)).text == "word0 word1 word2 word3 "
    history = await assert_history(own_database, run.id)
    assert history.run["kept"] == "slim"
    assert await Retention(own_database, USUAL).run() == Removed()


async def test_what_is_young_unfinished_or_of_another_org_stays(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    other = await ensure_org(own_database, "other")
    old = await finished(own_database, writer, own_org, seconds_ago=901)
    young = await finished(own_database, writer, own_org, seconds_ago=890)
    theirs = await finished(own_database, writer, other, seconds_ago=800)
    running = await ask(own_database, own_org, session_id=old.session_id)
    [claimed] = await worker(own_database).claim(1)
    pen = writer.pen(claimed)
    pen.chunk(new_id("msg"), "thinking about it")
    pen.stage_checkpoint(CheckpointRow(running.id, "", "c1", None, "msgpack", b"state", b"metadata"))
    await pen.committed()
    await own_database.execute("UPDATE runs SET created_at = now() - interval '90 days' WHERE id = $1", running.id)
    before = {run.id: await types(own_database, run) for run in (young, theirs, running)}
    removed = await Retention(own_database, EVERYTHING).run()
    assert removed.runs == 1
    for run in (young, theirs, running):
        assert await types(own_database, run) == before[run.id]
    assert [await checkpoint_rows(own_database, run) for run in (old, young, theirs, running)] == [0, 8, 8, 1]
    pen.say("tool_start", {})
    await pen.committed()


async def test_from_every_seq_the_log_rises_to_its_end_and_tells_all_that_was_said(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    first = await finished(own_database, writer, own_org, seconds_ago=2000)
    second = await finished(own_database, writer, own_org, session_id=first.session_id)
    whole = await read_frames(own_database, own_org, first.session_id, after=0, limit=1000)
    await Retention(own_database, USUAL).run()
    slim = await read_frames(own_database, own_org, first.session_id, after=0, limit=1000)
    left_out = {entry.first for entry in whole} - {entry.first for entry in slim}
    assert all(b"event: message_chunk" in entry.data for entry in whole if entry.first in left_out)
    assert {entry.run_id for entry in whole if entry.first in left_out} == {first.id}
    assert await end_seq(own_database, own_org, first.id) == max(e.first for e in slim if e.run_id == first.id)
    last = whole[-1].last
    for after in range(last):
        found = await read_frames(own_database, own_org, first.session_id, after=after, limit=1000)
        assert found == [entry for entry in slim if entry.first > after]
        assert found[-1].final
        paged, place = [], after
        while page := await read_page(own_database, own_org, first.session_id, after=place, limit=3):
            if not page.frames:
                break
            assert page.floor == 0
            paged += page.frames
            place = page.frames[-1].last
        assert paged == found
    await assert_history(own_database, first.id)
    await assert_history(own_database, second.id)


async def test_the_next_run_of_a_session_remembers_what_was_said(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    first = await finished(own_database, writer, own_org, asked="remember me", seconds_ago=40 * DAY)
    await Retention(own_database, USUAL).run()
    await ask(own_database, own_org, session_id=first.session_id, text="who am I?")
    [claimed] = await worker(own_database).claim(1)
    assert [message["content"] for message in claimed.history] == ["remember me", "word0 word1 word2 word3 "]


async def test_nothing_goes_where_everything_is_kept_for_ever(own_database: Pool, own_org: str, writer: Writer) -> None:
    run = await finished(own_database, writer, own_org, seconds_ago=4000 * DAY)
    await own_database.execute("UPDATE sessions SET updated_at = now() - interval '4000 days'")
    assert await Retention(own_database, Policies(None, None, None)).run() == Removed()
    assert "message_chunk" in await types(own_database, run)


def test_chunks_go_with_their_events_at_the_latest() -> None:
    assert Policies(900, 60, None).slim_after == 60
    assert Policies(None, 60, None).slim_after == 60
    assert Policies(900, None, None).slim_after == 900
    assert Policies(None, None, 60).slim_after is None


# -- events --------------------------------------------------------------------------------------------------


async def test_events_go_up_to_the_first_run_that_is_younger(own_database: Pool, own_org: str, writer: Writer) -> None:
    first = await finished(own_database, writer, own_org, seconds_ago=32 * DAY)
    session = first.session_id
    second = await finished(own_database, writer, own_org, session_id=session, seconds_ago=31 * DAY)
    third = await finished(own_database, writer, own_org, session_id=session, seconds_ago=29 * DAY)
    removed = await Retention(own_database, USUAL).run()
    assert removed.events > 0
    assert await floor_of(own_database, session) == third.first_seq - 1
    assert [await types(own_database, run) for run in (first, second)] == [[], []]
    assert (await types(own_database, third))[-1] == "done"
    kept = await own_database.fetch("SELECT kept FROM runs ORDER BY turn")
    assert [row["kept"] for row in kept] == ["record", "record", "slim"]
    assert (await rows_of(own_database, session))["messages"] == 6
    assert [(await answer_of(own_database, own_org, run.id)).text for run in (first, third)] == [
        "word0 word1 word2 word3 "
    ] * 2
    assert (await own_database.fetchval("SELECT count(*) FROM steps WHERE run_id = $1", first.id)) == 2
    for run in (first, second, third):
        await assert_history(own_database, run.id)
    page = await read_page(own_database, own_org, session, after=0)
    assert page.floor == page.frames[0].first - 1 == third.first_seq - 1
    assert await end_seq(own_database, own_org, first.id) == page.floor

    past = await read_at_floor(own_database, own_org, session)
    assert [message["run_id"] for message in past.messages] == [first.id, first.id, second.id, second.id]
    assert [message["role"] for message in past.messages] == ["user", "assistant"] * 2
    assert (past.floor, past.truncated, past.active_run) == (page.floor, False, None)


async def test_a_session_whose_runs_are_all_old_has_an_empty_log_that_goes_on(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    run = await finished(own_database, writer, own_org, seconds_ago=31 * DAY)
    last = (await get_session(own_database, own_org, run.session_id)).last_seq
    await Retention(own_database, USUAL).run()
    assert await floor_of(own_database, run.session_id) == last
    assert (await read_page(own_database, own_org, run.session_id, after=0)).frames == []
    new = await ask(own_database, own_org, session_id=run.session_id)
    assert new.first_seq == last + 1
    [queued] = (await read_page(own_database, own_org, run.session_id, after=0)).frames
    assert queued.first == last + 1
    past = await read_at_floor(own_database, own_org, run.session_id)
    assert past.active_run == (new.id, "queued")


async def test_an_unfinished_run_keeps_its_events_and_all_after_them(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    old = await finished(own_database, writer, own_org, seconds_ago=80 * DAY)
    waiting = await ask(own_database, own_org, session_id=old.session_id)
    behind = await ask(own_database, own_org, session_id=old.session_id)
    await cancel(own_database, own_org, behind.id)
    await age(own_database, behind, 70 * DAY)
    retention = Retention(own_database, USUAL)
    await retention.run()
    assert await floor_of(own_database, old.session_id) == waiting.first_seq - 1
    assert await types(own_database, waiting) == ["run_queued"]
    assert await types(own_database, behind) == ["run_queued", "done"]
    # What is left of the run behind it goes together with it.
    await cancel(own_database, own_org, waiting.id)
    await age(own_database, waiting, 31 * DAY)
    await retention.run()
    assert [await types(own_database, run) for run in (waiting, behind)] == [[], []]
    assert await floor_of(own_database, old.session_id) == 5 + waiting.first_seq - 2


async def test_no_run_that_is_submitted_meanwhile_ends_up_below_the_floor(own_database: Pool, own_org: str) -> None:
    """With a policy of no time at all, floors rise to the end of the log between any two submissions."""
    sessions = [(await create_session(own_database, own_org)).id for _ in range(3)]
    done = asyncio.Event()

    async def prune() -> int:
        retention, passes = Retention(own_database, Policies(0.0, 1e-6, None)), 0
        while not done.is_set():
            await retention.run()
            passes += 1
        return passes

    async def use(session_id: str) -> None:
        for _ in range(40):
            run = await ask(own_database, own_org, session_id=session_id)
            page = await read_page(own_database, own_org, session_id, after=run.first_seq - 1)
            assert [entry.first for entry in page.frames] == [run.first_seq]
            await cancel(own_database, own_org, run.id)

    pruning = asyncio.create_task(prune())
    await asyncio.gather(*(use(session_id) for session_id in sessions))
    done.set()
    assert await pruning > 1
    await Retention(own_database, Policies(0.0, 1e-6, None)).run()
    assert await own_database.fetchval("SELECT count(*) FROM events") == 0
    assert await own_database.fetchval("SELECT bool_and(floor_seq = last_seq) FROM sessions")


async def test_a_snapshot_holds_the_newest_messages_within_its_bounds(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    first = await finished(own_database, writer, own_org, asked="x" * 250_000, seconds_ago=33 * DAY)
    session = first.session_id
    second = await finished(
        own_database, writer, own_org, session_id=session, asked="y" * 100_000, seconds_ago=32 * DAY
    )
    await Retention(own_database, USUAL).run()
    past = await read_at_floor(own_database, own_org, session)
    assert past.truncated
    assert [(message["run_id"], message["role"]) for message in past.messages] == [
        (first.id, "assistant"),
        (second.id, "user"),
        (second.id, "assistant"),
    ]
    many = [
        (session, turn, place, new_id("msg"), own_org, run.id, "user", f'"{turn} {place}"')
        for turn, run in ((1, first), (2, second))
        for place in range(10, 70)
    ]
    await own_database.executemany(
        """INSERT INTO messages (session_id, turn, position, id, org_id, run_id, role, content)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8)""",
        many,
    )
    past = await read_at_floor(own_database, own_org, session)
    assert past.truncated
    assert len(past.messages) == 100
    assert past.messages[-1]["content"] == "2 69"


# -- sessions ------------------------------------------------------------------------------------------------


async def test_old_entries_of_the_audit_log_go_a_batch_at_a_time(own_database: Pool) -> None:
    org = await ensure_org(own_database, "audited")
    write = (
        "INSERT INTO audit_log (org_id, at, run_id, session_id, agent_id, action, subject, outcome) "
        "SELECT $1, now() - make_interval(days => $2), 'run', 'ses', 'agt', 'run', 'agent', 'ok' "
        "FROM generate_series(1, $3)"
    )
    await own_database.execute(write, org, 40, 25)
    await own_database.execute(write, org, 1, 5)
    removed = await Retention(own_database, Policies(None, None, None, audit=30 * DAY), rows=10).run()
    assert removed == Removed(audit=25)
    assert await own_database.fetchval("SELECT count(*) FROM audit_log") == 5


AT_ONCE = Policies(900.0, 30 * DAY, 0.01)
"""Under this a session is idle a hundredth of a second after its birth, if its last activity is as long ago."""


async def make_idle(database: Pool, sessions: Sequence[str]) -> None:
    """Moves the last activity of these into the past and that of all others into the future; returns when their
    ids are old enough."""
    await database.execute(
        """UPDATE sessions SET updated_at = now() + CASE WHEN id = ANY ($1::text[]) THEN interval '-1 day'
                                                             ELSE interval '1 day' END""",
        sessions,
    )
    await database.execute("SELECT pg_sleep(0.02)")


async def test_idle_sessions_go_with_all_that_belongs_to_them(own_database: Pool, own_org: str, writer: Writer) -> None:
    old = [await finished(own_database, writer, own_org) for _ in range(3)]
    for _ in range(4):
        await finished(own_database, writer, own_org, session_id=old[0].session_id)
    empty = await create_session(own_database, own_org)
    active = await finished(own_database, writer, own_org)
    busy = await finished(own_database, writer, own_org)
    await ask(own_database, own_org, session_id=busy.session_id)
    await make_idle(own_database, [*(run.session_id for run in old), empty.id, busy.session_id])
    removed = await Retention(own_database, AT_ONCE).run()
    assert removed.sessions == 4
    left = {row["id"] for row in await own_database.fetch("SELECT id FROM sessions")}
    assert left == {active.session_id, busy.session_id}
    for table in ("runs", "messages", "events", "steps", "checkpoints", "checkpoint_writes"):
        key = "substr(thread_id, 1, 36)" if table.startswith("checkpoint") else "id" if table == "runs" else "run_id"
        owners = await own_database.fetch(f"SELECT DISTINCT {key} AS id FROM {table}")
        assert {active.id, busy.id} <= {row["id"] for row in owners}
        assert not {row["id"] for row in owners} & {run.id for run in old}
    for run in (active, busy):
        await assert_history(own_database, run.id)


async def test_a_session_to_which_somebody_comes_back_in_the_middle_of_it_keeps_the_rest(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    first = await finished(own_database, writer, own_org)
    second = await finished(own_database, writer, own_org, session_id=first.session_id)
    await make_idle(own_database, [first.session_id])
    retention = Retention(own_database, AT_ONCE, rows=1, seconds=0.0)
    while (await rows_of(own_database, first.session_id))["messages"] > 3:
        await retention.run()
    assert (await rows_of(own_database, first.session_id))["events"] == 0
    new = await ask(own_database, own_org, session_id=first.session_id)
    await Retention(own_database, AT_ONCE).run()
    assert (await get_run(own_database, own_org, second.id)).finished_at is not None
    page = await read_page(own_database, own_org, first.session_id, after=0)
    assert [(entry.first, entry.run_id) for entry in page.frames] == [(new.first_seq, new.id)]
    assert page.floor == new.first_seq - 1
    assert [m["run_id"] for m in (await read_at_floor(own_database, own_org, first.session_id)).messages]


# -- batches and locks ---------------------------------------------------------------------------------------


async def count_deletions(database: Pool) -> None:
    """From now on, takes down how many rows each transaction removes from each table."""
    await database.execute(
        """CREATE TABLE deletions (xid bigint, rows bigint);
           CREATE FUNCTION take_down() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN
               INSERT INTO deletions SELECT txid_current(), count(*) FROM gone;
               RETURN NULL;
           END $$;"""
    )
    for table in (
        "events",
        "checkpoints",
        "checkpoint_writes",
        "messages",
        "steps",
        "effects",
        "runs",
        "sessions",
        "idempotency_keys",
    ):
        await database.execute(
            f"""CREATE TRIGGER take_down AFTER DELETE ON {table} REFERENCING OLD TABLE AS gone
                FOR EACH STATEMENT EXECUTE FUNCTION take_down()"""
        )


async def test_no_transaction_removes_more_than_its_share(own_database: Pool, own_org: str, writer: Writer) -> None:
    runs = [await finished(own_database, writer, own_org, pieces=60, seconds_ago=40 * DAY) for _ in range(5)]
    for _ in range(8):
        await finished(own_database, writer, own_org, session_id=runs[0].session_id, seconds_ago=31 * DAY)
    await own_database.execute(
        """INSERT INTO idempotency_keys SELECT $1, 'key ' || n, '', '', 200, '{}', now() - interval '25 hours'
           FROM generate_series(1, 130) AS n""",
        own_org,
    )
    await count_deletions(own_database)
    removed = await Retention(own_database, USUAL, rows=50).run()
    assert removed.runs == 13
    assert removed.chunks >= 5 * 121
    assert removed.keys == 130
    await make_idle(own_database, [run.session_id for run in runs])
    gone = await Retention(own_database, AT_ONCE, rows=50).run()
    assert gone.sessions == 5
    for table in ("events", "checkpoints", "checkpoint_writes", "messages", "steps", "runs", "sessions"):
        assert await own_database.fetchval(f"SELECT count(*) FROM {table}") == 0
    shares = await own_database.fetch("SELECT sum(rows) AS rows FROM deletions GROUP BY xid HAVING sum(rows) > 0")
    assert max(row["rows"] for row in shares) == 50
    total = removed.chunks + removed.checkpoints + removed.events + removed.keys + gone.rows
    assert sum(row["rows"] for row in shares) == total
    assert len(shares) < total / 20  # in batches, and not one by one


async def test_a_pass_that_ends_early_is_finished_by_another(own_database: Pool, own_org: str, writer: Writer) -> None:
    run = await finished(own_database, writer, own_org, pieces=30, seconds_ago=31 * DAY)
    session = run.session_id
    last = (await get_session(own_database, own_org, session)).last_seq
    while await floor_of(own_database, session) == 0:
        await Retention(own_database, USUAL, rows=5, seconds=0.0).run()
    # The floor has risen and events below it are still there: nobody is shown them.
    assert await types(own_database, run) != []
    assert (await read_page(own_database, own_org, session, after=0)).frames == []
    assert await floor_of(own_database, session) == last
    await assert_history(own_database, run.id)
    await Retention(own_database, USUAL, rows=5).run()
    assert await types(own_database, run) == []
    assert (await own_database.fetchval("SELECT kept FROM runs")) == "record"


async def test_a_session_that_is_locked_holds_nobody_up_and_is_dealt_with_later(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    locked = await finished(own_database, writer, own_org, seconds_ago=31 * DAY)
    free = await finished(own_database, writer, own_org, seconds_ago=31 * DAY)
    async with own_database.acquire() as writing, writing.transaction():
        await writing.execute("SELECT FROM sessions WHERE id = $1 FOR NO KEY UPDATE", locked.session_id)
        removed = await asyncio.wait_for(Retention(own_database, USUAL).run(), 10)
        assert removed.runs == 2  # chunks and checkpoints need nobody's lock
        assert await types(own_database, free) == []
        assert (await types(own_database, locked))[-1] == "done"
        assert await floor_of(own_database, locked.session_id) == 0
    await Retention(own_database, USUAL).run()
    assert await types(own_database, locked) == []


@pytest.mark.parametrize("statement", ["SELECT * FROM slim_runs($1, 900, 200, 2000)"])
async def test_while_a_batch_is_under_way_its_sessions_can_be_written(
    own_database: Pool, own_org: str, writer: Writer, statement: str
) -> None:
    run = await finished(own_database, writer, own_org, seconds_ago=31 * DAY)
    async with own_database.acquire() as removing, removing.transaction():
        await removing.execute(statement, LOCK)
        other = await asyncio.wait_for(finished(own_database, writer, own_org, session_id=run.session_id), 10)
        assert (await types(own_database, other))[-1] == "done"
    await assert_history(own_database, run.id)


async def test_two_are_never_at_it_at_the_same_time(own_database: Pool, own_org: str, writer: Writer) -> None:
    run = await finished(own_database, writer, own_org, seconds_ago=31 * DAY)
    await own_database.execute(
        "INSERT INTO idempotency_keys SELECT $1, 'key', '', '', 200, '{}', now() - interval '25 hours'", own_org
    )
    await make_idle(own_database, [run.session_id])
    async with own_database.acquire() as other, other.transaction():
        await other.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        assert await asyncio.wait_for(Retention(own_database, AT_ONCE).run(), 10) == Removed()
    removed = await Retention(own_database, AT_ONCE).run()
    assert (removed.keys, removed.sessions) == (1, 1)


async def test_many_passes_at_once_remove_everything_once(own_database: Pool, own_org: str, writer: Writer) -> None:
    runs = [await finished(own_database, writer, own_org, pieces=20, seconds_ago=31 * DAY) for _ in range(6)]
    expected = await own_database.fetchval("SELECT count(*) FROM events")
    passes = await asyncio.gather(*(Retention(own_database, USUAL, rows=20).run() for _ in range(4)))
    last = await Retention(own_database, USUAL).run()
    assert sum(one.chunks + one.events for one in (*passes, last)) == expected
    for run in runs:
        await assert_history(own_database, run.id)


async def test_old_keys_and_workers_that_are_gone_are_forgotten(own_database: Pool, own_org: str) -> None:
    await own_database.execute(
        """INSERT INTO idempotency_keys SELECT $1, 'key ' || hours, '', '', 200, '{}', now() - hours * interval '1 hour'
           FROM unnest(ARRAY[1, 23, 25, 100]) AS hours""",
        own_org,
    )
    await own_database.execute(
        """INSERT INTO workers (id, host, pid, slots, running, seen_at)
           SELECT 'w' || minutes, 'host', 1, 1, 0, now() - minutes * interval '1 minute'
           FROM unnest(ARRAY[1, 50, 70]) AS minutes"""
    )
    assert (await Retention(own_database, USUAL).run()).keys == 2
    keys = await own_database.fetch("SELECT key FROM idempotency_keys ORDER BY key")
    assert [row["key"] for row in keys] == ["key 1", "key 23"]
    workers = await own_database.fetch("SELECT id FROM workers ORDER BY id")
    assert [row["id"] for row in workers] == ["w1", "w50"]


async def test_what_is_due_is_found_by_an_index_that_holds_nothing_else(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    for _ in range(3):
        await finished(own_database, writer, own_org, seconds_ago=31 * DAY)
    await ask(own_database, own_org)

    async def held() -> list[int]:
        await own_database.execute("VACUUM ANALYZE runs")
        rows = await own_database.fetch(
            """SELECT reltuples::integer AS n FROM pg_class WHERE relname IN ('runs_whole', 'runs_slim')
               ORDER BY relname DESC"""
        )
        return [row["n"] for row in rows]

    assert await held() == [3, 0]
    await Retention(own_database, Policies(900.0, None, None)).run()
    assert await held() == [0, 3]
    await Retention(own_database, USUAL).run()
    assert await held() == [0, 0]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE runs SET kept = 'slim'",  # unfinished
        "UPDATE runs SET kept = 'some'",
        "UPDATE sessions SET floor_seq = last_seq + 1, floor_at = now()",
        "UPDATE sessions SET floor_seq = 1",  # since when?
        "UPDATE sessions SET floor_seq = -1",
    ],
)
async def test_a_state_that_cannot_be_is_refused(database: Pool, change: str) -> None:
    run = await ask(database, await ensure_org(database, f"org {uuid4().hex}"))
    async with database.acquire() as connection:
        begun = connection.transaction()
        await begun.start()
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(
                f"{change} WHERE $1 IN (id, {'head_run_id' if 'sessions' in change else 'id'})", run.id
            )
        await begun.rollback()
