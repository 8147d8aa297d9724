"""What is left of a run that could not do it all: an answer with what is known, and operations that recover it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from cli.rehearsal import HttpError, Reply, ToolCall
from tests.conftest import MakeStack
from tests.e2e.caller import Caller, calling
from tests.e2e.conftest import new_key
from tests.faults.outside import Outside, outside_world
from tests.history import History, assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack

LOST = Reply(fault=HttpError(400, {"error": {"message": "no more"}}))
COMPUTE = Reply(tool_calls=[ToolCall("python", {"code": "6 * 7"})], usage=(60, 10))


@pytest.fixture(scope="module")
async def outside() -> AsyncIterator[Outside]:
    async with outside_world() as outside:
        yield outside


@pytest.fixture(scope="module")
async def reaching(make_stack: MakeStack, outside: Outside) -> AsyncIterator[Stack]:
    """A stack whose tools may reach the outside."""
    stack = await make_stack(LONGHAUL_EGRESS_ALLOW=outside.address)
    yield stack
    await stack.stop()


@pytest.fixture
async def caller(reaching: Stack) -> AsyncIterator[Caller]:
    async with calling(reaching.url, await new_key(reaching)) as caller:
        yield caller


def post(outside: Outside, path: str) -> Reply:
    return Reply(tool_calls=[ToolCall("http_post", {"url": outside.url + path, "body": {"n": 1}})])


async def retry(caller: Caller, run: dict[str, Any], *, expect: int = 202, **body: Any) -> dict[str, Any]:
    """Asks for a retry; the answer."""
    answer = await caller.post(f"/v1/runs/{run['id']}/retry", body, expect=expect)
    shown: dict[str, Any] = answer.json()
    return shown


async def carried_out(caller: Caller, operation: dict[str, Any]) -> dict[str, Any]:
    """Does what an operation says; the run that comes of it, at its end."""
    answer = await caller.call(operation["method"], operation["path"], operation.get("body", {}))
    assert answer.status in (200, 202), answer.body
    return await caller.finished(answer.json()["id"])


async def both(stack: Stack, *runs: dict[str, Any]) -> list[History]:
    return [await assert_history(stack.database, run["id"]) for run in runs]


def told(model: ScriptedModel, script: str) -> list[tuple[str, str]]:
    """What the model was told with its last call."""
    return [(str(m["role"]), str(m["content"])) for m in model.asked(script)[-1].messages[1:]]


async def test_a_lost_model_leaves_an_answer_and_the_operation_that_goes_on(
    reaching: Stack, caller: Caller, model: ScriptedModel, outside: Outside
) -> None:
    path = f"/{uuid4().hex}"
    script = model.script(COMPUTE, post(outside, path), LOST, said("all done"))
    agent = await caller.agent(model=script, tools=["python", "http_post"])
    failed = await caller.run("do it", agent_id=agent)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "model_refused")
    for part in ("could not finish", "no more", "42", "/retry"):
        assert part in failed["answer"], failed["answer"]
    [operation] = failed["error"]["operations"]
    assert operation["op"] == "retry"
    again = await carried_out(caller, operation)
    assert (again["status"], again["answer"]) == ("succeeded", "all done")
    assert (again["retry_of"], again["session_id"]) == (failed["id"], failed["session_id"])
    first, second = await both(reaching, failed, again)
    assert len(outside.seen[path]) == 1, "a call that must not be repeated was"
    assert len(model.asked(script)) == 4
    assert [role for role, _ in told(model, script)] == ["user", "assistant", "tool", "assistant", "tool"]
    assert second.events[0].data["retry_of"] == failed["id"]
    assert [row["inherited"] for row in second.effects] == [True, True]
    assert second.of("tool_start") == []
    assert first.types[-2:] == ["error", "done"]


async def test_a_run_that_stopped_at_a_limit_goes_on_with_more(
    reaching: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(COMPUTE, COMPUTE, said("enough"))
    stopped = await caller.run(model=script, budget={"max_tokens": 100, "max_steps": 9})
    assert stopped["finish_reason"] == "token_limit"
    [history] = await both(reaching, stopped)
    [operation] = history.of("message")[-1].data["operations"]
    assert (operation["op"], operation["body"]) == ("raise_budget", {"budget": {"max_tokens": 280}})
    again = await carried_out(caller, operation)
    assert again["answer"] == "enough"
    assert len(model.asked(script)) == 3
    await both(reaching, again)


async def test_an_answer_in_the_session_tells_what_was_found(
    reaching: Stack, caller: Caller, model: ScriptedModel
) -> None:
    session = await caller.session()
    await caller.run("one", session=session, model=model.script(said("first")))
    failed = await caller.run("two", session=session, model=(script := model.script(COMPUTE, LOST, said("second"))))
    await caller.run("three", session=session, model=model.script(said("third")))
    again = await retry(caller, failed)
    assert (await caller.finished(again["id"]))["answer"] == "second"
    # It goes on from where it was: what was said since is no part of it.
    assert [text for _, text in told(model, script)][:3] == ["one", "first", "two"]
    assert "three" not in str(told(model, script))
    await both(reaching, failed, again)


async def test_a_retry_goes_on_from_the_step_that_is_named(
    reaching: Stack, caller: Caller, model: ScriptedModel, outside: Outside
) -> None:
    path = f"/{uuid4().hex}"
    script = model.script(post(outside, path), COMPUTE, said("one way"), said("another way"))
    agent = await caller.agent(model=script, tools=["python", "http_post"])
    run = await caller.run("do it", agent_id=agent)
    again = await retry(caller, run, from_step="1-act")
    assert again["from"] == "1-act"
    again = await caller.finished(again["id"])
    assert again["answer"] == "another way"
    assert [role for role, _ in told(model, script)] == ["user", "assistant", "tool"]
    assert len(outside.seen[path]) == 1
    await both(reaching, run, again)
    third = await retry(caller, again)
    assert third["from"] == "start" or third["from"].endswith("act")
    await caller.finished(third["id"])
    await both(reaching, third)


@pytest.mark.parametrize("step", ["9-act", "1-respond", "nonsense", "helper:2/1-act"])
async def test_a_step_that_is_none_to_go_on_from_is_refused(
    reaching: Stack, caller: Caller, model: ScriptedModel, step: str
) -> None:
    run = await caller.run(model=model.script(said("well")))
    problem = await retry(caller, run, expect=422, from_step=step)
    assert problem["errors"][0]["field"] == "from_step" or problem.get("field") == "from_step"


async def test_only_a_run_that_has_ended_can_be_retried(caller: Caller, model: ScriptedModel) -> None:
    run = await caller.start(model=model.script(Reply(tokens=["tick "] * 500, token_delay=0.05)))
    assert "has not ended" in (await retry(caller, run, expect=409))["detail"]
    await caller.post(f"/v1/runs/{run['id']}/cancel")
    await caller.finished(run["id"])
    await retry(caller, {"id": f"run_{uuid4().hex}"}, expect=404)


async def test_a_run_whose_agent_was_deleted_can_not_be_retried(caller: Caller, model: ScriptedModel) -> None:
    agent = await caller.agent(model=model.script(said("done")))
    run = await caller.run(agent_id=agent)
    await caller.call("DELETE", f"/v1/agents/{agent}", expect=204)
    problem = (await caller.post(f"/v1/runs/{run['id']}/retry", expect=409)).json()
    assert "was deleted" in problem["detail"]


async def test_another_orgs_run_can_not_be_retried(reaching: Stack, caller: Caller, model: ScriptedModel) -> None:
    run = await caller.run(model=model.script(said("mine")))
    async with calling(reaching.url, await new_key(reaching)) as stranger:
        await retry(stranger, run, expect=404)


async def test_a_run_that_settled_nothing_starts_from_its_input(
    reaching: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(LOST, said("now I can"))
    failed = await caller.run("question", model=script)
    again = await retry(caller, failed)
    assert again["from"] == "start"
    again = await caller.finished(again["id"])
    assert again["answer"] == "now I can"
    assert told(model, script) == [("user", "question")]
    await both(reaching, failed, again)


async def test_a_retry_outlives_the_checkpoints_of_its_run(
    reaching: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(COMPUTE, LOST, said("done"))
    failed = await caller.run(model=script)
    await reaching.database.execute("DELETE FROM checkpoints WHERE starts_with(thread_id, $1)", failed["id"])
    await reaching.database.execute("DELETE FROM checkpoint_writes WHERE starts_with(thread_id, $1)", failed["id"])
    again = await retry(caller, failed)
    assert again["from"] == "1-act"
    assert (await caller.finished(again["id"]))["answer"] == "done"
    assert len(model.asked(script)) == 3
    await both(reaching, again)


async def test_a_call_that_was_cut_short_is_made_again_if_that_does_no_harm(
    reaching: Stack, caller: Caller, model: ScriptedModel, outside: Outside
) -> None:
    once, often = f"/{uuid4().hex}", f"/{uuid4().hex}"
    calls = [
        ToolCall("http_post", {"url": outside.url + once, "body": {}}),
        ToolCall("http_fetch", {"url": outside.url + often}),
    ]
    script = model.script(Reply(tool_calls=calls), said("done"))
    outside.pause = 60
    run = await caller.start(agent_id=await caller.agent(model=script, tools=["http_post", "http_fetch"]))
    await outside.until_seen(once)
    await outside.until_seen(often)
    await caller.post(f"/v1/runs/{run['id']}/cancel")
    run = await caller.finished(run["id"])
    outside.pause = 0
    again = await retry(caller, run)
    assert again["from"] == "0-think"
    again = await caller.finished(again["id"])
    assert again["answer"] == "done"
    assert (len(outside.seen[once]), len(outside.seen[often])) == (1, 2)
    await both(reaching, run, again)


async def test_sub_agents_that_had_finished_are_not_asked_again(
    reaching: Stack, caller: Caller, model: ScriptedModel, outside: Outside
) -> None:
    path = f"/{uuid4().hex}"
    quick = model.script(post(outside, path), said("quick"))
    slow = model.script(COMPUTE, Reply(tokens=["tick "] * 500, token_delay=0.1), said("slow"))
    hand_over = [ToolCall("delegate", {"agent": name, "task": "go"}) for name in ("quick", "slow")]
    script = model.script(Reply(tool_calls=hand_over), said("done"))
    team = [
        {"name": "quick", "model": {"name": quick}, "tools": ["http_post"]},
        {"name": "slow", "model": {"name": slow}, "tools": ["python"]},
    ]
    async with caller.following(agent_id=await caller.agent(model=script, tools=[], sub_agents=team)) as stream:
        run_id = (await stream.until("delegate_result", agent="quick")).data["run_id"]
        await stream.until("message_chunk", path="slow:3")
        await caller.post(f"/v1/runs/{run_id}/cancel")
        await stream.rest()
    run = await caller.finished(run_id)
    again = await caller.finished((await retry(caller, run))["id"])
    assert again["answer"] == "done"
    assert [len(model.asked(name)) for name in (script, quick, slow)] == [2, 2, 3]
    assert len(outside.seen[path]) == 1
    assert [role for role, _ in told(model, slow)] == ["user", "assistant", "tool"]
    assert [text for role, text in told(model, script) if role == "tool"] == ["quick", "slow"]
    await both(reaching, run, again)


async def test_a_retry_is_taken_in_once_per_idempotency_key(
    reaching: Stack, caller: Caller, model: ScriptedModel
) -> None:
    run = await caller.run(model=model.script(LOST, said("done")))
    key = uuid4().hex
    answers = [
        (await caller.post(f"/v1/runs/{run['id']}/retry", {}, expect=202, Idempotency_Key=key)).json() for _ in range(2)
    ]
    assert answers[0] == answers[1]
    await caller.finished(answers[0]["id"])


async def test_a_sub_agents_lost_model_is_told_to_its_parent_with_what_it_had_found(
    reaching: Stack, caller: Caller, model: ScriptedModel
) -> None:
    helper = model.script(COMPUTE, LOST)
    script = model.script(
        Reply(tool_calls=[ToolCall("delegate", {"agent": "helper", "task": "go"})]), said("I make do with that")
    )
    team = [{"name": "helper", "model": {"name": helper}, "tools": ["python"]}]
    run = await caller.run(agent_id=await caller.agent(model=script, sub_agents=team))
    [(_, result)] = [item for item in told(model, script) if item[0] == "tool"]
    assert result.startswith("Error: agent helper failed")
    assert "42" in result
    assert run["answer"] == "I make do with that"
    await both(reaching, run)
