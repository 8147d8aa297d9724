"""Puts a context together: what the model is told in one call, within a budget of tokens.

It depends on its arguments alone. Whatever is dropped, three things hold: a call and its results are never separated,
the last round and what the turn is about are told, and what users said in dropped messages is told in short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from langchain_core.messages import AnyMessage, SystemMessage

from orchestrator.window.pieces import Piece, Round, bare, tell_human
from orchestrator.window.preamble import About, preamble, steps
from orchestrator.window.record import Asked
from orchestrator.window.tokens import PER_MESSAGE, beginning, estimate

LEAST_ROOM: Final = 200
"""Tokens beside the instructions that there are in any case, even where the instructions alone exceed the budget."""

_MANY: Final = 999_999
_RECENT: Final = 4


@dataclass(frozen=True, slots=True)
class Parts:
    """What there is to tell: instructions, what is known of earlier, earlier turns, this turn's task and its rounds."""

    system: str
    about: About
    history: Sequence[Piece]
    task: Sequence[Piece]
    rounds: Sequence[Round]
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Context:
    """What is told, and how many of the earlier messages and rounds are not. `needed` is what all of it would take,
    `squeezed` whether anything was cut for want of room."""

    messages: list[AnyMessage]
    tokens: int
    needed: int
    squeezed: bool
    left_out: int = 0


def assemble(parts: Parts, budget: int, *, opens: bool = True) -> Context:
    """The context within `budget` tokens, or within those of its instructions and `LEAST_ROOM` if these are more."""
    system = PER_MESSAGE + estimate(parts.system)
    room = max(budget - system, LEAST_ROOM)
    opening, between = _opening(parts.about, room), _between(parts.about, room)
    fixed = _cost(opening) + _cost(between)
    body = _tokens(parts.history) + _tokens(parts.task) + sum(round.tokens for round in parts.rounds)
    needed = system + fixed + body
    if fixed + body <= room:
        pieces = [piece for round in parts.rounds for piece in round.pieces]
        return Context(
            _joined(parts.system, opening, parts.history, parts.task, between, pieces), needed, needed, False
        )
    return _squeezed(parts, system, room, needed, opens=opens)


def falling(parts: Parts, room: int) -> tuple[int, int]:
    """How many of the earliest messages and rounds have to go so that the rest takes `room` tokens: messages before
    rounds, but for the latest few, and never the last round."""
    over = _tokens(parts.history) + _tokens(parts.task) + sum(round.tokens for round in parts.rounds) - room
    messages = rounds = 0
    early = max(len(parts.history) - _RECENT, 0)
    while over > 0 and messages < early:
        over -= parts.history[messages].tokens
        messages += 1
    while over > 0 and rounds < len(parts.rounds) - 1 and not parts.rounds[rounds].open:
        over -= parts.rounds[rounds].tokens
        rounds += 1
    while over > 0 and messages < len(parts.history):
        over -= parts.history[messages].tokens
        messages += 1
    return messages, rounds


def _squeezed(parts: Parts, system: int, room: int, needed: int, *, opens: bool) -> Context:
    """Results first, then what was said, then rounds, the oldest before the others; the last resort is to clip."""
    *earlier, last = parts.rounds or [Round()]
    history, task = list(parts.history), list(parts.task)
    # What users said in what goes: all of it, to know what to keep room for.
    asked = [one for piece in history if (one := piece.asked()) is not None]
    most = replace(parts.about, asked=[*parts.about.asked, *asked])
    reserve = _cost(_opening(most, room, _MANY)) + _cost(_between(parts.about, room))
    rest = room - reserve
    over = _tokens(history) + _tokens(task) + sum(round.tokens for round in parts.rounds) - rest

    for place, round in enumerate(earlier):
        if over <= 0:
            break
        short = [bare(piece, opens=opens) for piece in round.pieces]
        over -= round.tokens - _tokens(short)
        earlier[place] = Round(short, round.last, round.awaited)
    messages = 0
    while over > 0 and messages < len(history):
        over -= history[messages].tokens
        messages += 1
    rounds = 0
    while over > 0 and rounds < len(earlier):
        over -= earlier[rounds].tokens
        rounds += 1
    final = last.pieces
    if over > 0:
        share = max(rest - last.tokens, rest * 2 // 5)
        task = _clipped(task, share)
        final = _clipped(final, rest - _tokens(task))
    dropped = [one for piece in history[:messages] if (one := piece.asked()) is not None]
    dropped += [
        one for round in earlier[:rounds] for piece in round.pieces if (one := piece.asked(parts.turn)) is not None
    ]
    left_out = messages + sum(len(round.pieces) for round in earlier[:rounds])
    between = _between(parts.about, room)
    pieces = [piece for round in earlier[rounds:] for piece in round.pieces] + list(final)
    tokens = system + _cost(between) + _tokens(history[messages:]) + _tokens(task) + _tokens(pieces)
    opening = _opening(_with(parts.about, dropped), room, left_out)
    opening = beginning(opening, system + room - tokens - PER_MESSAGE)
    told = _joined(parts.system, opening, history[messages:], task, between, pieces)
    return Context(told, tokens + _cost(opening), needed, True, left_out)


def _with(about: About, dropped: Sequence[Asked]) -> About:
    return replace(about, asked=[*about.asked, *dropped]) if dropped else about


def _clipped(pieces: Sequence[Piece], room: int) -> list[Piece]:
    """Pieces within `room` tokens together: short ones stay, long ones share what is left evenly."""
    found = list(pieces)
    order = sorted(range(len(found)), key=lambda place: found[place].tokens)
    for done, place in enumerate(order):
        share = max(room // (len(order) - done), 0)
        found[place] = found[place].within(share)
        room -= found[place].tokens
    return found


def _opening(about: About, room: int, left_out: int = 0) -> str:
    return beginning(preamble(about, room, left_out), room // 2)


def _between(about: About, room: int) -> str:
    return beginning(steps(about, room), room // 6)


def _cost(text: str) -> int:
    return PER_MESSAGE + estimate(text) if text else 0


def _tokens(pieces: Sequence[Piece]) -> int:
    return sum([piece.tokens for piece in pieces])


def _joined(
    system: str,
    opening: str,
    history: Sequence[Piece],
    task: Sequence[Piece],
    between: str,
    pieces: Sequence[Piece],
) -> list[AnyMessage]:
    told: list[AnyMessage] = [SystemMessage(system)]
    if opening:
        told.append(tell_human(opening))
    told += [piece.told() for piece in history]
    told += [piece.told() for piece in task]
    if between:
        told.append(tell_human(between))
    told += [piece.told() for piece in pieces]
    return told
