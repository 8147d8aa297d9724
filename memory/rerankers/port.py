"""The port: what a reranker has to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kernel.errors import OperatorError


class RerankerUnavailable(OperatorError):
    """The reranker gave no usable scores: down, refusing, too slow, or not what it claims to be."""

    code = "reranker_unavailable"


class Reranker(Protocol):
    """Reads a question and texts together, and says how well each answers it. Slower than recall and better."""

    async def rerank(self, query: str, texts: Sequence[str]) -> list[float]:
        """One score for each text, in order; higher is better. Scores compare within one call only.

        Raises:
            RerankerUnavailable: no scores for any of the texts.
        """
        ...

    async def aclose(self) -> None:
        """Closes what it holds open."""
        ...
