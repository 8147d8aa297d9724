"""`/v1/approvals`: what runs wait for that somebody has to decide; and the results of calls that callers make.

A decision is acknowledged when its transaction has committed. Only then are workers woken and followers told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from api.endpoint import Answer, Call, Endpoint, NoQuery
from api.paging import PageQuery, bad_cursor, page, read_cursor
from api.values import Body, RunId, View
from kernel import approvals
from kernel.approval_policy import OnExpiry, Role
from kernel.approvals import Approval, ApprovalKind, ApprovalStatus, Decided
from kernel.bell import Bell
from kernel.errors import Unstorable
from kernel.events import encode_json
from kernel.fanout import Publisher
from kernel.ids import is_id
from kernel.postgres import Pool
from kernel.runs import get_run

_MOST_BYTES = 1_048_576


def _bounded(value: Any) -> Any:
    try:
        size = len(encode_json(value).encode())
    except Unstorable:
        raise ValueError("is nested too deep") from None
    if size > _MOST_BYTES:
        raise ValueError(f"must not be larger than {_MOST_BYTES} bytes of JSON")
    return value


Value = Annotated[Any, AfterValidator(_bounded)]
Comment = Annotated[str, Field(min_length=1, max_length=2_000)]


class DecisionRequest(Body):
    """How an approval is decided: calls and limits are approved or denied, questions and callers' tools answered or
    denied."""

    decision: Literal["approve", "deny", "answer"]
    arguments: Annotated[dict[str, Any], AfterValidator(_bounded)] | None = Field(
        default=None, description="with approve: instead of those that the model gave"
    )
    answer: Value = Field(default=None, description="with answer: JSON that fits the approval's schema")
    comment: Comment | None = Field(default=None, description="the model is told")
    revision: int | None = Field(default=None, ge=0, le=2**31 - 1, description="refused if it is another one by now")

    @model_validator(mode="after")
    def _fits(self) -> DecisionRequest:
        if self.arguments is not None and self.decision != "approve":
            raise ValueError("arguments can only be changed with the decision approve")
        if "answer" in self.model_fields_set and self.decision != "answer":
            raise ValueError("an answer needs the decision answer")
        if self.decision == "answer" and "answer" not in self.model_fields_set:
            raise ValueError("the decision answer needs an answer")
        return self


class ToolResultRequest(Body):
    """What came of a call that the caller has made: a result or an error."""

    call_id: str = Field(min_length=1, max_length=256)
    result: Value = Field(default=None, description="JSON that fits the tool's result_schema")
    error: str | None = Field(
        default=None, min_length=1, max_length=16_384, description="for the model: what went wrong"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> ToolResultRequest:
        if ("result" in self.model_fields_set) == (self.error is not None):
            raise ValueError("give either a result or an error")
        return self


class ApprovalView(View):
    """An approval."""

    id: str
    run_id: str
    session_id: str
    step_id: str
    call_id: str
    path: str = Field(description="of the sub-agent that asks; empty for the run's own agent")
    kind: ApprovalKind
    name: str = Field(description="of the tool, or of the limit")
    arguments: Any = Field(description="as the model gave them")
    edited_arguments: dict[str, Any] | None = Field(description="as a person has changed them")
    revision: int = Field(description="how often they were changed")
    prompt: str
    schema_: dict[str, Any] | None = Field(alias="schema", description="of the answer, or of changed arguments")
    role: str | None = Field(description="who may decide; null: whoever may write")
    approvers_needed: int
    approvers: int = Field(description="how many have approved this revision")
    status: ApprovalStatus
    on_expiry: OnExpiry
    expires_at: AwareDatetime
    escalate_at: AwareDatetime | None
    escalate_role: str | None
    escalated_at: AwareDatetime | None
    answer: Any
    error: str | None
    comment: str | None
    decided_by: str | None = Field(description="the id of a user or a key, or `expiry`")
    decided_at: AwareDatetime | None
    created_at: AwareDatetime


class AuditEntryView(View):
    """One thing that happened to an approval. Without a user and a key it was time that did it, or the run's end."""

    decision: Literal["approve", "deny", "answer", "escalate", "expire", "cancel"]
    revision: int
    user_id: str | None
    key_id: str | None
    role: str | None
    arguments: Any
    comment: str | None
    at: AwareDatetime


class AuditedApprovalView(ApprovalView):
    """An approval and all that happened to it, in order."""

    history: list[AuditEntryView]


class ApprovalPage(View):
    """Approvals."""

    data: list[ApprovalView]
    next_cursor: str | None


class ApprovalFilter(PageQuery):
    """Which approvals to list."""

    status: ApprovalStatus | None = None
    run_id: RunId | None = None
    role: Role | None = Field(default=None, description="that may decide them now")


class Approvals:
    """The endpoints of approvals."""

    def __init__(self, db: Pool, publisher: Publisher, bell: Bell) -> None:
        self._db = db
        self._publisher = publisher
        self._bell = bell

    def endpoints(self) -> Iterator[Endpoint[Any, Any]]:
        one, tag = "/v1/approvals/{approval_id}", "approvals"
        yield Endpoint(
            method="GET",
            path="/v1/approvals",
            handler=self.list,
            tag=tag,
            summary="List approvals, newest first",
            scope="read",
            query=ApprovalFilter,
            response=ApprovalPage,
        )
        yield Endpoint(
            method="GET",
            path=one,
            handler=self.get,
            tag=tag,
            summary="Get an approval with its audit trail",
            scope="read",
            response=AuditedApprovalView,
        )
        yield Endpoint(
            method="POST",
            path=f"{one}/decide",
            handler=self.decide,
            tag=tag,
            summary="Approve, deny or answer",
            description="The run goes on at once. 202 if more people must approve. 403 without the role that the "
            "approval names; 409 if it is decided, expired or cancelled already.",
            scope="write",
            body=DecisionRequest,
            response=AuditedApprovalView,
            also={202: AuditedApprovalView},
            problems=(409,),
            idempotent=True,
        )
        yield Endpoint(
            method="POST",
            path="/v1/runs/{run_id}/tool-results",
            handler=self.post_result,
            tag=tag,
            summary="Post the result of a call that you have made",
            description="For tools of the type client: the run waits for it. 409 if it has one already.",
            scope="write",
            body=ToolResultRequest,
            response=AuditedApprovalView,
            problems=(409,),
            idempotent=True,
        )

    async def list(self, call: Call[None, ApprovalFilter]) -> Answer:
        query = call.query
        cursor = read_cursor(query.cursor, str)
        if cursor is not None and not is_id("apr", cursor[0]):
            raise bad_cursor()
        found = await approvals.list_approvals(
            call.db,
            call.org_id,
            before=cursor[0] if cursor else None,
            status=query.status,
            run_id=query.run_id,
            role=query.role,
            limit=query.limit + 1,
        )
        return Answer(page(found, query.limit, show=_shown, key=lambda approval: (approval.id,)))

    async def get(self, call: Call[None, NoQuery]) -> Answer:
        return Answer(await self._audited(call, call.path["approval_id"]))

    async def decide(self, call: Call[DecisionRequest, NoQuery]) -> Answer:
        body, approval_id = call.body, call.path["approval_id"]
        decided = await approvals.decide(
            call.db,
            call.principal,
            approval_id,
            body.decision,
            arguments=body.arguments,
            answer=body.answer,
            comment=body.comment,
            revision=body.revision,
        )
        shown = await self._audited(call, approval_id)
        if decided.outcome == "recorded":
            return Answer(shown, 202)
        return Answer(shown, after=partial(self._tell, call.org_id, decided))

    async def post_result(self, call: Call[ToolResultRequest, NoQuery]) -> Answer:
        body, run_id = call.body, call.path["run_id"]
        await get_run(call.db, call.org_id, run_id)
        approval_id = await approvals.open_client_call(call.db, call.org_id, run_id, body.call_id)
        decided = await approvals.decide(
            call.db, call.principal, approval_id, "answer", answer=body.result, error=body.error
        )
        return Answer(await self._audited(call, approval_id), after=partial(self._tell, call.org_id, decided))

    async def _audited(self, call: Call[Any, Any], approval_id: str) -> dict[str, Any]:
        approval = await approvals.get_approval(call.db, call.org_id, approval_id)
        trail = await approvals.audit_trail(call.db, call.org_id, approval_id)
        return {**_shown(approval), "history": [asdict(entry) for entry in trail]}

    async def _tell(self, org_id: str, decided: Decided) -> None:
        self._publisher.nudge(org_id, decided.session_id)
        if decided.claimable:
            await self._bell.ring()


def _shown(approval: Approval) -> dict[str, Any]:
    shown = asdict(approval)
    del shown["org_id"], shown["max_bytes"]
    shown["edited_arguments"] = shown.pop("edited")
    shown["approvers_needed"] = shown.pop("approvers")
    shown["approvers"] = shown.pop("approvals")
    return shown
