"""The vault of a run: whose secret is given, how often Postgres is asked, and what is struck out."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import asyncpg
import pytest

from kernel.postgres import Pool
from kernel.runs import InputMessage, NewRun, submit
from kernel.sealing import Sealer
from kernel.secrets import delete_secret, put_secret
from orchestrator.tools.errors import ToolFailure
from orchestrator.vault import RunVault

ONE = Sealer({"one": os.urandom(32)})


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Postgres is asked for over any pool."""
    asked: list[str] = []
    fetch = asyncpg.Pool.fetch

    async def counted(self: Pool, query: str, *arguments: Any) -> Any:
        asked.append(query)
        return await fetch(self, query, *arguments)

    monkeypatch.setattr(asyncpg.Pool, "fetch", counted)
    return asked


@pytest.fixture
async def run_id(database: Pool, org: str) -> str:
    """A run that brings the secrets `own` and `both`; the org has `both` and `shared`."""
    for name in ("both", "shared"):
        await put_secret(database, ONE, org, name, f"{name}-of-the-org")
    new = NewRun([InputMessage("user", "hi")], secrets={"own": "own-of-the-run", "both": "both-of-the-run"})
    return (await submit(database, org_id=org, user_id=None, session_id=None, new=new, sealer=ONE)).run.id


async def test_a_runs_own_secret_comes_before_its_orgs(database: Pool, org: str, run_id: str) -> None:
    vault = RunVault(database, ONE, org, run_id)
    assert await vault.reveal("own") == "own-of-the-run"
    assert await vault.reveal("both") == "both-of-the-run"
    assert await vault.reveal("shared") == "shared-of-the-org"
    with pytest.raises(ToolFailure, match="no secret named 'missing'") as caught:
        await vault.reveal("missing")
    assert not caught.value.reached


async def test_a_run_without_secrets_asks_for_nothing(
    database: Pool, org: str, run_id: str, queries: list[str]
) -> None:
    vault = RunVault(database, ONE, org, run_id)
    await vault.ready()
    assert vault.redact("own-of-the-run") == "own-of-the-run"
    assert queries == []


async def test_fifty_calls_at_once_ask_once(database: Pool, org: str, run_id: str, queries: list[str]) -> None:
    vault = RunVault(database, ONE, org, run_id)
    vault.expect("shared", "both")
    await asyncio.gather(*(vault.ready() for _ in range(50)), *(vault.reveal("shared") for _ in range(50)))
    assert len(queries) == 1
    await vault.reveal("own")
    assert len(queries) == 1


async def test_what_a_tool_names_is_struck_before_it_is_ever_used(database: Pool, org: str, run_id: str) -> None:
    vault = RunVault(database, ONE, org, run_id)
    vault.expect("shared")
    await vault.ready()
    told = vault.redact("shared-of-the-org, own-of-the-run, both-of-the-run, both-of-the-org")
    assert told == "[redacted], [redacted], [redacted], both-of-the-org"


async def test_a_replaced_secret_is_used_within_half_a_minute_and_the_old_one_still_struck(
    database: Pool, org: str, run_id: str
) -> None:
    now = 0.0
    vault = RunVault(database, ONE, org, run_id, clock=lambda: now)
    await vault.reveal("shared")
    await put_secret(database, ONE, org, "shared", "another-value")
    assert await vault.reveal("shared") == "shared-of-the-org"
    now = 31
    assert await vault.reveal("shared") == "another-value"
    assert vault.redact("another-value shared-of-the-org") == "[redacted] [redacted]"
    await delete_secret(database, org, "shared")
    now = 62
    with pytest.raises(ToolFailure):
        await vault.reveal("shared")
    assert vault.redact("another-value") == "[redacted]"


async def test_a_missing_key_is_named_and_other_tools_go_on(database: Pool, org: str, run_id: str) -> None:
    vault = RunVault(database, Sealer({"two": os.urandom(32)}), org, run_id)
    vault.expect("shared")
    await vault.ready()
    with pytest.raises(ToolFailure, match="sealed with the key 'one'"):
        await vault.reveal("shared")


async def test_an_orgs_secret_that_can_not_be_opened_is_named(database: Pool, org: str) -> None:
    await put_secret(database, ONE, org, "shared", "value")
    vault = RunVault(database, Sealer({"two": os.urandom(32)}), org, f"run_{'0' * 32}")
    with pytest.raises(ToolFailure, match=r"The secret 'shared' can't be opened\. It was sealed with the key 'one'"):
        await vault.reveal("shared")


async def test_a_store_that_is_away_is_a_failure_that_may_pass(
    database: Pool, org: str, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise ConnectionResetError

    vault = RunVault(database, ONE, org, run_id)
    with monkeypatch.context() as patched:
        patched.setattr(asyncpg.Pool, "fetch", away)
        with pytest.raises(ToolFailure, match="at the moment") as caught:
            await vault.reveal("own")
    assert caught.value.retryable
    assert not caught.value.reached
    assert await vault.reveal("own") == "own-of-the-run"


async def test_no_secret_is_in_hand_before_it_is_struck(database: Pool, org: str) -> None:
    long = '{"key": "' + "\n".join("ab/+" * 16 for _ in range(60)) + '"}'
    await put_secret(database, ONE, org, "long", long)
    vault = RunVault(database, ONE, org, "run_" + "0" * 32)

    async def revealed() -> str:
        return vault.redact(await vault.reveal("long"))

    assert await asyncio.gather(*(revealed() for _ in range(20))) == ["[redacted]"] * 20
