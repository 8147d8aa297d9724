"""Upkeep: what is done some time after a write, and what of it other writers notice."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from kernel.ids import new_id
from kernel.jobs import add_job, finish_job, get_job, take_job
from kernel.postgres import Pool
from kernel.tasks import end
from kernel.tenants import ensure_org
from memory.filling import Filler
from memory.graph import Graph
from memory.records import NewMemory, Scope
from memory.spaces import Space, Spaces
from memory.store import PostgresMemory
from memory.upkeep import UPKEEP, Upkeep
from tests.memory.counts import assert_counts
from tests.memory.hashing import HashingEmbedder
from tests.waiting import eventually
from worker.jobs import Jobs

SPACE = Space(1, "hashing", 64, "serving")


@pytest.fixture
def embedder() -> HashingEmbedder:
    return HashingEmbedder()


@pytest.fixture
def memory(own_database: Pool, embedder: HashingEmbedder) -> PostgresMemory:
    return PostgresMemory(own_database, embedder, patience=30.0)


@pytest.fixture
async def scope(own_database: Pool) -> Scope:
    return Scope(await ensure_org(own_database, "upkeep"), user_id="alice")


@pytest.fixture
def keeper(own_database: Pool, embedder: HashingEmbedder) -> Upkeep:
    return upkeep(own_database, embedder)


def upkeep(database: Pool, embedder: HashingEmbedder, **arguments: Any) -> Upkeep:
    filler = Filler(database, embedder, settled=0.0, rest=0.0, first_pause=0.0)
    spaces = Spaces(database, embedder, fresh=0.0)
    return Upkeep(database, embedder, spaces, filler=filler, graph=graph(database), **arguments)


def graph(database: Pool, **arguments: Any) -> Graph:
    return Graph(database, **({"large": 50, "step": 20, "rest": 0.0} | arguments))


async def in_graph(database: Pool) -> dict[str, tuple[int, int]]:
    """By scope: how many vectors there are, and how many of them in the graph."""
    rows = await database.fetch(
        """SELECT s.scope, count(*) AS all, count(*) FILTER (WHERE v.in_graph) AS moved
           FROM memory_space_1 v JOIN memory_shelves s ON s.id = v.shelf GROUP BY s.scope"""
    )
    return {row["scope"]: (row["all"], row["moved"]) for row in rows}


async def built(database: Pool) -> bool:
    return bool(
        await database.fetchval(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('memory_space_1_graph')"
        )
    )


async def old_release(database: Pool, scope: Scope, text: str, model: str, vector: str) -> str:
    """What the release before this one writes."""
    memory_id = new_id("mem")
    await database.execute(
        """INSERT INTO memories (id, org_id, user_id, kind, text, embedding, embedding_model, search, content_hash)
           VALUES ($1, $2, $3, 'fact', $4, $5::text::halfvec, $6, 'a:1'::tsvector, $7)""",
        memory_id,
        scope.org_id,
        scope.user_id,
        text,
        vector,
        model,
        hashlib.sha256(text.encode()).digest(),
    )
    return memory_id


async def test_vectors_of_large_shelves_are_moved_into_the_graph(
    own_database: Pool, memory: PostgresMemory, scope: Scope, keeper: Upkeep
) -> None:
    await memory.remember_all(scope, [NewMemory(f"Tea {number}", scope="org") for number in range(130)])
    await memory.remember_all(scope, [NewMemory(f"Tea {number}") for number in range(49)])
    assert await in_graph(own_database) == {"org": (130, 0), "user": (49, 0)}
    await keeper.run()
    assert await in_graph(own_database) == {"org": (130, 130), "user": (49, 0)}
    await memory.remember_all(scope, [NewMemory("Milk", scope="org"), NewMemory("Milk")])
    assert await in_graph(own_database) == {"org": (131, 130), "user": (50, 0)}
    await keeper.run()
    assert await in_graph(own_database) == {"org": (131, 131), "user": (50, 50)}
    await assert_counts(own_database, scope.org_id)


async def test_a_shelf_that_has_shrunk_may_stay_in_the_graph(
    own_database: Pool, memory: PostgresMemory, scope: Scope, keeper: Upkeep
) -> None:
    items = await memory.remember_all(scope, [NewMemory(f"Tea {number}") for number in range(60)])
    await keeper.run()
    await memory.forget(scope, [item.id for item in items[:30]])
    await memory.remember(scope, "Milk")
    await keeper.run()
    assert await in_graph(own_database) == {"user": (31, 30)}


async def test_the_graph_takes_a_bounded_time_of_a_pass(
    own_database: Pool, memory: PostgresMemory, scope: Scope, embedder: HashingEmbedder
) -> None:
    await memory.remember_all(scope, [NewMemory(f"Tea {number}") for number in range(60)])
    await upkeep(own_database, embedder, seconds=0.0).run()
    assert await in_graph(own_database) == {"user": (60, 0)}


async def test_where_very_many_wait_the_graph_is_built_anew(
    own_database: Pool, memory: PostgresMemory, scope: Scope
) -> None:
    await memory.remember_all(scope, [NewMemory(f"Tea {number}") for number in range(300)])
    await memory.remember(scope, "Milk", kind="fact")
    builder = graph(own_database, bulk=200)
    writing = asyncio.gather(*(memory.remember(scope, f"Bread {number}") for number in range(20)))
    assert await builder.take_in(SPACE) <= 20
    await writing
    await builder.take_in(SPACE)
    assert await in_graph(own_database) == {"user": (321, 321)}
    assert await built(own_database)
    # What has grown by a little since is moved one by one.
    await memory.remember_all(scope, [NewMemory(f"Salt {number}") for number in range(250)])
    assert await builder.take_in(SPACE) == 250


@pytest.mark.parametrize(
    "left",
    [
        "DROP INDEX memory_space_1_graph",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'memory_space_1_graph'::regclass",
    ],
    ids=["missing", "invalid"],
)
async def test_a_building_that_broke_off_is_begun_again(
    own_database: Pool, memory: PostgresMemory, scope: Scope, left: str
) -> None:
    await memory.remember_all(scope, [NewMemory(f"Tea {number}") for number in range(60)])
    await own_database.execute(left)
    await graph(own_database).take_in(SPACE)
    assert await in_graph(own_database) == {"user": (60, 60)}
    assert await built(own_database)


async def test_a_graph_is_built_by_one_worker(own_database: Pool, memory: PostgresMemory, scope: Scope) -> None:
    await memory.remember_all(scope, [NewMemory(f"Tea {number}") for number in range(300)])
    await asyncio.gather(*(graph(own_database, bulk=200).take_in(SPACE) for _ in range(3)))
    assert await in_graph(own_database) == {"user": (300, 300)}
    assert await built(own_database)
    held = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database WHERE locktype = 'advisory'"
    assert await own_database.fetchval(f"{held} AND datname = current_database()") == 0


async def test_memories_are_removed_while_they_are_moved(
    own_database: Pool, memory: PostgresMemory, scope: Scope
) -> None:
    items = await memory.remember_all(scope, [NewMemory(f"Tea {number}") for number in range(400)])
    moving = asyncio.create_task(graph(own_database).take_in(SPACE))
    gone = await asyncio.gather(
        *(memory.forget(scope, [item.id for item in items[start : start + 20]]) for start in range(0, 200, 20))
    )
    await moving
    assert sum(gone) == 200
    assert (await in_graph(own_database))["user"][0] == 200
    await assert_counts(own_database, scope.org_id)


async def test_what_the_release_before_writes_is_indexed(
    own_database: Pool, memory: PostgresMemory, scope: Scope, keeper: Upkeep, embedder: HashingEmbedder
) -> None:
    await memory.remember(scope, "Tea is served at four.")
    vector = "[1" + ",0" * 63 + "]"
    kept = await old_release(own_database, scope, "The harbour opens at seven.", "hashing/64", vector)
    made = await old_release(own_database, scope, "The canteen opens at noon.", "another/2", "[0,1]")
    assert await memory.recall(scope, "When does the harbour open?") == []
    await keeper.run()
    assert [item.id for item in await memory.recall(scope, "harbour seven")] == [kept]
    assert [item.id for item in await memory.recall(scope, "canteen noon")] == [made]
    assert embedder.asked.count("The harbour opens at seven.") == 0  # it has a vector of this model
    assert embedder.asked.count("The canteen opens at noon.") == 1
    await assert_counts(own_database, scope.org_id)
    # The same text again, by the release before and by this one, is the same memory.
    assert (await memory.remember(scope, "The canteen opens at noon.")).id == made
    await assert_counts(own_database, scope.org_id)


async def test_memories_that_were_there_before_any_space_get_one(
    own_database: Pool, memory: PostgresMemory, scope: Scope, keeper: Upkeep
) -> None:
    made = await old_release(own_database, scope, "The canteen opens at noon.", "another/2", "[0,1]")
    await keeper.run()
    job = await take_job(own_database, ["memory_fill"], worker="tests", lease_seconds=60)
    assert job is not None
    assert await keeper.fill(job) is None
    assert await own_database.fetchval("SELECT state FROM memory_spaces") == "serving"
    assert [item.id for item in await memory.recall(scope, "canteen noon")] == [made]


async def test_what_may_not_be_committed_yet_is_not_passed_over(
    own_database: Pool, memory: PostgresMemory, scope: Scope, embedder: HashingEmbedder
) -> None:
    await memory.remember(scope, "Tea.")
    filler = Filler(own_database, embedder, settled=3600.0, rest=0.0)
    assert await filler.fill(SPACE) is False
    assert await filler.progress(SPACE) == (0, 1)
    await own_database.execute("UPDATE memories SET created_at = now() - interval '2 hours'")
    assert await filler.fill(SPACE) is True
    assert await filler.progress(SPACE) == (1, 1)


async def test_memories_of_a_session_go_after_it(
    own_database: Pool, memory: PostgresMemory, scope: Scope, keeper: Upkeep
) -> None:
    there, gone = new_id("ses"), new_id("ses")
    await own_database.execute("INSERT INTO sessions (id, org_id) VALUES ($1, $2)", there, scope.org_id)
    for session in (there, gone):
        await memory.remember_all(
            Scope(scope.org_id, session_id=session), [NewMemory("The plan is set.", scope="session")]
        )
    await keeper.run()
    owners = await own_database.fetch("SELECT owner FROM memory_shelves WHERE scope = 'session'")
    assert [row["owner"] for row in owners] == [there]
    assert len(await memory.list(Scope(scope.org_id, session_id=there))) == 1
    assert await memory.list(Scope(scope.org_id, session_id=gone)) == []
    await assert_counts(own_database, scope.org_id)


async def test_jobs_that_ended_long_ago_are_forgotten(own_database: Pool, keeper: Upkeep) -> None:
    await add_job(own_database, "some_work", "one")
    job = await take_job(own_database, ["some_work"], worker="tests", lease_seconds=60)
    assert job is not None
    await finish_job(own_database, job)
    await keeper.run()
    assert await get_job(own_database, "some_work", "one") is not None
    await own_database.execute("UPDATE jobs SET finished_at = now() - interval '8 days' WHERE kind = 'some_work'")
    await keeper.run()
    assert await get_job(own_database, "some_work", "one") is None


async def test_a_large_batch_asks_for_upkeep_at_once(own_database: Pool, memory: PostgresMemory, scope: Scope) -> None:
    await memory.remember_all(scope, [NewMemory(f"Tea {number}") for number in range(20)])
    assert await get_job(own_database, UPKEEP, "memory") is None
    await memory.remember_all(scope, [NewMemory(f"Milk {number}") for number in range(600)])
    state = await get_job(own_database, UPKEEP, "memory")
    assert state is not None
    assert state.status == "queued"


async def test_a_worker_does_what_a_large_batch_asks_for(
    own_database: Pool, scope: Scope, embedder: HashingEmbedder
) -> None:
    memory = PostgresMemory(own_database, embedder, patience=30.0)
    gone = Scope(scope.org_id, session_id=new_id("ses"))
    await memory.remember_all(gone, [NewMemory(f"Milk {number}", scope="session") for number in range(600)])
    jobs = asyncio.create_task(Jobs(own_database, memory.background(), worker="tests", poll_seconds=0.01).run())

    async def done() -> bool:
        state = await get_job(own_database, UPKEEP, "memory")
        return state is not None and state.status == "succeeded"

    try:
        await eventually(done)
    finally:
        await end(jobs)
    assert await memory.list(gone) == []
