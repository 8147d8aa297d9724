"""A million memories of a thousand orgs, of which one holds nine tenths: the small ones must not feel it.

Loaded in bulk into the tables that production has. The graph holds the large org alone; shelves of the small ones are
read from end to end.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from bench.memory import asking, crowd
from bench.memory.prose import Prepared, Prose
from bench.memory.scale import building
from bench.memory.stage import Stage
from bench.report import Bound, Section
from cli.console import say

KEY: Final = "million"
ROWS: Final = 1_000_000
ORGS: Final = 1000
OPTIONS: Final = {"shared_buffers": "2GB", "max_wal_size": "8GB"}
"""Of the server, beside the usual ones: the graph and the vectors of a million are some GB."""

_SHARE: Final = 0.9
_LARGE: Final = 10_000
_QUESTIONS: Final = 300
_OF_EACH: Final = 2
_EXACT: Final = 10
_SMALL: Final = Bound(40.0, 40.0)


async def measure(stage: Stage, *, rows: int = ROWS, orgs: int = ORGS, build_memory: str = "3GB") -> list[Section]:
    """The sections of this row."""
    prose, embedder = Prose(2), Prepared()
    memory = stage.memory(embedder)
    space = await crowd.space_of(stage, embedder)
    say(f"making {orgs:,} orgs")
    kept = [await crowd.add_org(stage, f"org {number}") for number in range(orgs)]
    large, small = kept[0], kept[1:]
    weights = np.random.default_rng(3).lognormal(0.0, 1.0, len(small))
    amounts = np.maximum(10, weights / weights.sum() * rows * (1 - _SHARE)).astype(int)
    wanted = [*zip(small, map(int, amounts), strict=True), (large, rows - int(amounts.sum()))]
    took = await crowd.load(
        stage, prose, wanted, space=space, large=_LARGE, questions=_QUESTIONS, build_memory=build_memory
    )
    say("asking the small orgs")
    few, much = asking.Answers(), asking.Answers()
    chosen = small[:: max(1, len(small) * _OF_EACH // _QUESTIONS)]
    for org in chosen[:20]:
        await asking.warm(memory, embedder, org, org.questions[-1:])
    for org in chosen:
        await asking.ask(stage, memory, embedder, org, org.questions[:_OF_EACH], space=space, exact=_OF_EACH, into=few)
    say("asking the large org")
    questions = large.questions[:_QUESTIONS]
    await asking.warm(memory, embedder, large, questions[-50:])
    await asking.ask(stage, memory, embedder, large, questions, space=space, exact=_EXACT, into=much)
    total = sum(org.amount for org in kept)
    settings = ", ".join(f"{name} = {value}" for name, value in OPTIONS.items())
    return [
        Section(
            KEY,
            f"{total:,} memories of {orgs:,} orgs: {len(few.recall)} questions of small ones ({min(amounts):,} to"
            f" {max(amounts):,} memories)",
            asking.lines(few, bound=_SMALL, must_be_near=True),
            [f"Postgres with {settings}; maintenance_work_mem = {build_memory} for the indexes"],
        ),
        Section(
            "large",
            f"The org that has {large.amount:,} of them, {len(questions)} questions",
            asking.lines(much, bound=None, must_be_near=False),
        ),
        Section(
            "million-building",
            f"What {total:,} memories take",
            [*building(took, total), *asking.sizes(await stage.sizes(), total)],
        ),
    ]
