"""The synthetic embedder: what a model of middling quality would see.

No model: it has read the grammars that the corpora are generated from, so it knows which words mean the same, and which
values belong to which topic. To be no better than models are, it knows each word only in part, hears every other word
as well, and is off by some noise with every text. It shows what recall makes of a second, independent opinion; how good
the opinion of a real model is on real texts it does not show. `python -m bench.memory` prints its own quality.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from bench.memory.grammar import topics
from memory.embedders.nearness import UNRELATED, measured
from memory.terms import CHARACTER, LIGHT, terms

_DIMENSIONS: Final = 256
_GRAMMARS: Final = ("conversations_en", "conversations_zh", "documents_en", "documents_zh")

_KNOWN: Final = (0.15, 0.85)  # how much of a word's meaning is known: of each word another share
_BELONGS: Final = 0.4  # of a value's vector is that of its topic
_WORD: Final = 0.5  # how much a word counts of which nothing is known
_LIGHT: Final = 0.15
_NOISE: Final = 0.8  # against a text of length 1

Vector = NDArray[np.float64]


class SyntheticEmbedder:
    """Deterministic and without a network; stateless but for what it has read."""

    model = "synthetic-1"
    dimensions = _DIMENSIONS
    local = True

    def __init__(self) -> None:
        self._meanings = _meanings(_GRAMMARS)
        longest_first = sorted(self._meanings, key=len, reverse=True)
        self._phrases = re.compile("|".join(_pattern(phrase) for phrase in longest_first))
        self.nearness = measured([self.vector(text).tolist() for text in UNRELATED])

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[round(value, 6) for value in self.vector(text).tolist()] for text in texts]

    async def aclose(self) -> None:
        """Holds nothing."""

    def vector(self, text: str) -> Vector:
        """The unit vector of a text."""
        total: Vector = np.zeros(_DIMENSIONS)
        lowered = text.lower()
        for match in self._phrases.finditer(lowered):
            total += self._meaning(match[0])
        for term in terms(self._phrases.sub(" ", lowered)):
            if term.grade != CHARACTER:
                total += (_LIGHT if term.grade == LIGHT else _WORD) * _direction(term.text)
        length = float(np.linalg.norm(total))
        if length > 0:
            total /= length
        total += _NOISE * _direction(f"noise {text}")
        unit: Vector = total / (float(np.linalg.norm(total)) * 1.0001)
        return unit

    @cache  # noqa: B019  # lives as long as the bench
    def _meaning(self, phrase: str) -> Vector:
        low, high = _KNOWN
        known = low + (high - low) * crc32(f"known {phrase}".encode()) / 2**32
        meant = np.sum([_direction(name) * share for name, share in self._meanings[phrase].items()], axis=0)
        known_of: Vector = known * meant + np.sqrt(1 - known**2) * _direction(phrase)
        return known_of


def _meanings(grammars: Iterable[str]) -> Mapping[str, Mapping[str, float]]:
    """Phrases in lower case, each with what it means and how much."""
    found: dict[str, dict[str, float]] = {}
    for name in grammars:
        for topic in topics(name).values():
            for word_class, words in topic.words.items():
                if word_class == "head":
                    continue
                meant = f"{name} {topic.name}" if word_class == "v" else f"{name} {topic.name} {word_class}"
                for word in words:
                    phrase = found.setdefault(word.lower(), {})
                    phrase[meant] = _BELONGS if word_class == "v" else 1.0
                    if word_class == "a":  # the topic itself
                        phrase[f"{name} {topic.name}"] = _BELONGS
    return found


def _pattern(phrase: str) -> str:
    return rf"\b{re.escape(phrase)}\b" if phrase.isascii() else re.escape(phrase)


@cache
def _direction(name: str) -> Vector:
    """A unit vector of this name, the same everywhere."""
    drawn = np.random.default_rng(crc32(name.encode())).normal(size=_DIMENSIONS)
    return drawn / float(np.linalg.norm(drawn))
