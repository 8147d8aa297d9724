"""What users said, word for word: it outlives the messages that fall out of the window, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from orchestrator.window.record import Asked
from orchestrator.window.tokens import clipped, estimate

MOST_TOKENS: Final = 2_000
_FIRST: Final = 3
_PER_LINE: Final = 4


def kept(asked: Iterable[Asked], tokens: int) -> list[Asked]:
    """Those that `tokens` hold, in order: the first few, which say what it is all about, and the latest. A long one is
    clipped in its middle."""
    most = max(tokens // 5, 16)
    lines = [Asked(one.turn, clipped(one.text, most)) for one in asked if one.text.strip()]
    order = [*range(min(_FIRST, len(lines))), *range(len(lines) - 1, _FIRST - 1, -1)]
    chosen: set[int] = set()
    for place in order:
        cost = estimate(lines[place].text) + _PER_LINE
        if cost > tokens:
            break
        tokens -= cost
        chosen.add(place)
    return [lines[place] for place in sorted(chosen)]


def cost(asked: Sequence[Asked]) -> int:
    """Tokens that they take when they are told."""
    return sum(estimate(one.text) + _PER_LINE for one in asked)
