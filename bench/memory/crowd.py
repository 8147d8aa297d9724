"""Orgs with any number of memories, loaded in bulk, with what an exact search over them would find.

The order of loading: tables by COPY, with the text index and the graph taken off; both built from what is there, as
`CREATE INDEX` does, which is how one would move a large deployment. What they take is part of what is measured.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.memory import bulk
from bench.memory.prose import Asked, Batch, Prepared, Prose, Vectors
from bench.memory.stage import Stage
from cli.console import say

_BATCH: Final = 10_000
_BUILD: Final = ("SET maintenance_work_mem = '{memory}'", "SET max_parallel_maintenance_workers = 1")


@dataclass(slots=True)
class Kept:
    """What stands on the shelf of one org, in memory of the bench: numbers and vectors, in one order."""

    org_id: str
    shelf: int
    numbers: list[NDArray[np.int64]] = field(default_factory=list)
    vectors: list[NDArray[np.float16]] = field(default_factory=list)
    questions: list[Asked] = field(default_factory=list)
    amount: int = 0

    def add(self, numbers: Sequence[int], vectors: Vectors) -> None:
        self.numbers.append(np.asarray(numbers, np.int64))
        self.vectors.append(vectors.astype(np.float16))
        self.amount += len(numbers)

    def nearest(self, questions: Sequence[Asked], most: int = 10) -> list[list[int]]:
        """For each question the numbers of what is nearest, by comparing all."""
        asked = np.stack([question.vector for question in questions])
        best: list[list[tuple[float, int]]] = [[] for _ in questions]
        for numbers, vectors in zip(self.numbers, self.vectors, strict=True):
            cosines = asked @ vectors.astype(np.float32).T
            top = np.argsort(-cosines, axis=1)[:, :most]
            for place, found in enumerate(top):
                best[place] += [(float(cosines[place, column]), int(numbers[column])) for column in found]
        return [[number for _, number in sorted(found, reverse=True)[:most]] for found in best]


@dataclass(slots=True)
class Loaded:
    """How long loading took, in seconds: rows by COPY, the text index, the graph, the counters."""

    rows: float = 0.0
    text_index: float = 0.0
    graph: float = 0.0
    counters: float = 0.0


async def add_org(stage: Stage, name: str) -> Kept:
    """An org with the shelf of the org itself, empty."""
    org_id = await stage.org(name)
    shelf = await stage.pool.fetchval(
        "INSERT INTO memory_shelves (org_id, scope, owner) VALUES ($1, 'org', '') RETURNING id", org_id
    )
    return Kept(org_id, int(shelf))


async def space_of(stage: Stage, embedder: Prepared) -> int:
    """The space of the embedder, which serves."""
    return int(await stage.pool.fetchval("SELECT memory_space_open($1, $2)", embedder.model, embedder.dimensions))


async def load(
    stage: Stage,
    prose: Prose,
    wanted: Sequence[tuple[Kept, int]],
    *,
    space: int,
    large: int,
    questions: int,
    build_memory: str,
) -> Loaded:
    """Fills shelves. Of each org some questions are kept, spread over its batches; vectors of shelves of `large` and
    more go into the graph."""
    took = Loaded()
    first = 1
    total = sum(amount for _, amount in wanted)
    async with stage.connection() as connection:
        await connection.execute("DROP INDEX memory_words_keys")
        await connection.execute(f"DROP INDEX memory_space_{space}_graph")
        for kept, amount in wanted:
            batches = -(-amount // _BATCH)
            for number in range(batches):
                size = min(_BATCH, amount - number * _BATCH)
                batch = prose.batch(size)
                began = time.perf_counter()
                await bulk.load(
                    connection, kept.org_id, kept.shelf, batch, space=space, first=first, in_graph=amount >= large
                )
                took.rows += time.perf_counter() - began
                kept.add(range(first, first + size), batch.vectors)
                kept.questions += prose.questions(batch, -(-questions // batches), first=first)
                if (first + size) // 100_000 > first // 100_000:
                    say(f"loaded {first + size - 1:,} of {total:,}")
                first += size
        for statement in _BUILD:
            await connection.execute(statement.format(memory=build_memory))
        say("building the text index")
        took.text_index = await _timed(
            connection.execute(
                "CREATE INDEX memory_words_keys ON memory_words USING gin (keys) WITH (fastupdate = off)",
                timeout=3600.0,
            )
        )
        say("building the graph")
        took.graph = await _timed(
            connection.execute(
                f"CREATE INDEX memory_space_{space}_graph ON memory_space_{space} USING hnsw (embedding halfvec_ip_ops)"
                " WITH (m = 16, ef_construction = 64) WHERE in_graph",
                timeout=3600.0,
            )
        )
        say("counting")
        took.counters = await _timed(bulk.count(connection))
        await connection.execute("VACUUM ANALYZE", timeout=900.0)
    return took


async def write(stage: Stage, kept: Kept, batch: Batch, ids: Sequence[str]) -> None:
    """Takes note of what `remember_all` has kept."""
    rows = await stage.pool.fetch("SELECT id, no FROM memories WHERE id = ANY ($1)", list(ids))
    at = {row["id"]: row["no"] for row in rows}
    kept.add([at[name] for name in ids], batch.vectors)


async def _timed(work: Awaitable[object]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began
