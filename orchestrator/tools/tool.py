"""The port that every tool fills.

A tool states what it takes (a pydantic model, or a JSON Schema), what it does to the world (its effect class) and its
limits. It never times itself out, retries itself or cuts its own result: the toolbox does that for all tools alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from kernel.effects import EffectClass
from kernel.json_schema import Schema
from orchestrator.tools.errors import ToolFailure

JSONValue: TypeAlias = "bool | int | float | str | Sequence[JSONValue] | Mapping[str, JSONValue] | None"


class Arguments(BaseModel):
    """Base of all argument models: unknown fields are refused, values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


A_contra = TypeVar("A_contra")


class Vault(Protocol):
    """The secrets that a call may use: the run's own, and its org's."""

    def expect(self, *names: str) -> None:
        """Says that a tool of the run names these secrets: they are struck out of whatever the run's tools return,
        also before the first of them is revealed."""

    async def ready(self) -> None:
        """Prepares for `redact`. Costs nothing in a run whose tools name no secrets.

        Raises:
            ToolFailure: the secrets can't be read at the moment.
        """

    async def reveal(self, name: str) -> str:
        """The secret of this name: the run's own, else the org's. From then on it is struck out of whatever the run's
        tools return.

        Raises:
            ToolFailure: there is none of this name, or it can't be opened.
        """

    def redact(self, text: str, *, cut: bool = False) -> str:
        """`text` without the secrets, in the clear or encoded. Where `text` was `cut` off, what its end shows of one
        goes too. The toolbox does it to all results; a tool that shortens texts should do it before."""


class NoSecrets:
    """The vault of a call that may use none."""

    def expect(self, *names: str) -> None:
        return

    async def ready(self) -> None:
        return

    async def reveal(self, name: str) -> str:
        raise ToolFailure(f"There is no secret named {name!r}.", reached=False)

    def redact(self, text: str, *, cut: bool = False) -> str:
        return text


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
    vault: Vault = field(default_factory=NoSecrets)


class BadArguments(ValueError):
    """A call's arguments are not what the tool takes. `lines` say why, for the model."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = tuple(lines)


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
    arguments: Any  # type[A_contra]: a model; of no use to a SchemaTool
    effect: EffectClass
    timeout: float = 30.0
    retries: int = 0
    max_result_bytes: int = 65_536

    def parameters(self) -> dict[str, Any]:
        """What it takes, as JSON Schema for the model."""
        return model_parameters(self.arguments)

    def parse(self, given: Mapping[str, Any]) -> A_contra:
        """The arguments of a call as `run` takes them.

        Raises:
            BadArguments: they are not valid.
        """
        try:
            arguments: A_contra = self.arguments.model_validate(given)
            return arguments
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False, include_context=False)
            raise BadArguments(
                [
                    f"{'.'.join(str(part)[:64] for part in problem['loc']) or 'arguments'}: {problem['msg']}"
                    for problem in problems
                ]
            ) from None

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


class SchemaTool(Tool[Mapping[str, Any]]):
    """A tool whose arguments are described by a JSON Schema instead of a model.

    Args:
        parameters: must have `"type": "object"` at its top.

    Raises:
        SchemaError: `parameters` is no usable JSON Schema.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self._parameters = dict(parameters)
        self._schema = Schema(parameters)

    def parameters(self) -> dict[str, Any]:
        return self._parameters

    def parse(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        if problems := self._schema.problems(given):
            raise BadArguments(problems)
        return given


class _WithoutTitles(GenerateJsonSchema):
    """pydantic adds a title to every field, which says again what the field's name says and costs tokens."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def model_parameters(arguments: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON Schema, as short as it can be."""
    schema = arguments.model_json_schema(schema_generator=_WithoutTitles)
    for name in ("title", "description"):  # the class's name and docstring are not for the model
        schema.pop(name, None)
    schema.setdefault("properties", {})
    return schema
