"""What recall is compared with: exact BM25 in Python, and what Postgres ranks by itself."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from bench.memory.probe import Found
from kernel.postgres import Pool
from memory.records import NewMemory
from memory.terms import terms

_K1: Final = 1.2
_B: Final = 0.75


def read(memory: NewMemory) -> list[str]:
    """The terms of a memory, of its text and its context, as our own text index reads them."""
    return [term.text for term in terms(f"{memory.context or ''}\n{memory.text}")]


class Bm25:
    """BM25 (Robertson and Zaragoza 2009) over the memories of one shelf, all of them scored for each question."""

    def __init__(self, read_memories: Sequence[Sequence[str]]) -> None:
        self._counts = [Counter(one) for one in read_memories]
        self._lengths = [len(one) for one in read_memories]
        self._mean = sum(self._lengths) / len(self._lengths)
        having = Counter(term for counts in self._counts for term in counts)
        total = len(self._counts)
        self._rarity = {term: math.log(1 + (total - n + 0.5) / (n + 0.5)) for term, n in having.items()}

    def search(self, query: str, most: int = 10) -> Found:
        """Places on the shelf, the best first; those with a score alone."""
        began = time.perf_counter()
        asked = {term.text: self._rarity[term.text] for term in terms(query) if term.text in self._rarity}
        scores = []
        for place, (counts, length) in enumerate(zip(self._counts, self._lengths, strict=True)):
            spread = _K1 * (1 - _B + _B * length / self._mean)
            score = sum(
                rarity * counts[term] * (_K1 + 1) / (counts[term] + spread)
                for term, rarity in asked.items()
                if term in counts
            )
            if score > 0:
                scores.append((score, -place))
        scores.sort(reverse=True)
        return Found([-place for _, place in scores[:most]], (time.perf_counter() - began) * 1e3)


class PostgresRank:
    """`ts_rank` and its kin over a `tsvector` with a GIN index, in a table of the bench's own."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def load(self, shelves: Sequence[Sequence[Sequence[str]]]) -> None:
        """The terms of each memory of each shelf."""
        await self._pool.execute(
            "DROP TABLE IF EXISTS bench_ranked;"
            " CREATE TABLE bench_ranked (shelf integer, place integer, search tsvector);"
            " CREATE INDEX ON bench_ranked USING gin (search) WITH (fastupdate = off);"
            " CREATE INDEX ON bench_ranked (shelf)"
        )
        rows = [
            (shelf, place, " ".join(f"'{term}':{at}" for at, term in enumerate(one, start=1)))
            for shelf, memories in enumerate(shelves)
            for place, one in enumerate(memories)
        ]
        await self._pool.execute(
            "INSERT INTO bench_ranked"
            " SELECT s, p, t::tsvector FROM unnest($1::int[], $2::int[], $3::text[]) AS g (s, p, t)",
            *map(list, zip(*rows, strict=True)),
        )
        await self._pool.execute("ANALYZE bench_ranked")

    async def search(self, rank: str, shelf: int, query: str, most: int = 10) -> Found:
        """Places, ranked by the function of this name."""
        asked = " | ".join(f"'{text}'" for text in dict.fromkeys(term.text for term in terms(query)))
        began = time.perf_counter()
        rows = await self._pool.fetch(
            f"SELECT place FROM bench_ranked WHERE shelf = $1 AND search @@ $2::text::tsquery"
            f" ORDER BY {rank}(search, $2::text::tsquery) DESC, place LIMIT $3",
            shelf,
            asked,
            most,
        )
        return Found([row["place"] for row in rows], (time.perf_counter() - began) * 1e3)
