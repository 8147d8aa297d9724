"""The offline embedder: spelling, not meaning.

It hashes the terms of a text, and the letter trigrams within its words, into a vector of fixed length. Texts that
share words, parts of words or Chinese phrases come out near each other, also across typos and word forms
("preference" and "prefers"); texts that say the same in other words do not, and a model would see what this
cannot. It needs no network, no download and no training, gives the same vector on every machine, and is there so
that memory works before anyone has configured an embedding model.

Method: signed feature hashing (Weinberger et al. 2009, "Feature hashing for large scale multitask learning") with
sublinear term frequency, normalised to length 1.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from operator import mul
from typing import Final
from zlib import crc32

from memory.embedders.port import Nearness
from memory.terms import WEIGHT, WORD, Term, terms

_DIMENSIONS = 512
_AT_ONCE = 2000  # characters; more would hold up the event loop for milliseconds
_TRIGRAMS = 0.7  # the length that all trigrams of a word have together, where the word itself has 1
_MIX = 0x9E3779B97F4A7C15  # multiplicative hashing (Knuth): CRC alone spreads similar strings badly
_DIGITS: Final = 1e6  # six digits are more than a float32 of this size can tell, and travel as a third of the text
_TO_WHOLE: Final = 1.5 * 2**52  # a float this large has no fraction: adding it and taking it away rounds to a whole one
_KNOWN_TERMS: Final = 4096  # that are kept with their places, 4 MB at most; most terms of a text are among them
_KNOWN_TRIGRAMS: Final = 8192  # 3 MB at most; most of those of the other terms
_PLACES: Final = tuple(range(_DIMENSIONS))  # one object for each number, however many terms hold it

_Places = tuple[tuple[int, ...], tuple[int, ...]]
"""Where a feature is added, and where it is taken away."""


class LexicalEmbedder:
    """Vectors of spelling. Stateless; safe to share."""

    model = "lexical-1"
    dimensions = _DIMENSIONS
    local = True
    # Features that meet by chance give unrelated texts cosines of 0 ± 0.044 (1/√512): 0.25 is out of their reach
    # among thousands of memories. Low weight: this arm sees little that the text arm does not see better.
    nearness = Nearness(floor=0.25, weight=0.3)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        if sum(map(len, texts)) <= _AT_ONCE:
            return [vector(text) for text in texts]
        return await asyncio.to_thread(lambda: [vector(text) for text in texts])

    async def aclose(self) -> None:
        """Holds nothing."""


def vector(text: str) -> list[float]:
    """The unit vector of a text; the zero vector for one without terms."""
    sums = [0.0] * _DIMENSIONS
    for term, count in Counter(terms(text)).items():
        strength = WEIGHT[term.grade] if count == 1 else WEIGHT[term.grade] * (1.0 + math.log(count))
        (more, less), (tri_more, tri_less) = _term_places(term)
        for place in more:
            sums[place] += strength
        for place in less:
            sums[place] -= strength
        if term.grade == WORD:
            share = strength * _TRIGRAMS / math.sqrt(len(term.text))
            for place in tri_more:
                sums[place] += share
            for place in tri_less:
                sums[place] -= share
    length = math.sqrt(sum(map(mul, sums, sums)))
    if length == 0.0:
        return sums
    scale = _DIGITS / length
    # As round(value / length, 6) does it, in a sixth of the time.
    return [(value * scale + _TO_WHOLE - _TO_WHOLE) / _DIGITS for value in sums]


@lru_cache(maxsize=_KNOWN_TERMS)
def _term_places(term: Term) -> tuple[_Places, _Places]:
    """Of a term, and of its trigrams together."""
    more: list[int] = []
    less: list[int] = []
    if term.grade == WORD:
        edged = f"^{term.text}$"
        for start in range(len(term.text)):
            added, taken = _trigram_places(edged[start : start + 3])
            more += added
            less += taken
    return _places(term.text), (tuple(more), tuple(less))


@lru_cache(maxsize=_KNOWN_TRIGRAMS)
def _trigram_places(trigram: str) -> _Places:
    return _places("~" + trigram)


def _places(feature: str) -> _Places:
    """Four places with signs of their own, ten bits of the hash each.

    With one place each, two short texts that share nothing come out near each other whenever two features meet.
    """
    hashed = crc32(feature.encode()) * _MIX
    more: list[int] = []
    less: list[int] = []
    for shift in (54, 44, 34, 24):
        bits = hashed >> shift
        (more if bits & 512 else less).append(_PLACES[bits & 511])
    return tuple(more), tuple(less)
