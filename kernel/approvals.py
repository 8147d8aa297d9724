"""Approvals: what a run waits for that somebody has to decide, and how it is decided.

A run asks through its journal, so the row of an approval and the event that shows it are in the log or are not. It
waits without a worker; whatever resolves one of its approvals (a decision, or that nobody made one in time) wakes it.
An approval is resolved once, and with it the run's log says how. Every decision, also one that alone does not suffice,
stays in the audit trail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

import asyncpg
import orjson

from kernel.approval_policy import OnExpiry
from kernel.errors import Conflict, Forbidden, InvalidInput, NotFound
from kernel.events import encode_json, render_time
from kernel.ids import new_id
from kernel.json_schema import Schema, SchemaError
from kernel.postgres import Connection, Pool
from kernel.sql import statements
from kernel.tenants import Principal

SQL = statements(__package__, "approvals.sql")

ApprovalKind: TypeAlias = Literal["tool", "question", "client_tool", "limit"]
"""A call that needs approval, a question, a call that the caller makes itself, a limit that may be raised."""

ApprovalStatus: TypeAlias = Literal["pending", "approved", "denied", "answered", "expired", "cancelled"]
Verdict: TypeAlias = Literal["approve", "deny", "answer"]
ApprovalKey: TypeAlias = tuple[str, str, ApprovalKind]
"""(step_id, call_id, kind): what is asked once in a run, however many owners it has."""

DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class NewApproval:
    """What a run asks for.

    `schema` is what the answer must fit, or the arguments of the call if a person changes them; `max_bytes` how much
    JSON the answer may be. Seconds count from the commit.
    """

    step_id: str
    call_id: str
    path: str
    kind: ApprovalKind
    name: str
    arguments: Mapping[str, Any]
    prompt: str = ""
    schema: Mapping[str, Any] | None = None
    max_bytes: int | None = None
    role: str | None = None
    approvers: int = 1
    expires_seconds: float = DAY
    on_expiry: OnExpiry = "deny"
    escalate_seconds: float | None = None
    escalate_role: str | None = None
    id: str = field(default_factory=lambda: new_id("apr"))

    @property
    def key(self) -> ApprovalKey:
        return self.step_id, self.call_id, self.kind

    def shown(self) -> dict[str, Any]:
        """The fields of its event, but for `expires_at`, which Postgres adds: its clock decides."""
        fields = {
            "approval_id": self.id,
            "kind": self.kind,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.arguments,
            "prompt": self.prompt,
            "schema": self.schema,
            "role": self.role,
            "operations": [self._operation()],
        }
        return fields | {"path": self.path} if self.path else fields

    def _operation(self) -> dict[str, Any]:
        """The request by which the run goes on."""
        asked = self.kind in ("question", "client_tool")
        return {
            "op": "answer" if asked else "approve",
            "method": "POST",
            "path": f"/v1/approvals/{self.id}/decide",
            "body": {"decision": "answer", "answer": None} if asked else {"decision": "approve"},
            "description": "gives the answer that the run waits for" if asked else "lets the run do it and go on",
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """An approval as its run sees it. `arguments` are those that a person gave instead of the model's; of `answer` and
    `error` an answered one has one. `by` is a user's or key's id, or `expiry`."""

    approval_id: str
    step_id: str
    call_id: str
    kind: ApprovalKind
    status: ApprovalStatus
    arguments: dict[str, Any] | None
    answer: Any
    error: str | None
    comment: str | None
    by: str | None
    on_expiry: OnExpiry

    @property
    def key(self) -> ApprovalKey:
        return self.step_id, self.call_id, self.kind


@dataclass(frozen=True, slots=True)
class Approval:
    """An approval as callers see it. `edited` are the arguments as the last person who changed them wants them, in the
    `revision`th version."""

    id: str
    org_id: str
    run_id: str
    session_id: str
    step_id: str
    call_id: str
    path: str
    kind: ApprovalKind
    name: str
    arguments: Any
    edited: Any
    revision: int
    prompt: str
    schema: dict[str, Any] | None
    max_bytes: int | None
    role: str | None
    approvers: int
    approvals: int
    status: ApprovalStatus
    on_expiry: OnExpiry
    expires_at: datetime
    escalate_at: datetime | None
    escalate_role: str | None
    escalated_at: datetime | None
    answer: Any
    error: str | None
    comment: str | None
    decided_by: str | None
    decided_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One thing that happened to an approval. Without `user_id` and `key_id` it was time that did it, or the run's
    end."""

    decision: str
    revision: int
    user_id: str | None
    key_id: str | None
    role: str | None
    arguments: Any
    comment: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Decided:
    """What a decision came to: `decided`, or `recorded` where more people must approve. `claimable` says that the run
    can go on now."""

    outcome: Literal["decided", "recorded"]
    session_id: str
    run_id: str
    claimable: bool


@dataclass(frozen=True, slots=True)
class Due:
    """An approval that was due: what became of it, and whether a run can be claimed by that."""

    org_id: str
    session_id: str
    run_id: str
    approval_id: str
    outcome: Literal["approved", "expired", "escalated"]
    claimable: bool


async def list_approvals(
    db: Pool | Connection,
    org_id: str,
    *,
    before: str | None = None,
    status: ApprovalStatus | None = None,
    run_id: str | None = None,
    role: str | None = None,
    limit: int = 20,
) -> list[Approval]:
    """The org's approvals, newest first, those older than `before`. `role` is one that may decide them now."""
    return [_approval(row) for row in await db.fetch(SQL.list, org_id, before, status, run_id, role, limit)]


async def get_approval(db: Pool | Connection, org_id: str, approval_id: str) -> Approval:
    """Raises NotFound."""
    row = await db.fetchrow(SQL.get, org_id, approval_id)
    if row is None:
        raise _not_found(approval_id)
    return _approval(row)


async def audit_trail(db: Pool | Connection, org_id: str, approval_id: str) -> list[AuditEntry]:
    """All that happened to an approval, in order."""
    rows = await db.fetch(SQL.audit_trail, org_id, approval_id)
    return [AuditEntry(**{**row, "arguments": _json(row["arguments"])}) for row in rows]


async def open_client_call(db: Pool | Connection, org_id: str, run_id: str, call_id: str) -> str:
    """The id of the approval that stands for a call that the caller makes itself: the one that is pending, else the
    newest.

    Raises:
        NotFound: no such run in the org, or it never asked for such a call.
        Conflict: several agents of the run wait for calls of this id.
    """
    rows = await db.fetch(SQL.client_calls, org_id, run_id, call_id)
    if not rows:
        raise NotFound(f"Run {run_id} has not asked for a call {call_id}.", field="call_id")
    pending = [row["id"] for row in rows if row["status"] == "pending"]
    if len(pending) > 1:
        raise Conflict(
            f"Several agents of the run wait for a call {call_id}.",
            suggestions=(f"decide the approval that is meant, one of {', '.join(pending)}",),
        )
    return str(pending[0] if pending else rows[0]["id"])


async def decide(
    db: Pool | Connection,
    principal: Principal,
    approval_id: str,
    verdict: Verdict,
    *,
    arguments: dict[str, Any] | None = None,
    answer: Any = None,
    error: str | None = None,
    comment: str | None = None,
    revision: int | None = None,
) -> Decided:
    """Approves (with other `arguments`, perhaps), denies or answers. `error` stands instead of an answer.

    Raises:
        NotFound: no such approval in the org.
        Forbidden: the principal lacks the role.
        Conflict: it is resolved already, its time is over, it is another `revision` by now, or the same person has
            approved it before.
        InvalidInput: an approval of this kind is not decided like that; `arguments` or `answer` don't fit.
    """
    asked = await get_approval(db, principal.org_id, approval_id)
    if arguments is not None and revision in (None, asked.revision) and _same(arguments, asked):
        # They are approved as they stand: if somebody changes them meanwhile, this is about others.
        arguments, revision = None, asked.revision
    if asked.status == "pending":  # else what counts is that it is too late
        _check_fit(asked, verdict, arguments, answer, error)
    row = await db.fetchrow(
        SQL.decide,
        principal.org_id,
        approval_id,
        principal.user_id or principal.key_id,
        principal.user_id,
        principal.key_id,
        sorted(principal.roles),
        "admin" in principal.scopes,
        verdict,
        None if arguments is None else encode_json(arguments),
        encode_json(answer) if verdict == "answer" and error is None else None,
        error,
        comment,
        revision,
    )
    assert row is not None
    match row["outcome"]:
        case "not_found":
            raise _not_found(approval_id)
        case "forbidden":
            raise Forbidden(
                f"This needs the role {row['role']}.", suggestions=("use a key or token that has it, or an admin's",)
            )
        case "conflict":
            by = f" by {row['decided_by']}" if row["decided_by"] else ""
            raise Conflict(f"The approval was {_BECAME[row['status']]}{by} at {render_time(row['at'])}.")
        case "over":
            raise Conflict(f"The approval expired at {render_time(row['at'])}.")
        case "changed":
            raise Conflict(
                "Somebody has changed the arguments meanwhile.", suggestions=("look at the approval and decide again",)
            )
        case "voted":
            raise Conflict("You have approved this already.", suggestions=("let another person approve it",))
        case "wrong_kind":
            raise _wrong_kind(asked)
    return Decided(row["outcome"], row["session_id"], row["run_id"], row["claimable"])


async def resolve_due(db: Pool | Connection, *, limit: int = 50) -> list[Due]:
    """Ends what nobody decided in time, and shows what waits for long to a further role."""
    return [Due(**row) for row in await db.fetch(SQL.resolve_due, limit)]


_BECAME: Final[Mapping[str, str]] = {
    "approved": "approved",
    "denied": "denied",
    "answered": "answered",
    "expired": "left to expire",
    "cancelled": "cancelled, because its run ended,",
}


def _check_fit(
    asked: Approval, verdict: Verdict, arguments: dict[str, Any] | None, answer: Any, error: str | None
) -> None:
    by_answer = asked.kind in ("question", "client_tool")
    if verdict != "deny" and (verdict == "answer") != by_answer:
        raise _wrong_kind(asked)
    problems: Sequence[str] = ()
    if arguments is not None:
        problems = _problems(asked.schema, arguments)
    elif verdict == "answer" and error is None:
        if asked.max_bytes is not None and len(encode_json(answer).encode()) > asked.max_bytes:
            problems = [f"must not be larger than {asked.max_bytes} bytes of JSON"]
        else:
            problems = _problems(asked.schema, answer)
    if problems:
        field = "answer" if arguments is None else "arguments"
        raise InvalidInput(
            f"The {field} can't be taken: {'; '.join(problems)}.",
            field=field,
            suggestions=("see the approval's schema",),
        )


def _same(arguments: dict[str, Any], asked: Approval) -> bool:
    """Whether these are the arguments as they stand. As JSON: in Python `true` equals 1."""
    standing = asked.arguments if asked.edited is None else asked.edited
    return orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS) == orjson.dumps(standing, option=orjson.OPT_SORT_KEYS)


def _problems(schema: Mapping[str, Any] | None, value: Any) -> Sequence[str]:
    if schema is None:
        return ()
    try:
        return Schema(schema).problems(value)
    except SchemaError:  # a tool's own: it checks again what it is called with
        return ()


def _wrong_kind(asked: Approval) -> InvalidInput:
    fitting = "answer or deny" if asked.kind in ("question", "client_tool") else "approve or deny"
    return InvalidInput(
        f"An approval of the kind {asked.kind} is not decided like that.",
        field="decision",
        suggestions=(f"decide with {fitting}",),
    )


def _not_found(approval_id: str) -> NotFound:
    return NotFound(f"There is no approval {approval_id}.", field="approval_id")


def _json(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)


def _approval(row: asyncpg.Record) -> Approval:
    fields = dict(row)
    for name in ("arguments", "edited", "schema", "answer"):
        fields[name] = _json(fields[name])
    return Approval(**fields)
