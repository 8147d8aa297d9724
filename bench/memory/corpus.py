"""What quality is measured on: memories of some shelves, and questions whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memory.records import NewMemory


@dataclass(frozen=True, slots=True)
class Asked:
    """A question of one who sees one shelf, and the places there of what answers it."""

    text: str
    shelf: int
    answers: frozenset[int]


@dataclass(frozen=True, slots=True)
class Corpus:
    """`shelves` holds the memories of each shelf, in order; a question sees one of them."""

    name: str
    language: str
    shelves: Sequence[Sequence[NewMemory]]
    questions: Sequence[Asked]

    @property
    def size(self) -> int:
        return sum(map(len, self.shelves))
