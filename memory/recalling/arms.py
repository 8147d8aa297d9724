"""The arms of recall, as statements: which memories a question's words and its vector lead to.

A search is put together from the parts in `recall.sql`, because what it reads depends on what there is: the words of
the question, one space of vectors or two, shelves that are small or large. Values are parameters always; of one shape
of search there is one text, so connections keep it prepared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import asyncpg
import orjson

from kernel.postgres import Pool
from kernel.sql import statements
from memory.recalling.question import Rated
from memory.records import Filter, Kind
from memory.words import numbers, single, words

SQL = statements(__package__, "recall.sql")

LARGE: Final = 10_000
"""Memories of a shelf from which on it is searched through the graph. Below, its vectors are compared one by one: two
microseconds each at 384 dimensions."""

_MOST_COMPARED: Final = 50_000  # vectors one by one: only a recall over a whole org comes to so many
_MOST_JOINED: Final = 4  # shelves on which pairs of common terms are looked up
_MOST_NEIGHBOURS: Final = 200


@dataclass(frozen=True, slots=True)
class Sight:
    """A question's vector in one space, and how to read cosines there."""

    space: int
    vector: str
    floor: float
    weight: float

    @property
    def base(self) -> float:
        """The cosine from which on nearness ranks. The floor is set so that hardly any unrelated text is above it; of a
        model that counts as much as words what is somewhat below it says something too, of one of spelling nothing."""
        return self.floor / 2 if self.weight >= 1 else self.floor


@dataclass(frozen=True, slots=True)
class Search:
    """All that candidates are looked for by. `shelves` are what the asker sees, each with its number of memories."""

    org_id: str
    shelves: Mapping[int, int]
    rated: Rated | None
    sights: Sequence[Sight]
    where: Filter


@dataclass(slots=True)
class Candidate:
    """A memory with what ranks it. `words` is its BM25 as a share of what covering the whole question makes, `covered`
    the same whatever its length: a long memory says less with a word, and has it all the same. `near` is its nearness
    as a share of what is above the base; `is_near` where it is above the floor."""

    no: int
    shelf: int
    kind: Kind
    created_at: datetime
    confidence: float
    entities: Sequence[str]
    thread: str | None
    place: int | None
    words: float
    covered: float
    near: float
    is_near: bool
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Details:
    """What comes back of a memory, and the terms of its text."""

    row: asyncpg.Record
    terms: frozenset[int]

    @property
    def metadata(self) -> dict[str, Any] | None:
        found = self.row["metadata"]
        return None if found is None else orjson.loads(found)


class _Parameters:
    """Values and the places that stand for them in a statement."""

    def __init__(self) -> None:
        self.values: list[object] = []
        self._places: dict[str, str] = {}

    def add(self, name: str, kind: str, value: object) -> str:
        if name not in self._places:
            self.values.append(value)
            self._places[name] = f"${len(self.values)}::{kind}"
        return self._places[name]

    def add_numbers(self, name: str, numbers: Iterable[int]) -> str:
        """As an array of numbers, which travels as texts: those need no type lookups."""
        return f"{self.add(name, 'text[]', list(map(str, numbers)))}::bigint[]"


async def candidates(db: Pool, search: Search, depth: int, *, within: bool) -> tuple[list[Candidate], int]:
    """The best `depth` memories by each arm, those left out that don't count.

    Args:
        within: leave out what doesn't count before the best are chosen, not after; costs more.

    Returns:
        The memories, and how many were left out after the best were chosen.
    """
    within = within or bool(search.where.kinds or search.where.document_ids)
    values = _Parameters()
    arms = [*_by_words(search, values, depth, within), *_near(search, values, depth, within)]
    further = f", {_counts(search.where, values)} AS counts"
    rows = await db.fetch(_weighed(search, values, arms, further=further, only=""), *values.values)
    counting = [_candidate(row, search) for row in rows if row["counts"]]
    return counting, len(rows) - len(counting)


async def details(
    db: Pool, search: Search, chosen: Sequence[int], beside: Sequence[Candidate]
) -> tuple[dict[int, Details], list[Candidate]]:
    """All of the `chosen` memories and of the neighbours of those `beside`; and these, weighed."""
    values = _Parameters()
    arms = [f"SELECT unnest({values.add_numbers('chosen', chosen)}) AS memory"]
    if beside:
        arms.append(
            SQL.neighbours.format(
                at_shelves=values.add_numbers("at_shelves", [hit.shelf for hit in beside]),
                at_threads=values.add("at_threads", "text[]", [hit.thread for hit in beside]),
                at_places=values.add_numbers("at_places", [hit.place or 0 for hit in beside]),
                most=_MOST_NEIGHBOURS,
            )
        )
    only = f" AND {_counts(search.where, values)}"
    rows = await db.fetch(_weighed(search, values, arms, further=SQL.further, only=only), *values.values)
    # Two turns of one speaker on one day are not alike for that.
    shared = {context: words("", context).numbers for context in {row["context"] for row in rows}}
    found = {row["no"]: Details(row, _terms(row["keys"]).difference(shared[row["context"]])) for row in rows}
    return found, [_candidate(row, search) for row in rows]


def _terms(keys: str | None) -> frozenset[int]:
    """The terms in a text such as {1,2}."""
    return frozenset(numbers(map(int, keys[1:-1].split(",")))) if keys and keys != "{}" else frozenset()


def _weighed(search: Search, values: _Parameters, arms: Sequence[str], *, further: str, only: str) -> str:
    near = [_cosine(sight, values) for sight in search.sights]
    rated = search.rated
    bm25 = f"-(w.impacts <#> (SELECT {_rarities(rated, values)}))" if rated else "0::float8"
    return SQL.weighed.format(
        candidates="\nUNION ALL ".join(arms),
        words=bm25,
        further="".join(near) + further,
        vectors="".join(
            f"\nLEFT JOIN memory_space_{sight.space} v{sight.space} ON v{sight.space}.memory = c.memory"
            for sight in search.sights
        ),
        org=values.add("org", "text", search.org_id),
        shelves=values.add_numbers("shelves", search.shelves),
        only=only,
    )


def _cosine(sight: Sight, values: _Parameters) -> str:
    vector = f"(SELECT {_vector(sight, values)})"
    cosine = f"-(v{sight.space}.embedding <#> {vector})"
    return f", coalesce({cosine}, -1) AS near_{sight.space}"


def _vector(sight: Sight, values: _Parameters) -> str:
    return f"{values.add(f'vector_{sight.space}', 'text', sight.vector)}::halfvec"


def _rarities(rated: Rated, values: _Parameters) -> str:
    return f"{values.add('rarities', 'text', rated.rarities)}::sparsevec"


def _counts(where: Filter, values: _Parameters) -> str:
    """The condition under which a memory `m` counts."""
    parts = [SQL.counts]
    if where.kinds:
        parts.append(f"m.kind = ANY ({values.add('kinds', 'text[]', list(where.kinds))})")
    if where.document_ids:
        parts.append(f"m.document_id = ANY ({values.add('documents', 'text[]', list(where.document_ids))})")
    return " AND ".join(parts)


def _by_words(search: Search, values: _Parameters, depth: int, within: bool) -> list[str]:
    if search.rated is None:
        return []
    pairs = search.rated.all_of[:_MOST_JOINED]
    return [
        SQL.by_words.format(
            any_of=values.add_numbers("any_of", search.rated.any_of),
            one=values.add_numbers("one", [pair[0] for pair in pairs]),
            other=values.add_numbers("other", [pair[1] for pair in pairs]),
            rarities=_rarities(search.rated, values),
            within=str(within),
            depth=depth,
            **_filters(search.where, values),
        )
    ]


def _near(search: Search, values: _Parameters, depth: int, within: bool) -> list[str]:
    small: list[int] = []
    left = _MOST_COMPARED
    for shelf, amount in search.shelves.items():
        if amount < LARGE and amount <= left:
            small.append(shelf)
            left -= amount
    large = [shelf for shelf, amount in search.shelves.items() if amount >= LARGE]
    return [
        SQL.near.format(
            space=sight.space,
            vector=_vector(sight, values),
            small=values.add_numbers("small", small),
            large=values.add_numbers("large", large),
            within=str(within),
            depth=depth,
            effort=values.add("effort", "integer", _effort(sum(search.shelves[shelf] for shelf in large))),
            **_filters(search.where, values),
        )
        for sight in search.sights
    ]


def _effort(memories: int) -> int:
    """How widely the graph is searched for the nearest of so many: 64 up to 100,000, and 50 more for each doubling."""
    return min(600, round(64 + 50 * max(0.0, math.log2(max(memories, 1) / 100_000))))


def _filters(where: Filter, values: _Parameters) -> dict[str, str]:
    return {
        "kinds": values.add("kinds", "text[]", list(where.kinds)) if where.kinds else "NULL",
        "documents": values.add("documents", "text[]", list(where.document_ids)) if where.document_ids else "NULL",
    }


def _candidate(row: asyncpg.Record, search: Search) -> Candidate:
    cosines = [(row[f"near_{sight.space}"], sight) for sight in search.sights]
    near = max(((cosine - sight.base) / (1 - sight.base) for cosine, sight in cosines), default=0.0)
    words = (row["words"] or 0.0) / search.rated.full if search.rated else 0.0
    return Candidate(
        no=row["no"],
        shelf=row["shelf"],
        kind=row["kind"],
        created_at=row["created_at"],
        confidence=row["confidence"],
        entities=row["entities"],
        thread=row["thread"],
        place=row["place"],
        words=words,
        covered=words / min(1.0, single(row["length"] or 0)),
        near=max(near, 0.0),
        is_near=any(cosine > sight.floor for cosine, sight in cosines),
    )
