"""What a caller may say about a run, and how it becomes the kernel's `NewRun`."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, SecretStr, Tag, ValidationInfo, field_validator

from api.input_content import ImagePart, MessageContent, Text
from api.values import AgentId, Body, Metadata, Variables
from kernel.agent_config import ModelChoice
from kernel.json_schema import AnySchema
from kernel.runs import IfBusy, InputMessage, NewRun
from kernel.tool_definitions import SecretName, ToolEntries
from kernel.workflows import DEFAULT_WORKFLOW, WorkflowName

_MOST_RUNS: Final = 100


class InputItem(Body):
    """One message of the input. Only users send images."""

    role: Literal["user", "assistant", "system"]
    content: MessageContent

    @field_validator("content")
    @classmethod
    def _images_of_users(cls, content: MessageContent, info: ValidationInfo) -> MessageContent:
        if info.data.get("role", "user") != "user" and any(isinstance(part, ImagePart) for part in content):
            raise ValueError("only messages of the role user may hold images")
        return content

    def message(self) -> InputMessage:
        """The same for the kernel."""
        content = self.content
        return InputMessage(self.role, content if isinstance(content, str) else [part.model_dump() for part in content])


class Budget(Body):
    """What the run may use at most; the agent's own limits hold besides."""

    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000_000)
    max_cost: float | None = Field(default=None, ge=0, le=1_000_000, description="in the price table's currency")
    max_tool_calls: int | None = Field(default=None, ge=0, le=500)
    max_steps: int | None = Field(default=None, ge=1, le=100)
    max_seconds: float | None = Field(default=None, gt=0, le=86_400, description="of work, without time spent waiting")
    max_depth: int | None = Field(default=None, ge=0, le=4)
    timeout_seconds: int | None = Field(default=None, ge=1, le=86_400, description="then the run expires")
    on_limit: Literal["stop", "ask"] | None = Field(
        default=None, description="at a limit: answer with what there is, or wait until somebody raises it"
    )


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


Secrets = Annotated[
    dict[SecretName, Annotated[SecretStr, Field(min_length=1, max_length=8_192)]],
    Field(max_length=20, description="for this run alone, by the names that tools give; kept sealed until it ends"),
]


class RunRequest(Body):
    """A run as it is asked for. Only `input` is needed."""

    input: Input = Field(description="a text, or messages of which the last is answered")
    agent_id: AgentId | None = Field(default=None, description="else the session's, else the org's default")
    workflow: WorkflowName = DEFAULT_WORKFLOW
    variables: Variables = Field(default={})
    model: ModelOrName | None = Field(default=None, description="instead of the agent's")
    tools: ToolEntries | None = Field(
        default=None, description="only these of the agent's tools, and definitions for this run alone"
    )
    secrets: Secrets = Field(default={})
    response_schema: AnySchema | None = Field(default=None, description="what the final answer must be, as JSON")
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

    def new_run(self) -> NewRun:
        """The same for the kernel. `request` has only what was asked for; a model's name becomes an object."""
        request: dict[str, Any] = {}
        if self.variables:
            request["variables"] = self.variables
        if self.model is not None:
            chosen = ModelChoice(name=self.model) if isinstance(self.model, str) else self.model
            request["model"] = chosen.model_dump(exclude_none=True)
        if self.tools is not None:
            request["tools"] = [tool if isinstance(tool, str) else tool.model_dump() for tool in self.tools]
        if self.response_schema is not None:
            request["response_schema"] = self.response_schema
        if self.budget is not None:
            request["budget"] = self.budget.model_dump(exclude_none=True)
        if isinstance(self.input, str):
            messages = [InputMessage("user", self.input)]
        else:
            messages = [item.message() for item in self.input]
        return NewRun(
            messages,
            self.agent_id,
            self.workflow,
            request,
            self.metadata,
            self.if_busy,
            self.priority,
            self.deadline_seconds,
            {name: value.get_secret_value() for name, value in self.secrets.items()},
        )


class RunBatch(Body):
    """Up to 100 runs, each in a new session."""

    runs: list[RunRequest] = Field(min_length=1, max_length=_MOST_RUNS)
