"""Structured answers: what an agent with a `response_schema` must say at the end, and whether it did.

The schema goes to the model with each call (`ResponseFormat`), and what comes back is read and checked here, whatever
the model's endpoint promises. An answer that does not fit is sent back with what is wrong with it, twice at most.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from kernel.json_schema import Schema, SchemaError
from orchestrator.errors import BadResponseSchema, InvalidAnswer
from orchestrator.models.provider import ResponseFormat
from orchestrator.models.turn import too_deep
from orchestrator.state import Draft

MOST_REPAIRS: Final = 2
_MOST_SHOWN: Final = 2_000
_MOST_READ: Final = 1_000_000
_FENCE: Final = re.compile(r"```[A-Za-z0-9]*[ \t]*\r?\n(.*?)```", re.DOTALL)  # takes linear time


@dataclass(frozen=True, slots=True)
class Misfit:
    """An answer that is not what was asked for, and why, one line each."""

    text: str
    problems: Sequence[str]

    def draft(self) -> Draft:
        """It as part of the graph's state."""
        return Draft(text=self.text, problems=list(self.problems))

    def error(self, asked: int, finish_reason: str) -> InvalidAnswer:
        """What the caller is told when it stays so after `asked` calls."""
        text = self.text if len(self.text) <= _MOST_SHOWN else self.text[: _MOST_SHOWN - 1] + "…"
        hints = ["choose a model that is better at structured answers, or make response_schema simpler"]
        if finish_reason == "length":
            hints.insert(0, "raise max_tokens of the model: its answer was cut off")
        return InvalidAnswer(
            f"The model's answer does not fit response_schema, and it was asked {asked} times. "
            f"What is wrong: {'; '.join(self.problems)}. The last answer was: {text}",
            suggestions=hints,
        )


def correction(draft: Draft) -> list[BaseMessage]:
    """What the model is told to do about an answer that does not fit."""
    lines = "\n".join(f"- {problem}" for problem in draft["problems"])
    return [
        AIMessage(draft["text"] or "(nothing)"),
        HumanMessage(
            "This answer is not the JSON that was asked for:\n"
            f"{lines}\nGive the whole answer again, corrected: the JSON alone, nothing before or after it."
        ),
    ]


class AnswerSchema:
    """A compiled `response_schema`.

    Raises:
        BadResponseSchema: it can't be used.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        try:
            self._schema = Schema(schema)
        except SchemaError as error:
            raise BadResponseSchema(
                f"The response_schema can't be used: {error}", suggestions=("correct it, and send the request again",)
            ) from None
        self.format = ResponseFormat(schema)

    def read(self, text: str) -> str | Misfit:
        """The JSON in the model's answer, which may stand in a code fence, or what is wrong with it."""
        text = str(text)  # LangChain's messages give a subclass, which orjson does not read
        if len(text) > _MOST_READ:
            return Misfit(text[:_MOST_SHOWN], [f"it is longer than {_MOST_READ} characters"])
        whole = _json(text)
        if isinstance(whole, str):
            fenced = _FENCE.findall(text)
            inner = _json(fenced[-1]) if fenced else whole
            if isinstance(inner, str):
                return Misfit(text, [inner])
            whole, text = inner, fenced[-1].strip()
        value = whole.value
        if too_deep(value):
            return Misfit(text, ["it is nested too deep"])
        if "\\u0000" in text:
            return Misfit(text, ["it contains a NUL character"])
        problems = self._schema.problems(value)
        return Misfit(text, problems) if problems else text


@dataclass(frozen=True, slots=True)
class _Parsed:
    value: Any


def _json(text: str) -> _Parsed | str:
    """The value that `text` is, or why it is none."""
    if not text.strip():
        return "it is empty"
    try:
        return _Parsed(orjson.loads(text))
    except orjson.JSONDecodeError as error:
        return f"it is not valid JSON: {error}"
