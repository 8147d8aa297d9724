"""The arms of recall one by one, as recall asks them, and exact searches beside them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from kernel.postgres import Pool
from memory.embedders.port import Nearness
from memory.port import ALL
from memory.recalling.arms import Search, Sight, candidates
from memory.recalling.question import Question, Rated
from memory.words import keys

DEPTH: Final = 60
"""Candidates of each arm, as in recall."""

_NO_FLOOR: Final = -1.0  # an exact search knows no irrelevance, so the arm beside it doesn't either


@dataclass(frozen=True, slots=True)
class Found:
    """Numbers of memories, the best first, and how long the search took, in ms."""

    memories: Sequence[int]
    took: float


class Probe:
    """Asks the arms of one asker, who sees these shelves (with the number of memories on each)."""

    def __init__(self, pool: Pool, org_id: str, shelves: Mapping[int, int], space: int, nearness: Nearness) -> None:
        self._pool = pool
        self._org = org_id
        self._shelves = shelves
        self._space = space
        self._nearness = nearness

    async def near(self, vector: Sequence[float], most: int = 10) -> Found:
        """The dense arm alone."""
        sight = Sight(self._space, _literal(vector), _NO_FLOOR, self._nearness.weight)
        began = time.perf_counter()
        pool, _ = await candidates(
            self._pool, Search(self._org, self._shelves, None, [sight], ALL), DEPTH, within=False
        )
        took = (time.perf_counter() - began) * 1e3
        return Found([each.no for each in sorted(pool, key=lambda each: -each.near)[:most]], took)

    async def by_words(self, query: str, most: int = 10) -> Found:
        """The text arm alone, with what it asks about the question's terms."""
        began = time.perf_counter()
        rated = await self.rated(query)
        if rated is None:
            return Found((), (time.perf_counter() - began) * 1e3)
        pool, _ = await candidates(self._pool, Search(self._org, self._shelves, rated, [], ALL), DEPTH, within=False)
        took = (time.perf_counter() - began) * 1e3
        return Found([each.no for each in sorted(pool, key=lambda each: (-each.words, -each.no))[:most]], took)

    async def all_by_words(self, query: str, most: int = 10) -> Found:
        """By the same scores, all memories that have any term of the question."""
        rated = await self.rated(query)
        if rated is None:
            return Found((), 0.0)
        numbers = Question(query).numbers
        began = time.perf_counter()
        rows = await self._pool.fetch(
            "SELECT memory FROM memory_words WHERE keys && $1::bigint[]"
            " ORDER BY impacts <#> (SELECT $2::text::sparsevec), memory DESC LIMIT $3",
            [key for shelf in self._shelves for key in keys(shelf, numbers)],
            rated.rarities,
            most,
        )
        return Found([row["memory"] for row in rows], (time.perf_counter() - began) * 1e3)

    async def all_near(self, vector: Sequence[float], most: int = 10) -> Found:
        """All vectors of the shelves, compared one by one by Postgres."""
        began = time.perf_counter()
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL enable_indexscan = off")
            rows = await connection.fetch(
                f"SELECT memory FROM memory_space_{self._space} WHERE shelf = ANY ($1)"
                " ORDER BY embedding <#> (SELECT $2::text::halfvec) LIMIT $3",
                list(self._shelves),
                _literal(vector),
                most,
            )
        return Found([row["memory"] for row in rows], (time.perf_counter() - began) * 1e3)

    async def rated(self, query: str) -> Rated | None:
        question = Question(query)
        rows = await self._pool.fetch(
            "SELECT term, memories FROM memory_terms WHERE org_id = $1 AND term = ANY ($2::integer[])"
            " UNION ALL SELECT NULL, memories FROM memory_totals WHERE org_id = $1",
            self._org,
            question.numbers,
        )
        having = {row["term"]: row["memories"] for row in rows}
        return question.rated(having.pop(None, 0), having, self._shelves)


def overlap(found: Sequence[int], exact: Sequence[int]) -> float:
    """The share of `exact` that was found, in %."""
    return 100.0 * len(set(found) & set(exact)) / len(exact) if exact else 100.0


def _literal(vector: Sequence[float]) -> str:
    return orjson.dumps(list(vector)).decode()
