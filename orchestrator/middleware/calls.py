"""What layers see: calls on the way in, outcomes on the way out. All are frozen; `dataclasses.replace` makes others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from langchain_core.messages import BaseMessage

from kernel.effects import EffectClass
from kernel.events import RunStatus
from orchestrator.models.turn import ReasoningDelta, Restart, TextDelta, Usage
from orchestrator.tools.tool import ToolContext

Emitted: TypeAlias = TextDelta | ReasoningDelta | Restart


@dataclass(frozen=True, slots=True)
class RunCall:
    """A run that is about to be executed.

    `attempt` counts from 1 and is higher where the run goes on after a pause, a decision or the death of a worker: the
    layers around it start anew then. `input` is the text that is answered; another one is what the agent sees, while
    the session's log keeps what was sent. `conversation` is all that was said until now, the input included, oldest
    first, as {"role", "content"}. `request` is what the caller asked for beside the input; it has no secrets.
    """

    run_id: str
    session_id: str
    org_id: str
    user_id: str | None
    agent_id: str
    agent_version: int
    agent: str
    workflow: str
    attempt: int
    input: str
    conversation: Sequence[Mapping[str, Any]] = field(repr=False)
    request: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended: `text` is its answer, or says why there is none. `finish_reason` is the model's, or the code of
    the error. A layer that did not pass the call on gives the outcome that the run then has."""

    status: RunStatus
    text: str
    finish_reason: str = "stop"
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A model that is about to be asked. `path` is empty for the run's own agent. `tools` are in OpenAI's format.

    `emit` takes the deltas of the answer as they come, for those who follow the run.
    """

    run: RunCall
    path: str
    model: str
    messages: Sequence[BaseMessage] = field(repr=False)
    tools: Sequence[dict[str, Any]] = field(repr=False)
    emit: Callable[[Emitted], None] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that is about to be called, with valid arguments. Other `arguments` are checked again. The name can't be
    changed: what a tool may do was decided by its name."""

    run: RunCall
    path: str
    name: str
    effect: EffectClass
    arguments: Mapping[str, Any] = field(repr=False)
    context: ToolContext = field(repr=False)
