"""Workers that freeze at a named point until others have done their work: thawed, they change nothing any more."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from functools import partial

import orjson

from kernel.postgres import Pool
from tests.faults.scene import Scene, scripted
from tests.waiting import eventually

TABLES = {
    "runs": "id",
    **dict.fromkeys(("events", "messages", "steps", "effects", "checkpoints"), "run_id"),
    "checkpoint_writes": "split_part(thread_id, '/', 1)",
}
"""All that a run's owner writes, and for each how its rows are found."""

FROZEN_AT = [
    *(f"before_commit:{event}:SIGSTOP" for event in (1, 3, 8, 14, 27, 31, 38, 45, 52, 60)),
    *(f"{point}_tool:{call}:SIGSTOP" for point in ("before", "after") for call in range(1, 6)),
    "before_end_commit:1:SIGSTOP",
    "before_end_commit:1:SIGSTOP",
]
"""With something to write to the journal, with the effect of a call, with the run's end."""


async def test_a_worker_that_was_frozen_past_its_lease_is_refused_when_it_writes(scene: Scene) -> None:
    scene.steady.send(signal.SIGSTOP)
    frozen = scene.doomed(FROZEN_AT)
    plans = [scripted() for _ in FROZEN_AT]
    async with AsyncExitStack() as open_streams:
        streams = [await open_streams.enter_async_context(scene.follow(plan)) for plan in plans]
        run_ids = [(await stream.until("run_queued")).data["run_id"] for stream in streams]
        await eventually(partial(all_have_claimed, scene.stack.database, run_ids), within=40, what="each has a run")
        scene.steady.send(signal.SIGCONT)
        await asyncio.gather(*(stream.rest() for stream in streams))
    histories = [await scene.checked(plan, stream) for plan, stream in zip(plans, streams, strict=True)]
    assert {history.run["status"] for history in histories} == {"succeeded"}
    zombies = {history.run["id"] for history in histories if history.run["epoch"] > 1}
    assert len(zombies) > len(plans) / 2

    before = await written(scene.stack.database, run_ids)
    frozen.send(signal.SIGCONT)

    async def all_refused() -> bool:
        return zombies <= refused(frozen.log)

    await eventually(all_refused, what="every zombie has learnt that its run is not its own")
    frozen.send(signal.SIGTERM)
    assert await frozen.wait() == 0, frozen.log
    assert await written(scene.stack.database, run_ids) == before
    for plan, stream in zip(plans, streams, strict=True):
        await scene.checked(plan, stream)  # no effect either


async def all_have_claimed(database: Pool, run_ids: list[str]) -> bool:
    """Whether there were as many claims as runs. That is not a claim of each run: a worker that is late may take over
    one whose owner froze a lease ago, and what it leaves waits for the steady worker."""
    claims = await database.fetchval("SELECT sum(epoch) FROM runs WHERE id = ANY ($1)", run_ids)
    return bool(claims >= len(run_ids))


def refused(log: str) -> set[str]:
    """The runs of which workers logged that they are theirs no more."""
    entries = (orjson.loads(line) for line in log.splitlines() if line.startswith("{") and line.endswith("}"))
    return {entry["run_id"] for entry in entries if entry["event"] in ("epoch_over", "run_lost")}


async def written(database: Pool, run_ids: list[str]) -> dict[str, list[str]]:
    """All rows of these runs."""
    rows = {}
    for table, run_id in TABLES.items():
        query = f"SELECT t::text AS row FROM {table} t WHERE {run_id} = ANY ($1) ORDER BY 1"
        rows[table] = [record["row"] for record in await database.fetch(query, run_ids)]
    return rows
