"""Words as numbers: what the text index stores of a memory, and what a question asks of it. BM25 in two halves.

A term is a number of 29 bits. What each term says of a memory, its impact, is worked out when the memory is written:
how often it is there, against how long the memory is. How rare a term is in the org is known when a question comes.
The sum over the question's terms of rarity times impact is BM25, and as an inner product of two sparse vectors it is
one cheap operation for Postgres.

The pivot of length is a constant and not the org's average: what is stored of a memory then depends on the memory
alone, whenever it is written or written again. Length counts by its square root, so that one constant serves both
turns of a conversation (a dozen terms) and passages of documents (some hundred).

Everything here is stored: a change of a constant or of `number` wants all memory_words to be written again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from zlib import crc32

from memory.records import MAX_CONTEXT
from memory.terms import CHARACTER, WEIGHT, Term, terms

K1: Final = 1.2
"""How much repetitions of a term say: 0 is nothing."""

B: Final = 0.75
"""How much length takes from what a term says: in [0, 1]."""

PIVOT: Final = 32.0
"""Terms in a memory whose impacts length neither raises nor lowers."""

HIGHEST_IMPACT: Final = K1 + 1
"""No impact reaches this."""

MAX_TERMS: Final = 12_000
"""Different terms kept of one memory, at most; a sparsevec holds 16,000."""

_BITS: Final = 29
_SPACE: Final = 1 << _BITS

# Of an org with three memories nothing is known of how rare words are: as if there were some more of which each word
# is in one.
_PRIOR_MEMORIES: Final = 50
_PRIOR_WITH_TERM: Final = 1


def number(term: Term) -> int:
    """The number of a term, in [0, 2^29). The same on every machine. Two terms may share one, about once in a
    million pairs of an org with a thousand words: it costs a little rank and nothing else."""
    return crc32(term.text.encode()) >> (32 - _BITS)


@dataclass(frozen=True, slots=True)
class Words:
    """What is stored of a memory: its different terms by ascending number, their impacts, and how many terms it has
    with repetitions."""

    numbers: tuple[int, ...]
    impacts: tuple[float, ...]
    length: int

    def literal(self) -> str:
        """`impacts` as a sparsevec."""
        return sparse(zip(self.numbers, self.impacts, strict=True))


def words(text: str, context: str | None = None) -> Words:
    """The words of a memory, of its text and of its context alike.

    Single characters of scripts without spaces are terms of their own, and count nothing towards the length: their
    pairs do. 8,000 characters take some milliseconds: long texts don't belong on the event loop.
    """
    read = Counter(terms(text))
    if context:
        read.update(terms(context))
    counts: dict[int, int] = {}
    length = 0
    for term, count in read.items():
        key = number(term)
        counts[key] = counts.get(key, 0) + count
        if term.grade != CHARACTER:
            length += count
    kept: Iterable[int] = counts
    if len(counts) > MAX_TERMS:
        weights: dict[int, float] = {}
        for term in read:
            weights[number(term)] = max(weights.get(number(term), 0.0), WEIGHT[term.grade])
        kept = sorted(counts, key=lambda key: -weights[key])[:MAX_TERMS]  # stable: of equals the early ones
    spread = _spread(length)
    impact = {count: round(count * (K1 + 1) / (count + spread), 4) for count in {*counts.values()}}
    numbers = tuple(sorted(kept))
    return Words(numbers, tuple([impact[counts[key]] for key in numbers]), length)


def single(length: int) -> float:
    """The impact of a term that is once in a memory of this length; 1 at the pivot."""
    return (K1 + 1) / (1 + _spread(length))


def _spread(length: int) -> float:
    return K1 * (1 - B + B * math.sqrt(length / PIVOT))


def keys(shelf: int, numbers: Iterable[int]) -> list[int]:
    """The entries of the text index for terms of a shelf's memories: `shelf` << 29 | number."""
    base = shelf << _BITS
    return [base | number for number in numbers]


def numbers(entries: Iterable[int]) -> list[int]:
    """The terms in entries of the text index."""
    return [entry & (_SPACE - 1) for entry in entries]


def rarity(memories: int, having: int) -> float:
    """What finding a term is worth that `having` of an org's `memories` have: BM25's idf, smoothed for small orgs.

    Above 0; about 3 for any word of an org that has a few memories.
    """
    having = min(having, memories)
    total = memories + _PRIOR_MEMORIES
    with_term = having + _PRIOR_WITH_TERM
    return math.log(1 + (total - with_term + 0.5) / (with_term + 0.5))


def sparse(values: Iterable[tuple[int, float]]) -> str:
    """Pairs of a term's number and a value as the text of a sparsevec; a term's index is its number + 1."""
    return "{" + ",".join([f"{key + 1}:{value:.4f}" for key, value in values]) + f"}}/{_SPACE}"


def context_of(speaker: str | None, at: datetime | None, *further: str) -> str | None:
    """The context of a turn of a conversation: who spoke, and the day as people ask for it; None without either.

        >>> context_of("Maria", datetime(2026, 3, 14))
        'Maria 2026-03-14 March Saturday 3月 星期六'

    The day is the one in `at`'s own time zone.
    """
    parts = [speaker.strip()] if speaker and speaker.strip() else []
    if at is not None:
        month, day = _MONTHS[at.month - 1], _DAYS[at.weekday()]
        parts.append(f"{at:%Y-%m-%d} {month} {day} {at.month}月 星期{_XINGQI[at.weekday()]}")
    parts.extend(part.strip() for part in further if part.strip())
    return " ".join(parts)[:MAX_CONTEXT] or None


# Not by strftime, whose names depend on the machine's locale.
_MONTHS: Sequence[str] = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_DAYS: Sequence[str] = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_XINGQI: Final = "一二三四五六日"
