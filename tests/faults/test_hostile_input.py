"""What a model, a stored agent or a run's own code can come up with harms that run at most."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cli.rehearsal import Raw, Reply, ToolCall
from orchestrator.tools.python import PythonTool
from orchestrator.tools.tool import ToolContext
from orchestrator.tools.toolbox import Toolbox, ToolOutcome
from tests.e2e.caller import Caller
from tests.faults.crew import staff
from tests.history import History, assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Program, Stack

ENDLESS = "while True:\n    pass"


@pytest.fixture
async def worker(mortal: Stack) -> Program:
    """The only one, which must survive."""
    [worker] = await staff(mortal, 1)
    return worker


def deep(nesting: int) -> Reply:
    """A call whose arguments are nested so many levels deep."""
    return Reply(tool_calls=[ToolCall("python", '{"code": ' + "[" * nesting + "]" * nesting + "}")])


def chunk(delta: dict[str, Any], finish_reason: str | None = None, tokens: int | None = None) -> bytes:
    content: dict[str, Any] = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}
    if tokens is not None:
        content["usage"] = {"prompt_tokens": tokens, "completion_tokens": tokens}
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def raw(*chunks: bytes) -> Reply:
    return Reply(fault=Raw([*chunks, b"data: [DONE]\n\n"]))


async def checked(stack: Stack, caller: Caller, **fields: Any) -> History:
    """The checked history of a run, however it ends."""
    run = await caller.run(**fields)
    return await assert_history(stack.database, run["id"])


@pytest.mark.parametrize("nesting", [90, 300, 5000])
async def test_deeply_nested_arguments_end_no_worker_and_harm_no_other_run(
    mortal: Stack, worker: Program, caller: Caller, model: ScriptedModel, nesting: int
) -> None:
    async with caller.following(model=model.script(Reply(tokens=["tick "] * 60, token_delay=0.01))) as bystander:
        await bystander.until("message_chunk")
        history = await checked(mortal, caller, model=model.script(deep(nesting), said("well")))
        assert not bystander.ended
        await bystander.rest()
    assert history.run["status"] in ("succeeded", "failed")
    other = await assert_history(mortal.database, bystander.events[0].data["run_id"])
    assert (other.run["status"], other.run["epoch"]) == ("succeeded", 1)
    assert worker.alive


async def test_usage_of_64_bits_is_counted_and_ends_nothing(
    mortal: Stack, worker: Program, caller: Caller, model: ScriptedModel
) -> None:
    most = 2**64 - 1
    function = {"name": "python", "arguments": '{"code": "1"}'}
    calls = {"tool_calls": [{"index": 0, "id": "a", "function": function}]}
    script = model.script(
        raw(chunk(calls), chunk({}, "tool_calls", most)), raw(chunk({"content": "hi"}), chunk({}, "stop", most))
    )
    history = await checked(mortal, caller, model=script)
    assert history.run["status"] == "succeeded"
    assert history.events[-1].data["usage"]["input_tokens"] > 0
    assert worker.alive


async def test_an_agent_that_is_not_valid_in_this_release_fails_its_run_at_once(
    mortal: Stack, worker: Program, caller: Caller, model: ScriptedModel
) -> None:
    agent = await caller.agent(model=model.script(said("never")))
    await mortal.database.execute(
        """UPDATE agent_versions SET config = '{"name": "x", "unknown": 1}' WHERE agent_id = $1""", agent
    )
    history = await checked(mortal, caller, agent_id=agent)
    assert (history.run["status"], history.run["finish_reason"]) == ("failed", "bad_agent")
    assert (history.run["epoch"], history.run["attempt"]) == (1, 1)
    assert worker.alive


@pytest.mark.parametrize("allowed", [0, 1])
async def test_delegations_count_as_tool_calls(
    mortal: Stack, worker: Program, caller: Caller, model: ScriptedModel, allowed: int
) -> None:
    helper = model.script(said("helped"))
    hand_over = ToolCall("delegate", {"agent": "helper", "task": "go"})
    script = model.script(Reply(tool_calls=[hand_over] * 3), said("done"))
    agent = await caller.agent(model=script, sub_agents=[{"name": "helper", "model": {"name": helper}, "tools": []}])
    history = await checked(mortal, caller, agent_id=agent, budget={"max_tool_calls": allowed})
    assert history.run["status"] == "succeeded"
    assert len(history.of("delegate_start")) == len(model.asked(helper)) == allowed
    answers = [str(message["content"]) for message in model.asked(script)[1].messages if message["role"] == "tool"]
    assert ["limit" in answer for answer in answers] == [False] * allowed + [True] * (3 - allowed)


@pytest.fixture
async def toolbox() -> AsyncIterator[Toolbox]:
    toolbox = Toolbox([PythonTool(cpu_seconds=0.5)])
    yield toolbox
    await toolbox.aclose()


async def test_a_run_with_many_endless_calls_does_not_keep_another_from_computing(toolbox: Toolbox) -> None:
    def call(run_id: str, number: int, code: str) -> asyncio.Task[ToolOutcome]:
        context = ToolContext("org_1", None, None, "ses_1", run_id, f"call_{number}", f"{run_id}:2:call_{number}")
        return asyncio.create_task(toolbox.call("python", {"code": code}, context, allowed=["python"]))

    greedy = [call("run_greedy", number, ENDLESS) for number in range(50)]
    modest = await call("run_modest", 1, "1 + 1")
    assert json.loads(modest.result)["value"] == "2"
    assert sum(task.done() for task in greedy) <= 3  # in a queue of all calls it would have waited for 48 of them
    for task in greedy:
        task.cancel()
    await asyncio.gather(*greedy, return_exceptions=True)
