"""The order in which a graph's writes and checkpoints reach the store: LangGraph promises none, Longhaul does.

The first part observes LangGraph with a saver as they are shipped, so that a release that changes its habits is
noticed. The second holds Longhaul's promise: a step's record, events, messages and what its graph goes on from are
one transaction. See docs/decisions/0009.
"""

from __future__ import annotations

import asyncio
import copy
import operator
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, TypedDict

import orjson
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import ERROR
from langgraph.graph import END, START, StateGraph
from redis.asyncio import Redis

from cli.rehearsal import ChatRequest, Reply, ToolCall
from kernel.agent_config import AgentConfig, MemoryConfig, SubAgentConfig
from kernel.agents import create_agent
from kernel.checkpoints import CheckpointRow, CheckpointWriteRow
from kernel.ids import new_id
from kernel.postgres import Pool
from kernel.runlog import NewMessage, NewStep
from kernel.runs import InputMessage, NewRun, submit
from kernel.settings import Settings
from kernel.tenants import ensure_org
from memory.embedders import choose_embedder
from memory.store import PostgresMemory
from orchestrator.checkpoints import PostgresCheckpoints
from orchestrator.engine import Engine
from orchestrator.kit import Outfitter
from orchestrator.models.factory import Models
from orchestrator.skills.registry import SkillRegistry
from orchestrator.tools.tool import Arguments, JSONValue, Tool, ToolContext
from orchestrator.tools.toolbox import Toolbox
from tests.history import assert_history
from tests.kernel.writing import ask, expire, worker, writing
from tests.orchestrator.mortal import Boundary, apart, live, read
from tests.scripts import ScriptedModel, said

# -- what LangGraph does by itself -----------------------------------------------------------------------------


class Notes(TypedDict):
    notes: Annotated[list[str], operator.add]


class SlowWrites(InMemorySaver):
    """A saver that does what the shipped ones do, on a store that takes its time for the writes of nodes.

    `landed` tells what the store has: `node→` for a node's writes, `=1` for the checkpoint of step 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.store_answers = asyncio.Event()
        self.broken = False
        self.landed: list[str] = []

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        saved = await super().aput(config, checkpoint, metadata, new_versions)
        self.landed.append(f"={metadata['step']}")
        return saved

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        if not task_path.endswith(START):
            await self.store_answers.wait()
            if self.broken:
                raise OSError("the store is away")
        await super().aput_writes(config, writes, task_id, task_path)
        self.landed.append(f"{task_path.split(', ')[-1]}→")

    def as_after_a_crash(self) -> InMemorySaver:
        """What another process would find in the store right now."""
        found = InMemorySaver()
        for name in ("storage", "writes", "blobs"):
            setattr(found, name, copy.deepcopy(getattr(self, name)))
        return found


THREAD: RunnableConfig = {"configurable": {"thread_id": "t"}}


async def test_langgraph_starts_the_next_node_before_the_writes_of_the_last_one_are_stored() -> None:
    saver = SlowWrites()
    seen: list[str] = []

    async def first(state: Notes) -> Notes:
        return {"notes": ["first"]}

    async def second(state: Notes) -> Notes:
        seen.extend(saver.landed)
        saver.store_answers.set()
        return {"notes": ["second"]}

    graph = StateGraph(Notes).add_node("first", first).add_node("second", second)
    compiled = graph.add_edge(START, "first").add_edge("first", "second").compile(saver)
    await compiled.ainvoke({"notes": []}, THREAD, durability="sync")

    assert seen[-1] == "=1", "the checkpoint is waited for"
    assert "first→" not in seen, "the writes that led to it are not"
    assert saver.landed.index("=1") < saver.landed.index("first→")


async def test_langgraph_keeps_a_checkpoint_whose_writes_failed_and_says_so_when_all_is_over() -> None:
    saver = SlowWrites()
    saver.broken = True
    saver.store_answers.set()
    ran: list[str] = []

    async def first(state: Notes) -> Notes:
        ran.append("first")
        return {"notes": ["first"]}

    async def second(state: Notes) -> Notes:
        ran.append("second")
        return {"notes": ["second"]}

    graph = StateGraph(Notes).add_node("first", first).add_node("second", second)
    compiled = graph.add_edge(START, "first").add_edge("first", "second").compile(saver)
    with pytest.raises(OSError, match="the store is away"):
        await compiled.ainvoke({"notes": []}, THREAD, durability="sync")

    assert ran == ["first", "second"]
    assert [what for what in saver.landed if what in ("=1", "=2", "first→", "second→")] == ["=1", "=2"]


async def test_langgraph_does_a_finished_branch_again_when_the_worker_dies_beside_a_slow_store() -> None:
    saver = SlowWrites()
    found: list[InMemorySaver] = []
    ran: list[str] = []
    left_is_done = asyncio.Event()

    async def left(state: Notes) -> Notes:
        ran.append("left")
        left_is_done.set()
        return {"notes": ["left"]}

    async def right(state: Notes) -> Notes:
        ran.append("right")
        await left_is_done.wait()
        for _ in range(20):  # far more turns of the loop than it takes to hand the writes to the saver
            await asyncio.sleep(0)
        if not found:
            found.append(saver.as_after_a_crash())
            saver.store_answers.set()
        return {"notes": ["right"]}

    graph = StateGraph(Notes).add_node("left", left).add_node("right", right)
    graph.add_edge(START, "left").add_edge(START, "right").add_edge("left", END).add_edge("right", END)
    await graph.compile(saver).ainvoke({"notes": []}, THREAD, durability="sync")
    assert sorted(ran) == ["left", "right"]

    left_is_done.clear()
    await graph.compile(found[0]).ainvoke(None, THREAD, durability="sync")
    assert sorted(ran) == ["left", "left", "right", "right"]


# -- what Longhaul does with it --------------------------------------------------------------------------------


class Turns(Arguments):
    turns: int


class Idle(Tool[Turns]):
    """Lets others go first."""

    name, description, arguments, effect = "idle", "Waits for some turns of the event loop.", Turns, "read"

    async def run(self, arguments: Turns, context: ToolContext) -> JSONValue:
        for _ in range(arguments.turns):
            await asyncio.sleep(0)
        return f"{arguments.turns} turns"


TEAM = AgentConfig(
    name="lead",
    tools=["idle"],
    sub_agents=[SubAgentConfig(name="helper", tools=["idle"])],
    memory=MemoryConfig(recall=False),
)


def brain(seed: int) -> Callable[[ChatRequest], Reply]:
    """Calls beside delegations, then one of each kind alone, then the answer. What it says depends on the seed and on
    what it is told, so that a step that is done again says the same."""

    def chance(*about: object) -> random.Random:
        return random.Random(f"{seed} {about}")

    def idle(task: str, number: int) -> ToolCall:
        return ToolCall("idle", {"turns": chance(task, number).randrange(150)})

    def answer(request: ChatRequest) -> Reply:
        results = sum(message["role"] == "tool" for message in request.messages)
        task = str(next(message["content"] for message in request.messages if message["role"] == "user"))
        latency = chance(task, results).choice([0, 0.002, 0.004, 0.008])
        return replace(reply(task, results), first_delay=latency)

    def reply(task: str, results: int) -> Reply:
        if task.startswith("part"):
            return Reply(tool_calls=[idle(task, results)]) if results < 1 else said(f"{task} is done")
        parts = [ToolCall("delegate", {"agent": "helper", "task": f"part {number}"}) for number in (1, 2, 3)]
        match results:
            case 0:
                return Reply(tokens=["Let me ", "see."], tool_calls=[idle(task, 1), parts[0], idle(task, 2), parts[1]])
            case 4:
                return Reply(tool_calls=[idle(task, 3)])
            case 5:
                return Reply(tool_calls=[parts[2]])
            case _:
                return said("all is done")

    return answer


@pytest.fixture
async def engine(own_database: Pool, settings: Settings) -> AsyncIterator[Engine]:
    models = Models(settings)
    yield Engine(
        own_database,
        models=models,
        outfitter=Outfitter(Toolbox([Idle()]), SkillRegistry(), {}),
        memory=PostgresMemory(own_database, choose_embedder(settings)),
    )
    await models.aclose()


@pytest.fixture
async def own_org(own_database: Pool) -> str:
    """Of a database that keeps count of how often each step and each message is written."""
    await own_database.execute(
        """
        CREATE TABLE written (what text, run_id text, key text);
        CREATE FUNCTION count_written() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE r jsonb := to_jsonb(NEW);
        BEGIN
            INSERT INTO written VALUES (TG_TABLE_NAME, r ->> 'run_id',
                                        coalesce(r ->> 'step_id', (r ->> 'path') || ':' || (r ->> 'position')));
            RETURN NULL;
        END $$;
        CREATE TRIGGER counted AFTER INSERT OR UPDATE ON steps FOR EACH ROW EXECUTE FUNCTION count_written();
        CREATE TRIGGER counted AFTER INSERT OR UPDATE ON messages FOR EACH ROW EXECUTE FUNCTION count_written();
        """
    )
    return await ensure_org(own_database, "own")


async def transcript(database: Pool, run_id: str) -> list[tuple[Any, ...]]:
    """All that was said, by whom; the ids of calls are the model's and new each time."""
    rows = await database.fetch("SELECT * FROM messages WHERE run_id = $1 ORDER BY path, position", run_id)
    return [
        (
            row["path"],
            row["position"],
            row["role"],
            row["content"],
            [(call["name"], call["args"]) for call in orjson.loads(row["tool_calls"] or "[]")],
        )
        for row in rows
    ]


async def assert_each_once(database: Pool, run_id: str) -> None:
    twice = await database.fetch(
        "SELECT what, key, count(*) FROM written WHERE run_id = $1 GROUP BY what, key HAVING count(*) > 1", run_id
    )
    assert twice == []


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_worker_may_die_after_any_commit_and_no_step_is_torn_or_done_twice(
    own_database: Pool,
    own_org: str,
    redis: Redis,
    model: ScriptedModel,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    monkeypatch.setattr("kernel.journal._SOON", 0.0)  # the smallest commits there can be, hence the most
    agent = await create_agent(own_database, own_org, TEAM)
    new = NewRun([InputMessage("user", "go")], agent_id=agent.id, request={"model": model.script(brain(seed))})
    expected: list[tuple[Any, ...]] = []
    survivals = deaths = 0
    while survivals < 3:
        run = (await submit(own_database, org_id=own_org, user_id=None, session_id=None, new=new)).run
        first = Boundary(own_database, dies_after=deaths if expected else None, seed=seed)
        await live(own_database, redis, engine, first, "first:1")
        found = await read(own_database, run.id)
        assert apart(found) == [], f"after commit {first.commits}"
        if not found.finished:
            await expire(own_database, run.id)
            await live(own_database, redis, engine, Boundary(own_database, seed=seed), "second:1")
            assert apart(await read(own_database, run.id)) == [], f"resumed after commit {first.commits}"
        await assert_history(own_database, run.id)
        await assert_each_once(own_database, run.id)
        expected = expected or await transcript(own_database, run.id)
        assert await transcript(own_database, run.id) == expected
        deaths += first.died.is_set()
        survivals += not first.died.is_set()
    assert len({path for path, *_ in expected}) == 4
    assert deaths > 8


# -- where the steps are kept until they go ----------------------------------------------------------------------


def writes(run_id: str, node: str) -> list[CheckpointWriteRow]:
    return [CheckpointWriteRow(run_id, "", "c1", f"task of {node}", 0, "x", "msgpack", b"", f"~__pregel_pull, {node}")]


async def test_a_step_goes_with_its_own_writes_and_not_with_those_of_the_step_beside_it(
    own_database: Pool, own_org: str, redis: Redis
) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    async with writing(own_database, redis) as writer:
        pen = writer.pen(claimed)
        pen.record_step(NewStep("1-act", "", "ACT", 0.1))
        pen.record_step(NewStep("1-delegate", "", "DELEGATE", 0.1))
        for node, recorded in (("DELEGATE", {"1-delegate"}), ("ACT", {"1-act", "1-delegate"})):
            pen.stage_writes(writes(run.id, node), node)
            await pen.committed()
            found = await read(own_database, run.id)
            assert found.steps.keys() == recorded
            assert apart(found) == []


async def test_a_step_that_was_stopped_on_its_way_out_leaves_nothing_but_the_reason(
    own_database: Pool, own_org: str, redis: Redis
) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    async with writing(own_database, redis) as writer:
        pen = writer.pen(claimed)
        saver = PostgresCheckpoints(own_database, own_org, pen)
        pen.conclude("", "usage", {"input_tokens": 1, "output_tokens": 1, "cost": 0.0})
        pen.record_message(NewMessage(new_id("msg"), "", 1, "assistant", "hi"))
        pen.record_step(NewStep("0-think", "", "THINK", 0.1))
        config: RunnableConfig = {"configurable": {"thread_id": run.id, "checkpoint_ns": "", "checkpoint_id": "c1"}}
        await saver.aput_writes(config, [(ERROR, asyncio.CancelledError())], "task", "~__pregel_pull, THINK")
        await pen.committed()
        found = await read(own_database, run.id)
        assert (found.steps, len(found.messages), len(found.events)) == ({}, 1, 1)
        assert await own_database.fetchval("SELECT count(*) FROM checkpoint_writes") == 1


async def test_a_checkpoint_that_replaces_others_points_to_the_last_one_that_was_stored(
    own_database: Pool, own_org: str, redis: Redis
) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    async with writing(own_database, redis) as writer:
        pen = writer.pen(claimed)
        for number, parent, commits in ((1, None, True), (2, "c1", False), (3, "c2", False), (4, "c3", True)):
            pen.stage_checkpoint(CheckpointRow(run.id, "", f"c{number}", parent, "msgpack", b"", b""))
            if commits:
                await pen.committed()
    rows = await own_database.fetch("SELECT checkpoint_id, parent_id FROM checkpoints ORDER BY checkpoint_id")
    assert [tuple(row) for row in rows] == [("c1", None), ("c4", "c1")]
