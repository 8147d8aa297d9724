"""The diversity pass: what says the same as something above it goes down, so that five versions of one fact don't take
the places of five facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

_ALIKE: Final = 0.5  # the share of common terms up to which two memories are different
_LOSS: Final = 1.6  # how fast the score goes down beyond: of an exact copy a fifth remains


def diverse(
    ranked: Sequence[T], *, score: Callable[[T], float], terms: Callable[[T], frozenset[int]], most: int
) -> list[tuple[T, float]]:
    """At most `most` of `ranked`, each time the one with the best score after what those before it take from it
    (maximal marginal relevance); with these scores, which fall."""
    left = [(each, score(each), terms(each)) for each in ranked]
    losses = [0.0] * len(left)
    taken: list[tuple[T, float]] = []
    while left and len(taken) < most:
        worth = [value * (1 - loss) for (_, value, _), loss in zip(left, losses, strict=True)]
        place = max(range(len(left)), key=lambda index: worth[index])
        each, _, has = left.pop(place)
        losses.pop(place)
        taken.append((each, worth[place]))
        for index, (_, _, other) in enumerate(left):
            losses[index] = max(losses[index], _LOSS * max(0.0, _alike(has, other) - _ALIKE))
    return taken


def _alike(one: frozenset[int], other: frozenset[int]) -> float:
    if not one or not other:
        return 0.0
    common = len(one & other)
    return common / (len(one) + len(other) - common)
