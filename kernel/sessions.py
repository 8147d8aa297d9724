"""Sessions: conversations, each the owner of one event log.

A session is made here or together with its first run (`runs.submit`). Its row is the lock of its log, so
nothing here holds it longer than one statement, but for the deletion, which ends the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
import orjson

from kernel.errors import Conflict, InvalidInput, NotFound
from kernel.events import encode_json
from kernel.ids import new_id
from kernel.postgres import Connection, Pool
from kernel.sql import statements

SQL = statements(__package__, "sessions.sql")


@dataclass(frozen=True, slots=True)
class Session:
    """A session as it stands. `last_seq` is its newest event, `head_run_id` its first unfinished run."""

    id: str
    org_id: str
    user_id: str | None
    agent_id: str | None
    title: str | None
    metadata: dict[str, Any]
    last_seq: int
    head_run_id: str | None
    created_at: datetime
    updated_at: datetime


async def create_session(
    db: Pool | Connection,
    org_id: str,
    *,
    user_id: str | None = None,
    agent_id: str | None = None,
    title: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Session:
    """Makes an empty session. Its runs use `agent_id`, or the org's default agent where that is None.

    Raises:
        InvalidInput: no such agent in the org.
    """
    row = await db.fetchrow(SQL.add, org_id, new_id("ses"), user_id, agent_id, title, encode_json(dict(metadata or {})))
    if row is None:
        raise _no_agent(agent_id)
    return _session(row)


async def get_session(db: Pool | Connection, org_id: str, session_id: str) -> Session:
    """Raises NotFound."""
    row = await db.fetchrow(SQL.get, org_id, session_id)
    if row is None:
        raise _no_session(session_id)
    return _session(row)


async def list_sessions(
    db: Pool | Connection, org_id: str, *, before: str | None = None, limit: int = 20
) -> list[Session]:
    """The org's sessions, newest first, those made before session `before`."""
    return [_session(row) for row in await db.fetch(SQL.list, org_id, before, limit)]


async def update_session(db: Pool | Connection, org_id: str, session_id: str, changes: Mapping[str, Any]) -> Session:
    """Replaces those of `title`, `metadata` and `agent_id` that are in `changes`; None clears.

    Raises:
        NotFound: no such session in the org.
        InvalidInput: no such agent in the org.
    """
    row = await db.fetchrow(
        SQL.change,
        org_id,
        session_id,
        "title" in changes,
        changes.get("title"),
        "metadata" in changes,
        encode_json(dict(changes.get("metadata") or {})),
        "agent_id" in changes,
        changes.get("agent_id"),
    )
    if row is None:
        await get_session(db, org_id, session_id)
        raise _no_agent(changes.get("agent_id"))
    return _session(row)


async def delete_session(db: Pool, org_id: str, session_id: str) -> None:
    """Deletes the session with its runs, messages, steps, events and checkpoints.

    Raises:
        NotFound: no such session in the org.
        Conflict: a run of it is unfinished.
    """
    async with db.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(SQL.lock, org_id, session_id)
        if row is None:
            raise _no_session(session_id)
        if row["head_run_id"] is not None:
            raise Conflict(
                f"The session is busy with run {row['head_run_id']}.",
                suggestions=("wait for the run to finish", "cancel the run first"),
            )
        await connection.execute(SQL.delete_checkpoint_writes, org_id, session_id)
        await connection.execute(SQL.delete_checkpoints, org_id, session_id)
        await connection.execute(SQL.delete, org_id, session_id)


def _session(row: asyncpg.Record) -> Session:
    return Session(**{**row, "metadata": orjson.loads(row["metadata"])})


def _no_session(session_id: str) -> NotFound:
    return NotFound(f"There is no session {session_id}.", field="session_id")


def _no_agent(agent_id: str | None) -> InvalidInput:
    return InvalidInput(f"There is no agent {agent_id}.", field="agent_id")
