"""Postgres ends connections, with and without the answer to what was asked on them: nothing is lost, nothing twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg

from cli.rehearsal import Hang, Reply, ToolCall
from tests.e2e.caller import Caller
from tests.faults.crew import holder, log_bytes, staff
from tests.faults.proxy import before_postgres, serving
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack
from tests.waiting import eventually

ALL_OF_OURS = """
    SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name <> 'the test' AND pid <> pg_backend_pid()
"""


async def test_a_run_survives_the_end_of_every_connection_to_postgres(
    pair: Stack, pair_caller: Caller, model: ScriptedModel
) -> None:
    words = [f"word{number} " for number in range(80)]
    script = model.script(Reply(tokens=words, token_delay=0.01))
    async with connected(pair) as connection, pair_caller.following("go on", model=script) as stream:
        for _ in range(3):
            await stream.until("message_chunk")
            assert await connection.fetchval(ALL_OF_OURS) >= 3
        events = list(await stream.rest())
    run_id = events[0].data["run_id"]
    if events[-1].type != "done":  # the API was just reading the log: then its stream ends, and the follower comes back
        await pair_caller.finished(run_id)
        events += await pair_caller.events(run_id, after=events[-1].seq)
    history = await assert_history(pair.database, run_id)
    assert (history.run["status"], history.run["epoch"]) == ("succeeded", 1)
    assert history.of("message")[0].data["content"] == "".join(words)
    assert b"".join(event.frame for event in events) == await log_bytes(pair, events[0].data["session_id"])
    assert (await pair_caller.run("and now?", workflow="echo"))["status"] == "succeeded"


async def test_a_commit_whose_answer_was_lost_is_taken_once(
    pair: Stack, pair_caller: Caller, model: ScriptedModel, folder: Path
) -> None:
    words = [f"word{number} " for number in range(60)]
    script = model.script(Reply(tokens=words, token_delay=0.01))
    await staff(pair, 0)
    proxy, database_url = before_postgres(folder / "lost", pair.database_url)
    async with serving(proxy):
        worker = await pair.add_worker({"DATABASE_URL": database_url})
        async with pair_caller.following("go on", model=script) as stream:
            await stream.until("message_chunk")
            await proxy.drop_reply(b"committed")
            events = await stream.rest()
        await worker.stop()
    history = await assert_history(pair.database, events[0].data["run_id"])
    assert (history.run["status"], history.run["epoch"]) == ("succeeded", 1)
    assert "".join(event.data["text"] for event in history.of("message_chunk")) == "".join(words)
    assert stream.frames == await log_bytes(pair, events[0].data["session_id"])
    await staff(pair, 1)


async def test_a_run_that_is_being_resumed_survives_the_end_of_its_connection(
    mortal: Stack, caller: Caller, model: ScriptedModel
) -> None:
    await staff(mortal, 2)
    script = model.script(
        Reply(tool_calls=[ToolCall("python", {"code": "6 * 7"})]), Reply(fault=Hang(None)), said("it is 42")
    )
    async with connected(mortal) as connection, caller.following("6 times 7?", model=script) as stream:
        first = holder(mortal, (await stream.until("run_started")).data)
        await stream.until("tool_result")
        await stream.until("state_entered", state="THINK")
        async with connection.transaction():
            await connection.execute("LOCK TABLE checkpoints IN ACCESS EXCLUSIVE MODE")
            await first.kill()
            await end_whoever_waits_to_read(connection, "checkpoints")
        events = await stream.rest()
    history = await assert_history(mortal.database, events[0].data["run_id"])
    assert (history.run["status"], history.run["attempt"]) == ("succeeded", 2)
    assert history.of("message")[0].data["content"] == "it is 42"
    assert len(history.of("tool_start")) == 1


async def test_a_stream_whose_connection_to_postgres_ends_is_ended_in_order_and_can_be_resumed(
    pair: Stack, pair_caller: Caller
) -> None:
    run = await pair_caller.run("said once", workflow="echo")
    # Of a session: the stream of a run that has ended asks for the place of its end before it begins.
    path = f"/v1/sessions/{run['session_id']}/events"
    async with connected(pair) as connection, AsyncExitStack() as streams:
        async with connection.transaction():
            await connection.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            stream = await streams.enter_async_context(pair_caller.stream(path))
            await end_whoever_waits_to_read(connection, "events")
        await stream.rest()
    assert stream.ended
    last = stream.events[-1].seq if stream.events else 0
    async with pair_caller.stream(f"{path}?after={last}") as again:
        await again.until("done")
    assert stream.frames + again.frames == await log_bytes(pair, run["session_id"])


@asynccontextmanager
async def connected(stack: Stack) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection that is not of the stack."""
    connection = await asyncpg.connect(stack.database_url, server_settings={"application_name": "the test"})
    try:
        yield connection
    finally:
        await connection.close()


async def end_whoever_waits_to_read(connection: asyncpg.Connection[asyncpg.Record], table: str) -> None:
    """Waits for the first that waits for the table's lock, and ends its connection."""

    async def ended() -> bool:
        return bool(
            await connection.fetchval(
                "SELECT count(pg_terminate_backend(l.pid, 5000)) FROM pg_locks l"
                " JOIN pg_stat_activity a ON a.pid = l.pid"
                " WHERE NOT l.granted AND l.relation = $1::regclass AND a.query LIKE '%SELECT%'",
                table,
            )
        )

    await eventually(ended, what=f"someone waits to read {table}")
