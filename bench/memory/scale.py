"""A hundred thousand memories of one org: what recall takes, what writing takes, what it takes on disk.

Four fifths are loaded in bulk and their graph is built; the rest is written by `remember_all` on top of them, and moved
into the graph as upkeep does it. The floor of writing is a COPY of the same bytes into tables without any index.
"""

from __future__ import annotations

import time
from typing import Final

from bench.memory import asking, bulk, crowd
from bench.memory.crowd import Kept, Loaded
from bench.memory.prose import Prepared, Prose
from bench.memory.stage import Stage
from bench.report import Bound, Line, Section
from bench.stats import Spread, latency, rate
from cli.console import say
from memory.graph import Graph
from memory.records import NewMemory, Scope
from memory.spaces import Spaces
from memory.store import PostgresMemory
from memory.words import words

KEY: Final = "scale"
ROWS: Final = 100_000

_SIZES: Final = (500, 1000, 2000)  # memories in one call of remember_all
_QUESTIONS: Final = 400
_EXACT: Final = 40
_WARM_UP: Final = 50
_RECALL: Final = Bound(12.0, 30.0)
_WRITE: Final = Bound(2000.0, at_least=True)
_LARGE: Final = 10_000
_FLOOR: Final = 20  # rounds


async def measure(stage: Stage, *, rows: int = ROWS, build_memory: str = "1GB") -> list[Section]:
    """The sections of this row. With fewer than some ten thousand rows there is no graph."""
    prose, embedder = Prose(1), Prepared()
    memory = stage.memory(embedder)
    space = await crowd.space_of(stage, embedder)
    kept = await crowd.add_org(stage, "the one")
    say(f"loading {rows * 4 // 5:,} memories")
    took = await crowd.load(
        stage,
        prose,
        [(kept, rows * 4 // 5)],
        space=space,
        large=_LARGE,
        questions=_QUESTIONS,
        build_memory=build_memory,
    )
    loaded = kept.amount
    say(f"writing {rows - loaded:,} more")
    writing = await _written(stage, memory, embedder, prose, kept, rows - loaded)
    say("moving them into the graph")
    upkeep = await _into_graph(stage, embedder)
    async with stage.connection() as connection:
        await connection.execute("VACUUM ANALYZE", timeout=300.0)
    say("asking")
    answers = asking.Answers()
    questions = kept.questions[:_QUESTIONS]
    await asking.warm(memory, embedder, kept, questions[-_WARM_UP:])
    await asking.ask(stage, memory, embedder, kept, questions, space=space, exact=_EXACT, into=answers)
    round_trips = await _round_trips(stage)
    return [
        Section(
            KEY,
            f"{rows:,} memories of one org, {len(questions)} questions one after the other",
            [*asking.lines(answers, bound=_RECALL, must_be_near=True), round_trips],
        ),
        Section(
            "writing", f"Writing {rows - loaded:,} memories on top of {loaded:,}, one call after the other", writing
        ),
        Section(
            "building",
            f"What {rows:,} memories take",
            [*upkeep, *building(took, loaded), *asking.sizes(await stage.sizes(), rows)],
        ),
    ]


def building(took: Loaded, rows: int) -> list[Line]:
    """What loading in bulk took."""
    return [
        Line(f"{label}, {rows:,} memories", "s", Spread(seconds, seconds), None, True)
        for label, seconds in (
            ("loaded in bulk (read into words, COPY, B-trees)", took.rows),
            ("CREATE INDEX of the text index", took.text_index),
            ("CREATE INDEX of the graph", took.graph),
            ("counters", took.counters),
        )
    ]


async def _written(
    stage: Stage, memory: PostgresMemory, embedder: Prepared, prose: Prose, kept: Kept, amount: int
) -> list[Line]:
    lines = []
    scope = Scope(kept.org_id)
    for size in _SIZES:
        rates = []
        share = amount // len(_SIZES)
        for start in range(0, share, size):
            batch = prose.batch(min(size, share - start))
            embedder.learn(batch.texts, batch.vectors)
            new = [NewMemory(text, entities=()) for text in batch.texts]
            began = time.perf_counter()
            items = await memory.remember_all(scope, new)
            rates.append(len(new) / (time.perf_counter() - began))
            embedder.vectors.clear()
            await crowd.write(stage, kept, batch, [item.id for item in items])
            questions = prose.questions(batch, 1 + _QUESTIONS * size // (5 * amount))
            numbers = kept.numbers[-1]
            kept.questions[:0] = [
                type(question)(question.text, question.vector, int(numbers[question.about])) for question in questions
            ]
        lines.append(Line(f"remember_all with {size:,} each", "/s", rate(rates), _WRITE))
    lines.append(
        Line(
            "a COPY of the same bytes into tables without indexes", "/s", await _floor(stage, prose, min(1000, amount))
        )
    )
    lines.append(Line("reading texts into words, in Python", "/s", _read(prose, min(1000, amount))))
    return lines


async def _floor(stage: Stage, prose: Prose, size: int) -> Spread:
    """Memories a second, in transactions of `size`."""
    rates = []
    async with stage.connection() as connection:
        await connection.execute(
            "CREATE SCHEMA floor CREATE TABLE memories (no bigint, id text, org_id text, kind text, text text,"
            " content_hash bytea, shelf bigint, provenance text)"
            " CREATE TABLE words (memory bigint, shelf bigint, keys bigint[], impacts public.sparsevec, length integer)"
            " CREATE TABLE vectors (memory bigint, shelf bigint, kind text, in_graph boolean, embedding public.halfvec)"
        )
        for _ in range(_FLOOR):
            batch = prose.batch(size)
            read = [words(text) for text in batch.texts]
            numbers = range(len(batch.texts))
            made = [
                ("memories", [*bulk.memory_rows(numbers, "org", 1, batch.texts)]),
                ("words", [*bulk.word_rows(numbers, 1, read)]),
                ("vectors", [*bulk.vector_rows(numbers, 1, batch, in_graph=False)]),
            ]
            began = time.perf_counter()
            async with connection.transaction():
                for table, rows in made:
                    await connection.copy_to_table(
                        table, schema_name="floor", source=bulk.stream(rows), format="binary"
                    )
            rates.append(len(batch.texts) / (time.perf_counter() - began))
        await connection.execute("DROP SCHEMA floor CASCADE")
    return rate(rates)


def _read(prose: Prose, size: int) -> Spread:
    rates = []
    for _ in range(3):
        batch = prose.batch(size)
        began = time.perf_counter()
        for text in batch.texts:
            words(text)
        rates.append(len(batch.texts) / (time.perf_counter() - began))
    return rate(rates)


async def _into_graph(stage: Stage, embedder: Prepared) -> list[Line]:
    graph = Graph(stage.pool, rest=0.0)
    began = time.perf_counter()
    moved = 0
    for space in await Spaces(stage.pool, embedder).known():
        moved += await graph.take_in(space)
    seconds = time.perf_counter() - began
    if not moved:
        return []
    return [
        Line(
            f"upkeep: {moved:,} vectors moved into the graph",
            "/s",
            Spread(moved / seconds, moved / seconds),
            None,
            True,
        )
    ]


async def _round_trips(stage: Stage) -> Line:
    times = []
    for _ in range(200):
        began = time.perf_counter()
        for _ in range(3):
            await stage.pool.fetchval("SELECT 1")
        times.append((time.perf_counter() - began) * 1e3)
    return Line("three statements that do nothing", "ms", latency(times))
