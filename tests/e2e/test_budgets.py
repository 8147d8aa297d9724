"""Limits hold while a run is going: with at most the call in flight over, for sub-agents too, and across owners."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from cli.rehearsal import HttpError, Reply, ToolCall
from tests.conftest import MakeStack
from tests.e2e.caller import Caller, calling
from tests.e2e.conftest import new_key
from tests.e2e.spending import (
    PRICES,
    answer_of,
    computing,
    delegating,
    ended,
    member,
    until_asked,
)
from tests.faults.crew import SHORT_LEASES, holder, staff
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack

SLOW = ToolCall("python", {"code": "x = 0\nwhile True:\n    x += 1"})


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


async def test_a_summary_on_the_way_counts_before_the_next_call_is_made(
    priced: Stack, caller: Caller, model: ScriptedModel
) -> None:
    words = "the ship sails on " * 90
    big = Reply(tokens=["a summary"], usage=(90_000, 10))
    sums, script = model.script(big), model.script(said("fine"))
    agent = await caller.agent(model=script, context={"max_tokens": 1_500, "summary_model": sums})
    session = await caller.session()
    silent = await caller.agent(name="silent", model=script, context={"summarize": False})
    for _ in range(2):
        await caller.run(words, session=session, agent_id=silent)
    made = len(model.asked(script))
    history = await ended(priced, caller, input=words, session=session, agent_id=agent, budget={"max_tokens": 50_000})
    assert [event.data.get("purpose") for event in history.of("usage")] == ["summary"]
    assert len(model.asked(script)) == made


async def test_a_summary_model_without_a_price_is_refused_where_cost_is_limited(
    priced: Stack, caller: Caller, model: ScriptedModel
) -> None:
    agent = await caller.agent(model=model.script(said("fine")), context={"summary_model": "unheard-of"})
    history = await ended(priced, caller, agent_id=agent, budget={"max_cost": 1})
    [error] = history.of("error")
    assert error.data["code"] == "no_price"
    assert "unheard-of" in error.data["message"]


@pytest.mark.parametrize(
    ("budget", "reason", "asked"),
    [
        ({"max_steps": 3}, "step_limit", 3),
        ({"max_tokens": 150}, "token_limit", 3),
        ({"max_cost": 0.0017}, "cost_limit", 3),
        ({"max_tool_calls": 2}, "tool_call_limit", 4),
    ],
)
async def test_a_run_stops_at_its_limit_and_says_which_it_was(
    priced: Stack, caller: Caller, model: ScriptedModel, budget: dict[str, Any], reason: str, asked: int
) -> None:
    script = model.script(computing())
    history = await ended(priced, caller, model=script, budget=budget)
    assert (history.run["status"], history.run["finish_reason"]) == ("succeeded", reason)
    assert len(model.asked(script)) == asked
    [cap] = budget
    answer = answer_of(history)
    for part in ("found it", cap, "/retry"):
        assert part in answer, answer


async def test_a_limit_on_tool_calls_lets_the_model_answer_once(
    priced: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(computing(calls=3), said("that is what I know"))
    history = await ended(priced, caller, model=script, budget={"max_tool_calls": 2})
    assert (history.run["finish_reason"], answer_of(history)) == ("stop", "that is what I know")


async def test_the_model_is_told_how_many_tokens_are_left(priced: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(computing(), said("done"))
    await ended(priced, caller, model={"name": script, "max_tokens": 900}, budget={"max_tokens": 1000})
    asked = [request.body["max_completion_tokens"] for request in model.asked(script)]
    assert asked == [900, 900]
    small = model.script(computing(), said("done"))
    await ended(priced, caller, model={"name": small, "max_tokens": 900}, budget={"max_tokens": 500})
    assert [request.body["max_completion_tokens"] for request in model.asked(small)] == [500, 430]


async def test_an_answer_that_is_cut_for_want_of_tokens_says_so(
    priced: Stack, caller: Caller, model: ScriptedModel
) -> None:
    cut = Reply(tokens=["half ", "an "], finish_reason="length", usage=(60, 40))
    history = await ended(priced, caller, model=model.script(cut), budget={"max_tokens": 100})
    assert (history.run["finish_reason"], answer_of(history)) == ("token_limit", "half an ")


async def test_a_model_call_is_cut_when_the_time_for_work_is_over(
    priced: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(computing(), Reply(tokens=["tick "] * 1000, token_delay=0.02))
    started = time.monotonic()
    history = await ended(priced, caller, model=script, budget={"max_seconds": 1})
    assert time.monotonic() - started < 5
    assert history.run["finish_reason"] == "time_limit"
    assert "message_discarded" in history.types
    assert "found it" in answer_of(history)


async def test_a_tool_call_is_cut_when_the_time_for_work_is_over(
    priced: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(Reply(tool_calls=[SLOW]), said("never"))
    history = await ended(priced, caller, model=script, budget={"max_seconds": 0.5})
    assert history.run["finish_reason"] == "time_limit"
    [result] = history.of("tool_result")
    assert (result.data["status"], len(model.asked(script))) == ("error", 1)
    assert "time for work" in result.data["result"]


async def test_costs_are_in_each_usage_event_and_add_up(priced: Stack, caller: Caller, model: ScriptedModel) -> None:
    helper = model.script(Reply(tokens=["helped"], usage=(100, 100)))
    script = model.script(delegating("helper", usage=(1000, 0)), Reply(tokens=["done"], usage=(0, 1000)))
    agent = await caller.agent(model=script, sub_agents=[member("helper", helper)])
    history = await ended(priced, caller, agent_id=agent)
    assert [round(event.data["cost"], 9) for event in history.of("usage")] == [0.01, 0.003, 0.02]
    assert history.events[-1].data["usage"] == {"input_tokens": 1100, "output_tokens": 1100, "cost": 0.033}


async def test_a_limit_on_cost_needs_a_price(priced: Stack, caller: Caller, model: ScriptedModel) -> None:
    run = await caller.run(model="unheard-of", budget={"max_cost": 1})
    assert (run["status"], run["error"]["code"]) == ("failed", "no_price")
    assert "unheard-of" in run["error"]["message"]
    await assert_history(priced.database, run["id"])
    script = model.script(delegating("helper"), said("done"))
    agent = await caller.agent(model=script, sub_agents=[member("helper", "unheard-of")])
    history = await ended(priced, caller, agent_id=agent, budget={"max_cost": 1})
    assert "no price for unheard-of" in history.of("delegate_result")[0].data["result"]


async def test_a_sub_agent_never_spends_more_than_its_parent_has_left(
    priced: Stack, caller: Caller, model: ScriptedModel
) -> None:
    helper = model.script(computing(usage=(50, 0)))
    script = model.script(delegating("helper", usage=(50, 0)), said("done"))
    agent = await caller.agent(model=script, sub_agents=[member("helper", helper)], limits={"max_tokens": 300})
    history = await ended(priced, caller, agent_id=agent)
    assert len(model.asked(helper)) == 5
    assert history.run["finish_reason"] == "token_limit"
    assert orjson.loads(history.run["usage"])["input_tokens"] == 300
    assert "found it" in answer_of(history)


async def test_sub_agents_that_are_asked_at_once_share_what_is_left(
    priced: Stack, caller: Caller, model: ScriptedModel
) -> None:
    """Each by itself could use it all up."""
    scripts = [model.script(computing(usage=(50, 0))) for _ in range(3)]
    names = [f"helper_{place}" for place in range(3)]
    script = model.script(delegating(*names, usage=(50, 0)), said("enough"))
    team = [member(name, script) for name, script in zip(names, scripts, strict=True)]
    agent = await caller.agent(model=script, sub_agents=team, limits={"max_tokens": 500})
    history = await ended(priced, caller, agent_id=agent)
    assert [len(model.asked(script)) for script in scripts] == [3, 3, 3]  # 150 each
    assert history.run["finish_reason"] == "token_limit"


async def test_a_sub_agents_own_limits_lower_its_share(priced: Stack, caller: Caller, model: ScriptedModel) -> None:
    helper = model.script(computing(usage=(50, 0)))
    script = model.script(delegating("helper"), said("so be it"))
    team = [member("helper", helper, limits={"max_tokens": 100, "max_steps": 9})]
    agent = await caller.agent(model=script, sub_agents=team, limits={"max_tokens": 10_000})
    history = await ended(priced, caller, agent_id=agent)
    assert len(model.asked(helper)) == 2
    assert answer_of(history) == "so be it"
    assert "token budget of 100" in history.of("delegate_result")[0].data["result"]


async def test_a_model_that_calls_tools_wrongly_again_and_again_is_stopped(
    priced: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(Reply(tool_calls=[ToolCall("nothing", {})]))
    history = await ended(priced, caller, model=script)
    assert history.run["finish_reason"] == "tool_errors"
    assert len(model.asked(script)) == 8


async def test_a_right_call_forgives_wrong_ones(priced: Stack, caller: Caller, model: ScriptedModel) -> None:
    wrong = Reply(tool_calls=[ToolCall("python", "{broken")] * 5)
    script = model.script(wrong, computing(), wrong, computing(), said("at last"))
    history = await ended(priced, caller, model=script)
    assert answer_of(history) == "at last"


async def test_more_tasks_than_may_go_at_once_are_refused_and_may_follow(
    priced: Stack, caller: Caller, model: ScriptedModel
) -> None:
    helper = model.script(said("helped"))
    script = model.script(delegating("helper", "helper", "helper"), delegating("helper"), said("done"))
    agent = await caller.agent(model=script, sub_agents=[member("helper", helper)], limits={"max_parallel_agents": 2})
    history = await ended(priced, caller, agent_id=agent)
    assert len(model.asked(helper)) == 3
    [refused] = [event for event in history.of("tool_result") if event.data["name"] == "delegate"]
    assert "at most 2 tasks" in refused.data["result"]


async def test_the_depth_of_delegation_is_bounded(priced: Stack, caller: Caller, model: ScriptedModel) -> None:
    deepest = model.script(said("deepest"))
    middle = model.script(delegating("deep"), said("middle"))
    script = model.script(delegating("middle"), said("done"))
    team = [member("middle", middle, sub_agents=[member("deep", deepest)])]
    agent = await caller.agent(model=script, sub_agents=team)
    history = await ended(priced, caller, agent_id=agent, budget={"max_depth": 1})
    assert model.asked(deepest) == []
    [refused] = [event for event in history.of("tool_result") if event.data["name"] == "delegate"]
    assert "1 levels" in refused.data["result"]
    assert answer_of(history) == "done"


# across owners


async def test_what_was_spent_before_a_worker_died_is_spent(make_stack: MakeStack, model: ScriptedModel) -> None:
    stack = await make_stack(workers=0, **SHORT_LEASES)
    await staff(stack, 2)
    helper = model.script(
        computing(usage=(50, 0)), computing(usage=(50, 0)), Reply(first_delay=60), computing(usage=(50, 0))
    )
    script = model.script(delegating("helper", usage=(50, 0)), said("done"))
    async with calling(stack.url, await new_key(stack)) as caller:
        agent = await caller.agent(model=script, sub_agents=[member("helper", helper)], limits={"max_tokens": 300})
        async with caller.following(agent_id=agent) as stream:
            worker = holder(stack, (await stream.until("run_started")).data)
            await stream.until("state_entered", step_id="helper:2/2-think")
            await until_asked(model, helper, 3)
            await worker.kill()
            await stream.rest()
        history = await assert_history(stack.database, stream.events[0].data["run_id"])
    assert history.run["epoch"] == 2
    assert orjson.loads(history.run["usage"])["input_tokens"] == 300
    assert len(model.asked(helper)) == 6  # the third was cut short and done again
    assert history.run["finish_reason"] == "token_limit"
    await stack.stop()


async def test_a_retry_whose_worker_dies_goes_on_all_the_same(make_stack: MakeStack, model: ScriptedModel) -> None:
    stack = await make_stack(workers=0, **SHORT_LEASES)
    await staff(stack, 2)
    lost = Reply(fault=HttpError(400, {"error": {"message": "no more"}}))
    script = model.script(computing(), lost, Reply(first_delay=60), said("done"))
    async with calling(stack.url, await new_key(stack)) as caller:
        failed = await caller.run(model=script)
        run = (await caller.post(f"/v1/runs/{failed['id']}/retry", expect=202)).json()
        async with caller.stream(f"/v1/runs/{run['id']}/events") as stream:
            worker = holder(stack, (await stream.until("run_started")).data)
            await until_asked(model, script, 3)
            await worker.kill()
            await stream.rest()
        history = await assert_history(stack.database, run["id"])
    assert (history.run["epoch"], answer_of(history)) == (2, "done")
    assert len(model.asked(script)) == 4
    assert history.of("tool_start") == []
    await stack.stop()
