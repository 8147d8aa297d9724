"""The port that every tool fills.

A tool states what it takes (a pydantic model), what it does to the world (its effect class) and its limits. It
never times itself out, retries itself or cuts its own result: the toolbox does that for all tools alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict

from kernel.effects import EffectClass

JSONValue: TypeAlias = "bool | int | float | str | Sequence[JSONValue] | Mapping[str, JSONValue] | None"


class Arguments(BaseModel):
    """Base of all argument models: unknown fields are refused, values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


A_contra = TypeVar("A_contra", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class ToolContext:
    """On whose behalf a tool is called, and the call's names.

    `idempotency_key` is `run_id:step_id:call_id`, or a digest of it where it would exceed 255 characters: the same on
    every retry and after every resume of this call, and made of printable ASCII.
    """

    org_id: str
    user_id: str | None
    agent_id: str | None
    session_id: str
    run_id: str
    call_id: str
    idempotency_key: str


class Tool(ABC, Generic[A_contra]):
    """One callable.

    Attributes:
        name: 1 to 64 of `a-z A-Z 0-9 _ -`; what the model calls it by.
        description: for the model: what it does, when to use it, what it cannot do.
        arguments: the model that validates a call; it must forbid unknown fields (`Arguments` does).
        effect: see `EffectClass`.
        timeout: seconds for one attempt.
        retries: further attempts after a retryable failure.
        max_result_bytes: a longer result, as UTF-8 text, is cut with a note that says so; at least 256.
    """

    name: str
    description: str
    arguments: type[A_contra]
    effect: EffectClass
    timeout: float = 30.0
    retries: int = 0
    max_result_bytes: int = 65_536

    @abstractmethod
    async def run(self, arguments: A_contra, context: ToolContext) -> JSONValue:
        """Does it. A text is handed to the model as it is, anything else as JSON.

        Raises:
            ToolFailure: with a message for the model. Any other exception counts as a bug of the tool: it is
                logged, and the model learns only that the tool broke.
        """

    async def aclose(self) -> None:
        """Gives back what the tool holds (processes, connections). Called once, when the worker stops."""
        return
