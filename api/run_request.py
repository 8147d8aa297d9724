"""What a caller may say about a run, and how it becomes the kernel's `NewRun`."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from api.values import AgentId, Body, Metadata, Variables
from kernel.agents import ModelChoice, Slug
from kernel.runs import IfBusy, InputMessage, NewRun
from kernel.workflows import DEFAULT_WORKFLOW, WorkflowName

_MOST_TEXT: Final = 200_000
_MOST_RUNS: Final = 100

Text = Annotated[str, Field(min_length=1, max_length=_MOST_TEXT)]


class InputItem(Body):
    """One message of the input."""

    role: Literal["user", "assistant", "system"]
    content: Text


class Budget(Body):
    """What the run may use at most; the agent's own limits hold besides."""

    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000_000)
    max_tool_calls: int | None = Field(default=None, ge=0, le=500)
    max_steps: int | None = Field(default=None, ge=1, le=100)
    timeout_seconds: int | None = Field(default=None, ge=1, le=86_400)


def _kind(value: Any) -> str | None:
    """Which branch of a union is meant. The tags' brackets keep them out of the paths of errors."""
    if isinstance(value, str):
        return "<text>"
    return "<rest>" if isinstance(value, list | dict | ModelChoice) else None


Input = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[InputItem], Field(min_length=1, max_length=500), Tag("<rest>")],
    Discriminator(
        _kind,
        custom_error_type="input_type",
        custom_error_message="must be a text or a list of messages",
    ),
]
ModelOrName = Annotated[
    Annotated[str, Field(min_length=1, max_length=200), Tag("<text>")] | Annotated[ModelChoice, Tag("<rest>")],
    Discriminator(
        _kind,
        custom_error_type="model_choice",
        custom_error_message="must be a model's name or an object",
    ),
]


class RunRequest(Body):
    """A run as it is asked for. Only `input` is needed."""

    input: Input = Field(description="a text, or messages of which the last is answered")
    agent_id: AgentId | None = Field(default=None, description="else the session's, else the org's default")
    workflow: WorkflowName = DEFAULT_WORKFLOW
    variables: Variables = Field(default={})
    model: ModelOrName | None = Field(default=None, description="instead of the agent's")
    tools: list[Slug] | None = Field(
        default=None,
        max_length=64,
        description="only these of the agent's tools",
        json_schema_extra={"uniqueItems": True},
    )
    budget: Budget | None = None
    if_busy: IfBusy = Field(
        default="enqueue",
        description="what to do while a run of the session is unfinished: wait behind it, answer 409, or cancel it",
    )
    priority: int = Field(default=0, ge=-10, le=10, description="within the org, higher ones start first")
    deadline_seconds: float | None = Field(
        default=None,
        ge=0.1,
        le=2_592_000,
        description="from now; then the run expires, wherever it is, also if no worker has started it",
    )
    metadata: Metadata = Field(default={})

    @field_validator("tools")
    @classmethod
    def _each_tool_once(cls, tools: list[str] | None) -> list[str] | None:
        if tools is not None and len(set(tools)) != len(tools):
            raise ValueError("a tool may be named only once")
        return tools

    def new_run(self) -> NewRun:
        """The same for the kernel. `request` has only what was asked for; a model's name becomes an object."""
        request: dict[str, Any] = {}
        if self.variables:
            request["variables"] = self.variables
        if self.model is not None:
            chosen = ModelChoice(name=self.model) if isinstance(self.model, str) else self.model
            request["model"] = chosen.model_dump(exclude_none=True)
        if self.tools is not None:
            request["tools"] = self.tools
        if self.budget is not None:
            request["budget"] = self.budget.model_dump(exclude_none=True)
        if isinstance(self.input, str):
            messages = [InputMessage("user", self.input)]
        else:
            messages = [InputMessage(item.role, item.content) for item in self.input]
        return NewRun(
            messages,
            self.agent_id,
            self.workflow,
            request,
            self.metadata,
            self.if_busy,
            self.priority,
            self.deadline_seconds,
        )


class RunBatch(Body):
    """Up to 100 runs, each in a new session."""

    runs: list[RunRequest] = Field(min_length=1, max_length=_MOST_RUNS)
