"""When a call has to be approved by a person, by whom, and what happens if nobody does."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from kernel.json_schema import AnySchema, Schema
from kernel.tool_definitions import Definition

Role = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$", description="one that a key or a JWT may carry")]

MAX_WAIT: Final = 2_592_000
"""Seconds that an approval may stay open at most."""

OnExpiry: TypeAlias = Literal["deny", "approve", "fail"]
"""What an approval comes to that nobody decided in time. `fail` ends the run."""


class Escalation(Definition):
    """After so many seconds without a decision another role may decide as well."""

    after_seconds: int = Field(ge=1, le=MAX_WAIT)
    role: Role


class Condition(Definition):
    """A call needs approval if its arguments fit this JSON Schema."""

    arguments: AnySchema


class ApprovalPolicy(Definition):
    """The policy of one tool.

    `when` is `always`, `never`, or `{"arguments": <JSON Schema>}`: if the arguments fit. Without `role` whoever has the
    scope `write` may decide. `approvers` different people must approve; the first denial denies.
    """

    when: Annotated[
        Annotated[Literal["always", "never"], Tag("<text>")] | Annotated[Condition, Tag("<condition>")],
        Discriminator(lambda value: "<text>" if isinstance(value, str) else "<condition>"),
    ] = "always"
    prompt: str = Field(default="", max_length=2_000, description="what is shown to who decides")
    role: Role | None = None
    approvers: int = Field(default=1, ge=1, le=10)
    expires_seconds: int = Field(default=86_400, ge=1, le=MAX_WAIT)
    on_expiry: OnExpiry = "deny"
    escalate: Escalation | None = None

    @model_validator(mode="after")
    def _escalates_in_time(self) -> ApprovalPolicy:
        if self.escalate is not None and self.escalate.after_seconds >= self.expires_seconds:
            raise ValueError("escalate.after_seconds must be less than expires_seconds")
        return self

    def asks(self, arguments: Any) -> bool:
        """Whether a call with these arguments needs approval."""
        if isinstance(self.when, Condition):
            return Schema(self.when.arguments).fits(arguments)
        return self.when == "always"
