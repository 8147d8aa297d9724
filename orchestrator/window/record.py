"""What a session's window holds. It is made from Postgres by one statement; Redis keeps it as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import orjson

Place: TypeAlias = tuple[int, int]
"""Where a message stands: its turn and its position in it."""

START: Final[Place] = (0, -1)
"""Before all messages."""

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Said:
    """One message of the conversation, as it is kept."""

    at: Place
    role: str
    content: Any


@dataclass(frozen=True, slots=True)
class Asked:
    """Something a user said, word for word, perhaps clipped."""

    turn: int
    text: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What was said up to and including `upto`. `told_in` is the turn whose run says in its log that it was made;
    `messages`, `tokens_before` and `tokens_after` say what it stands for."""

    upto: Place
    text: str
    asked: Sequence[Asked] = ()
    messages: int = 0
    tokens_before: int = 0
    tokens_after: int = 0
    told_in: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A large result of a tool, which can be opened by its id; `bytes` of UTF-8."""

    id: str
    tool: str
    bytes: int
    turn: int


@dataclass(frozen=True, slots=True)
class Window:
    """The window of a session after `turn`. `version` is 0 where nothing but messages is known."""

    turn: int
    version: int = 0
    dialogue: Sequence[Said] = ()
    summary: Summary | None = None
    results: Sequence[Result] = ()
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def base(self) -> Place:
        """Where the summary ends."""
        return START if self.summary is None else self.summary.upto

    def pack(self) -> bytes:
        """It as JSON."""
        summary = self.summary
        return orjson.dumps(
            {
                "format": FORMAT,
                "turn": self.turn,
                "version": self.version,
                "dialogue": [[*said.at, said.role, said.content] for said in self.dialogue],
                "summary": None if summary is None else _packed(summary),
                "results": [[result.id, result.tool, result.bytes, result.turn] for result in self.results],
                "notes": dict(self.notes),
            }
        )


def unpack(data: bytes) -> Window | None:
    """The reverse of `pack`; None for what is no window of this release."""
    try:
        found = orjson.loads(data)
        if found["format"] != FORMAT:
            return None
        return Window(
            int(found["turn"]),
            int(found["version"]),
            dialogue(found["dialogue"]),
            summary(found["summary"]),
            [Result(*one) for one in found["results"]],
            {str(key): str(text) for key, text in found["notes"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def dialogue(rows: Sequence[Sequence[Any]] | None) -> list[Said]:
    """Messages from [turn, position, role, content] each."""
    return [Said((turn, position), role, content) for turn, position, role, content in rows or ()]


def summary(found: Mapping[str, Any] | None) -> Summary | None:
    """A summary from its JSON."""
    if found is None:
        return None
    turn, position = found["upto"]
    asked = [Asked(one["turn"], one["text"]) for one in found["asked"]]
    figures = (found["messages"], found["tokens_before"], found["tokens_after"], found["told_in"])
    return Summary((turn, position), found["text"], asked, *figures)


def _packed(summary: Summary) -> dict[str, Any]:
    return {
        "upto": summary.upto,
        "text": summary.text,
        "asked": [{"turn": one.turn, "text": one.text} for one in summary.asked],
        "messages": summary.messages,
        "tokens_before": summary.tokens_before,
        "tokens_after": summary.tokens_after,
        "told_in": summary.told_in,
    }
