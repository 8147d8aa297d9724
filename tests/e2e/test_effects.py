"""What tools do outside, counted by the outside itself, while the workers that do it are killed, told to go, or told
that nobody wants it any more."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from cli.rehearsal import Hang, Reply, ToolCall
from tests.conftest import MakeStack
from tests.e2e.caller import Caller, Stream, calling
from tests.faults.crew import SHORT_LEASES, holder, log_bytes, org_with_key, staff
from tests.faults.outside import Outside, outside_world
from tests.faults.test_postgres import ALL_OF_OURS, connected
from tests.history import History, assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Program, Stack

TOOLS = ["http_fetch", "http_post", "http_put"]
HELD = 60.0
"""Seconds for which the outside keeps its answers to itself: longer than any test."""


@pytest.fixture(scope="module")
async def prompt() -> AsyncIterator[Outside]:
    """Answers at once."""
    async with outside_world() as outside:
        yield outside


@pytest.fixture(scope="module")
async def slow() -> AsyncIterator[Outside]:
    """Keeps its answers to itself until a test lets it answer."""
    async with outside_world() as outside:
        yield outside


@pytest.fixture(scope="module")
async def reaching(make_stack: MakeStack, prompt: Outside, slow: Outside) -> AsyncIterator[Stack]:
    """One API, leases of a second, and workers that may reach the outside. Each test says how many it wants."""
    allowed = f"{prompt.address},{slow.address}"
    stack = await make_stack(workers=0, LONGHAUL_GRACE_SECONDS="10", LONGHAUL_EGRESS_ALLOW=allowed, **SHORT_LEASES)
    yield stack
    await stack.stop()


@pytest.fixture
async def caller(reaching: Stack, slow: Outside) -> AsyncIterator[Caller]:
    slow.pause = HELD
    async with calling(reaching.url, (await org_with_key(reaching))[1]) as caller:
        yield caller


def some(*methods: str) -> list[str]:
    """A path of its own for each method."""
    return [f"/{method.lower()}-{uuid4().hex}" for method in methods]


def call(outside: Outside, method: str, path: str) -> ToolCall:
    tool = {"GET": "http_fetch", "POST": "http_post", "PUT": "http_put"}[method]
    arguments: dict[str, Any] = {"url": outside.url + path}
    return ToolCall(tool, arguments if method == "GET" else {**arguments, "body": {"n": 1}})


def told(model: ScriptedModel, script: str) -> list[str]:
    """The results that the model was told of with its last call."""
    return [str(message["content"]) for message in model.asked(script)[-1].messages if message["role"] == "tool"]


def key_of(row: asyncpg.Record) -> str:
    """The key under which a row of the ledger stands."""
    return f"{row['run_id']}:{row['step_id']}:{row['call_id']}"


async def worker_of(stack: Stack, stream: Stream) -> Program:
    return holder(stack, (await stream.until("run_started")).data)


async def ended(stack: Stack, stream: Stream) -> History:
    """Reads a stream to its end; the run's checked history, which the stream must have shown in full."""
    await stream.rest()
    run = stream.events[0].data
    assert stream.frames == await log_bytes(stack, run["session_id"])
    return await assert_history(stack.database, run["run_id"])


async def test_a_post_whose_worker_is_killed_before_its_answer_is_not_sent_again(
    reaching: Stack, caller: Caller, model: ScriptedModel, slow: Outside
) -> None:
    await staff(reaching, 2)
    [path] = some("POST")
    script = model.script(Reply(tool_calls=[call(slow, "POST", path)]), said("I will look whether it was done"))
    async with caller.following(agent_id=await caller.agent(model=script, tools=TOOLS)) as stream:
        worker = await worker_of(reaching, stream)
        await slow.until_seen(path)
        await worker.kill()
        history = await ended(reaching, stream)
    assert [seen.method for seen in slow.seen[path]] == ["POST"]
    [row] = history.effects
    assert (row["effect"], row["status"], row["executions"], row["epoch"]) == ("once", "unknown", 1, 2)
    assert slow.seen[path][0].key == key_of(row)
    [event] = history.of("tool_result")
    assert event.data["status"] == "unknown"
    assert told(model, script) == [event.data["result"]]
    assert history.run["status"] == "succeeded"


@pytest.mark.parametrize(("method", "effect"), [("PUT", "idempotent"), ("GET", "read")])
async def test_what_does_no_harm_is_sent_again_when_its_worker_is_killed(
    reaching: Stack, caller: Caller, model: ScriptedModel, slow: Outside, method: str, effect: str
) -> None:
    await staff(reaching, 2)
    [path] = some(method)
    script = model.script(Reply(tool_calls=[call(slow, method, path)]), said("done"))
    async with caller.following(agent_id=await caller.agent(model=script, tools=TOOLS)) as stream:
        worker = await worker_of(reaching, stream)
        await stream.until("tool_start")
        await slow.until_seen(path)
        slow.pause = 0.0
        await worker.kill()
        history = await ended(reaching, stream)
    [row] = history.effects
    assert [seen.method for seen in slow.seen[path]] == [method] * 2
    assert [seen.key for seen in slow.seen[path]] == [None if method == "GET" else key_of(row)] * 2
    assert (row["effect"], row["status"], row["executions"], row["epoch"]) == (effect, "ok", 2, 2)
    assert len(history.of("tool_start")) == 2
    assert len(history.of("tool_result")) == 1


async def test_what_was_answered_before_the_kill_is_not_sent_again(
    reaching: Stack, caller: Caller, model: ScriptedModel, prompt: Outside
) -> None:
    await staff(reaching, 2)
    methods = "GET", "POST", "PUT"
    paths = some(*methods)
    calls = [call(prompt, method, path) for method, path in zip(methods, paths, strict=True)]
    script = model.script(Reply(tool_calls=calls), Reply(fault=Hang(None)), said("done"))
    async with caller.following(agent_id=await caller.agent(model=script, tools=TOOLS)) as stream:
        worker = await worker_of(reaching, stream)
        for _ in calls:
            await stream.until("tool_result")
        await stream.until("state_entered", state="THINK")
        await worker.kill()
        history = await ended(reaching, stream)
    assert [len(prompt.seen[path]) for path in paths] == [1, 1, 1]
    assert [(row["status"], row["executions"]) for row in history.effects] == [("ok", 1)] * 3
    assert len(told(model, script)) == 3


async def test_of_parallel_calls_only_those_without_an_answer_are_taken_up_again(
    reaching: Stack, caller: Caller, model: ScriptedModel, prompt: Outside, slow: Outside
) -> None:
    await staff(reaching, 2)
    methods = "POST", "PUT", "GET"
    answered, held = some(*methods), some(*methods)
    calls = [call(prompt, method, path) for method, path in zip(methods, answered, strict=True)]
    calls += [call(slow, method, path) for method, path in zip(methods, held, strict=True)]
    script = model.script(Reply(tool_calls=calls), said("done"))
    async with caller.following(agent_id=await caller.agent(model=script, tools=TOOLS)) as stream:
        worker = await worker_of(reaching, stream)
        for _ in answered:
            await stream.until("tool_result", status="ok")
        for path in held:
            await slow.until_seen(path)
        slow.pause = 0.0
        await worker.kill()
        history = await ended(reaching, stream)
    assert [len(prompt.seen[path]) for path in answered] == [1, 1, 1]
    assert [len(slow.seen[path]) for path in held] == [1, 2, 2]
    outcomes = [(row["status"], row["executions"]) for row in history.effects]
    assert outcomes == [("ok", 1)] * 3 + [("unknown", 1), ("ok", 2), ("ok", 2)]
    assert [("nobody can tell" in text) for text in told(model, script)] == [False] * 3 + [True, False, False]


async def test_calls_of_sub_agents_count_towards_the_budget_after_a_kill(
    reaching: Stack, caller: Caller, model: ScriptedModel, prompt: Outside
) -> None:
    await staff(reaching, 2)
    within, beyond = some("POST", "POST"), some("POST")
    helper = model.script(Reply(tool_calls=[call(prompt, "POST", path) for path in within]), said("helped"))
    hand_over = Reply(tool_calls=[ToolCall("delegate", {"agent": "helper", "task": "go"})])
    more = Reply(tool_calls=[call(prompt, "POST", path) for path in beyond])
    script = model.script(hand_over, Reply(fault=Hang(None)), more, said("enough"))
    team = [{"name": "helper", "model": {"name": helper}, "tools": TOOLS}]
    agent = await caller.agent(model=script, sub_agents=team, tools=TOOLS, limits={"max_tool_calls": 3})
    async with caller.following(agent_id=agent) as stream:
        worker = await worker_of(reaching, stream)
        await stream.until("delegate_result")
        await stream.until("state_entered", state="THINK", path="")
        await worker.kill()
        history = await ended(reaching, stream)
    assert [len(prompt.seen[path]) for path in (*within, *beyond)] == [1, 1, 0]
    assert [event.data["status"] for event in history.of("tool_result")] == ["ok", "ok", "denied"]


async def test_a_cancel_while_a_post_is_not_answered_leaves_it_unknown(
    reaching: Stack, caller: Caller, model: ScriptedModel, slow: Outside
) -> None:
    await staff(reaching, 1)
    [path] = some("POST")
    script = model.script(Reply(tool_calls=[call(slow, "POST", path)]))
    async with caller.following(agent_id=await caller.agent(model=script, tools=TOOLS)) as stream:
        await slow.until_seen(path)
        run_id = (await stream.until("tool_start")).data["run_id"]
        await caller.post(f"/v1/runs/{run_id}/cancel", expect=202)
        history = await ended(reaching, stream)
    assert history.run["status"] == "cancelled"
    assert [(row["status"], row["executions"]) for row in history.effects] == [("unknown", 1)]
    assert [event.type for event in stream.events[-2:]] == ["tool_result", "done"]
    assert stream.events[-2].data["status"] == "unknown"
    assert len(slow.seen[path]) == 1


async def test_a_worker_that_is_told_to_go_waits_for_the_answer_to_a_post(
    reaching: Stack, caller: Caller, model: ScriptedModel, slow: Outside
) -> None:
    [leaving] = await staff(reaching, 1)
    [path] = some("POST")
    script = model.script(Reply(tool_calls=[call(slow, "POST", path)]), said("done"))
    slow.pause = 1.5
    async with caller.following(agent_id=await caller.agent(model=script, tools=TOOLS)) as stream:
        await slow.until_seen(path)
        leaving.send(signal.SIGTERM)
        await reaching.add_worker()
        history = await ended(reaching, stream)
    assert await leaving.wait() == 0
    assert [(row["status"], row["executions"], row["epoch"]) for row in history.effects] == [("ok", 1, 1)]
    assert (history.run["status"], history.run["attempt"], history.run["epoch"]) == ("succeeded", 1, 2)
    assert len(slow.seen[path]) == 1


async def test_a_run_survives_that_postgres_ends_its_connections_while_a_sub_agent_is_at_work(
    reaching: Stack, caller: Caller, model: ScriptedModel, prompt: Outside
) -> None:
    await staff(reaching, 1)
    paths = some("POST", "POST")
    steps = [Reply(tool_calls=[call(prompt, "POST", path)], first_delay=0.1) for path in paths]
    helper = model.script(*steps, Reply(tokens=["tick "] * 40, token_delay=0.01))
    script = model.script(Reply(tool_calls=[ToolCall("delegate", {"agent": "helper", "task": "go"})]), said("done"))
    team = [{"name": "helper", "model": {"name": helper}, "tools": TOOLS}]
    agent = await caller.agent(model=script, sub_agents=team, tools=[])
    async with connected(reaching) as connection:
        run_id = (await caller.start(agent_id=agent))["id"]
        for path in paths:
            await prompt.until_seen(path)
            await connection.execute(ALL_OF_OURS)
        await caller.finished(run_id)
    history = await assert_history(reaching.database, run_id)
    assert (history.run["status"], history.run["epoch"]) == ("succeeded", 1)
    assert [len(prompt.seen[path]) for path in paths] == [1, 1]
