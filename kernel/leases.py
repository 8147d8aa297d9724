"""Leases: how a worker comes to own a run, keeps it, and gives it back.

A claim raises the run's `epoch` and sets a lease by the database's clock. The epoch is the fencing token: the
journal refuses whatever is written under an older one, so an owner that was thought dead can do no harm.
A run whose lease ran out may be claimed by anyone, with the next epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import orjson

from kernel.postgres import Connection, Pool, patiently
from kernel.sql import statements

SQL = statements(__package__, "leases.sql")


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message of the run's own turn; `path` is empty but for those of sub-agents."""

    path: str
    position: int
    id: str
    role: str
    content: Any
    tool_calls: list[dict[str, Any]] | None
    tool_call_id: str | None


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run this worker owns under `epoch`, with what it needs to start.

    `history` holds the conversation before this turn, oldest first, as {"role", "content"}; `messages` those
    of this turn: the input and, where an earlier attempt died, what it had committed.
    `input_tokens` and `output_tokens` are what earlier owners used, `announced` whether one of them said
    `run_started`: known after `Leases.take_over`.
    `attempt` counts from 1; `pickup_seconds` is the time from its creation to its first start,
    `elapsed_seconds` the time since then.
    """

    id: str
    org_id: str
    session_id: str
    turn: int
    agent_id: str
    agent_version: int
    workflow: str
    user_id: str | None
    request: dict[str, Any]
    epoch: int
    attempt: int
    first_seq: int
    cancelled: bool
    pickup_seconds: float
    elapsed_seconds: float
    agent: dict[str, Any]
    history: list[dict[str, Any]]
    messages: list[StoredMessage]
    input_tokens: int = 0
    output_tokens: int = 0
    announced: bool = False


class Leases:
    """The leases of one worker. `lease_seconds` is how long each lasts without renewal."""

    def __init__(self, db: Pool | Connection, *, worker: str, lease_seconds: float, history_limit: int = 40) -> None:
        self._db = db
        self.worker = worker
        self.lease_seconds = lease_seconds
        self._history_limit = history_limit

    async def claim(self, limit: int, *, running: Sequence[str] = ()) -> list[ClaimedRun]:
        """Up to `limit` runs, the fairest first, and none of `running`, which this worker has."""
        rows = await self._db.fetch(
            SQL.claim, self.worker, limit, self.lease_seconds, self._history_limit, list(running)
        )
        return [_claimed(row) for row in rows]

    async def renew(self, owned: dict[str, int]) -> dict[str, bool]:
        """Renews the runs of `owned` (id to epoch). Those still owned come back: id to whether a cancel is asked."""
        rows = await self._db.fetch(SQL.renew, list(owned), list(owned.values()), self.lease_seconds)
        return {row["id"]: row["cancelled"] for row in rows}

    async def cancel_requests(self, runs: Sequence[str]) -> list[str]:
        """Those of `runs` that someone asked to cancel."""
        return [row["id"] for row in await self._db.fetch(SQL.cancel_requests, list(runs))]

    async def hand_back(self, owned: dict[str, int]) -> list[str]:
        """Puts the runs of `owned` (id to epoch) back into the queue; returns those that were still owned."""
        return [row["id"] for row in await self._db.fetch(SQL.hand_back, list(owned), list(owned.values()))]

    async def take_over(self, run: ClaimedRun) -> tuple[ClaimedRun, list[str]]:
        """For a run that others owned before: `run` with all that they have left, and the ids of the messages that
        they began to stream and never completed."""
        arguments = (run.id, run.org_id, run.session_id, run.turn, run.first_seq)
        row = await patiently(lambda: self._db.fetchrow(SQL.left_behind, *arguments))
        assert row is not None
        input_tokens, output_tokens = orjson.loads(row["tokens"])
        caught_up = replace(
            run,
            messages=_messages(row["messages"]),
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            announced=row["announced"],
        )
        return caught_up, orjson.loads(row["unfinished"])

    async def beat(self, *, host: str, pid: int, slots: int, running: int, figures: dict[str, Any]) -> None:
        """Tells operators that this worker lives, how full it is, and its counters since it started."""
        await self._db.execute(SQL.beat, self.worker, host, pid, slots, running, orjson.dumps(figures).decode())

    async def sign_off(self) -> None:
        """Takes this worker off the list of the living."""
        await self._db.execute(SQL.sign_off, self.worker)


def _claimed(row: asyncpg.Record) -> ClaimedRun:
    fields = dict(row)
    fields["agent"] = orjson.loads(fields.pop("config"))
    fields["request"] = orjson.loads(fields["request"])
    fields["history"] = orjson.loads(fields["history"] or "[]")
    fields["messages"] = _messages(fields["messages"])
    return ClaimedRun(**fields)


def _messages(text: str | None) -> list[StoredMessage]:
    return [StoredMessage(**message) for message in orjson.loads(text or "[]")]
