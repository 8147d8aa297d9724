"""Limits hold while a run is going: with at most the call in flight over, for sub-agents too, and across owners."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from cli.rehearsal import ChatRequest, HttpError, Reply, ToolCall
from tests.conftest import MakeStack
from tests.e2e.caller import Caller, calling
from tests.e2e.conftest import new_key
from tests.faults.crew import SHORT_LEASES, holder, staff
from tests.history import History, assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack
from tests.waiting import eventually

PRICES = {"script-*": {"input": 10.0, "output": 20.0}, "default": {"input": 1, "output": 1}}
COMPUTE = ToolCall("python", {"code": "'found it'"})
SLOW = ToolCall("python", {"code": "x = 0\nwhile True:\n    x += 1"})


@pytest.fixture(scope="module")
async def priced(make_stack: MakeStack) -> AsyncIterator[Stack]:
    """A stack that knows what scripts cost: per token, 0.00001 in and 0.00002 out."""
    stack = await make_stack(LONGHAUL_PRICES=orjson.dumps(PRICES).decode())
    yield stack
    await stack.stop()


@pytest.fixture
async def caller(priced: Stack) -> AsyncIterator[Caller]:
    async with calling(priced.url, await new_key(priced)) as caller:
        yield caller


def computing(*, usage: tuple[int, int] = (60, 10), calls: int = 1) -> Reply:
    return Reply(tool_calls=[COMPUTE] * calls, usage=usage)


def delegating(*names: str, usage: tuple[int, int] = (10, 10)) -> Reply:
    return Reply(tool_calls=[ToolCall("delegate", {"agent": name, "task": "go"}) for name in names], usage=usage)


def member(name: str, script: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "model": {"name": script}, "tools": ["python"], **more}


async def ended(stack: Stack, caller: Caller, **fields: Any) -> History:
    run = await caller.run(**fields)
    return await assert_history(stack.database, run["id"])


def answer_of(history: History) -> str:
    return str([event for event in history.of("message") if not event.path][-1].data["content"])


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


async def until_asked(model: ScriptedModel, script: str, times: int) -> None:
    async def asked() -> bool:
        return len(model.asked(script)) >= times

    await eventually(asked, what=f"{script} is asked {times} times")


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


# asking


async def decide(caller: Caller, approval_id: str, decision: str, *, expect: int = 200, **fields: Any) -> None:
    await caller.post(f"/v1/approvals/{approval_id}/decide", {"decision": decision, **fields}, expect=expect)


async def open_limit(caller: Caller, run_id: str) -> dict[str, Any]:
    """The approval that the run waits for."""
    async with caller.stream(f"/v1/runs/{run_id}/events") as stream:
        await stream.until("run_waiting")
        seen = [event for event in stream.events if event.type == "approval_required"][-1]
    shown: dict[str, Any] = await caller.get(f"/v1/approvals/{seen.data['approval_id']}")
    return shown


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


async def open_limit_after(caller: Caller, run_id: str, before: str) -> str:
    async with caller.stream(f"/v1/runs/{run_id}/events") as stream:
        while (event := await stream.until("approval_required")).data["approval_id"] == before:
            pass
        await stream.until("run_waiting")
        return str(event.data["approval_id"])


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


async def test_waiting_is_no_work(priced: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(computing(), said("done"))
    run = await caller.start(model=script, budget={"max_steps": 1, "max_seconds": 60.0, "on_limit": "ask"})
    asked = await open_limit(caller, run["id"])
    # It has waited for an hour.
    await priced.database.execute("UPDATE events SET at = at - interval '1 hour' WHERE run_id = $1", run["id"])
    await decide(caller, asked["id"], "approve")
    assert (await caller.finished(run["id"]))["answer"] == "done"
    await assert_history(priced.database, run["id"])
