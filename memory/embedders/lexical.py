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
from zlib import crc32

from memory.embedders.port import Nearness
from memory.terms import WEIGHT, WORD, terms

_DIMENSIONS = 512
_AT_ONCE = 2000  # characters; more would hold up the event loop for milliseconds
_TRIGRAMS = 0.7  # the length that all trigrams of a word have together, where the word itself has 1
_MIX = 0x9E3779B97F4A7C15  # multiplicative hashing (Knuth): CRC alone spreads similar strings badly


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
        strength = WEIGHT[term.grade] * (1.0 + math.log(count))
        _add(sums, term.text, strength)
        if term.grade == WORD:
            edged = f"^{term.text}$"
            share = strength * _TRIGRAMS / math.sqrt(len(term.text))
            for start in range(len(term.text)):
                _add(sums, "~" + edged[start : start + 3], share)
    length = math.sqrt(sum(value * value for value in sums))
    if length == 0.0:
        return sums
    # Six digits are more than a float32 of this size can tell, and travel as a third of the text.
    return [round(value / length, 6) if value else 0.0 for value in sums]


def _add(sums: list[float], feature: str, strength: float) -> None:
    """Spreads a feature over four places with signs of their own, ten bits of the hash each.

    With one place each, two short texts that share nothing come out near each other whenever two features meet.
    """
    hashed = crc32(feature.encode()) * _MIX
    for shift in (54, 44, 34, 24):
        bits = hashed >> shift
        if bits & 512:
            sums[bits & 511] += strength
        else:
            sums[bits & 511] -= strength
