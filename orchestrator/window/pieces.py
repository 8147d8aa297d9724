"""What a context is made of: pieces, each one message with its tokens, and rounds of pieces that stay together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage

from kernel.content import text_of
from orchestrator.transcript import to_model
from orchestrator.window.record import Asked, Place, Said
from orchestrator.window.references import reference
from orchestrator.window.tokens import PER_MESSAGE, beginning, clipped, estimate, of_content, of_message


@dataclass(slots=True, eq=False)
class Piece:
    """One message. That of an earlier turn is made for the model only when it is told; so is one with another text,
    `shown`, in the place of its own. `whole` is the result that it stands for, `shorter` its own shorter forms."""

    tokens: int
    message: AnyMessage | None = None
    said: Said | None = None
    result_id: str | None = None
    tool: str = ""
    shown: str | None = None
    whole: ToolMessage | None = None
    shorter: dict[int, Piece] = field(default_factory=dict)

    def told(self) -> AnyMessage:
        """The message as the model takes it."""
        if self.message is None:
            assert self.said is not None
            self.message = to_model(self.said.role, self.said.content, None, None)
        if self.shown is not None:
            self.message, self.shown = self.message.model_copy(update={"content": self.shown}), None
        return self.message

    @property
    def role(self) -> str:
        """`user`, `assistant`, `system` or `tool`."""
        if self.said is not None:
            return self.said.role
        assert self.message is not None
        return _ROLES.get(self.message.type, "assistant")

    @property
    def text(self) -> str:
        return text_of(self.said.content) if self.said is not None else str(self.told().text)

    @property
    def at(self) -> Place:
        assert self.said is not None
        return self.said.at

    def asked(self, turn: int = 0) -> Asked | None:
        """What it says if a user says it."""
        return Asked(self.said.at[0] if self.said else turn, self.text) if self.role == "user" else None

    def within(self, tokens: int) -> Piece:
        """The same message, clipped to so many tokens. Arguments of calls stay a JSON object."""
        if self.tokens <= tokens:
            return self
        message, room = self.told(), max(tokens - PER_MESSAGE, 0)
        if isinstance(message, ToolMessage):
            return self._of(message.model_copy(update={"content": _shorter(message, room, self)}))
        if isinstance(message, AIMessage):
            return self._of(_fewer_words(message, room))
        text = clipped(text_of(message.content), room)
        return self._of(message.model_copy(update={"content": text or "…"}))

    def _of(self, message: AnyMessage) -> Piece:
        return Piece(of_message(message), message, None, self.result_id, self.tool)


_HEAD: Final = 250
_ROLES: Final = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}


@dataclass(slots=True)
class Round:
    """What belongs together: a message of the assistant and the results of all its calls. `last` is the position of
    its last message; while it is `open`, results are missing."""

    pieces: list[Piece] = field(default_factory=list)
    last: int = 0
    awaited: int = 0

    @property
    def open(self) -> bool:
        return self.awaited > 0

    @property
    def tokens(self) -> int:
        return sum(piece.tokens for piece in self.pieces)


def of_said(said: Said) -> Piece:
    """A message of an earlier turn."""
    return Piece(PER_MESSAGE + of_content(said.content), said=said)


def of_transcript(
    placed: Sequence[tuple[int, str | None, AnyMessage]], result_tokens: int, made: dict[int, Piece], *, opens: bool
) -> tuple[list[Piece], list[Round]]:
    """A turn's messages, each with its position and the id of its record: what it was asked to do, and its rounds. A
    message of the assistant without calls is none of its steps, but was given with the question, as those before it.

    A result of more than `result_tokens` is a reference in all rounds but the last. `made` keeps pieces by position
    from one step to the next; `opens` says whether references can be opened.
    """
    task: list[Piece] = []
    rounds: list[Round] = []
    names: dict[str, str] = {}
    for position, record, message in placed:
        piece = made.get(position)
        if piece is None or piece.message is not message:
            piece = made[position] = Piece(of_message(message), message, None, record)
        if isinstance(message, ToolMessage) and rounds:
            rounds[-1].pieces.append(piece)
            rounds[-1].awaited -= 1
            piece.tool = names.get(message.tool_call_id, "a tool")
        elif isinstance(message, AIMessage) and (rounds or message.tool_calls or message.invalid_tool_calls):
            names = {str(call["id"]): str(call["name"]) for call in (*message.tool_calls, *message.invalid_tool_calls)}
            rounds.append(Round([piece], awaited=len(message.tool_calls) + len(message.invalid_tool_calls)))
        elif rounds:
            rounds.append(Round([piece]))
        else:
            task.append(piece)
            continue
        rounds[-1].last = position
    for round in rounds[:-1]:
        round.pieces = [_referred(piece, result_tokens, opens=opens) for piece in round.pieces]
    return task, rounds


def bare(piece: Piece, *, opens: bool) -> Piece:
    """A result as a reference without its beginning, where that is shorter."""
    return _referred(piece, 0, opens=opens)


def _referred(piece: Piece, most: int, *, opens: bool) -> Piece:
    """A result of more than `most` tokens as a reference, where that is shorter."""
    if piece.tokens <= most or not isinstance(piece.message, ToolMessage):
        return piece
    head = min(_HEAD, most // 2)
    short = piece.shorter.get(head)
    if short is None:
        whole = piece.whole or piece.message
        text = whole.content if isinstance(whole.content, str) else str(whole.text)
        shown = reference(piece.tool, text, piece.result_id if opens else None, head=head)
        tokens = PER_MESSAGE + estimate(shown)
        short = Piece(tokens, whole, None, piece.result_id, piece.tool, shown, whole)
        piece.shorter[head] = short
    return short if short.tokens < piece.tokens else piece


def _shorter(message: ToolMessage, room: int, piece: Piece) -> str:
    text = str(message.text)
    line = reference(piece.tool, text, piece.result_id, head=0)
    left = room - estimate(line) - 2
    return f"{line}\n{beginning(text, left)}…" if left > 8 else beginning(line, room)


def _fewer_words(message: AIMessage, room: int) -> AIMessage:
    """Its text and the longest texts among the arguments of its calls cut until it fits, as far as that goes."""
    text = clipped(str(message.text), room // 2)
    calls = message.tool_calls
    share = max((room - estimate(text)) // max(len(calls), 1) - 24, 4)
    shorter = [{**call, "args": _cut(call["args"], share)} for call in calls]
    invalid = [{**call, "args": beginning(str(call["args"]), share)} for call in message.invalid_tool_calls]
    return message.model_copy(update={"content": text, "tool_calls": shorter, "invalid_tool_calls": invalid})


def _cut(arguments: dict[str, Any], tokens: int) -> dict[str, Any]:
    if estimate(str(arguments)) <= tokens:
        return arguments
    each = max(tokens // max(len(arguments), 1) - 4, 2)
    return {
        name[:64]: beginning(value if isinstance(value, str) else str(value), each) + "…"
        if _long(value, each)
        else value
        for name, value in list(arguments.items())[: max(tokens // 8, 1)]
    }


def _long(value: Any, tokens: int) -> bool:
    return estimate(str(value)) > tokens


def tell_human(text: str) -> HumanMessage:
    """What stands before and between messages."""
    return HumanMessage(text)
