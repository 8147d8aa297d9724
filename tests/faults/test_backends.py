"""Postgres cancels statements and ends connections: callers are told to come back, and workers go on."""

from __future__ import annotations

import asyncio

from cli.rehearsal import Reply
from tests.e2e.caller import Caller
from tests.faults.crew import staff
from tests.faults.test_postgres import ALL_OF_OURS, connected
from tests.history import assert_history
from tests.scripts import ScriptedModel
from tests.stack import Stack
from tests.waiting import eventually

END_ALL_OF_OURS = ALL_OF_OURS.replace(", 5000", "")
"""Without waiting until they are gone: callers meet them in every state."""

STATEMENTS = ("journal_commit", "claim_runs", "end_overdue_runs|pause_requested_at IS NOT NULL")
"""What tells a worker's statements apart: its commits, its claims, its looks for what is asked of its runs and for
those that should have ended. While it has a run, the first of the two looks is the one that a lock holds up."""


async def test_while_connections_are_ended_callers_are_served_or_told_to_come_back(
    pair: Stack, pair_caller: Caller
) -> None:
    [worker] = await staff(pair, 1)
    answers = []
    async with connected(pair) as connection:
        for _ in range(12):
            await connection.execute(END_ALL_OF_OURS)
            calls = [pair_caller.call("GET", "/v1/runs") for _ in range(3)]
            calls.append(pair_caller.post("/v1/runs", {"input": "hello", "workflow": "echo"}))
            answers += await asyncio.gather(*calls)
    statuses = {answer.status for answer in answers}
    assert statuses <= {200, 202, 503}, statuses
    assert all("Retry-After" in answer.headers for answer in answers if answer.status == 503)
    assert worker.alive
    for answer in answers:
        if answer.status == 202:
            run_id = answer.json()["id"]
            await pair_caller.finished(run_id)
            assert (await assert_history(pair.database, run_id)).run["status"] == "succeeded"


async def test_a_worker_survives_that_its_statements_are_cancelled(
    pair: Stack, pair_caller: Caller, model: ScriptedModel
) -> None:
    [worker] = await staff(pair, 1)
    words = ["tick "] * 50
    async with (
        connected(pair) as connection,
        pair_caller.following(model=model.script(Reply(tokens=words, token_delay=0.02))) as stream,
    ):
        await stream.until("message_chunk")
        for statement in STATEMENTS:
            async with connection.transaction():
                await connection.execute("LOCK TABLE runs, sessions IN ACCESS EXCLUSIVE MODE")

                async def cancelled(statement: str = statement) -> bool:
                    return bool(
                        await pair.database.fetchval(
                            "SELECT count(*) FILTER (WHERE pg_cancel_backend(pid)) FROM pg_stat_activity"
                            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                            " AND wait_event_type = 'Lock' AND query ~ $1",
                            statement,
                        )
                    )

                await eventually(cancelled, what=f"a statement with {statement!r} waits and is cancelled")
        events = await stream.rest()
    history = await assert_history(pair.database, events[0].data["run_id"])
    assert (history.run["status"], history.run["attempt"]) == ("succeeded", 1)
    assert history.of("message")[0].data["content"] == "".join(words)
    assert worker.alive
