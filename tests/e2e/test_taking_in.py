"""Taking runs in: once per Idempotency-Key, many at a time, and waiting for them."""

from __future__ import annotations

import asyncio

from cli.rehearsal import Reply
from tests.e2e.caller import Caller
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack


async def test_a_request_that_is_sent_again_starts_nothing_more(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(said("only once"))
    body = {"input": "hello", "model": script}
    answers = [await caller.post("/v1/runs", body, Idempotency_Key="again", expect=202)]
    await caller.finished(answers[0].json()["id"])
    answers.append(await caller.post("/v1/runs", body, Idempotency_Key="again", expect=202))
    assert answers[0].body == answers[1].body
    assert "Idempotency-Replayed" not in answers[0].headers
    assert answers[1].headers["Idempotency-Replayed"] == "true"
    assert len(model.asked(script)) == 1


async def test_a_key_with_another_body_is_refused(caller: Caller) -> None:
    await caller.post("/v1/runs", {"input": "one", "workflow": "echo"}, Idempotency_Key="mine", expect=202)
    problem = await caller.post("/v1/runs", {"input": "two", "workflow": "echo"}, Idempotency_Key="mine", expect=422)
    assert problem.json()["errors"][0]["field"] == "Idempotency-Key"


async def test_twins_at_the_same_moment_start_one_run(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(said("only once"))
    body = {"input": "hello", "model": script}
    answers = await asyncio.gather(*(caller.post("/v1/runs", body, Idempotency_Key="twin") for _ in range(10)))
    assert {answer.status for answer in answers} == {202}
    assert len({answer.body for answer in answers}) == 1
    await caller.finished(answers[0].json()["id"])
    assert len(model.asked(script)) == 1


async def test_a_stream_that_is_asked_for_again_is_the_same_bytes(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(Reply(tokens=["a "] * 20, token_delay=0.005))
    key = {"Idempotency-Key": "stream"}
    async with caller.following(model=script, headers=key) as first:
        await first.until("message_chunk")
        async with caller.following(model=script, headers=key) as second:
            await asyncio.gather(first.rest(), second.rest())
    async with caller.following(model=script, headers=key) as third:
        await third.rest()
    assert first.frames == second.frames == third.frames
    assert third.answer.headers["Idempotency-Replayed"] == "true"
    assert len(model.asked(script)) == 1
    await assert_history(stack.database, first.events[0].data["run_id"])


async def test_a_batch_runs_all_that_is_right_and_says_what_is_wrong(stack: Stack, caller: Caller) -> None:
    runs = [{"input": f"number {number}", "workflow": "echo"} for number in range(20)]
    runs[7]["agent_id"] = f"agt_{'0' * 32}"
    results = (await caller.post("/v1/runs/batch", {"runs": runs}, expect=202)).json()["results"]
    assert [place for place, result in enumerate(results) if result["problem"]] == [7]
    taken = [result["run"]["id"] for result in results if result["run"]]
    finished = await asyncio.gather(*(caller.finished(run_id) for run_id in taken))
    assert [run["answer"] for run in finished] == [f"number {n}" for n in range(20) if n != 7]
    for run_id in taken:
        await assert_history(stack.database, run_id)


async def test_a_wait_ends_when_its_time_is_over_and_the_run_goes_on(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(Reply(tokens=["a "] * 60, token_delay=0.01))
    run = await caller.start(model=script)
    looked = await caller.get(f"/v1/runs/{run['id']}/wait?timeout=0.2")
    assert looked["status"] == "running"
    assert looked["answer"] is None
    assert (await caller.finished(run["id"]))["status"] == "succeeded"


async def test_many_callers_at_once_are_all_served(stack: Stack, caller: Caller) -> None:
    async def one(number: int) -> None:
        async with caller.following(f"{number}", workflow="echo") as stream:
            events = await stream.rest()
        [message] = [event for event in events if event.type == "message"]
        assert message.data["content"] == f"{number}"
        assert [event.seq for event in events] == list(range(1, len(events) + 1))

    await asyncio.gather(*(one(number) for number in range(60)))
