"""Runs as their callers see them: taken in, looked at, listed, cancelled.

What a worker does with a run is in `leases` (claiming, renewing) and `journal` (writing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import asyncpg
import orjson

from kernel.content import Content, text_of
from kernel.errors import Conflict, InvalidInput, NotFound
from kernel.events import RunStatus, encode_json, render_frame, render_time
from kernel.ids import new_id
from kernel.json_schema import Schema
from kernel.postgres import Connection, Pool
from kernel.sealing import Sealer
from kernel.secrets import seal_of_run
from kernel.sql import statements

SQL = statements(__package__, "runs.sql")

IfBusy = Literal["enqueue", "reject", "interrupt"]

PauseOutcome = Literal["held", "requested", "waiting"]
"""`held`: it was queued and is not started; `requested` of its worker; `waiting`: it has no worker already."""

ResumeOutcome = Literal["resumed", "running", "unchanged", "undecided"]
"""`resumed`: a worker may take it; `running`: the pause had not taken effect; `unchanged`: it was not paused;
`undecided`: it is not paused any more, and waits for a decision."""


@dataclass(frozen=True, slots=True)
class InputMessage:
    """One message of a run's input."""

    role: Literal["system", "user", "assistant"]
    content: Content


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run as it is asked for. `request` is what the graph reads: variables, model, tools, budget.

    `priority` is -10 to 10; in its org a higher one starts first. `deadline_seconds` from now it expires, also if it
    has not been started. `secrets` are by the names that tools give, in the clear: they are sealed on their way in.
    """

    input: Sequence[InputMessage]
    agent_id: str | None = None
    workflow: str = "agent_chat"
    request: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    if_busy: IfBusy = "enqueue"
    priority: int = 0
    deadline_seconds: float | None = None
    secrets: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it stands."""

    id: str
    org_id: str
    session_id: str
    turn: int
    agent_id: str
    agent_version: int
    workflow: str
    status: RunStatus
    attempt: int
    user_id: str | None
    metadata: dict[str, Any]
    finish_reason: str | None
    usage: dict[str, Any] | None
    error: dict[str, Any] | None
    first_seq: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    pause_requested_at: datetime | None
    deadline_at: datetime | None
    priority: int
    retry_of: str | None = None


@dataclass(frozen=True, slots=True)
class Submitted:
    """A run just taken in, with the SSE frame of its `run_queued` event.

    `head` says whether it can start at once; `interrupted` are the running runs that were asked to stop for it;
    `complete` says whether `frame` is all that the call added to the log (an interruption adds more).
    """

    run: Run
    seq: int
    first_seq: int
    frame: bytes
    head: bool
    interrupted: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return self.seq == self.first_seq


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What a cancel came to: `cancelled` at once, or `requested` of the worker that runs it."""

    outcome: Literal["cancelled", "requested", "finished"]
    session_id: str
    last_seq: int
    next_run: str | None


async def submit(
    db: Pool | Connection,
    *,
    org_id: str,
    user_id: str | None,
    session_id: str | None,
    new: NewRun,
    sealer: Sealer | None = None,
) -> Submitted:
    """Takes a run in, in one transaction; a new session is made when `session_id` is None. One with secrets needs the
    `sealer`.

    Raises:
        NotFound: no such session in the org.
        InvalidInput: no such agent in the org (`agent_id`).
        Conflict: the session is busy and `if_busy` is "reject".
    """
    run_id = new_id("run")
    metadata, request = new.metadata or {}, new.request or {}
    sealed: tuple[bytes, str] | tuple[()] = ()
    if new.secrets:
        assert sealer is not None, "a run with secrets needs a sealer"
        own = await seal_of_run(sealer, org_id, run_id, new.secrets)
        sealed = own.data, own.key_id
        request = {**request, "secrets": sorted(new.secrets)}  # their names: for whom it acts is not known by its words
    row = await db.fetchrow(
        SQL.submit_with_secrets if sealed else SQL.submit,
        org_id,
        user_id,
        session_id or new_id("ses"),
        session_id is None,
        run_id,
        new.agent_id,
        new.workflow,
        encode_json(request),
        encode_json(metadata),
        new.if_busy,
        [new_id("msg") for _ in new.input],
        [message.role for message in new.input],
        [encode_json(message.content) for message in new.input],
        new.priority,
        new.deadline_seconds,
        *sealed,
    )
    assert row is not None
    match row["outcome"]:
        case "no_session":
            raise NotFound(f"There is no session {session_id}.", field="session_id")
        case "no_agent":
            raise InvalidInput(f"There is no agent {new.agent_id or row['agent_id']}.", field="agent_id")
        case "busy":
            raise Conflict(
                f"The session is busy with run {row['interrupted'][0]}.",
                suggestions=("wait for it", "cancel it", 'send "if_busy": "enqueue" or "interrupt"'),
            )
    run = Run(
        id=run_id,
        org_id=org_id,
        session_id=row["session_id"],
        turn=row["turn"],
        agent_id=row["agent_id"],
        agent_version=row["agent_version"],
        workflow=new.workflow,
        status="queued",
        attempt=0,
        user_id=user_id,
        metadata=metadata,
        finish_reason=None,
        usage=None,
        error=None,
        first_seq=row["seq"],
        created_at=row["at"],
        started_at=None,
        finished_at=None,
        cancel_requested_at=None,
        pause_requested_at=None,
        deadline_at=row["deadline_at"],
        priority=new.priority,
    )
    data = f'{{"attempt":0,"agent_id":"{run.agent_id}","agent_version":{run.agent_version}}}'
    frame = render_frame(row["seq"], "run_queued", run.session_id, run.id, render_time(row["at"]), data)
    return Submitted(run, row["seq"], row["first_seq"], frame, row["head"], tuple(row["interrupted"] or ()))


async def get_run(db: Pool | Connection, org_id: str, run_id: str) -> Run:
    """Raises NotFound."""
    row = await db.fetchrow(SQL.get, org_id, run_id)
    if row is None:
        raise NotFound(f"There is no run {run_id}.", field="run_id")
    return _run(row)


async def list_runs(
    db: Pool | Connection,
    org_id: str,
    *,
    before: str | None = None,
    status: RunStatus | None = None,
    session_id: str | None = None,
    agent_id: str | None = None,
    limit: int = 20,
) -> list[Run]:
    """The org's runs, newest first, those older than run `before`."""
    rows = await db.fetch(SQL.list, org_id, before, status, session_id, agent_id, limit)
    return [_run(row) for row in rows]


async def cancel(db: Pool | Connection, org_id: str, run_id: str) -> Cancelled:
    """Ends a run that isn't running, asks the worker of one that is. Finished runs stay as they are.

    Raises:
        NotFound: no such run in the org.
    """
    row = await db.fetchrow(SQL.cancel, org_id, run_id)
    assert row is not None
    if row["outcome"] == "not_found":
        raise NotFound(f"There is no run {run_id}.", field="run_id")
    return Cancelled(row["outcome"], row["session_id"], row["last_seq"], row["next_run"])


async def pause(db: Pool | Connection, org_id: str, run_id: str) -> PauseOutcome:
    """Holds a run that is queued; asks the worker of one that runs to stop after its present step.

    Raises:
        NotFound: no such run in the org.
        Conflict: it has ended.
    """
    return _unfinished(await db.fetchval(SQL.pause, org_id, run_id), run_id)  # type: ignore[return-value]


async def resume(db: Pool | Connection, org_id: str, run_id: str) -> ResumeOutcome:
    """Lets a paused run go on.

    Raises:
        NotFound: no such run in the org.
        Conflict: it has ended.
    """
    return _unfinished(await db.fetchval(SQL.resume, org_id, run_id), run_id)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """What a run said at last. `output` is its value where a `response_schema` asked for JSON, and it fits."""

    text: str | None = None
    output: Any = None


async def answer_of(db: Pool | Connection, org_id: str, run_id: str) -> FinalAnswer:
    """The run's final message, if it has one."""
    row = await db.fetchrow(SQL.last_message, org_id, run_id)
    if row is None:
        return FinalAnswer()
    text = text_of(orjson.loads(row["content"]))
    schema = None if row["response_schema"] is None else orjson.loads(row["response_schema"])
    return FinalAnswer(text, None if schema is None else _fitting(text, schema))


def _fitting(text: str, schema: dict[str, Any]) -> Any:
    """The JSON in `text`. What a run says at a limit, say, is none, or none that fits."""
    try:
        value = orjson.loads(text)
        return value if Schema(schema).fits(value) else None
    except ValueError:
        return None


def _unfinished(outcome: str, run_id: str) -> str:
    if outcome == "not_found":
        raise NotFound(f"There is no run {run_id}.", field="run_id")
    if outcome == "finished":
        raise Conflict(f"Run {run_id} has ended.", suggestions=("send the request again as a new run",))
    return outcome


def _run(row: asyncpg.Record) -> Run:
    fields = dict(row)
    for name in ("metadata", "usage", "error"):
        if fields[name] is not None:
            fields[name] = orjson.loads(fields[name])
    return Run(**fields)
