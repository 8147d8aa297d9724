"""The order in which a graph's writes and checkpoints reach the store: LangGraph promises none, Longhaul does.

The first part observes LangGraph with a saver as they are shipped, so that a release that changes its habits is
noticed. The second holds Longhaul's promise: a step's record, events, messages and what its graph goes on from are
one transaction. See docs/decisions/0009.
"""

from __future__ import annotations

import asyncio
import copy
import operator
from collections.abc import Sequence
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

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
