"""What a recall takes, and what it misses: the lines that every row about many memories has."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.memory.crowd import Kept
from bench.memory.probe import Probe, overlap
from bench.memory.prose import Asked, Prepared, Vectors
from bench.memory.stage import Stage
from bench.report import Bound, Line
from bench.stats import Spread, latency
from memory.recalling.question import Question
from memory.records import Scope
from memory.store import PostgresMemory


@dataclass(slots=True)
class Answers:
    """What was measured of some questions; times in ms, shares in %."""

    recall: list[float] = field(default_factory=list)
    near: list[float] = field(default_factory=list)
    words: list[float] = field(default_factory=list)
    all_near: list[float] = field(default_factory=list)
    all_words: list[float] = field(default_factory=list)
    near_share: list[float] = field(default_factory=list)
    words_share: list[float] = field(default_factory=list)
    found: list[float] = field(default_factory=list)
    foreign: int = 0
    terms: list[int] = field(default_factory=list)


async def ask(
    stage: Stage,
    memory: PostgresMemory,
    embedder: Prepared,
    kept: Kept,
    questions: Sequence[Asked],
    *,
    space: int,
    exact: int,
    into: Answers,
) -> None:
    """Asks an org its questions; the first `exact` of them also of exact searches in Postgres."""
    embedder.learn([question.text for question in questions], _stacked(questions))
    scope = Scope(kept.org_id, user_id="somebody")
    probe = Probe(stage.pool, kept.org_id, {kept.shelf: kept.amount}, space, embedder.nearness)
    nearest = kept.nearest(questions)
    for place, (question, best) in enumerate(zip(questions, nearest, strict=True)):
        began = time.perf_counter()
        items = await memory.recall(scope, question.text, limit=10)
        into.recall.append((time.perf_counter() - began) * 1e3)
        ids = [item.id for item in items]
        rows = await stage.pool.fetch("SELECT no, org_id FROM memories WHERE id = ANY ($1)", ids)
        into.foreign += sum(row["org_id"] != kept.org_id for row in rows)
        into.found.append(100.0 if question.about in {row["no"] for row in rows} else 0.0)
        into.terms.append(len(Question(question.text).numbers))
        vector = embedder.vectors[question.text]
        near = await probe.near(vector)
        into.near.append(near.took)
        into.near_share.append(overlap(near.memories, best))
        words = await probe.by_words(question.text)
        into.words.append(words.took)
        if place < exact:
            all_words = await probe.all_by_words(question.text)
            into.all_words.append(all_words.took)
            into.words_share.append(overlap(words.memories, all_words.memories))
            into.all_near.append((await probe.all_near(vector)).took)


async def warm(memory: PostgresMemory, embedder: Prepared, kept: Kept, questions: Sequence[Asked]) -> None:
    """Asks without measuring: connections have prepared their statements then, and pages have been read."""
    embedder.learn([question.text for question in questions], _stacked(questions))
    for question in questions:
        await memory.recall(Scope(kept.org_id, user_id="somebody"), question.text, limit=10)


def lines(answers: Answers, *, bound: Bound | None, must_be_near: bool) -> list[Line]:
    """The figures in words."""
    least = Bound(95.0, at_least=True) if must_be_near else None
    shown = [
        Line("recall(), without the embedding call", "ms", latency(answers.recall), bound),
        Line("the dense arm: of the ten nearest by comparing all", "%", _mean(answers.near_share), least, True),
        Line("rows of another org", "", Spread(answers.foreign, answers.foreign), Bound(0.0), True),
        Line("the dense arm alone", "ms", latency(answers.near)),
        Line("the text arm alone", "ms", latency(answers.words)),
        Line(
            "the text arm: of the ten best of all with a word of it",
            "%",
            _mean(answers.words_share),
            None,
            True,
        ),
        Line("the memory that was asked about is among ten", "%", _mean(answers.found), single=True),
        Line("exact: all vectors compared by Postgres", "ms", latency(answers.all_near)),
        Line("exact: all that have any word scored by Postgres", "ms", latency(answers.all_words)),
    ]
    return [line for line in shown if line.value.edge == line.value.edge]  # not NaN: asked of exact searches at all


def sizes(stored: Mapping[str, int], rows: int) -> list[Line]:
    """Tables and indexes in MB, and in bytes for each memory in the label."""
    return [
        Line(f"{name}: {size / rows:,.0f} bytes a memory", "MB", Spread(size / 1e6, size / 1e6), None, True)
        for name, size in sorted(stored.items(), key=lambda pair: -pair[1])
        if size / rows >= 1
    ] + [
        Line(
            f"together: {sum(stored.values()) / rows:,.0f} bytes a memory",
            "MB",
            Spread(sum(stored.values()) / 1e6, sum(stored.values()) / 1e6),
            None,
            True,
        )
    ]


def _mean(values: Sequence[float]) -> Spread:
    mean = sum(values) / len(values) if values else float("nan")
    return Spread(mean, mean)


def _stacked(questions: Sequence[Asked]) -> Vectors:
    return np.stack([question.vector for question in questions])
