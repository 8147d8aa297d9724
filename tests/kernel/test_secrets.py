"""Secrets in Postgres: sealed, of one org or one run, and gone with the run."""

from __future__ import annotations

import os

import asyncpg
import pytest

from kernel.errors import CallerError
from kernel.postgres import Pool
from kernel.runs import InputMessage, NewRun, cancel, submit
from kernel.sealing import CannotOpen, Sealer
from kernel.secrets import find_secrets, open_of_run, open_secret, put_secret

SECRETS = {"token": "of the run alone", "other": "ünïcode"}


@pytest.fixture
def sealer() -> Sealer:
    return Sealer({"tests": os.urandom(32)})


async def taken_in(database: Pool, org: str, sealer: Sealer, **more: object) -> str:
    new = NewRun([InputMessage("user", "hello")], secrets=SECRETS, **more)  # type: ignore[arg-type]
    submitted = await submit(database, org_id=org, user_id=None, session_id=None, new=new, sealer=sealer)
    return submitted.run.id


async def test_a_secret_of_an_org_is_found_by_its_name(database: Pool, org: str, sealer: Sealer) -> None:
    secret, created = await put_secret(database, sealer, org, "token", "hunter2")
    assert created
    assert secret.created_at == secret.updated_at
    found = await find_secrets(database, org, None, ["token", "missing"])
    assert open_secret(sealer, found.of_org["token"], org, "token") == "hunter2"
    assert (found.of_run, set(found.of_org)) == (None, {"token"})


async def test_a_value_takes_the_place_of_the_one_before(database: Pool, org: str, sealer: Sealer) -> None:
    first, _ = await put_secret(database, sealer, org, "token", "one")
    second, created = await put_secret(database, sealer, org, "token", "two")
    assert not created
    assert second.created_at == first.created_at
    assert second.updated_at > first.updated_at
    found = await find_secrets(database, org, None, ["token"])
    assert open_secret(sealer, found.of_org["token"], org, "token") == "two"


async def test_a_row_that_is_moved_can_not_be_opened(database: Pool, org: str, sealer: Sealer) -> None:
    await put_secret(database, sealer, org, "token", "hunter2")
    await database.execute("UPDATE secrets SET name = 'stolen' WHERE org_id = $1", org)
    found = await find_secrets(database, org, None, ["stolen"])
    with pytest.raises(CannotOpen):
        open_secret(sealer, found.of_org["stolen"], org, "stolen")


async def test_the_secrets_of_a_run_are_there_until_it_ends(database: Pool, org: str, sealer: Sealer) -> None:
    run_id = await taken_in(database, org, sealer)
    found = await find_secrets(database, org, run_id, [])
    assert found.of_run is not None
    assert open_of_run(sealer, found.of_run, org, run_id) == SECRETS
    await cancel(database, org, run_id)
    assert (await find_secrets(database, org, run_id, [])).of_run is None


async def test_a_run_keeps_nothing_of_them_in_its_own_row(database: Pool, org: str, sealer: Sealer) -> None:
    run_id = await taken_in(database, org, sealer)
    row = await database.fetchrow("SELECT r::text AS text, has_secrets FROM runs r WHERE id = $1", run_id)
    assert row is not None
    assert row["has_secrets"]
    assert not any(value in row["text"] for value in SECRETS.values())


async def test_a_run_that_is_not_taken_in_leaves_no_secrets(database: Pool, org: str, sealer: Sealer) -> None:
    with pytest.raises(CallerError):
        await taken_in(database, org, sealer, agent_id=f"agt_{'0' * 32}")
    assert await database.fetchval("SELECT count(*) FROM run_secrets WHERE org_id = $1", org) == 0


async def test_what_is_rolled_back_leaves_no_secrets(database: Pool, org: str, sealer: Sealer) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.acquire() as connection, connection.transaction():
            new = NewRun([InputMessage("user", "hello")], secrets=SECRETS)
            await submit(connection, org_id=org, user_id=None, session_id=None, new=new, sealer=sealer)
            raise ZeroDivisionError
    assert await database.fetchval("SELECT count(*) FROM run_secrets WHERE org_id = $1", org) == 0


async def test_another_orgs_runs_have_none_of_them(database: Pool, org: str, sealer: Sealer) -> None:
    run_id = await taken_in(database, org, sealer)
    assert (await find_secrets(database, f"org_{'0' * 32}", run_id, [])).of_run is None


async def test_a_run_without_secrets_has_no_row(database: Pool, org: str) -> None:
    new = NewRun([InputMessage("user", "hello")])
    run = (await submit(database, org_id=org, user_id=None, session_id=None, new=new)).run
    row = await database.fetchrow("SELECT has_secrets FROM runs WHERE id = $1", run.id)
    assert row is not None
    assert not row["has_secrets"]


async def test_no_two_secrets_of_a_run_can_be_kept(database: Pool, org: str, sealer: Sealer) -> None:
    run_id = await taken_in(database, org, sealer)
    with pytest.raises(asyncpg.UniqueViolationError):
        await database.execute(
            "INSERT INTO run_secrets (org_id, run_id, sealed, key_id) VALUES ($1, $2, $3, 'k')", org, run_id, b"x" * 40
        )
