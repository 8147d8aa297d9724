"""Runs that are to stop: cancelled in the hardest places, paused, past their deadline, begun by another release."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cli.rehearsal import Hang, Reply, ToolCall
from tests.e2e.caller import Caller, Stream
from tests.faults.crew import holder, org_with_key, staff, writes
from tests.history import History, assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Program, Stack
from tests.waiting import eventually

SLOW = Reply(tokens=["tick "] * 100, token_delay=0.01)


@asynccontextmanager
async def altered(stack: Stack, alteration: str) -> AsyncIterator[Program]:
    """A worker that is like no other, and the only one."""
    await staff(stack, 0)
    worker = stack.spawn_worker({"ALTERATION": alteration}, module="tests.faults.altered_worker")
    await stack.until_ready(worker)
    try:
        yield worker
    finally:
        await staff(stack, 0)


async def until_status(caller: Caller, run_id: str, status: str) -> None:
    async def reached() -> bool:
        return bool((await caller.get(f"/v1/runs/{run_id}"))["status"] == status)

    await eventually(reached, what=f"{run_id} is {status}")


async def cancelled(stack: Stack, caller: Caller, run_id: str) -> History:
    """Cancels, and checks that it took effect within two seconds."""
    began = time.monotonic()
    await caller.post(f"/v1/runs/{run_id}/cancel")

    async def ended() -> bool:
        return bool(await stack.database.fetchval("SELECT status = 'cancelled' FROM runs WHERE id = $1", run_id))

    await eventually(ended, every=0.02, what="the run is cancelled")
    assert time.monotonic() - began < 2
    return await assert_history(stack.database, run_id)


async def paused(caller: Caller, run_id: str) -> None:
    await caller.post(f"/v1/runs/{run_id}/pause")
    await until_status(caller, run_id, "waiting")


# -- cancel --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["swallow", "block"])
async def test_a_cancel_ends_a_run_whose_tool_does_not_end(
    mortal: Stack, caller: Caller, model: ScriptedModel, tool: str
) -> None:
    async with altered(mortal, "stubborn_tools") as worker:
        script = model.script(Reply(tool_calls=[ToolCall(tool, {})], usage=(3, 4)), said("never said"))
        agent = await caller.agent(model=script, tools=[tool])
        async with caller.following(agent_id=agent) as stream:
            await stream.until("tool_start")
            history = await cancelled(mortal, caller, stream.events[0].data["run_id"])
        assert history.types[-1] == "done"
        assert history.events[-1].data["usage"]["input_tokens"] == 3
        assert len(model.asked(script)) == 1
        # Its worker works on.
        assert (await caller.run("are you there?", workflow="echo"))["status"] == "succeeded"
        assert await worker.stop() == 0


async def test_a_cancel_ends_a_run_whose_worker_is_frozen(mortal: Stack, caller: Caller, model: ScriptedModel) -> None:
    await staff(mortal, 2)
    # Both workers are there before one is frozen, and whoever asks the model gets no end: a run whose lease ends before
    # the cancel is taken over, and must not come to its end either.
    endless = [Reply(tokens=["tick "] * 4, fault=Hang(3))] * 2
    async with caller.following(model=model.script(*endless, said("a zombie's word"))) as stream:
        frozen = holder(mortal, (await stream.until("run_started")).data)
        await stream.until("message_chunk")
        frozen.send(signal.SIGSTOP)
        await cancelled(mortal, caller, stream.events[0].data["run_id"])
        frozen.send(signal.SIGCONT)
        await writes(frozen, "run_lost")
        events = await stream.rest()
    history = await assert_history(mortal.database, events[0].data["run_id"])
    assert [event.seq for event in events] == [event.seq for event in history.events]
    assert history.of("message") == []


async def test_a_cancel_of_a_run_without_a_living_worker_needs_none(
    mortal: Stack, caller: Caller, model: ScriptedModel
) -> None:
    [worker] = await staff(mortal, 1)
    async with caller.following(model=model.script(Reply(tokens=["half"], fault=Hang(1)))) as stream:
        await stream.until("message_chunk")
        run_id = stream.events[0].data["run_id"]
        await worker.kill()

        async def over() -> bool:
            return bool(await mortal.database.fetchval("SELECT lease_until < now() FROM runs WHERE id = $1", run_id))

        await eventually(over, what="the dead worker's lease is over")
        answer = await caller.post(f"/v1/runs/{run_id}/cancel", expect=200)
        assert answer.json()["status"] == "cancelled"
        await stream.rest()
    history = await assert_history(mortal.database, run_id)
    assert history.types[-3:] == ["message_chunk", "message_discarded", "done"]


# -- pause and resume ----------------------------------------------------------------------------------------------


async def test_a_paused_run_stops_after_its_step_and_goes_on_from_there(
    mortal: Stack, caller: Caller, model: ScriptedModel
) -> None:
    await staff(mortal, 1)
    call = ToolCall("python", {"code": "1 + 1"})
    script = model.script(Reply(tokens=["think "] * 40, token_delay=0.02, tool_calls=[call]), said("it is two"))
    agent = await caller.agent(model=script, tools=["python"])
    async with caller.following("add", agent_id=agent) as stream:
        await stream.until("message_chunk")
        run_id = stream.events[0].data["run_id"]
        answer = await caller.post(f"/v1/runs/{run_id}/pause", expect=202)
        assert answer.json()["pause_requested_at"] is not None
        waiting = await stream.until("run_waiting")
        assert waiting.data["reason"] == "paused"
        await until_status(caller, run_id, "waiting")
        assert await mortal.database.fetchval(
            "SELECT worker IS NULL AND lease_until IS NULL FROM runs WHERE id = $1", run_id
        )
        assert len(model.asked(script)) == 1
        await caller.post(f"/v1/runs/{run_id}/pause", expect=200)  # it is paused already
        await caller.post(f"/v1/runs/{run_id}/resume", expect=200)
        resumed = await stream.until("run_resumed")
        assert resumed.data["reason"] == "it was paused"
        await stream.rest()
    history = await assert_history(mortal.database, run_id)
    assert (history.run["status"], history.run["attempt"], history.run["epoch"]) == ("succeeded", 1, 2)
    assert [step["state"] for step in history.steps] == ["THINK", "ACT", "THINK", "RESPOND"]
    assert len(model.asked(script)) == 2  # the step before the pause was not done again
    await caller.post(f"/v1/runs/{run_id}/pause", expect=409)
    await caller.post(f"/v1/runs/{run_id}/resume", expect=409)


async def test_a_queued_run_that_is_paused_is_not_started_until_it_is_resumed(mortal: Stack, caller: Caller) -> None:
    await staff(mortal, 0)
    held = await caller.start("wait", workflow="echo")
    await caller.post(f"/v1/runs/{held['id']}/pause", expect=200)
    await staff(mortal, 1)
    other = await caller.run("go", workflow="echo")
    assert other["status"] == "succeeded"
    assert (await caller.get(f"/v1/runs/{held['id']}"))["status"] == "queued"
    await caller.post(f"/v1/runs/{held['id']}/resume", expect=200)
    await caller.finished(held["id"])
    assert (await assert_history(mortal.database, held["id"])).run["status"] == "succeeded"


async def test_a_paused_run_can_be_cancelled_and_lets_the_next_of_its_session_start(
    mortal: Stack, caller: Caller, model: ScriptedModel
) -> None:
    await staff(mortal, 1)
    session = await caller.session()
    script = model.script(Reply(tokens=["a "] * 20, token_delay=0.02, tool_calls=[ToolCall("python", {"code": "1"})]))
    agent = await caller.agent(model=script, tools=["python"])
    first = await caller.start(session=session, agent_id=agent)
    second = await caller.start(session=session, workflow="echo")
    await until_status(caller, first["id"], "running")
    await paused(caller, first["id"])
    await caller.post(f"/v1/runs/{first['id']}/cancel", expect=200)
    await caller.finished(second["id"])
    history = await assert_history(mortal.database, first["id"])
    assert history.run["status"] == "cancelled"
    assert history.types[-2:] == ["run_waiting", "done"]
    await assert_history(mortal.database, second["id"])


async def test_a_pause_outlives_the_worker_that_was_asked(mortal: Stack, caller: Caller, model: ScriptedModel) -> None:
    [worker] = await staff(mortal, 1)
    script = model.script(Reply(tokens=["half"], fault=Hang(1)), said("whole"))
    async with caller.following(model=script) as stream:
        await stream.until("message_chunk")
        run_id = stream.events[0].data["run_id"]
        await caller.post(f"/v1/runs/{run_id}/pause", expect=202)
        await worker.kill()
        await mortal.add_worker()
        await stream.until("run_waiting")
        assert len(model.asked(script)) == 1
        await caller.post(f"/v1/runs/{run_id}/resume", expect=200)
        await stream.rest()
    assert (await assert_history(mortal.database, run_id)).run["status"] == "succeeded"


async def test_a_stranger_can_neither_pause_nor_resume(mortal: Stack, caller: Caller) -> None:
    await staff(mortal, 0)
    stranger = caller.as_holder_of((await org_with_key(mortal))[1])
    run = await caller.start(workflow="echo")
    for verb in ("pause", "resume"):
        await stranger.post(f"/v1/runs/{run['id']}/{verb}", expect=404)
        await caller.post(f"/v1/runs/run_{'0' * 32}/{verb}", expect=404)
    assert (await caller.get(f"/v1/runs/{run['id']}"))["pause_requested_at"] is None
    await caller.post(f"/v1/runs/{run['id']}/cancel", expect=200)
    await assert_history(mortal.database, run["id"])


# -- deadlines -----------------------------------------------------------------------------------------------------


async def expired(stack: Stack, run_id: str) -> History:
    history = await assert_history(stack.database, run_id)
    assert (history.run["status"], history.run["finish_reason"]) == ("expired", "deadline")
    return history


async def test_a_run_that_no_worker_has_started_expires_at_its_deadline(mortal: Stack, caller: Caller) -> None:
    await staff(mortal, 0)
    run = await caller.start(workflow="echo", deadline_seconds=0.1)
    assert run["deadline_at"] is not None
    late = await caller.start(workflow="echo")

    async def over() -> bool:
        return bool(await mortal.database.fetchval("SELECT deadline_at < now() FROM runs WHERE id = $1", run["id"]))

    await eventually(over, what="its deadline has passed")
    await staff(mortal, 1)
    await caller.finished(late["id"])
    await caller.finished(run["id"])
    history = await expired(mortal, run["id"])
    assert history.types == ["run_queued", "error", "done"]
    assert history.of("error")[0].data["retryable"] is True


async def test_a_run_expires_while_the_model_is_silent_while_it_is_paused_and_while_its_tool_does_not_end(
    mortal: Stack, caller: Caller, model: ScriptedModel
) -> None:
    async with altered(mortal, "stubborn_tools"):
        silent = await caller.start(model=model.script(Reply(fault=Hang(None))), deadline_seconds=1)
        step = Reply(tokens=["a "] * 10, token_delay=0.01, tool_calls=[ToolCall("python", {"code": "1"})])
        steady = await caller.agent(model=model.script(step), tools=["python"], limits={"max_steps": 100})
        resting = await caller.start(agent_id=steady, deadline_seconds=2.5)
        stubborn = model.script(Reply(tool_calls=[ToolCall("swallow", {})]))
        agent = await caller.agent(model=stubborn, tools=["swallow"], limits={"timeout_seconds": 1})
        stuck = await caller.start(agent_id=agent)
        await until_status(caller, resting["id"], "running")
        await paused(caller, resting["id"])
        for run in (silent, resting, stuck):
            await caller.finished(run["id"])
            await expired(mortal, run["id"])
    assert (await assert_history(mortal.database, resting["id"])).of("run_waiting")


# -- other releases ------------------------------------------------------------------------------------------------


async def begun_and_left(stream: Stream, worker: Program) -> str:
    await stream.until("message_chunk")
    run_id = str(stream.events[0].data["run_id"])
    await worker.kill()
    return run_id


async def test_a_run_of_a_release_whose_graph_is_gone_says_so(
    mortal: Stack, caller: Caller, model: ScriptedModel
) -> None:
    [worker] = await staff(mortal, 1)
    async with caller.following(model=model.script(Reply(tokens=["half"], fault=Hang(1)))) as stream:
        run_id = await begun_and_left(stream, worker)
        async with altered(mortal, "next_release"):
            await stream.rest()
    history = await assert_history(mortal.database, run_id)
    assert (history.run["status"], history.run["finish_reason"]) == ("failed", "graph_retired")
    assert "graph version 1" in history.of("error")[0].data["message"]


async def test_a_run_of_a_newer_release_is_left_to_its_workers(
    mortal: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(Reply(tokens=["half"], fault=Hang(1)), said("whole"))
    async with altered(mortal, "next_release") as newer, caller.following(model=script) as stream:
        run_id = await begun_and_left(stream, newer)
        await staff(mortal, 1)  # of this release
        assert (await caller.run("mine", workflow="echo"))["status"] == "succeeded"
        assert await mortal.database.fetchval("SELECT status = 'running' AND epoch = 1 FROM runs WHERE id = $1", run_id)
        async with altered(mortal, "next_release"):
            await stream.rest()
    history = await assert_history(mortal.database, run_id)
    assert (history.run["status"], history.run["epoch"], history.run["graph_version"]) == ("succeeded", 2, 2)
