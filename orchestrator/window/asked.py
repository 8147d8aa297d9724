"""What users said, word for word: it outlives the messages that fall out of the window, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
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
    said = [one for one in asked if one.text.strip()]
    chosen: dict[int, Asked] = {}
    for place in chain(range(min(_FIRST, len(said))), range(len(said) - 1, _FIRST - 1, -1)):
        text = clipped(said[place].text, most)
        tokens -= estimate(text) + _PER_LINE
        if tokens < 0:
            break
        chosen[place] = Asked(said[place].turn, text)
    return [chosen[place] for place in sorted(chosen)]
