"""One run at a time in a session: those that come meanwhile wait in order, are refused, or take its place."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from cli.rehearsal import Reply
from tests.e2e.caller import Caller
from tests.history import assert_history
from tests.scripts import ScriptedModel
from tests.stack import Stack

SLOW = Reply(tokens=["tick "] * 2000, token_delay=0.01)


async def test_runs_that_wait_are_done_in_the_order_they_came(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    session = await caller.session()
    first = await caller.start(session=session, model=model.script(Reply(tokens=["a "] * 10, token_delay=0.01)))
    others = [await caller.start(f"number {place}", session=session, workflow="echo") for place in range(5)]
    runs = [await caller.finished(run["id"]) for run in (first, *others)]
    assert [run["turn"] for run in runs] == [1, 2, 3, 4, 5, 6]
    for earlier, later in pairwise(runs):
        assert earlier["finished_at"] <= later["started_at"]
    for run in runs:
        await assert_history(stack.database, run["id"])
    assert [run["answer"] for run in runs[1:]] == [f"number {place}" for place in range(5)]


async def test_a_busy_session_refuses_where_that_is_asked_for(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    session = await caller.session()
    async with caller.following(session=session, model=model.script(SLOW)) as stream:
        await stream.until("message_chunk")
        busy = {"input": "me too", "if_busy": "reject", "workflow": "echo"}
        problem = (await caller.post(f"/v1/sessions/{session}/runs", busy, expect=409)).json()
        run_id = stream.events[0].data["run_id"]
        assert run_id in problem["detail"]
        await caller.post(f"/v1/runs/{run_id}/cancel")
        await stream.rest()
    assert (await caller.run("now", session=session, workflow="echo", if_busy="reject"))["answer"] == "now"
    assert len((await caller.get(f"/v1/runs?session_id={session}"))["data"]) == 2


async def test_an_interruption_ends_what_runs_and_what_waits(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    session = await caller.session()
    async with caller.following(session=session, model=model.script(SLOW)) as stream:
        await stream.until("message_chunk")
        waiting = await caller.start("never said", session=session, workflow="echo")
        run = await caller.run("this instead", session=session, workflow="echo", if_busy="interrupt")
        await stream.rest()
    assert run["answer"] == "this instead"
    assert stream.events[-1].data["status"] == "cancelled"
    assert (await caller.finished(waiting["id"]))["status"] == "cancelled"
    for run_id in (stream.events[0].data["run_id"], waiting["id"], run["id"]):
        await assert_history(stack.database, run_id)


async def test_sessions_do_not_wait_for_each_other(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    async with caller.following(model=model.script(SLOW)) as stream:
        await stream.until("message_chunk")
        runs = await asyncio.gather(*(caller.run(f"{number}", workflow="echo") for number in range(10)))
        assert [run["answer"] for run in runs] == [f"{number}" for number in range(10)]
        await caller.post(f"/v1/runs/{stream.events[0].data['run_id']}/cancel")


async def test_a_session_is_not_deleted_while_it_is_busy(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    session = await caller.session()
    async with caller.following(session=session, model=model.script(SLOW)) as stream:
        await stream.until("message_chunk")
        await caller.call("DELETE", f"/v1/sessions/{session}", expect=409)
        await caller.post(f"/v1/runs/{stream.events[0].data['run_id']}/cancel")
        await stream.rest()
    await caller.call("DELETE", f"/v1/sessions/{session}", expect=204)
    await caller.get(f"/v1/sessions/{session}", expect=404)
    assert await stack.database.fetchval("SELECT count(*) FROM events WHERE session_id = $1", session) == 0
