"""What a memory is found by: its words as numbers and its vector, made from its text and its context."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from memory.embedders.port import Embedder
from memory.errors import EmbedderUnavailable, MemoryUnavailable
from memory.words import Words, words

Source = tuple[str, str | None]
"""The text of a memory, and its context."""

_AT_ONCE: Final = 2000  # characters; reading more of them would hold up the event loop for milliseconds
_VECTORS_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Indexed:
    """Words and vectors of some memories, in their order, as the functions of migration 0019 take them.

    `dimensions` is the length of the vectors. `found` are the terms, each with the number of these memories it is in.
    """

    terms: list[str]
    impacts: list[str]
    lengths: list[int]
    found: list[int]
    found_in: list[int]
    vectors: list[str]
    dimensions: int

    def words(self) -> tuple[list[str], list[str], list[int], list[int], list[int]]:
        return self.terms, self.impacts, self.lengths, self.found, self.found_in


class Indexer:
    """Reads texts and has them embedded."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    async def index(self, sources: Sequence[Source]) -> Indexed:
        """Words and vectors of at least one memory.

        Raises:
            MemoryUnavailable: the embedder gave no vectors.
        """
        try:
            if sum(len(text) + len(context or "") for text, context in sources) <= _AT_ONCE:
                vectors = await self._embedder.embed(list(map(embedded, sources)))
                read = [words(*source) for source in sources]
            else:
                vectors, read = await asyncio.gather(
                    self._embedder.embed(list(map(embedded, sources))), asyncio.to_thread(_read, sources)
                )
        except EmbedderUnavailable as error:
            raise MemoryUnavailable(
                f"nothing was remembered: {error.message}", suggestions=error.suggestions
            ) from error
        if len(sources) <= _VECTORS_AT_ONCE:
            return _written(read, vectors)
        return await asyncio.to_thread(_written, read, vectors)


def embedded(source: Source) -> str:
    """What is embedded of a memory: who said it and when is a part of what it says."""
    text, context = source
    return text if context is None else f"{context}\n{text}"


def literal(vector: Sequence[float]) -> str:
    """The text of a halfvec."""
    return orjson.dumps(vector).decode()


def reading(read: Sequence[Words]) -> tuple[list[str], list[str], list[int], list[int], list[int]]:
    """Words as `Indexed.words` has them."""
    found = Counter(number for one in read for number in one.numbers)
    return (
        ["{" + ",".join(map(str, one.numbers)) + "}" for one in read],
        [one.literal() for one in read],
        [one.length for one in read],
        list(found),
        list(found.values()),
    )


def _read(sources: Iterable[Source]) -> list[Words]:
    return [words(*source) for source in sources]


def _written(read: Sequence[Words], vectors: Sequence[Sequence[float]]) -> Indexed:
    return Indexed(*reading(read), [literal(vector) for vector in vectors], len(vectors[0]))
