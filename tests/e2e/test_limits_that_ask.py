"""At a limit a run may ask whether it can be raised: what comes of the answer, also while an answer is corrected."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from cli.rehearsal import ChatRequest, Reply
from tests.conftest import MakeStack
from tests.e2e.caller import Caller, calling
from tests.e2e.conftest import new_key
from tests.e2e.spending import (
    PRICES,
    answer_of,
    computing,
    decide,
    delegating,
    ended,
    open_limit,
    open_limit_after,
    until_asked,
)
from tests.faults.crew import SHORT_LEASES, holder, staff
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack


@pytest.fixture(scope="module")
async def priced(make_stack: MakeStack) -> AsyncIterator[Stack]:
    """A stack that knows what scripts cost."""
    stack = await make_stack(LONGHAUL_PRICES=PRICES)
    yield stack
    await stack.stop()


@pytest.fixture
async def caller(priced: Stack) -> AsyncIterator[Caller]:
    async with calling(priced.url, await new_key(priced)) as caller:
        yield caller


async def test_at_a_limit_a_run_may_ask_and_goes_on_when_it_is_raised(
    priced: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(computing(), computing(), said("done after all"))
    run = await caller.start(model=script, budget={"max_tokens": 100, "on_limit": "ask"})
    asked = await open_limit(caller, run["id"])
    assert (asked["kind"], asked["arguments"]) == ("limit", {"max_tokens": 280})
    assert "100 tokens" in asked["prompt"]
    await decide(caller, asked["id"], "approve")
    finished = await caller.finished(run["id"])
    assert (finished["answer"], len(model.asked(script))) == ("done after all", 3)
    await assert_history(priced.database, run["id"])


async def test_who_decides_may_raise_a_limit_to_another_height(
    priced: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(computing())
    run = await caller.start(model=script, budget={"max_steps": 2, "on_limit": "ask"})
    asked = await open_limit(caller, run["id"])
    await decide(caller, asked["id"], "approve", expect=422, arguments={"max_steps": 101})
    await decide(caller, asked["id"], "approve", arguments={"max_steps": 3})
    again = await open_limit_after(caller, run["id"], asked["id"])
    assert len(model.asked(script)) == 3
    await decide(caller, again, "deny")
    finished = await caller.finished(run["id"])
    assert finished["finish_reason"] == "step_limit"
    assert "found it" in finished["answer"]
    history = await assert_history(priced.database, run["id"])
    assert len(history.of("approval_required")) == 2


async def test_a_limit_on_tool_calls_that_is_raised_lets_the_model_call_again(
    priced: Stack, caller: Caller, model: ScriptedModel
) -> None:
    def again(request: ChatRequest) -> Reply:
        assert "has been raised" in str(request.messages[-1]["content"])
        return computing()

    script = model.script(computing(calls=2), again, said("done"))
    run = await caller.start(model=script, budget={"max_tool_calls": 1, "on_limit": "ask"})
    asked = await open_limit(caller, run["id"])
    assert asked["arguments"] == {"max_tool_calls": 2}
    await decide(caller, asked["id"], "approve")
    assert (await caller.finished(run["id"]))["answer"] == "done"
    history = await assert_history(priced.database, run["id"])
    assert [event.data["status"] for event in history.of("tool_result")].count("ok") == 2


async def test_waiting_is_no_work(priced: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(computing(), said("done"))
    run = await caller.start(model=script, budget={"max_steps": 1, "max_seconds": 60.0, "on_limit": "ask"})
    asked = await open_limit(caller, run["id"])
    # It has waited for an hour.
    await priced.database.execute("UPDATE events SET at = at - interval '1 hour' WHERE run_id = $1", run["id"])
    await decide(caller, asked["id"], "approve")
    assert (await caller.finished(run["id"]))["answer"] == "done"
    await assert_history(priced.database, run["id"])


# across owners


async def test_a_limit_that_was_raised_stays_raised_when_a_worker_dies(
    make_stack: MakeStack, model: ScriptedModel
) -> None:
    stack = await make_stack(workers=0, **SHORT_LEASES)
    await staff(stack, 2)
    script = model.script(computing(), computing(), Reply(first_delay=60), said("done"))
    async with calling(stack.url, await new_key(stack)) as caller:
        run = await caller.start(model=script, budget={"max_tokens": 100, "on_limit": "ask"})
        asked = await open_limit(caller, run["id"])
        async with caller.stream(f"/v1/runs/{run['id']}/events") as stream:
            await decide(caller, asked["id"], "approve")
            resumed = await stream.until("run_resumed")
            await until_asked(model, script, 3)
            await holder(stack, resumed.data).kill()
            await stream.rest()
        history = await assert_history(stack.database, run["id"])
    assert (history.run["finish_reason"], answer_of(history)) == ("stop", "done")
    assert len(history.of("approval_required")) == 1
    await stack.stop()


# corrections of a structured answer


FITS = '{"people": 291940}'
STRUCTURED: dict[str, Any] = {"type": "object", "properties": {"people": {"type": "integer"}}, "required": ["people"]}
LIMITS_OF_A_CORRECTION = [
    ({"max_steps": 1}, "step_limit"),
    ({"max_tokens": 70}, "token_limit"),
    ({"max_cost": 0.0007}, "cost_limit"),
]


def unfit(text: str = '{"people": "many"}') -> Reply:
    return Reply(tokens=[text], usage=(60, 10))


@pytest.mark.parametrize(("budget", "reason"), LIMITS_OF_A_CORRECTION)
async def test_a_limit_that_forbids_a_correction_stops_the_run_and_says_so(
    priced: Stack, caller: Caller, model: ScriptedModel, budget: dict[str, Any], reason: str
) -> None:
    script = model.script(unfit(), said(FITS))
    history = await ended(priced, caller, model=script, budget=budget, response_schema=STRUCTURED)
    assert (history.run["status"], history.run["finish_reason"]) == ("succeeded", reason)
    assert len(model.asked(script)) == 1
    [cap] = budget
    answer = answer_of(history)
    for part in (cap, "/retry", "response_schema", '{"people": "many"}'):
        assert part in answer, answer
    assert (await caller.get(f"/v1/runs/{history.run['id']}"))["output"] is None


@pytest.mark.parametrize(("budget", "reason"), LIMITS_OF_A_CORRECTION)
async def test_a_limit_that_is_raised_lets_a_correction_go_on_where_it_was(
    priced: Stack, caller: Caller, model: ScriptedModel, budget: dict[str, Any], reason: str
) -> None:
    script = model.script(unfit(), said(FITS))
    fields: dict[str, Any] = {"model": script, "budget": {**budget, "on_limit": "ask"}, "response_schema": STRUCTURED}
    run = await caller.start(**fields)
    asked = await open_limit(caller, run["id"])
    [cap] = budget
    assert (asked["kind"], list(asked["arguments"])) == ("limit", [cap])
    await decide(caller, asked["id"], "approve")
    finished = await caller.finished(run["id"])
    assert (finished["status"], finished["output"]) == ("succeeded", {"people": 291940})
    _, second = model.asked(script)
    assert second.messages[-2]["content"] == '{"people": "many"}'
    assert "not the JSON that was asked for" in second.messages[-1]["content"]
    await assert_history(priced.database, run["id"])


async def test_a_limit_that_is_not_raised_ends_a_correction(
    priced: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(unfit())
    fields: dict[str, Any] = {
        "model": script,
        "budget": {"max_steps": 1, "on_limit": "ask"},
        "response_schema": STRUCTURED,
    }
    run = await caller.start(**fields)
    await decide(caller, (await open_limit(caller, run["id"]))["id"], "deny")
    finished = await caller.finished(run["id"])
    assert (finished["status"], finished["finish_reason"]) == ("succeeded", "step_limit")
    assert (finished["output"], len(model.asked(script))) == (None, 1)
    await assert_history(priced.database, run["id"])


async def test_a_correction_that_is_cut_for_want_of_time_is_asked_for_again(
    priced: Stack, caller: Caller, model: ScriptedModel
) -> None:
    slow = Reply(tokens=["tick "] * 1000, token_delay=0.02)
    script = model.script(unfit(), slow, said(FITS))
    fields: dict[str, Any] = {
        "model": script,
        "budget": {"max_seconds": 1, "on_limit": "ask"},
        "response_schema": STRUCTURED,
    }
    run = await caller.start(**fields)
    asked = await open_limit(caller, run["id"])
    await decide(caller, asked["id"], "approve", arguments={"max_seconds": 60})
    assert (await caller.finished(run["id"]))["output"] == {"people": 291940}
    third = model.asked(script)[2]
    assert third.messages[-2]["content"] == '{"people": "many"}'
    await assert_history(priced.database, run["id"])


async def test_corrections_are_counted_across_a_limit(priced: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(unfit())
    fields: dict[str, Any] = {
        "model": script,
        "budget": {"max_steps": 2, "on_limit": "ask"},
        "response_schema": STRUCTURED,
    }
    run = await caller.start(**fields)
    await decide(caller, (await open_limit(caller, run["id"]))["id"], "approve")
    finished = await caller.finished(run["id"])
    assert (finished["status"], finished["error"]["code"]) == ("failed", "invalid_answer")
    assert len(model.asked(script)) == 3
    await assert_history(priced.database, run["id"])


async def test_a_sub_agent_whose_correction_meets_a_limit_says_what_it_had(
    priced: Stack, caller: Caller, model: ScriptedModel
) -> None:
    helper = model.script(unfit())
    inner = await caller.agent(model=helper, response_schema=STRUCTURED, limits={"max_steps": 1})
    script = model.script(delegating("helper"), said("so be it"))
    agent = await caller.agent(model=script, sub_agents=[{"name": "helper", "agent_id": inner}])
    history = await ended(priced, caller, agent_id=agent)
    assert (answer_of(history), len(model.asked(helper))) == ("so be it", 1)
    result = history.of("delegate_result")[0].data["result"]
    assert "limit of 1 steps" in result
    assert '{"people": "many"}' in result
