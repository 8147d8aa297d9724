"""A cancel ends a run wherever it is, once, and never one that has ended."""

from __future__ import annotations

import asyncio
import time

import pytest

from cli.rehearsal import Hang, Reply, ToolCall
from tests.e2e.caller import Caller
from tests.e2e.conftest import new_key
from tests.history import History, assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack

# Longer than any test is patient; the sandbox stops it after five seconds of computing.
BUSY_CODE = "while True:\n    pass"
SLOW = Reply(tokens=["tick "] * 2000, token_delay=0.01)


async def cancelled(stack: Stack, caller: Caller, run_id: str) -> History:
    """Cancels, and checks that it took effect within two seconds."""
    began = time.monotonic()
    answer = await caller.post(f"/v1/runs/{run_id}/cancel")
    assert answer.status in (200, 202)
    run = await caller.finished(run_id)
    assert (run["status"], run["finish_reason"]) == ("cancelled", "cancelled")
    assert time.monotonic() - began < 2
    history = await assert_history(stack.database, run_id)
    assert history.of("error") == []
    return history


async def test_while_it_is_queued(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    session = await caller.session()
    async with caller.following(session=session, model=model.script(SLOW)) as first:
        await first.until("message_chunk")
        queued = await caller.start(session=session, workflow="echo")
        answer = await caller.post(f"/v1/runs/{queued['id']}/cancel", expect=200)
        assert answer.json()["status"] == "cancelled"
        assert [event.type for event in await caller.events(queued["id"])] == ["run_queued", "done"]
        await assert_history(stack.database, queued["id"])
        await cancelled(stack, caller, first.events[0].data["run_id"])


async def test_while_it_streams(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    before = model.server.hangups
    async with caller.following(model=model.script(SLOW)) as stream:
        await stream.until("message_chunk")
        history = await cancelled(stack, caller, stream.events[0].data["run_id"])
        await stream.rest()
    assert stream.events[-1].type == "done"
    assert history.types[-2:] == ["message_discarded", "done"]
    await model.server.until_hangups(before + 1)  # nobody goes on paying for the answer


async def test_while_the_model_says_nothing(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    async with caller.following(model=model.script(Reply(fault=Hang(None)))) as stream:
        await stream.until("state_entered", state="THINK")
        await cancelled(stack, caller, stream.events[0].data["run_id"])


async def test_inside_a_tool(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(Reply(tool_calls=[ToolCall("python", {"code": BUSY_CODE})], usage=(3, 4)))
    async with caller.following(model=script) as stream:
        await stream.until("tool_start")
        history = await cancelled(stack, caller, stream.events[0].data["run_id"])
    assert [event.data["status"] for event in history.of("tool_result")] == ["unknown"]
    assert history.events[-1].data["usage"] == {"input_tokens": 3, "output_tokens": 4, "cost": 0.0}


async def test_inside_a_sub_agent(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    helper = model.script(SLOW)
    script = model.script(Reply(tool_calls=[ToolCall("delegate", {"agent": "helper", "task": "talk"})]))
    agent = await caller.agent(model=script, sub_agents=[{"name": "helper", "model": {"name": helper}, "tools": []}])
    async with caller.following(agent_id=agent) as stream:
        chunk = await stream.until("message_chunk")
        history = await cancelled(stack, caller, stream.events[0].data["run_id"])
    assert chunk.data["path"].startswith("helper:")
    assert [event.path for event in history.of("message_discarded")] == [chunk.data["path"]]


async def test_after_its_end_nothing_changes(stack: Stack, caller: Caller) -> None:
    run = await caller.run(workflow="echo")
    answer = await caller.post(f"/v1/runs/{run['id']}/cancel", expect=200)
    assert answer.json()["status"] == "succeeded"
    history = await assert_history(stack.database, run["id"])
    assert history.run["status"] == "succeeded"


async def test_twice_at_once(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    async with caller.following(model=model.script(SLOW)) as stream:
        await stream.until("message_chunk")
        run_id = stream.events[0].data["run_id"]
        await asyncio.gather(*(caller.post(f"/v1/runs/{run_id}/cancel") for _ in range(5)))
        await stream.rest()
    assert (await assert_history(stack.database, run_id)).run["status"] == "cancelled"


async def test_another_orgs_run_is_not_found(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    stranger = caller.as_holder_of(await new_key(stack))
    async with caller.following(model=model.script(Reply(tokens=["a "] * 30, token_delay=0.01))) as stream:
        await stream.until("message_chunk")
        await stranger.post(f"/v1/runs/{stream.events[0].data['run_id']}/cancel", expect=404)
        await stream.rest()
    assert stream.events[-1].data["status"] == "succeeded"


@pytest.mark.parametrize("events_seen", range(1, 14, 2))
async def test_at_any_event_it_is_cancelled_or_finished_and_never_both(
    stack: Stack, caller: Caller, model: ScriptedModel, events_seen: int
) -> None:
    script = model.script(
        Reply(tokens=["let ", "me "], tool_calls=[ToolCall("python", {"code": "1"})]), said("that is it")
    )
    session = await caller.session()
    async with caller.following(session=session, model=script) as stream:
        for _ in range(events_seen):
            await stream.next()
        run_id = stream.events[0].data["run_id"]
        await caller.post(f"/v1/runs/{run_id}/cancel")
        await stream.rest()
    history = await assert_history(stack.database, run_id)
    assert history.run["status"] in ("cancelled", "succeeded")
    assert (await caller.run("next", session=session, workflow="echo"))["answer"] == "next"
