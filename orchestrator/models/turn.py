"""One answer of a model as it grows: chunks of the chat completions protocol in, deltas and a whole turn out.

What arrived together comes out as one delta, since each delta costs its consumers far more than a join. The
text of the deltas, joined, always equals the content of the turn's message. Nothing here waits or does I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import orjson
from langchain_core.messages import AIMessage, InvalidToolCall, ToolCall
from langchain_core.messages.tool import invalid_tool_call, tool_call

from orchestrator.errors import ModelError
from orchestrator.models.diagnosis import Diagnosis

MAX_ANSWER = 8_388_608  # characters of text, reasoning and tool arguments together
MAX_TOOL_CALLS = 128
_MOST_NESTED = 64
_MOST_COUNTED = 10**9  # an endpoint that reports more tokens for one answer is wrong

_THOUGHTS = ("thinking", "reasoning")

_CALL_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer's text; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model thinks before it answers; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the endpoint counts them; zeros where it does not report them. `cached_tokens` are those of the input
    that it had seen before."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """The whole answer. Tool calls whose arguments are no JSON object are in `message.invalid_tool_calls`.

    Call ids are unique within the message. `finish_reason` is the endpoint's: `stop`, `tool_calls`,
    `length`, … `model` is the model that was asked, by the name under which it was asked.
    """

    message: AIMessage
    usage: Usage
    finish_reason: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class Restart:
    """What came so far is void: the model failed in the middle of its answer, and another one is asked."""

    failed: str
    error: ModelError


Delta = TextDelta | ReasoningDelta
Piece = TextDelta | ReasoningDelta | Restart | Turn


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class TurnBuilder:
    """Collects the chunks of one answer."""

    __slots__ = (
        "_by_index",
        "_calls",
        "_content",
        "_diagnosis",
        "_fresh",
        "_model",
        "_reason",
        "_size",
        "_surrogates",
        "_usage",
        "recognised",
    )

    def __init__(self, diagnosis: Diagnosis) -> None:
        self._diagnosis = diagnosis
        self._fresh: list[tuple[type[Delta], list[str]]] = []
        self._content: list[str] = []
        self._calls: list[_Call] = []
        self._by_index: dict[object, _Call] = {}
        self._usage = Usage()
        self._reason = ""
        self._model = ""
        self._size = 0
        self._surrogates = False
        self.recognised = False  # at least one chunk was a chat completion

    @property
    def finished(self) -> bool:
        """Whether the endpoint gave a finish reason: nothing but usage comes after it."""
        return bool(self._reason)

    def absorb(self, data: bytes) -> None:
        """Takes one chunk of a stream, or a whole completion.

        Raises:
            ModelGarbled: not JSON, or the wrong shape. Another ModelError: the chunk reports an error.
        """
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            chunk = self._lenient(data, error)
        if type(chunk) is not dict:
            raise self._diagnosis.garbled("a chunk is not a JSON object")
        if reported := chunk.get("error"):
            raise self._diagnosis.of_error_object(reported)
        if usage := chunk.get("usage"):
            self._count(usage)
        choices = chunk.get("choices")
        if choices is None:
            return
        self.recognised = True
        if not choices:
            return
        if type(choices) is not list or type(choices[0]) is not dict:
            raise self._diagnosis.garbled("its choices are not a list of objects")
        choice = choices[0]
        delta = choice.get("delta")
        if delta is None and not self._content and not self._calls:
            delta = choice.get("message")  # a whole completion
        if delta:
            self._absorb_delta(delta)
        if reason := choice.get("finish_reason"):
            if reason == "error":
                raise self._diagnosis.of_error_object(choice.get("error"))
            self._reason = self._storable(str(reason))[:64]
            self._model = self._storable(str(chunk.get("model") or ""))[:256]

    def drain(self) -> list[Delta]:
        """What came since the last call, merged: neighbours of one kind are one delta."""
        deltas: list[Delta] = []
        for kind, parts in self._fresh:
            text = self._storable("".join(parts))
            self._size += len(text)
            if text:
                deltas.append(kind(text))
                if kind is TextDelta:
                    self._content.append(text)
        self._fresh.clear()
        if self._size > MAX_ANSWER:
            raise self._diagnosis.garbled(f"it is longer than {MAX_ANSWER} characters")
        return deltas

    def turn(self, model: str = "") -> Turn:
        """The whole answer; call it once, after the last `drain`."""
        reason = self._reason or ("tool_calls" if self._calls else "stop")
        valid, invalid = sorted_calls(
            (call.id, self._storable(call.name), self._storable("".join(call.arguments))) for call in self._calls
        )
        message = AIMessage(
            content="".join(self._content),
            tool_calls=valid,
            invalid_tool_calls=invalid,
            response_metadata={
                "model_provider": "openai",
                "model_name": self._model,
                "finish_reason": reason,
            },
        )
        return Turn(message, self._usage, reason, model)

    def _absorb_delta(self, delta: object) -> None:
        if type(delta) is not dict:
            raise self._diagnosis.garbled("a delta is not an object")
        if reasoning := _reasoning(delta):
            self._say(ReasoningDelta, reasoning)
        if content := delta.get("content") or delta.get("refusal"):
            self._say(TextDelta, content)
        if calls := delta.get("tool_calls"):
            if type(calls) is not list:
                raise self._diagnosis.garbled("its tool calls are not a list")
            for call in calls:
                self._absorb_call(call)

    def _say(self, kind: type[Delta], text: object) -> None:
        if type(text) is list:
            if kind is TextDelta and (thoughts := _parts(text, _THOUGHTS)):  # some endpoints think within the content
                self._say(ReasoningDelta, thoughts)
            text = _parts(text, ("text",))
            if not text:
                return
        if type(text) is not str:
            raise self._diagnosis.garbled("its text is not a string")
        if self._fresh and self._fresh[-1][0] is kind:
            self._fresh[-1][1].append(text)
        else:
            self._fresh.append((kind, [text]))

    def _absorb_call(self, delta: object) -> None:
        function = delta.get("function") if type(delta) is dict else None
        if type(delta) is not dict or type(function) is not dict:
            raise self._diagnosis.garbled("a tool call is not an object with a function")
        id_, name, arguments = delta.get("id"), function.get("name"), function.get("arguments")
        call = self._call_at(delta.get("index"), id_ if name else None)
        if type(id_) is str and id_:
            call.id = id_
        if type(name) is str and name != call.name:
            call.name += name
        if type(arguments) is dict:
            arguments = json.dumps(arguments)
        if type(arguments) is str:
            call.arguments.append(arguments)
            self._size += len(arguments)

    def _call_at(self, index: object, id_: object) -> _Call:
        """The call that a piece belongs to. Some endpoints leave out the index, or give 0 to every call."""
        call = self._by_index.get(index) if type(index) is int else self._calls[-1] if self._calls else None
        if call is None or (id_ and call.id and id_ != call.id):
            if len(self._calls) >= MAX_TOOL_CALLS:
                raise self._diagnosis.garbled(f"it has more than {MAX_TOOL_CALLS} tool calls")
            call = _Call()
            self._calls.append(call)
            if type(index) is int:
                self._by_index[index] = call
        return call

    def _count(self, usage: object) -> None:
        if type(usage) is not dict:
            return
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if type(details) is dict else 0
        counts = usage.get("prompt_tokens"), usage.get("completion_tokens"), cached
        self._usage = Usage(*(min(n, _MOST_COUNTED) if type(n) is int and n > 0 else 0 for n in counts))

    def _lenient(self, data: bytes, error: orjson.JSONDecodeError) -> Any:
        """Half of a surrogate pair, which tokenizers can produce, is worth no failed answer."""
        if "surrogate" in str(error):
            try:
                chunk = json.loads(data)
            except (ValueError, RecursionError):
                pass
            else:
                self._surrogates = True
                return chunk
        raise self._diagnosis.garbled("a chunk is not JSON")

    def _storable(self, text: str) -> str:
        """Without what neither UTF-8 nor Postgres can hold: lone surrogates and NUL."""
        if self._surrogates:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text.replace("\0", "") if "\0" in text else text


def _reasoning(delta: dict[str, Any]) -> object:
    """What the delta says of the model's thoughts, under whichever name; endpoints that use two say the same twice."""
    if said := delta.get("reasoning_content") or delta.get("reasoning"):
        return said
    if type(said := delta.get("thinking")) is str:
        return said
    details = delta.get("reasoning_details")
    return _parts(details, ("text", "summary")) if type(details) is list else None


def _parts(parts: list[Any], names: tuple[str, ...]) -> str:
    """The text of content parts under the first of `names` that each has. A part may hold parts of text itself."""
    found: list[str] = []
    for part in parts:
        if type(part) is not dict:
            continue
        text = next((part[name] for name in names if part.get(name)), None)
        if type(text) is list:
            text = _parts(text, ("text",))
        if type(text) is str:
            found.append(text)
    return "".join(found)


def sorted_calls(asked: Iterable[tuple[str, str, str]]) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    """Tool calls as (id, name, raw arguments), those that can be made and the others. All get ids that are unique
    among them, printable and short."""
    valid: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    taken: set[str] = set()
    for id_, name, raw in asked:
        if not _CALL_ID.fullmatch(id_) or id_ in taken:
            id_ = f"call_{uuid4().hex}"
        taken.add(id_)
        arguments, problem = _arguments(raw)
        if not name:
            problem = "the call names no tool"
        if problem:
            invalid.append(invalid_tool_call(name=name, args=raw, id=id_, error=problem))
        else:
            valid.append(tool_call(name=name, args=arguments, id=id_))
    return valid, invalid


def too_deep(value: Any) -> bool:
    """Whether it is nested beyond what every store and tool on the way can take."""
    level: list[Any] = [value]
    for _ in range(_MOST_NESTED):
        below: list[Any] = []
        for item in level:
            if type(item) is dict:
                below += item.values()
            elif type(item) is list:
                below += item
        if not below:
            return False
        level = below
    return True


def _arguments(raw: str) -> tuple[dict[str, Any], str | None]:
    """The arguments that a model wrote, and what is wrong with them if something is."""
    if not raw.strip():
        return {}, None
    try:
        arguments = orjson.loads(raw)
    except orjson.JSONDecodeError as strict:
        try:  # models put line breaks into strings; what this accepts beyond that, dumps refuses
            arguments = json.loads(raw, strict=False, parse_constant=_refuse)
            orjson.dumps(arguments)
        except (ValueError, TypeError, RecursionError):
            return {}, f"the arguments are not valid JSON: {strict}"
    if type(arguments) is not dict:
        return {}, "the arguments are not a JSON object"
    if too_deep(arguments):
        return {}, f"the arguments are nested more than {_MOST_NESTED} levels deep"
    if "\\u0000" in raw:
        return {}, "the arguments contain a NUL character"
    return arguments, None


def _refuse(constant: str) -> object:
    raise ValueError(constant)
