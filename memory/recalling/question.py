"""What the text arm is asked: the terms of a question, how rare each is, and which of them lead to candidates.

All terms of a question score. Which memories are scored is another matter: on shelves of some thousand memories those
that share any term, on large ones those that share a rare one. A memory that has the common terms alone can hardly
come first, and reading half a shelf to make sure would cost a hundred times as much.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from memory.terms import WEIGHT, Term, terms
from memory.words import keys, number, rarity, sparse

_MOST_LOOKED_UP: Final = 64  # of a long text's terms: more would say what the text is about no better
_MOST_ASKED: Final = 24
_ENOUGH: Final = 8  # a long question need not be covered whole: this many of its best terms are full coverage
_BUDGET: Final = 2000  # memories that one search scores, about; 1 to 2 µs each
_MOST_KEYS: Final = 4096  # entries of the index that one search looks up

Shelves = Mapping[int, int]
"""Shelves that the asker sees, and how many memories stand on each."""


class Question:
    """The terms of a question, each with what it says."""

    def __init__(self, query: str) -> None:
        counts = Counter(terms(query))
        telling = sorted(counts, key=lambda term: (-_strength(term, counts[term]), -len(term.text)))
        self._strengths: dict[int, float] = {}
        for term in telling[:_MOST_LOOKED_UP]:
            self._strengths.setdefault(number(term), _strength(term, counts[term]))

    @property
    def numbers(self) -> list[int]:
        """Its terms, whose frequencies `rated` wants to know."""
        return list(self._strengths)

    def rated(self, memories: int, having: Mapping[int, int], shelves: Shelves) -> Rated | None:
        """What to ask of an org with so many `memories`, of which so many are `having` each term. None: no memory has
        any of the terms."""
        rare = {key: rarity(memories, having.get(key, 0)) for key in self._strengths}
        present_rare = [rare[key] for key in rare if having.get(key, 0) > 0]
        if not present_rare:
            return None
        # A word that no memory has is as rare as can be. It says that the question is about something else in part, not
        # that it is about nothing that is here.
        most = sum(present_rare) / len(present_rare)
        worth = {
            key: strength * (rare[key] if having.get(key, 0) > 0 else min(rare[key], most))
            for key, strength in self._strengths.items()
        }
        best = dict(sorted(worth.items(), key=lambda pair: -pair[1])[:_MOST_ASKED])
        full = sum(list(best.values())[:_ENOUGH])
        present = {key: having[key] for key in best if having.get(key, 0) > 0}
        fetched, joined = _leading(present, best, shelves)
        return Rated(
            rarities=sparse(sorted((key, best[key]) for key in present)),
            full=full,
            any_of=[key for shelf in shelves for key in keys(shelf, fetched)],
            all_of=[keys(shelf, joined) for shelf in shelves] if joined else [],
        )


@dataclass(frozen=True, slots=True)
class Rated:
    """A question as the index is asked it."""

    rarities: str
    """The terms and what finding each is worth, as a sparsevec."""

    full: float
    """The score of a memory of middling length that has all of the question."""

    any_of: Sequence[int]
    """Entries of the index: whatever has one of them is a candidate."""

    all_of: Sequence[Sequence[int]]
    """And whatever has all of one of these."""


def _strength(term: Term, count: int) -> float:
    return WEIGHT[term.grade] * (1 + math.log(count))


def _leading(
    present: Mapping[int, int], worth: Mapping[int, float], shelves: Shelves
) -> tuple[Sequence[int], Sequence[int]]:
    """The terms that lead to candidates each by itself, and two common ones that do so together."""
    visible = sum(shelves.values())
    rarest = sorted(present, key=lambda key: present[key])[: max(1, _MOST_KEYS // max(1, len(shelves)))]
    if visible <= _BUDGET:
        return rarest, ()
    taken: list[int] = []
    reads = 0
    for key in rarest:
        reads += min(present[key], visible)
        if taken and reads > _BUDGET:
            break
        taken.append(key)
    rest = rarest[len(taken) :]
    # Only what has more of the rest than a rare term is worth can come before what has that.
    if len(rest) < 2 or sum(worth[key] for key in rest) < worth[taken[0]]:
        return taken, ()
    return taken, rest[:2]
