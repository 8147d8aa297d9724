"""What a brain is asked and what it answers: data only, nothing of HTTP.

A `Reply` is a script that the server plays. Without delays and faults it is played as fast as the connection
takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat completion request, as it came; `tools` are the function definitions within it, by name."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    tools: Mapping[str, Mapping[str, Any]]
    stream: bool
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool; `arguments` given as text are sent as they are, right or wrong."""

    name: str
    arguments: Mapping[str, Any] | str


@dataclass(frozen=True, slots=True)
class HttpError:
    """Answers with this status instead; a mapping as the body is sent as JSON."""

    status: int
    body: Mapping[str, Any] | bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Raw:
    """Answers 200 with exactly these bytes as the body, each piece in a write of its own.

    `pause`: seconds between writes. `stay`: keep the answer open, and silent, after the last piece.
    """

    pieces: Sequence[bytes]
    content_type: str = "text/event-stream"
    pause: float = 0.0
    stay: bool = False


@dataclass(frozen=True, slots=True)
class NotHttp:
    """Writes these bytes where an HTTP answer belongs, and closes the connection."""

    data: bytes


@dataclass(frozen=True, slots=True)
class HangUp:
    """Closes the connection without a byte."""


@dataclass(frozen=True, slots=True)
class BreakOff:
    """Closes the connection after so many frames of the script, in the middle of the answer."""

    after: int


@dataclass(frozen=True, slots=True)
class Hang:
    """Goes silent after so many frames of the script, until the client leaves; None: before the head."""

    after: int | None


Fault = HttpError | Raw | NotHttp | HangUp | BreakOff | Hang


@dataclass(frozen=True, slots=True)
class Reply:
    """The script of one answer. Its frames are, in order: reasoning, tokens, tool calls, one each.

    `first_delay` passes before the first frame, `token_delay` before each further one, both in seconds.
    `finish_reason` defaults to `tool_calls` or `stop`; `usage` (input, output) to counts of the script.
    """

    tokens: Sequence[str] = ()
    reasoning: Sequence[str] = ()
    tool_calls: Sequence[ToolCall] = ()
    finish_reason: str | None = None
    usage: tuple[int, int] | None = None
    first_delay: float = 0.0
    token_delay: float = 0.0
    fault: Fault | None = None


class Brain(Protocol):
    """Anything callable that says what to answer. Must not block."""

    def __call__(self, request: ChatRequest, /) -> Reply: ...
