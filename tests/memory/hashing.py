"""An embedder whose vectors say which words a text has: of any name and length, and failing when it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from memory.embedders.port import Nearness
from memory.errors import EmbedderUnavailable


class HashingEmbedder:
    """`failures`: so many calls fail from now on. `asked` are the texts of all calls that did not."""

    local = True
    nearness = Nearness(floor=0.3, weight=1.0)

    def __init__(self, model: str = "hashing", dimensions: int = 64) -> None:
        self.model = model
        self.dimensions = dimensions
        self.failures = 0
        self.asked: list[str] = []

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        if self.failures:
            self.failures -= 1
            raise EmbedderUnavailable("it was told to fail")
        self.asked += texts
        return [self._vector(text) for text in texts]

    async def aclose(self) -> None:
        """Holds nothing."""

    def _vector(self, text: str) -> list[float]:
        values = [0.0] * self.dimensions
        for word in text.casefold().split():
            values[crc32(word.encode()) % self.dimensions] += 1.0
        length = sum(value * value for value in values) ** 0.5 or 1.0
        return [round(value / length, 6) for value in values]
