"""The schema's own rules: what no code of ours, however wrong, can write."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from kernel.ids import new_id
from kernel.postgres import Connection, Pool
from kernel.runs import InputMessage, NewRun, Run, submit
from kernel.tenants import ensure_org


@pytest.fixture
async def run(database: Pool, org: str) -> Run:
    new = NewRun([InputMessage("user", "hello")])
    return (await submit(database, org_id=org, user_id=None, session_id=None, new=new)).run


@pytest.fixture
async def transaction(database: Pool) -> AsyncIterator[Connection]:
    """Rolled back afterwards."""
    async with database.acquire() as connection:
        begun = connection.transaction()
        await begun.start()
        yield connection
        await begun.rollback()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE runs SET status = 'finished' WHERE id = $1",
        "UPDATE runs SET status = 'running' WHERE id = $1",  # without a worker and a lease
        "UPDATE runs SET status = 'succeeded' WHERE id = $1",  # without an end
        "UPDATE runs SET finished_at = now() WHERE id = $1",
        "UPDATE runs SET head = false, status = 'waiting' WHERE id = $1",
        "UPDATE runs SET attempt = -1 WHERE id = $1",
        "UPDATE runs SET id = 'run_1' WHERE id = $1",
        "UPDATE sessions SET head_run_id = NULL, head_epoch = 1 WHERE head_run_id = $1",
        "UPDATE sessions SET last_seq = -1 WHERE head_run_id = $1",
        "UPDATE events SET seq = 0 WHERE run_id = $1",
    ],
)
async def test_a_state_that_cannot_be_is_refused(transaction: Connection, run: Run, change: str) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await transaction.execute(change, run.id)


async def test_a_session_has_one_head(transaction: Connection, run: Run) -> None:
    new = NewRun([InputMessage("user", "hello")])
    second = await submit(transaction, org_id=run.org_id, user_id=None, session_id=run.session_id, new=new)
    with pytest.raises(asyncpg.UniqueViolationError):
        await transaction.execute("UPDATE runs SET head = true WHERE id = $1", second.run.id)


async def test_a_run_has_one_done(transaction: Connection, run: Run) -> None:
    add = """INSERT INTO events (session_id, seq, org_id, run_id, type, data, at)
             VALUES ($1, $2, $3, $4, 'done', '{}', now())"""
    await transaction.execute(add, run.session_id, 2, run.org_id, run.id)
    with pytest.raises(asyncpg.UniqueViolationError):
        await transaction.execute(add, run.session_id, 3, run.org_id, run.id)


async def test_a_seq_is_taken_once(transaction: Connection, run: Run) -> None:
    with pytest.raises(asyncpg.UniqueViolationError):
        await transaction.execute(
            """INSERT INTO events (session_id, seq, org_id, run_id, type, data, at)
               VALUES ($1, 1, $2, $3, 'usage', '{}', now())""",
            *(run.session_id, run.org_id, run.id),
        )


async def test_nothing_of_one_org_can_belong_to_another(database: Pool, transaction: Connection, run: Run) -> None:
    other = await ensure_org(database, f"other {new_id('org')}")
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await transaction.execute(
            """INSERT INTO events (session_id, seq, org_id, run_id, type, data, at)
               VALUES ($1, 2, $2, $3, 'usage', '{}', now())""",
            *(run.session_id, other, run.id),
        )


async def test_only_the_result_of_a_tool_names_a_call(transaction: Connection, run: Run) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await transaction.execute("UPDATE messages SET tool_call_id = 'call_1' WHERE run_id = $1", run.id)
