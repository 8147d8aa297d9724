"""Spaces of vectors: made once, and replaced in the background when the model changes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from kernel.jobs import add_job, get_job, take_job
from kernel.postgres import Pool, open_pool
from kernel.tenants import ensure_org
from memory.errors import EmbedderUnavailable, MemoryUnavailable
from memory.filling import Filler
from memory.records import Changes, NewMemory, Scope
from memory.spaces import Spaces
from memory.store import PostgresMemory
from memory.upkeep import FILL, Upkeep
from tests.memory.counts import assert_counts
from tests.memory.hashing import HashingEmbedder

OLD, NEW = "old-model", "new-model"


@pytest.fixture
async def scope(own_database: Pool) -> Scope:
    return Scope(await ensure_org(own_database, "spaces"), user_id="alice")


def upkeep(database: Pool, embedder: HashingEmbedder, spaces: Spaces | None = None, *, grace: float = 0.0) -> Upkeep:
    """Without rests and graces."""
    filler = Filler(database, embedder, batch=7, settled=0.0, rest=0.0, first_pause=0.0)
    return Upkeep(database, embedder, spaces or Spaces(database, embedder, fresh=0.0), filler=filler, grace=grace)


async def fill(database: Pool, keeper: Upkeep) -> bool | None:
    """What a worker does with the job that a pass of upkeep adds."""
    await keeper.run()
    job = await take_job(database, [FILL], worker="tests", lease_seconds=60)
    assert job is not None
    return await keeper.fill(job)


async def states(database: Pool) -> list[tuple[str, str]]:
    rows = await database.fetch("SELECT model, state FROM memory_spaces ORDER BY id")
    return [(row["model"], row["state"]) for row in rows]


async def vectors(database: Pool, space: int) -> int:
    return int(await database.fetchval(f"SELECT count(*) FROM memory_space_{space}"))


async def test_the_first_space_serves_at_once(own_database: Pool, scope: Scope) -> None:
    memory = PostgresMemory(own_database, HashingEmbedder(OLD))
    await memory.remember(scope, "Tea.")
    assert await states(own_database) == [(OLD, "serving")]
    assert await vectors(own_database, 1) == 1


async def test_processes_that_start_together_make_one_space(own_database: Pool) -> None:
    spaces = [Spaces(own_database, HashingEmbedder(OLD)) for _ in range(8)]
    found = await asyncio.gather(*(one.own(64) for one in spaces))
    assert {space.id for space in found if space} == {1}
    assert await states(own_database) == [(OLD, "serving")]


async def test_what_is_known_is_not_asked_for_again(own_database: Pool, database_url: str) -> None:
    spaces = Spaces(own_database, HashingEmbedder(OLD))
    first = await spaces.own(64)
    await own_database.close()
    assert await spaces.own(64) == first


@pytest.mark.parametrize("dimensions", [0, 4001])
async def test_vectors_of_an_impossible_length_are_refused(own_database: Pool, scope: Scope, dimensions: int) -> None:
    with pytest.raises(EmbedderUnavailable):
        await Spaces(own_database, HashingEmbedder(OLD)).own(dimensions)
    if dimensions:
        with pytest.raises(MemoryUnavailable, match="4001 numbers"):
            await PostgresMemory(own_database, HashingEmbedder(OLD, dimensions)).remember(scope, "Tea.")
    assert await states(own_database) == []


async def test_a_new_model_is_filled_while_the_old_one_serves(own_database: Pool, scope: Scope) -> None:
    old, new = HashingEmbedder(OLD), HashingEmbedder(NEW, 96)
    before = PostgresMemory(own_database, old)
    await before.remember_all(scope, [NewMemory(f"fact number{number}") for number in range(30)])
    ended = await before.remember(scope, "over and done")
    await before.supersede(scope, ended.id, None)

    memory = PostgresMemory(own_database, new, previous={OLD: old})
    fresh = await memory.remember(scope, "fact number100")
    assert await states(own_database) == [(OLD, "serving"), (NEW, "filling")]
    assert (await vectors(own_database, 1), await vectors(own_database, 2)) == (30, 1)
    assert [item.text for item in await memory.recall(scope, "number7", limit=1)] == ["fact number7"]
    assert [item.id for item in await memory.recall(scope, "number100", limit=1)] == [fresh.id]

    keeper = upkeep(own_database, new)
    assert await fill(own_database, keeper) is None
    assert await states(own_database) == [(OLD, "retired"), (NEW, "serving")]
    assert await vectors(own_database, 2) == 31
    state = await get_job(own_database, FILL, "2")
    assert state is not None
    assert state.progress is not None
    assert state.progress["filled_to"] == state.progress["last"]
    assert "fact number100" not in new.asked[1:]  # what had a vector is not embedded again
    assert [item.text for item in await memory.recall(scope, "number7", limit=1)] == ["fact number7"]
    await assert_counts(own_database, scope.org_id)


async def test_the_table_of_a_retired_space_goes_when_nobody_holds_it(own_database: Pool, scope: Scope) -> None:
    old, new = HashingEmbedder(OLD), HashingEmbedder(NEW)
    await PostgresMemory(own_database, old).remember(scope, "Tea.")
    await fill(own_database, upkeep(own_database, new))
    patient = upkeep(own_database, new, grace=3600.0)
    await patient.run()
    assert await own_database.fetchval("SELECT to_regclass('memory_space_1') IS NOT NULL")
    keeper = upkeep(own_database, new)
    async with own_database.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE memory_space_1 IN ACCESS SHARE MODE")
        await keeper.run()
        assert await connection.fetchval("SELECT to_regclass('memory_space_1') IS NOT NULL")
    await keeper.run()
    assert await own_database.fetchval("SELECT to_regclass('memory_space_1') IS NULL")


async def test_a_process_of_the_old_model_keeps_memories_without_vectors_which_are_filled_in(
    own_database: Pool, scope: Scope
) -> None:
    old, new = HashingEmbedder(OLD), HashingEmbedder(NEW)
    left_over = PostgresMemory(own_database, old)
    tea = await left_over.remember(scope, "Tea.")
    keeper = upkeep(own_database, new)
    await fill(own_database, keeper)
    await keeper.run()  # the table is gone, and the old process does not know

    milk = await left_over.remember(scope, "Milk.")
    await left_over.change(scope, tea.id, Changes(frozenset({"text"}), text="Coffee."))
    assert await states(own_database) == [(OLD, "retired"), (NEW, "serving")]
    assert await vectors(own_database, 2) == 0
    assert [item.id for item in await left_over.recall(scope, "milk")] == [milk.id]
    await keeper.run()
    assert await vectors(own_database, 2) == 2
    assert {"Milk.", "Coffee."} <= set(new.asked)
    await assert_counts(own_database, scope.org_id)


async def test_an_embedder_that_fails_for_a_while_is_waited_for(own_database: Pool, scope: Scope) -> None:
    old, new = HashingEmbedder(OLD), HashingEmbedder(NEW)
    await PostgresMemory(own_database, old).remember_all(scope, [NewMemory(f"Tea {number}") for number in range(20)])
    keeper = upkeep(own_database, new)
    await keeper.run()
    new.failures = 3
    assert await fill(own_database, keeper) is None
    assert await states(own_database) == [(OLD, "retired"), (NEW, "serving")]


async def test_an_embedder_that_goes_on_failing_leaves_the_old_space_serving(own_database: Pool, scope: Scope) -> None:
    old, new = HashingEmbedder(OLD), HashingEmbedder(NEW)
    await PostgresMemory(own_database, old).remember_all(scope, [NewMemory(f"Tea {number}") for number in range(20)])
    keeper = upkeep(own_database, new)
    await keeper.run()
    job = await take_job(own_database, [FILL], worker="tests", lease_seconds=60)
    assert job is not None
    new.failures = 1000
    with pytest.raises(EmbedderUnavailable):
        await keeper.fill(job)
    assert await states(own_database) == [(OLD, "serving"), (NEW, "filling")]
    memory = PostgresMemory(own_database, new, previous={OLD: old})
    assert len(await memory.recall(scope, "tea", limit=20)) > 0
    new.failures = 0
    await keeper.fill(job)  # goes on where it stopped
    assert await vectors(own_database, 2) == 20


async def test_what_changes_while_it_is_embedded_keeps_its_new_vector(own_database: Pool, scope: Scope) -> None:
    old = HashingEmbedder(OLD)
    item = await PostgresMemory(own_database, old).remember(scope, "Tea.")

    class Meddled(HashingEmbedder):
        async def embed(self, texts: list[str]) -> list[list[float]]:  # type: ignore[override]
            if "Tea." in texts:
                await PostgresMemory(own_database, HashingEmbedder(NEW)).change(
                    scope, item.id, Changes(frozenset({"text"}), text="Coffee.")
                )
            return await super().embed(texts)

    await fill(own_database, upkeep(own_database, Meddled(NEW)))
    [expected] = await HashingEmbedder(NEW).embed(["Coffee."])
    stored = await own_database.fetchval("SELECT embedding::real[] FROM memory_space_2")
    assert stored == pytest.approx(expected, abs=1e-3)
    await assert_counts(own_database, scope.org_id)


async def test_a_worker_of_another_model_leaves_the_job_to_others(own_database: Pool, scope: Scope) -> None:
    old, new = HashingEmbedder(OLD), HashingEmbedder(NEW)
    await PostgresMemory(own_database, old).remember(scope, "Tea.")
    await upkeep(own_database, new).run()
    job = await take_job(own_database, [FILL], worker="tests", lease_seconds=60)
    assert job is not None
    assert await upkeep(own_database, old).fill(job) is True
    state = await get_job(own_database, FILL, "2")
    assert state is not None
    assert (state.status, state.attempt) == ("queued", 0)
    await add_job(own_database, FILL, "99")
    await own_database.execute("UPDATE jobs SET not_before = now() + interval '1 hour' WHERE key = '2'")
    gone = await take_job(own_database, [FILL], worker="tests", lease_seconds=60)
    assert gone is not None
    assert await upkeep(own_database, old).fill(gone) is None  # there is no such space any more


async def test_a_model_may_be_taken_back(own_database: Pool, scope: Scope) -> None:
    """A deployment that goes back to its old model fills a space of it again."""
    old, new = HashingEmbedder(OLD), HashingEmbedder(NEW)
    await PostgresMemory(own_database, old).remember(scope, "Tea.")
    await fill(own_database, upkeep(own_database, new))
    back = PostgresMemory(own_database, old)
    await back.remember(replace(scope, user_id=None), "Milk.")
    assert (await states(own_database))[-1] == (OLD, "filling")
    await fill(own_database, upkeep(own_database, old))
    assert await states(own_database) == [(OLD, "retired"), (NEW, "retired"), (OLD, "serving")]
    assert await vectors(own_database, 3) == 2


async def test_spaces_that_cant_be_read_are_memory_unavailable(database_url: str, org: str) -> None:
    pool = await open_pool(database_url, size=1, name="tests")
    memory = PostgresMemory(pool, HashingEmbedder(OLD))
    await pool.close()
    with pytest.raises(MemoryUnavailable):
        await memory.remember(Scope(org), "Tea.")
