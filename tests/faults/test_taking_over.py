"""What a run's next owner takes over: what sub-agents did and used, a cancel, a claim at the last moment."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from cli.rehearsal import Reply, ToolCall
from kernel.runs import InputMessage, NewRun, submit
from tests.e2e.caller import Caller, Stream
from tests.faults.crew import holder, log_bytes, staff
from tests.history import History, assert_history
from tests.scripts import ScriptedModel
from tests.stack import Stack
from tests.waiting import eventually

ENDLESS = Reply(tokens=["tick "] * 4000, token_delay=0.01)


def python(code: str) -> ToolCall:
    return ToolCall("python", {"code": code})


async def ended(stack: Stack, stream: Stream) -> History:
    """Reads a stream to its end; the run's checked history, which the stream must have shown in full."""
    await stream.rest()
    run = stream.events[0].data
    assert stream.frames == await log_bytes(stack, run["session_id"])
    return await assert_history(stack.database, run["run_id"])


async def test_sub_agents_go_on_from_their_own_last_steps(mortal: Stack, caller: Caller, model: ScriptedModel) -> None:
    await staff(mortal, 2)
    quick = model.script(Reply(tokens=["quick"], usage=(20, 2)))
    slow = model.script(Reply(tool_calls=[python("1")], usage=(30, 3)), ENDLESS, Reply(tokens=["slow"], usage=(40, 4)))
    calls = [ToolCall("delegate", {"agent": name, "task": "go"}) for name in ("quick", "slow")]
    script = model.script(Reply(tool_calls=calls, usage=(10, 1)), Reply(tokens=["both"], usage=(50, 5)))
    helpers: list[dict[str, Any]] = [
        {"name": "quick", "model": {"name": quick}, "tools": []},
        {"name": "slow", "model": {"name": slow}, "tools": ["python"]},
    ]
    agent = await caller.agent(model=script, sub_agents=helpers)
    async with caller.following(agent_id=agent) as stream:
        worker = holder(mortal, (await stream.until("run_started")).data)
        await stream.until("delegate_result", agent="quick")
        await stream.until("message_chunk")
        await worker.kill()
        history = await ended(mortal, stream)
    assert history.run["status"] == "succeeded"
    assert [len(model.asked(name)) for name in (script, quick, slow)] == [2, 1, 3]
    assert len(history.of("tool_start")) == 1
    assert history.events[-1].data["usage"] == {"input_tokens": 150, "output_tokens": 15, "cost": 0.0}


async def test_what_sub_agents_used_before_a_death_still_counts(
    mortal: Stack, caller: Caller, model: ScriptedModel
) -> None:
    await staff(mortal, 2)
    helper = model.script(Reply(tokens=["helped"], usage=(100, 10)))
    script = model.script(
        Reply(tool_calls=[ToolCall("delegate", {"agent": "helper", "task": "go"})], usage=(10, 1)),
        ENDLESS,
        Reply(tokens=["done"], usage=(10, 1)),
    )
    agent = await caller.agent(model=script, sub_agents=[{"name": "helper", "model": {"name": helper}, "tools": []}])
    async with caller.following(agent_id=agent) as stream:
        worker = holder(mortal, (await stream.until("run_started")).data)
        await stream.until("message_chunk", text="tick ")
        await worker.kill()
        history = await ended(mortal, stream)
    assert len(model.asked(helper)) == 1
    assert history.events[-1].data["usage"] == {"input_tokens": 120, "output_tokens": 12, "cost": 0.0}


async def test_a_cancel_after_a_death_counts_what_was_used_before_it(
    mortal: Stack, caller: Caller, model: ScriptedModel
) -> None:
    await staff(mortal, 2)
    script = model.script(Reply(tool_calls=[python("1")], usage=(10, 1)), ENDLESS)
    async with caller.following(model=script) as stream:
        started = (await stream.until("run_started")).data
        await stream.until("message_chunk")
        await holder(mortal, started).kill()
        await stream.until("run_resumed")
        await stream.until("message_chunk")
        await caller.post(f"/v1/runs/{started['run_id']}/cancel")
        history = await ended(mortal, stream)
    assert history.run["status"] == "cancelled"
    assert history.events[-1].data["usage"] == {"input_tokens": 10, "output_tokens": 1, "cost": 0.0}


async def test_a_cancel_outlives_the_worker_that_should_have_obeyed(
    mortal: Stack, caller: Caller, model: ScriptedModel
) -> None:
    await staff(mortal, 2)
    script = model.script(ENDLESS)
    async with caller.following(model=script) as stream:
        started = (await stream.until("run_started")).data
        worker = holder(mortal, started)
        await stream.until("message_chunk")
        worker.send(signal.SIGSTOP)
        await caller.post(f"/v1/runs/{started['run_id']}/cancel", expect=202)
        await worker.kill()
        history = await ended(mortal, stream)
    assert history.run["status"] == "cancelled"
    assert len(model.asked(script)) == 1


async def test_a_run_that_is_claimed_while_its_worker_is_told_to_stop_is_not_lost(
    mortal: Stack, caller: Caller
) -> None:
    [leaving] = await staff(mortal, 1)
    database = mortal.database

    async def claims() -> bool:
        waiting = """SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'runs'::regclass
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"""
        return bool(await database.fetchval(waiting))

    org_id = await database.fetchval("SELECT org_id FROM api_keys ORDER BY id DESC LIMIT 1")
    async with database.acquire() as blocker, blocker.transaction():
        new = NewRun([InputMessage("user", "in between")], workflow="echo")
        run = (await submit(blocker, org_id=org_id, user_id=None, session_id=None, new=new)).run
        await blocker.execute("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE")
        await eventually(claims)
        leaving.send(signal.SIGTERM)

        async def draining() -> bool:
            return "worker_draining" in leaving.log

        await eventually(draining)
    assert await leaving.wait() == 0
    row = await database.fetchrow("SELECT status, attempt FROM runs WHERE id = $1", run.id)
    assert row is not None
    assert tuple(row) in (("succeeded", 1), ("queued", 0))
    await staff(mortal, 1)
    assert (await caller.finished(run.id))["answer"] == "in between"
    await assert_history(database, run.id)


async def test_an_idle_worker_stops_at_once(mortal: Stack) -> None:
    [worker] = await staff(mortal, 1)
    async with asyncio.timeout(5):
        assert await worker.stop() == 0
