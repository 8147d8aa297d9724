"""How good recall is: what it finds of the answers to questions, beside each of its arms and other ways to search."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.memory.corpus import Asked, Corpus
from bench.memory.figures import Figure, Group
from bench.memory.probe import DEPTH, Found, Probe
from bench.memory.reference import Bm25, PostgresRank, read
from bench.memory.stage import Stage
from bench.report import Bound, Line, Section
from bench.stats import Spread
from cli.console import say
from memory.embedders.port import Embedder, Nearness
from memory.records import MAX_BATCH, RecalledItem, Scope
from memory.store import PostgresMemory

KEY: Final = "quality"

_WORDS: Final = "recall() by words alone"
_HYBRID: Final = "recall(), synthetic embedder"
_LEXICAL: Final = "recall(), the lexical embedder"
_ARM: Final = "the text arm alone"
_NO_WORSE: Final = Bound(0.0, at_least=True)
_ONE: Final = 102.0  # a question, in %; a little more, for rounding
_RRF: Final = 60


class Blind:
    """Sees nothing in any text: recall goes on by words. Of the same model as the one that wrote."""

    local = True

    def __init__(self, embedder: Embedder) -> None:
        self.model = embedder.model
        self.dimensions = embedder.dimensions
        self.nearness: Nearness = embedder.nearness

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[0.0] * self.dimensions for _ in texts]

    async def aclose(self) -> None:
        """Holds nothing."""


@dataclass(slots=True)
class Written:
    """A corpus as it was written: which of its memories stands where."""

    org_id: str
    shelves: list[int] = field(default_factory=list)  # their ids
    by_id: dict[str, int] = field(default_factory=dict)  # places on the shelf
    by_number: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0

    def places(self, items: Sequence[RecalledItem]) -> list[int]:
        return [self.by_id[item.id] for item in items]

    def numbered(self, found: Found) -> Found:
        return Found([self.by_number[number] for number in found.memories], found.took)

    def scope(self, asked: Asked) -> Scope:
        return Scope(self.org_id, user_id=_owner(asked.shelf))


async def measure(
    corpora: Sequence[Corpus], synthetic: tuple[Stage, Embedder], lexical: tuple[Stage, Embedder]
) -> tuple[list[Group], Section]:
    """The table of each corpus, and what must hold."""
    groups: list[Group] = []
    lines: list[Line] = []
    for corpus in corpora:
        say(f"asking about {corpus.name} ({corpus.language})")
        figures = await _with_synthetic(*synthetic, corpus)
        stage, embedder = lexical
        written = await write(stage, stage.memory(embedder), corpus)
        figures.append(await _recalled(_LEXICAL, stage.memory(embedder), corpus, written))
        by_name = {figure.name: figure.numbers()["recall@10"] or 0.0 for figure in figures}
        title = (
            f"{corpus.name}, {corpus.language}: {len(corpus.questions)} questions on {corpus.size:,} memories,"
            f" {len(corpus.shelves)} shelves"
        )
        groups.append(Group(title, figures))
        for name in (_HYBRID, _LEXICAL):
            for base, bound in (
                (_ARM, _NO_WORSE),
                (_WORDS, Bound(round(-_ONE / len(corpus.questions), 2), at_least=True)),
            ):
                gain = 100 * (by_name[name] - by_name[base])
                label = f"{corpus.name}, {corpus.language}: {name}, less {base}"
                lines.append(Line(label, "%", Spread(gain, gain), bound, single=True))
        lines.append(
            Line(f"{corpus.name}, {corpus.language}: written in", "s", Spread(written.seconds, 0), single=True)
        )
    title = "recall@10 of both arms, less that of words (of recall() by words alone, one question may be lost)"
    return groups, Section(KEY, title, lines)


async def write(stage: Stage, memory: PostgresMemory, corpus: Corpus) -> Written:
    """Keeps a corpus in an org of its own, each shelf a user's."""
    written = Written(await stage.org(f"{corpus.name} {corpus.language}"))
    for number, shelf in enumerate(corpus.shelves):
        began = time.perf_counter()
        items = []
        for start in range(0, len(shelf), MAX_BATCH):
            scope = Scope(written.org_id, user_id=_owner(number))
            items += await memory.remember_all(scope, shelf[start : start + MAX_BATCH])
        written.seconds += time.perf_counter() - began
        at = {item.id: place for place, item in enumerate(items)}
        if len(at) < len(shelf):
            raise ValueError(f"{corpus.name}: two memories of shelf {number} are the same")
        rows = await stage.pool.fetch("SELECT id, no, shelf FROM memories WHERE id = ANY ($1)", list(at))
        written.by_id |= at
        written.by_number |= {row["no"]: at[row["id"]] for row in rows}
        written.shelves.append(rows[0]["shelf"])
    return written


async def _with_synthetic(stage: Stage, embedder: Embedder, corpus: Corpus) -> list[Figure]:
    written = await write(stage, stage.memory(embedder), corpus)
    space = int(await stage.pool.fetchval("SELECT id FROM memory_spaces WHERE state = 'serving'"))
    await stage.pool.execute("ANALYZE")
    readings = [[read(memory) for memory in shelf] for shelf in corpus.shelves]
    rank = PostgresRank(stage.pool)
    await rank.load(readings)
    exact = [Bm25(reading) for reading in readings]
    bm25, ranked, cover = (
        Figure(name, reference=True)
        for name in ("exact BM25, in Python", "ts_rank of Postgres", "ts_rank_cd of Postgres")
    )
    words, near, compared = (
        Figure(_ARM),
        Figure("the dense arm alone, synthetic"),
        Figure("the same, all vectors compared", reference=True),
    )
    fused = Figure(f"ranks of both arms fused, k = {_RRF}", reference=True)
    for asked in corpus.questions:
        shelves = {written.shelves[asked.shelf]: len(corpus.shelves[asked.shelf])}
        probe = Probe(stage.pool, written.org_id, shelves, space, embedder.nearness)
        [vector] = await embedder.embed([asked.text])
        by_words = written.numbered(await probe.by_words(asked.text, DEPTH))
        by_nearness = written.numbered(await probe.near(vector, DEPTH))
        for figure, found in (
            (bm25, exact[asked.shelf].search(asked.text)),
            (ranked, await rank.search("ts_rank", asked.shelf, asked.text)),
            (cover, await rank.search("ts_rank_cd", asked.shelf, asked.text)),
            (words, by_words),
            (near, by_nearness),
            (compared, written.numbered(await probe.all_near(vector))),
        ):
            figure.add(found.memories, asked.answers, found.took)
        fused.add(_fused(by_words.memories, by_nearness.memories), asked.answers, None)
    return [
        *(bm25, ranked, cover, words, near, compared, fused),
        await _recalled(_WORDS, stage.memory(Blind(embedder)), corpus, written),
        await _recalled(_HYBRID, stage.memory(embedder), corpus, written),
    ]


async def _recalled(name: str, memory: PostgresMemory, corpus: Corpus, written: Written) -> Figure:
    figure = Figure(name)
    for asked in corpus.questions:
        began = time.perf_counter()
        items = await memory.recall(written.scope(asked), asked.text, limit=10)
        took = (time.perf_counter() - began) * 1e3
        figure.add(written.places(items), asked.answers, took)
    return figure


def _fused(*lists: Sequence[int]) -> list[int]:
    """Reciprocal rank fusion (Cormack, Clarke and Büttcher 2009)."""
    scores: dict[int, float] = {}
    for found in lists:
        for rank, place in enumerate(found, start=1):
            scores[place] = scores.get(place, 0.0) + 1 / (_RRF + rank)
    return sorted(scores, key=lambda place: -scores[place])[:10]


def _owner(shelf: int) -> str:
    return f"user-{shelf}"
