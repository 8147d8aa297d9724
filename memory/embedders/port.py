"""The port: what an embedder has to do, and how its nearness is to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Nearness:
    """How to read the cosines of one model.

    Models differ: unrelated texts have a cosine of about 0.1 with one and of 0.7 with another.
    """

    floor: float
    """The cosine up to which two texts count as unrelated; in [0, 1)."""

    weight: float
    """How much nearness above the floor counts beside the text arm, which counts 1."""


class Embedder(Protocol):
    """Turns texts into unit vectors (or the zero vector, for a text in which it sees nothing)."""

    @property
    def model(self) -> str:
        """The name of the model. Vectors of different models are never compared."""
        ...

    @property
    def dimensions(self) -> int:
        """The length of the vectors; 0 as long as it is not known."""
        ...

    @property
    def local(self) -> bool:
        """Whether embedding a question takes no network and far less than a millisecond."""
        ...

    @property
    def nearness(self) -> Nearness:
        """How to read cosines. May become known with the first answer only."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector for each text, in order.

        Raises:
            EmbedderUnavailable: no vectors for any of the texts.
        """
        ...

    async def aclose(self) -> None:
        """Closes what it holds open."""
        ...
