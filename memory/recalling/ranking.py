"""How candidates are ranked: pure functions over what the arms found.

The base is the sum of both arms' scores, each as a share of the best one's. That keeps what an arm knows of how far its
first is ahead of its second, which a fusion of ranks throws away. A hit then gives a share of its score to the
memories before and after it in its thread: in a conversation the answer often stands beside the words of the question.
What remains is small: it decides between memories of about the same relevance, and never lifts an irrelevant one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

from memory.recalling.arms import Candidate
from memory.records import Kind, ScopeKind

LEAST_WORDS: Final = 0.15
"""The share of a question's words, by rarity, from which on a memory counts as relevant to it."""

_CLEARLY_NEAR: Final = 0.8  # less nearness than this is not made more of: it may be all that a question has
_SECOND_OPINION: Final = 0.7  # what nearness counts beside words: at 1, a model that sees little spoils what words find
SPREAD: Final = 0.4
_ENOUGH: Final = 0.12  # of the best score: what is below is no answer beside it

_RECENCY: Final = 0.08
_HALF_LIFE_DAYS: Final[dict[Kind, float]] = {"fact": 180.0, "preference": 365.0, "summary": 60.0}
_KIND: Final[dict[Kind, float]] = {"preference": 0.02, "procedure": 0.02}
_SCOPE: Final[dict[ScopeKind, float]] = {"session": 0.06, "user": 0.04, "agent": 0.02}
_ENTITIES: Final = 0.1
_CONFIDENCE: Final = 0.3


def fuse(pool: Sequence[Candidate], weight: float) -> None:
    """Sets scores, in [0, 1].

    Args:
        weight: how much nearness counts beside words, which count 1. Below 1 it is no second opinion, but the same
            words seen less sharply: it finds what is spelled otherwise, and takes no part in the order of what words
            find.
    """
    words = max((each.words for each in pool), default=0.0) or 1.0
    near = max(_CLEARLY_NEAR, max((each.near for each in pool), default=0.0))
    share = weight * _SECOND_OPINION
    for each in pool:
        by_words, by_nearness = each.words / words, each.near / near
        if weight >= 1:
            each.score = (by_words + share * by_nearness) / (1 + share)
        else:
            each.score = max(by_words, weight * by_nearness)


def relevant(each: Candidate) -> bool:
    """Whether an arm finds it relevant by itself."""
    return each.covered >= LEAST_WORDS or each.is_near


def spread(pool: Iterable[Candidate]) -> None:
    """Gives each a share of the better score beside it, on either side."""
    pool = list(pool)
    at: dict[tuple[int, str, int], float] = {}
    for each in pool:
        if each.thread is not None and each.place is not None and relevant(each):
            key = (each.shelf, each.thread, each.place)
            at[key] = max(at.get(key, 0.0), each.score)
    for each in pool:
        if each.thread is not None and each.place is not None:
            before = at.get((each.shelf, each.thread, each.place - 1), 0.0)
            after = at.get((each.shelf, each.thread, each.place + 1), 0.0)
            each.score += SPREAD * (before + after)


def boost(pool: Iterable[Candidate], *, query: str, scopes: Mapping[int, ScopeKind], now: datetime) -> None:
    """Raises scores by some hundredths for what is recent, near to the asker, sure and about what the query names.

    Args:
        query: in lower case.
        scopes: of the shelves.
    """
    for each in pool:
        half_life = _HALF_LIFE_DAYS.get(each.kind)
        age = max(0.0, (now - each.created_at).total_seconds() / 86_400)
        recency = _RECENCY * 0.5 ** (age / half_life) if half_life else 0.0
        named = _ENTITIES if any(len(name) > 1 and name in query for name in each.entities) else 0.0
        raised = 1 + recency + named + _KIND.get(each.kind, 0.0) + _SCOPE.get(scopes[each.shelf], 0.0)
        each.score *= raised * (1 - _CONFIDENCE * (1 - each.confidence))


def best(pool: Iterable[Candidate], *, most: int) -> list[Candidate]:
    """The best first, without those that are no answer."""
    ordered = sorted(pool, key=lambda each: (-each.score, -each.no))
    return [each for each in ordered[:most] if each.score > _ENOUGH * ordered[0].score]
