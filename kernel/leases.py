"""Leases: how a worker comes to own a run, keeps it, and gives it back.

A claim raises the run's `epoch` and sets a lease by the database's clock. The epoch is the fencing token: the
journal refuses whatever is written under an older one, so an owner that was thought dead can do no harm.
A run whose lease ran out may be claimed by anyone, with the next epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import asyncpg
import orjson

from kernel.approvals import ApprovalKey, Decision
from kernel.effects import Effect
from kernel.postgres import Connection, Pool, patiently
from kernel.sql import statements

SQL = statements(__package__, "leases.sql")


Asked = Literal["cancelled", "paused"]
"""What a caller wants of a running run."""

LeftBy = Literal["died", "drained", "store_away", "paused", "approval"]
"""How a run lost an owner: its lease ran out, its worker was told to stop or could not reach Postgres, it was paused,
or waited for a decision."""

HandBack = Literal["drained", "store_away"]

HISTORY: Final = 40
"""Messages of the conversation that a claim brings, at most."""


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
class Spent:
    """What model calls have used: how many they were, their tokens and what they cost."""

    steps: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.steps + other.steps,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cost + other.cost,
        )


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run this worker owns under `epoch`, with what it needs to start.

    `history` holds the conversation before this turn, oldest first, as {"role", "content"}; `messages` those
    of this turn: the input and, where an earlier attempt died, what it had committed.
    `spent` is what the model calls of earlier owners used, by the path of the agent, `worked_seconds` how long they
    worked, `effects` the ledger of their calls by (step_id, call_id), `approvals` what they have asked for and what it
    came to, `announced` whether one of them said `run_started`: known after `Leases.take_over`.
    `attempt` counts from 1; `deaths` are those of its owners in a row, without a finished step between;
    `convicted` says that there were three of them or more, and that no other run can have been the cause of the last;
    `left_by` says why the last owner is gone. `pickup_seconds` is the time from its creation to its first start,
    `seconds_left` the time until its deadline, which may have passed. `vtag` is where in virtual time it was started,
    `capped` whether its org or agent may run no more than so many at once. `window_version` rises whenever something
    changes of what is known of its session beside messages; 0: nothing is.
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
    deaths: int
    graph_version: int
    left_by: LeftBy | None
    first_seq: int
    cancelled: bool
    paused: bool
    convicted: bool
    pickup_seconds: float
    seconds_left: float
    agent: dict[str, Any]
    history: list[dict[str, Any]]
    messages: list[StoredMessage]
    spent: dict[str, Spent] = field(default_factory=dict)
    worked_seconds: float = 0.0
    effects: dict[tuple[str, str], Effect] = field(default_factory=dict)
    approvals: dict[ApprovalKey, Decision] = field(default_factory=dict)
    announced: bool = False
    vtag: float = 0.0
    capped: bool = False
    window_version: int = 0

    @property
    def spent_in_all(self) -> Spent:
        """What all agents of the run spent together."""
        return sum(self.spent.values(), Spent())

    @property
    def retry(self) -> dict[str, Any] | None:
        """Of a run that goes on from another (`of`): what is known of that; see `kernel.retries`."""
        found: dict[str, Any] | None = self.request.get("retry")
        return found


@dataclass(frozen=True, slots=True)
class Overdue:
    """A run that was ended because its owner did not; `next_run` came to the head of its session by that."""

    org_id: str
    session_id: str
    run_id: str
    status: str
    next_run: str | None


class Leases:
    """The leases of one worker. `lease_seconds` is how long each lasts without renewal; runs of a graph newer than
    `graph_version` are not claimed."""

    def __init__(
        self,
        db: Pool | Connection,
        *,
        worker: str,
        lease_seconds: float,
        graph_version: int = 1,
        history_limit: int = HISTORY,
    ) -> None:
        self._db = db
        self.worker = worker
        self.lease_seconds = lease_seconds
        self._graph_version = graph_version
        self._history_limit = history_limit

    async def claim(
        self, limit: int, *, running: Sequence[str] = (), take_over: bool = True, take_suspect: bool = True
    ) -> list[ClaimedRun]:
        """Up to `limit` runs: those whose owner is gone first, unless `take_over` is false, then the fairest; none of
        `running`, which this worker has. At most one whose owners died three times in a row beside others like it, and
        none if `take_suspect` is false. Fewer may be had than there are, where caps are reached or others hold them.
        """
        rows = await self._db.fetch(
            SQL.claim,
            self.worker,
            limit,
            self.lease_seconds,
            self._history_limit,
            list(running),
            self._graph_version,
            take_over,
            take_suspect,
        )
        return [_claimed(row) for row in rows]

    async def renew(self, owned: dict[str, int]) -> set[str]:
        """Renews the runs of `owned` (id to epoch); returns those that are still owned."""
        rows = await self._db.fetch(SQL.renew, list(owned), list(owned.values()), self.lease_seconds)
        return {row["id"] for row in rows}

    async def requests(self, runs: Sequence[str]) -> dict[str, Asked]:
        """What callers ask of those of `runs` that somebody wants cancelled or paused."""
        rows = await self._db.fetch(SQL.requests, list(runs))
        return {row["id"]: "cancelled" if row["cancel"] else "paused" for row in rows}

    async def end_overdue(self, *, patience: float, limit: int = 50) -> list[Overdue]:
        """Ends runs past their deadline, and running ones that were to be cancelled `patience` seconds ago and are
        not: their owner is dead or stuck, and what it still writes is refused."""
        return [Overdue(**row) for row in await self._db.fetch(SQL.end_overdue, patience, limit)]

    async def hand_back(self, owned: dict[str, int], because: HandBack) -> list[str]:
        """Puts the runs of `owned` (id to epoch) back into the queue; returns those that were still owned."""
        return [row["id"] for row in await self._db.fetch(SQL.hand_back, list(owned), list(owned.values()), because)]

    async def take_over(self, run: ClaimedRun) -> tuple[ClaimedRun, dict[str, str]]:
        """For a run that others owned before: `run` with all that they have left, and the messages that they began to
        stream and never completed: ids to the paths of their agents."""
        arguments = (run.id, run.org_id, run.session_id, run.turn, run.first_seq)
        row = await patiently(lambda: self._db.fetchrow(SQL.left_behind, *arguments))
        assert row is not None
        spent = {path: Spent(*figures) for path, figures in orjson.loads(row["spent"]).items()}
        caught_up = replace(
            run,
            messages=_messages(row["messages"]),
            spent=spent,
            worked_seconds=float(row["worked_seconds"]),
            effects={effect.key: effect for effect in _effects(row["effects"])},
            approvals={made.key: made for made in _decisions(row["approvals"])},
            announced=row["announced"],
        )
        return caught_up, orjson.loads(row["unfinished"])

    async def beat(self, *, host: str, pid: int, slots: int, running: int, figures: dict[str, Any]) -> None:
        """Tells operators that this worker lives, how full it is, and its counters since it started."""
        await self._db.execute(SQL.beat, self.worker, host, pid, slots, running, orjson.dumps(figures).decode())

    async def hold_name(self) -> bool:
        """Lets others know that this worker is there for as long as this connection is. Only on a connection that
        nobody else uses; to be tried again where it is False."""
        return bool(await self._db.fetchval(SQL.hold_name, self.worker))

    async def missing(self, *, silent_seconds: float) -> list[str]:
        """Workers that hold their name no more and were not seen for so long."""
        return [row["id"] for row in await self._db.fetch(SQL.missing, self.worker, silent_seconds)]

    async def bury(
        self, workers: Sequence[str], *, silent_seconds: float, settle_seconds: float
    ) -> tuple[list[str], int]:
        """Ends the leases of `workers`, which were killed, without waiting for them to run out; but of none that was
        seen within `silent_seconds` or is back, and not within `settle_seconds` of the server's start. Returns the
        dead and how many runs they leave.
        """
        row = await self._db.fetchrow(SQL.bury, list(workers), silent_seconds, settle_seconds)
        assert row is not None
        return row["workers"], row["runs"]

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


def _effects(text: str | None) -> list[Effect]:
    return [Effect(**effect) for effect in orjson.loads(text or "[]")]


def _decisions(text: str | None) -> list[Decision]:
    return [Decision(**decision) for decision in orjson.loads(text or "[]")]
