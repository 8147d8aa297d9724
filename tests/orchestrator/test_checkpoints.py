"""The checkpointer: LangGraph's own conformance suite, and what Longhaul promises beyond it."""

from __future__ import annotations

import asyncio
import contextlib
import operator
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.runnables import RunnableConfig
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import ALL_CAPABILITIES
from langgraph.checkpoint.serde.types import ERROR
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, Interrupt, Overwrite, Send, interrupt
from pydantic import BaseModel, SecretStr
from redis.asyncio import Redis

from kernel.checkpoints import CheckpointRow, CheckpointWriteRow
from kernel.errors import LeaseLost
from kernel.postgres import Pool, open_pool
from kernel.tenants import ensure_org
from orchestrator.checkpoints import CheckpointRefused, PostgresCheckpoints, StrictMsgpack
from tests.kernel.writing import ask, expire, worker, writing

ORG = "org_0123456789abcdef0123456789abcdef"
OTHER_ORG = "org_fedcba9876543210fedcba9876543210"


@pytest.fixture(scope="module")
async def pool(make_database: Callable[[], Awaitable[str]]) -> AsyncIterator[Pool]:
    """On a database of this module, where tables may be emptied."""
    pool = await open_pool(await make_database(), size=4, name="tests")
    yield pool
    await pool.close()


@pytest.fixture
async def saver(pool: Pool) -> PostgresCheckpoints:
    await pool.execute("TRUNCATE checkpoints, checkpoint_writes")
    return PostgresCheckpoints(pool, ORG)


def thread(thread_id: str, checkpoint_id: str | None = None) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", "checkpoint_id": checkpoint_id}}


def state(**values: object) -> Checkpoint:
    checkpoint = empty_checkpoint()
    checkpoint["channel_values"] = values
    return checkpoint


async def put(saver: PostgresCheckpoints, checkpoint: Checkpoint, thread_id: str = "t", **told: Any) -> RunnableConfig:
    metadata: Any = {"source": "loop", "step": 1, "parents": {}, **told}
    return await saver.aput(thread(thread_id), checkpoint, metadata, {})


async def read(saver: PostgresCheckpoints, thread_id: str = "t") -> CheckpointTuple:
    found = await saver.aget_tuple(thread(thread_id))
    assert found is not None
    return found


# -- conformance -----------------------------------------------------------------------------------------------


async def test_the_conformance_suite_of_langgraph_passes_with_every_capability(pool: Pool) -> None:
    @checkpointer_test(name="PostgresCheckpoints")
    async def fresh_saver() -> AsyncIterator[BaseCheckpointSaver[int]]:
        await pool.execute("TRUNCATE checkpoints, checkpoint_writes")
        yield PostgresCheckpoints(pool, ORG)

    report = await validate(fresh_saver)

    assert {name for name, result in report.results.items() if result.detected} == {c.value for c in ALL_CAPABILITIES}
    assert {name: result.failures for name, result in report.results.items() if not result.passed} == {}
    assert sum(result.tests_passed for result in report.results.values()) >= 80


# -- strict MessagePack ----------------------------------------------------------------------------------------


@dataclass
class Record:
    text: str


class Model(BaseModel):
    text: str


class Mood(StrEnum):
    GOOD = "good"


class Point(NamedTuple):
    x: int


@pytest.mark.parametrize(
    "value",
    [
        Record("x"),
        Model(text="x"),
        SecretStr("x"),
        Mood.GOOD,
        Point(1),
        datetime(2026, 1, 1, tzinfo=UTC),
        uuid4(),
        Path("/x"),
        frozenset({1}),
        print,
        {1: "a key that is no text"},
        2**64,
        "half a pair \ud800",
        Send("node", Record("x")),
        Interrupt(Model(text="x"), "id"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_is_not_plain_data_is_refused_when_it_is_written(
    pool: Pool, saver: PostgresCheckpoints, value: object
) -> None:
    stored = await put(saver, state())
    with pytest.raises(CheckpointRefused, match=r"thread t must be plain data: .*\['calls'\]\[1\]"):
        await put(saver, state(calls=["fine", value]))
    fresh = PostgresCheckpoints(pool, ORG)
    with pytest.raises(CheckpointRefused, match=r"channel 'calls' of thread t must be plain data: .* at value\[0\]"):
        await fresh.aput_writes(stored, [("calls", [value])], "task")
    assert (await read(saver)).checkpoint["channel_values"] == {}


TEXT = st.text(st.characters(codec="utf-8"))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXT | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.sets(TEXT)
        | st.dictionaries(TEXT, inner)
        | inner.map(lambda value: Send("node", value))
        | inner.map(lambda value: Interrupt(value, "id"))
        | inner.map(Overwrite)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(PLAIN)
def test_plain_data_and_the_graphs_packets_come_back_as_they_were(value: object) -> None:
    serde = StrictMsgpack()
    back = serde.loads_typed(serde.dumps_typed(value))
    assert back == value


def test_a_tuple_does_not_become_a_list_nor_a_set_lose_its_kind() -> None:
    serde = StrictMsgpack()
    back = serde.loads_typed(serde.dumps_typed({"deep": [(1, {"a"}, ())]}))
    assert back == {"deep": [(1, {"a"}, ())]}


def test_an_exception_is_kept_as_its_text() -> None:
    serde = StrictMsgpack()
    assert serde.loads_typed(serde.dumps_typed(ValueError("no"))) == "ValueError('no')"
    assert len(serde.loads_typed(serde.dumps_typed(ValueError("x" * 10_000)))) == 2_000


@given(st.binary(max_size=64))
def test_any_stored_bytes_are_either_one_value_or_refused(blob: bytes) -> None:
    serde = StrictMsgpack()
    with contextlib.suppress(CheckpointRefused):
        serde.loads_typed(("msgpack", blob))


class Trap:
    """Tells when it is unpickled."""

    sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Trap, "sprung", True)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("format", ["pickle", "msgpack", "json"])
@pytest.mark.parametrize("column", ["checkpoint", "metadata"])
async def test_a_pickle_in_the_checkpoints_is_refused_and_not_run(
    pool: Pool, saver: PostgresCheckpoints, column: str, format: str, protocol: int
) -> None:
    stored = await put(saver, state(a=1))
    await pool.execute(
        f"UPDATE checkpoints SET format = $1, {column} = $2", format, pickle.dumps({"id": Trap()}, protocol)
    )
    with pytest.raises(CheckpointRefused, match=f"of checkpoint {stored['configurable']['checkpoint_id']} of thread t"):
        await saver.aget_tuple(thread("t"))
    with pytest.raises(CheckpointRefused):
        [found async for found in saver.alist(thread("t"))]
    assert not Trap.sprung


@pytest.mark.parametrize("format", ["pickle", "msgpack"])
async def test_a_pickle_among_the_writes_is_refused_and_not_run(
    pool: Pool, saver: PostgresCheckpoints, format: str
) -> None:
    stored = await put(saver, state(a=1))
    await saver.aput_writes(stored, [("a", 2)], "task")
    await pool.execute("UPDATE checkpoint_writes SET format = $1, value = $2", format, pickle.dumps(Trap()))
    with pytest.raises(CheckpointRefused, match="a write to 'a' at checkpoint"):
        await saver.aget_tuple(thread("t"))
    assert not Trap.sprung


async def test_bytes_after_the_value_and_another_checkpoints_state_are_refused(
    pool: Pool, saver: PostgresCheckpoints
) -> None:
    await put(saver, state(a=1))
    await pool.execute("UPDATE checkpoints SET checkpoint = checkpoint || '\\xc0'::bytea")
    with pytest.raises(CheckpointRefused, match="bytes follow"):
        await saver.aget_tuple(thread("t"))
    await pool.execute("UPDATE checkpoints SET checkpoint = $1", StrictMsgpack().dumps_typed(state(a=1))[1])
    with pytest.raises(CheckpointRefused, match="holds the state of another"):
        await saver.aget_tuple(thread("t"))


# -- what is kept, and for whom --------------------------------------------------------------------------------


async def test_text_with_nul_and_values_of_megabytes_are_kept(saver: PostgresCheckpoints) -> None:
    values = {"nul": "a\x00b", "bytes": b"\x00\xff", "large": "é" * 3_000_000, "many": list(range(200_000))}
    stored = await put(saver, state(**values), note="n\x00ul")
    await saver.aput_writes(stored, list(values.items()), "task")
    found = await read(saver)
    assert found.checkpoint["channel_values"] == values
    assert {channel: value for _, channel, value in found.pending_writes or ()} == values


async def test_another_org_sees_copies_and_removes_nothing(pool: Pool, saver: PostgresCheckpoints) -> None:
    async def rows() -> list[object]:
        tables = ("checkpoints", "checkpoint_writes")
        return [await pool.fetch(f"SELECT t::text FROM {table} t WHERE org_id = $1", ORG) for table in tables]

    stored = await put(saver, state(a=1), run_id="run_1")
    await saver.aput_writes(stored, [("a", 2)], "task")
    before = await rows()
    other = PostgresCheckpoints(pool, OTHER_ORG)

    assert await other.aget_tuple(thread("t")) is None
    assert await other.aget_tuple(stored) is None
    assert [found async for found in other.alist(None)] == []
    await other.aput_writes(stored, [("a", 3)], "task")
    await other.acopy_thread("t", "u")
    await other.aprune(["t"])
    await other.aprune(["t"], strategy="delete")
    await other.adelete_for_runs(["run_1"])
    await other.adelete_thread("t")

    assert await other.aget_tuple(thread("u")) is None
    assert await rows() == before
    assert [found.config async for found in saver.alist(None)] == [stored]


async def test_pending_writes_come_in_the_order_in_which_a_step_applies_them(saver: PostgresCheckpoints) -> None:
    stored = await put(saver, state())
    paths = {"t1": "~b", "t2": "~B", "t3": "", "t4": "~ä", "t5": "~b", "t6": "~a, 10", "t7": "~a, 9"}
    for task, path in paths.items():
        await saver.aput_writes(stored, [("x", 0), ("y", 1)], task, path)
    expected = [
        (t, c, v) for t, p in sorted(paths.items(), key=lambda i: (i[1], i[0])) for c, v in (("x", 0), ("y", 1))
    ]
    assert (await read(saver)).pending_writes == expected


async def test_the_output_of_a_task_is_taken_once_and_its_error_is_replaced(saver: PostgresCheckpoints) -> None:
    stored = await put(saver, state())
    await saver.aput_writes(stored, [("a", "first")], "task")
    await saver.aput_writes(stored, [("a", "second")], "task")
    await saver.aput_writes(stored, [(ERROR, ValueError("first"))], "task")
    await saver.aput_writes(stored, [(ERROR, ValueError("second"))], "task")
    assert (await read(saver)).pending_writes == [("task", ERROR, "ValueError('second')"), ("task", "a", "first")]


async def test_a_list_longer_than_a_page_is_filtered_and_limited_over_all_pages(saver: PostgresCheckpoints) -> None:
    for number in range(230):
        checkpoint = state()
        checkpoint["id"] = f"{number:04}"
        await saver.aput(thread(f"t{number % 2}"), checkpoint, {"step": number % 10}, {})

    def ids(found: list[CheckpointTuple]) -> list[int]:
        return [int(item.checkpoint["id"]) for item in found]

    newest_first = list(range(229, -1, -1))
    assert ids([f async for f in saver.alist(None)]) == newest_first
    assert ids([f async for f in saver.alist(None, filter={"step": 3})]) == [n for n in newest_first if n % 10 == 3]
    assert (
        ids([f async for f in saver.alist(None, filter={"step": 3}, limit=15)])
        == [n for n in newest_first if n % 10 == 3][:15]
    )
    assert ids([f async for f in saver.alist(thread("t1"), before=thread("t1", "0201"), limit=101)]) == list(
        range(199, -1, -2)
    )
    assert ids([f async for f in saver.alist(None, limit=0)]) == []


async def test_pruning_by_an_unknown_strategy_is_refused(saver: PostgresCheckpoints) -> None:
    with pytest.raises(ValueError, match="keep_latest"):
        await saver.aprune(["t"], strategy="keep_all")


# -- staging ---------------------------------------------------------------------------------------------------


class Pen:
    """A sink that keeps the order of what it is given, and commits it when asked."""

    def __init__(self, pool: Pool) -> None:
        self.staged: list[CheckpointRow | Sequence[CheckpointWriteRow]] = []
        self.commits = 0
        self._pool = pool
        self._written = 0

    def stage_checkpoint(self, row: CheckpointRow) -> None:
        self.staged.append(row)

    def stage_writes(self, rows: Sequence[CheckpointWriteRow], finished: str | None) -> None:
        self.staged.append(rows)

    async def committed(self) -> None:
        self.commits += 1
        await store(self._pool, self.staged[self._written :])
        self._written = len(self.staged)

    def told(self) -> list[str]:
        """`node→` for a task's writes, `=1` for the checkpoint of step 1."""
        serde = StrictMsgpack()
        return [
            f"={serde.loads_typed((item.format, item.metadata))['step']}"
            if isinstance(item, CheckpointRow)
            else f"{item[0].task_path.split(', ')[-1]}→"
            for item in self.staged
        ]


async def store(pool: Pool, staged: Sequence[CheckpointRow | Sequence[CheckpointWriteRow]]) -> None:
    """Writes staged rows as the journal would."""
    for item in staged:
        if isinstance(item, CheckpointRow):
            await pool.execute(
                "INSERT INTO checkpoints VALUES ($1, $2, $3, $4, $5, NULL, $6, $7, $8)", ORG, *astuple(item)
            )
        else:
            await pool.executemany(
                "INSERT INTO checkpoint_writes VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
                [(ORG, *astuple(row)) for row in item],
            )


class Work(TypedDict, total=False):
    asked: str
    notes: Annotated[list[str], operator.add]
    answer: str


def working_graph(ran: list[str]) -> CompiledStateGraph[Work, Any, Work, Work]:
    """plan → (left beside right) → join → finish; `ran` gets each node that runs."""

    async def plan(state: Work) -> Work:
        ran.append("plan")
        return {"notes": [f"plan {state['asked']}"]}

    async def left(state: Work) -> Work:
        ran.append("left")
        return {"notes": ["left"]}

    async def right(state: Work) -> Work:
        await asyncio.sleep(0)
        ran.append("right")
        return {"notes": ["right"]}

    async def join(state: Work) -> Command[str]:
        ran.append("join")
        return Command(update={"notes": ["join"]}, goto="finish")

    async def finish(state: Work) -> Work:
        ran.append("finish")
        return {"answer": " ".join(state["notes"])}

    graph = StateGraph(Work)
    for name, node in {"plan": plan, "left": left, "right": right, "finish": finish}.items():
        graph.add_node(name, node)
    graph.add_node("join", join, destinations=("finish",))
    graph.add_edge(START, "plan")
    graph.add_edge("plan", "left")
    graph.add_edge("plan", "right")
    graph.add_edge(["left", "right"], "join")
    graph.add_edge("finish", END)
    return graph.compile()


def with_saver(saver: PostgresCheckpoints, thread_id: str = "t") -> RunnableConfig:
    return {
        "configurable": {"thread_id": thread_id, "__pregel_checkpointer": saver},
        "metadata": {"run_id": "run_1"},
    }


async def test_writes_are_staged_before_the_checkpoint_they_lead_to_and_nothing_before_a_node_ran(pool: Pool) -> None:
    pen, seen = Pen(pool), []

    async def first(state: Work) -> Work:
        seen.append(list(pen.staged))
        return {"answer": "a"}

    graph = StateGraph(Work).add_node("first", first).add_node("second", first)
    compiled = graph.add_edge(START, "first").add_edge("first", "second").compile()
    await compiled.ainvoke(
        {"asked": "?"}, with_saver(PostgresCheckpoints(pool, ORG, pen, fresh=True)), durability="sync"
    )

    assert seen[0] == []
    assert pen.told() == ["=0", "first→", "=1", "second→", "=2"]


async def test_a_fresh_run_asks_postgres_for_nothing(database_url: str) -> None:
    closed = await open_pool(database_url, size=1, name="tests")
    await closed.close()
    pen = Pen(closed)
    config = with_saver(PostgresCheckpoints(closed, ORG, pen, fresh=True))
    done = await working_graph([]).ainvoke({"asked": "?"}, config, durability="sync")
    assert done["answer"] == "plan ? left right join"
    assert pen.commits == 0


async def test_a_run_goes_on_to_the_same_end_from_every_point_at_which_it_may_die(pool: Pool) -> None:
    pen = Pen(pool)
    whole: list[str] = []
    config = with_saver(PostgresCheckpoints(pool, ORG, pen, fresh=True))
    expected = await working_graph(whole).ainvoke({"asked": "?"}, config, durability="sync")
    assert pen.told() == ["=0", "plan→", "=1", "left→", "right→", "=2", "join→", "=3", "finish→", "=4"]

    for survived in range(len(pen.staged) + 1):
        await pool.execute("TRUNCATE checkpoints, checkpoint_writes")
        await store(pool, pen.staged[:survived])
        finished = {told.removesuffix("→") for told in pen.told()[:survived]}
        again: list[str] = []
        config = with_saver(PostgresCheckpoints(pool, ORG, Pen(pool)))
        done = await working_graph(again).ainvoke({"asked": "?"}, config, durability="sync")
        assert done == expected, f"after {pen.told()[:survived]}"
        assert again == [node for node in whole if node not in finished], f"after {pen.told()[:survived]}"


async def test_an_interrupted_run_waits_in_postgres_and_goes_on_with_the_answer(pool: Pool) -> None:
    await pool.execute("TRUNCATE checkpoints, checkpoint_writes")

    async def ask(state: Work) -> Work:
        return {"answer": interrupt({"may I": state["asked"]})}

    graph = StateGraph(Work).add_node("ask", ask).add_edge(START, "ask").compile()
    pen = Pen(pool)
    asked = await graph.ainvoke(
        {"asked": "?"}, with_saver(PostgresCheckpoints(pool, ORG, pen, fresh=True)), durability="sync"
    )
    assert [i.value for i in asked["__interrupt__"]] == [{"may I": "?"}]
    assert pen.told() == ["=0", "ask→"]

    await pen.committed()
    done = await graph.ainvoke(
        Command(resume="yes"), with_saver(PostgresCheckpoints(pool, ORG, Pen(pool))), durability="sync"
    )
    assert done["answer"] == "yes"


async def test_what_was_staged_is_committed_before_it_is_read(pool: Pool) -> None:
    await pool.execute("TRUNCATE checkpoints, checkpoint_writes")
    pen = Pen(pool)
    saver = PostgresCheckpoints(pool, ORG, pen, fresh=True)
    assert await saver.aget_tuple(thread("t")) is None

    held = await put(saver, state(a=1))
    assert pen.staged == []
    assert (await read(saver)).config == held

    ran = state(a=2)
    ran["versions_seen"] = {"node": {}}
    newer = await put(saver, ran)
    await saver.aput_writes(newer, [("a", 3)], "task")
    assert (await read(saver)).pending_writes == [("task", "a", 3)]
    assert pen.commits == 2
    assert await saver.aget_tuple(thread("another")) is None
    assert pen.commits == 2


async def test_a_refused_state_stops_the_graph_before_its_next_node(pool: Pool) -> None:
    ran = []

    async def bad(state: Work) -> Work:
        return {"answer": Record("x")}  # type: ignore[typeddict-item]

    async def after(state: Work) -> Work:
        ran.append("after")
        return {}

    graph = StateGraph(Work).add_node("bad", bad).add_node("after", after)
    compiled = graph.add_edge(START, "bad").add_edge("bad", "after").compile()
    pen = Pen(pool)
    with pytest.raises(CheckpointRefused, match=r"channel 'answer' of thread t must be plain data: .*Record"):
        await compiled.ainvoke(
            {"asked": "?"}, with_saver(PostgresCheckpoints(pool, ORG, pen, fresh=True)), durability="sync"
        )
    assert ran == []
    assert pen.staged == []


async def test_a_delta_channel_is_refused(pool: Pool) -> None:
    class Deltas(TypedDict):
        notes: Annotated[list[str], DeltaChannel(lambda value, writes: value + [w for ws in writes for w in ws])]

    async def node(state: Deltas) -> Deltas:
        return {"notes": ["b"]}

    graph = StateGraph(Deltas).add_node("node", node).add_edge(START, "node").compile()
    with pytest.raises(CheckpointRefused, match="delta channel"):
        await graph.ainvoke(
            {"notes": ["a"]}, with_saver(PostgresCheckpoints(pool, ORG, Pen(pool), fresh=True)), durability="sync"
        )


async def test_a_thread_goes_on_under_the_next_epoch_and_its_dead_owner_changes_nothing(
    own_database: Pool, redis: Redis
) -> None:
    org = await ensure_org(own_database, "own")
    reached, resume = asyncio.Event(), asyncio.Event()
    ran: list[str] = []

    async def first(state: Work) -> Work:
        ran.append("first")
        return {"notes": ["first"]}

    async def second(state: Work) -> Work:
        ran.append("second")
        if not reached.is_set():
            reached.set()
            await resume.wait()
            return {"answer": "of the dead"}
        return {"answer": "of the living"}

    graph = StateGraph(Work).add_node("first", first).add_node("second", second)
    compiled = graph.add_edge(START, "first").add_edge("first", "second").compile()
    run = await ask(own_database, org)

    async with writing(own_database, redis) as writer:
        [claimed] = await worker(own_database, "dead:1").claim(1)
        dead = writer.pen(claimed)
        config = with_saver(PostgresCheckpoints(own_database, org, dead, fresh=True), run.id)
        zombie = asyncio.create_task(compiled.ainvoke({"asked": "?"}, config, durability="sync"))
        await reached.wait()
        await dead.committed()

        await expire(own_database, run.id)
        [claimed] = await worker(own_database, "alive:1").claim(1)
        alive = writer.pen(claimed)
        config = with_saver(PostgresCheckpoints(own_database, org, alive), run.id)
        done = await compiled.ainvoke({"asked": "?"}, config, durability="sync")
        await alive.committed()

        resume.set()
        await zombie
        with pytest.raises(LeaseLost):
            await dead.committed()

    assert ran == ["first", "second", "second"]
    assert done == {"asked": "?", "notes": ["first"], "answer": "of the living"}
    kept = await PostgresCheckpoints(own_database, org).aget_tuple(thread(run.id))
    assert kept is not None
    assert kept.checkpoint["channel_values"]["answer"] == "of the living"
    await PostgresCheckpoints(own_database, org).adelete_for_runs([run.id])
    assert await own_database.fetchval("SELECT count(*) FROM checkpoints") == 0
    assert await own_database.fetchval("SELECT count(*) FROM checkpoint_writes") == 0
