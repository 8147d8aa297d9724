"""`ask_user`: a question to a person. The run waits for the answer without a worker."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from kernel.json_schema import AnySchema
from orchestrator.tools.deferred import DeferredTool, Wanted
from orchestrator.tools.tool import Arguments

_LONGEST_ANSWER = 65_536


class Question(Arguments):
    """What is asked. Without options or a schema the answer is a text."""

    question: str = Field(min_length=1, max_length=8_000, description="all that the person needs to know to answer")
    options: list[str] | None = Field(
        default=None, min_length=1, max_length=50, description="the answers to choose from"
    )
    answer_schema: AnySchema | None = Field(
        default=None, alias="schema", description="JSON Schema of the answer, where a text is not enough"
    )

    @model_validator(mode="after")
    def _one_shape(self) -> Question:
        if self.options is not None and self.answer_schema is not None:
            raise ValueError("give either options or a schema")
        return self


class AskUser(DeferredTool[Question]):
    """Asks a person."""

    name = "ask_user"
    description = (
        "Asks a person, and waits for the answer, which may take hours. Use it where you can't find out by yourself, "
        "or where the choice is theirs. Ask for everything at once."
    )
    arguments = Question
    effect = "read"
    kind: Literal["question", "client_tool"] = "question"

    def wanted(self, arguments: Question) -> Wanted:
        schema: dict[str, Any] | None = arguments.answer_schema
        if schema is None:
            schema = {"enum": arguments.options} if arguments.options else {"type": "string", "minLength": 1}
        return Wanted(arguments.question, schema, _LONGEST_ANSWER)
