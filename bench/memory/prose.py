"""Texts and vectors in any number, for what depends on how many there are and not on what they say.

Words are made up and fall off as in real text without its stop words (Zipf's law from the twentieth word on); each
text has a topic, from whose words half of it comes. Vectors have 384 numbers but spread over 48 dimensions, around the
vectors of their topics, and a little over the rest, much as those of real models do: vectors that are random in
all dimensions would be a harder case than there is, and vectors around a few points an easier one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from memory.embedders.port import Nearness

DIMENSIONS: Final = 384
Vectors: TypeAlias = NDArray[np.float32]

_WORDS: Final = 60_000
_HEAD: Final = 20  # the words of highest rank that real text would have and that are no terms
_TOPICS: Final = 1500
_WORDS_OF_TOPIC: Final = 150
_INNER: Final = 48
_OWN: Final = 0.7  # how far a text is from its topic's vector, against 1 between topics
_REST: Final = 0.15
_QUESTION: Final = 0.35
_ONSETS: Final = (
    "b",
    "br",
    "ch",
    "d",
    "f",
    "g",
    "gl",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "r",
    "s",
    "st",
    "t",
    "v",
    "w",
)
_RIMES: Final = ("ab", "an", "ek", "el", "im", "in", "ok", "or", "ul", "un", "ax", "ev", "ip", "od", "urn", "ant")


@dataclass(frozen=True, slots=True)
class Batch:
    """Some texts, and the unit vector of each, in the precision in which they are kept."""

    texts: Sequence[str]
    vectors: Vectors


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about the text at a place, with its vector."""

    text: str
    vector: Vectors
    about: int


class Prose:
    """A seeded source of texts; no two are the same."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        syllables = [onset + rime for onset, rime in itertools.product(_ONSETS, _RIMES)]
        pairs = [first + second for first, second in itertools.product(syllables, syllables)]
        self._words = [pairs[place] for place in self._random.permutation(len(pairs))[:_WORDS]]
        ranks = np.arange(_WORDS)
        self._often = np.cumsum(1 / (ranks + _HEAD))
        self._often /= self._often[-1]
        self._topic_words = self._drawn(_TOPICS * _WORDS_OF_TOPIC).reshape(_TOPICS, _WORDS_OF_TOPIC)
        in_topic = np.cumsum(1 / (np.arange(_WORDS_OF_TOPIC) + 3))
        self._in_topic = in_topic / in_topic[-1]
        self._topics = self._random.normal(size=(_TOPICS, _INNER))
        self._outward = self._random.normal(size=(_INNER, DIMENSIONS)) / np.sqrt(DIMENSIONS)
        self._seen: set[int] = set()

    def batch(self, count: int) -> Batch:
        """Texts of 6 to 60 words, 18 in the middle."""
        topics = self._random.integers(0, _TOPICS, count)
        lengths = np.clip(self._random.lognormal(2.9, 0.45, count), 6, 60).astype(int)
        texts = [self._text(int(topic), int(length)) for topic, length in zip(topics, lengths, strict=True)]
        inner = self._topics[topics] + _OWN * self._random.normal(size=(count, _INNER))
        return Batch(texts, self._unit(inner @ self._outward, _REST))

    def questions(self, batch: Batch, count: int, *, first: int = 0) -> list[Asked]:
        """Questions about texts of the batch, whose places begin at `first`: some words of the text and one or two
        that it lacks, and a vector near its own."""
        chosen = self._random.choice(len(batch.texts), size=min(count, len(batch.texts)), replace=False)
        vectors = self._unit(batch.vectors[chosen], _QUESTION)
        asked = []
        for place, vector in zip(chosen, vectors, strict=True):
            own = batch.texts[place].split()
            kept = self._random.choice(len(own), size=min(len(own), int(self._random.integers(2, 5))), replace=False)
            words = [own[word] for word in kept]
            words += [self._words[word] for word in self._drawn(int(self._random.integers(1, 3)))]
            asked.append(Asked(" ".join(words), vector, first + int(place)))
        return asked

    def _text(self, topic: int, length: int) -> str:
        while True:
            half = length // 2
            own = self._topic_words[topic][np.searchsorted(self._in_topic, self._random.random(half))]
            text = " ".join([self._words[word] for word in np.concatenate([own, self._drawn(length - half)])])
            if hash(text) not in self._seen:
                self._seen.add(hash(text))
                return text

    def _drawn(self, count: int) -> NDArray[np.int64]:
        return np.searchsorted(self._often, self._random.random(count))

    def _unit(self, vectors: NDArray[np.float64] | Vectors, noise: float) -> Vectors:
        """Of length 1, with noise of that length relative to them, and as halfvec keeps them."""
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors + noise * self._random.normal(size=vectors.shape) / np.sqrt(DIMENSIONS)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) * 1.0001
        return vectors.astype(np.float16).astype(np.float32)


class Prepared:
    """An embedder that has been told all vectors: what is measured with it is measured without the embedding call."""

    model = "prepared"
    dimensions = DIMENSIONS
    local = True
    nearness = Nearness(floor=0.3, weight=1.0)

    def __init__(self) -> None:
        self.vectors: dict[str, list[float]] = {}

    def learn(self, texts: Sequence[str], vectors: Vectors) -> None:
        """Vectors of texts, each with as many digits as a halfvec keeps."""
        for text, vector in zip(texts, vectors, strict=True):
            self.vectors[text] = [round(value, 6) for value in vector.tolist()]

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [self.vectors[text] for text in texts]

    async def aclose(self) -> None:
        """Holds nothing."""
