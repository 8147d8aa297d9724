"""What users said, word for word: it outlives the messages that fall out of the window, within a budget of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from orchestrator.window.record import Asked
from orchestrator.window.tokens import clipped, estimate

MOST_TOKENS: Final = 2_000
_FIRST: Final = 3
_LATEST: Final = 3
_PER_LINE: Final = 4

# Words of what holds beyond the message it stands in. One too many costs a few tokens.
_STANDING: Final = re.compile(
    r"\b(?:always|never|must|mustn't|don'?t|do not|only|from now on|make sure|remember|prefer|instead of|at most"
    r"|at least|no more than|in future|immer|nie|niemals|nur|siempre|nunca|toujours|jamais|sempre|всегда|никогда)\b"
    r"|必须|务必|始终|总是|永远|不要|不得|不许|别|只能|记住|以后|今后|从现在|必ず|常に|決して|しないで|항상|반드시|절대",
    re.IGNORECASE,
)


def kept(asked: Iterable[Asked], tokens: int) -> list[Asked]:
    """Those that `tokens` hold, in order: the first few, which say what it is all about, the latest, and before the
    others those that read like standing instructions. A long one is clipped in its middle."""
    most, left = max(tokens // 5, 16), tokens
    said = [one for one in asked if one.text.strip()]
    first, latest = range(min(_FIRST, len(said))), range(len(said) - 1, -1, -1)
    standing = [place for place in latest if _STANDING.search(said[place].text)]
    chosen: dict[int, Asked] = {}
    for places, spared in (
        (first[:1], 0),
        (latest[:1], 0),
        (first, 0),
        (latest[:_LATEST], 0),
        (standing, tokens // 4),
        (latest, 0),
    ):
        for place in places:
            if place in chosen:
                continue
            text = clipped(said[place].text, most)
            cost = estimate(text) + _PER_LINE
            if left - cost < spared:
                break
            left -= cost
            chosen[place] = Asked(said[place].turn, text)
    return [chosen[place] for place in sorted(chosen)]
