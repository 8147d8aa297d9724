"""Agents of the org as sub-agents, and teams whose runs are cut short."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from cli.rehearsal import Reply, ToolCall
from tests.e2e.caller import Caller, calling
from tests.e2e.conftest import new_key
from tests.history import History, assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack


def handing_over(*names: str) -> Reply:
    return Reply(tool_calls=[ToolCall("delegate", {"agent": name, "task": f"go, {name}"}) for name in names])


async def made(caller: Caller, script: str = "no-script", **fields: Any) -> str:
    return await caller.agent(name=f"agent {uuid4().hex}", model=script, **fields)


async def patched(caller: Caller, agent: str, *, expect: int = 200, **fields: Any) -> dict[str, Any]:
    answer = await caller.call("PATCH", f"/v1/agents/{agent}", fields, expect=expect)
    shown: dict[str, Any] = answer.json()
    return shown


async def refused(caller: Caller, **fields: Any) -> tuple[str, str]:
    """The field and the words with which an agent is refused."""
    answer = await caller.post("/v1/agents", {"name": f"agent {uuid4().hex}", **fields}, expect=422)
    [error] = answer.json()["errors"]
    return error["field"], error["message"]


def ref(name: str, agent: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "agent_id": agent, **more}


async def run_of(stack: Stack, caller: Caller, agent: str, **fields: Any) -> History:
    run = await caller.run(agent_id=agent, **fields)
    return await assert_history(stack.database, run["id"])


async def test_an_agent_of_the_org_can_be_a_sub_agent(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    expert_script = model.script(Reply(tool_calls=[ToolCall("python", {"code": "6 * 7"})]), said("it is 42"))
    expert = await made(caller, expert_script, tools=["python"], description="computes", instructions="Be exact.")
    script = model.script(handing_over("expert"), said("42, I am told"))
    agent = await made(caller, script, tools=[], sub_agents=[ref("expert", expert)])
    shown = await caller.get(f"/v1/agents/{agent}")
    assert shown["sub_agents"] == [
        {"name": "expert", "agent_id": expert, "version": 1, "description": "computes", "limits": None}
    ]
    history = await run_of(stack, caller, agent)
    [result] = history.of("delegate_result")
    assert (result.data["result"], result.path) == ("it is 42", "expert:2")
    assert [str(m["content"]) for m in model.asked(expert_script)[0].messages] == ["Be exact.", "go, expert"]
    assert "computes" in str(model.asked(script)[0].tools["delegate"])


async def test_a_reference_is_pinned_when_it_is_saved(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    old, new = model.script(said("old")), model.script(said("new"))
    expert = await made(caller, old, tools=[])
    script = model.script(handing_over("expert"), said("done"), handing_over("expert"), said("done"))
    agent = await made(caller, script, tools=[], sub_agents=[ref("expert", expert)])
    await patched(caller, expert, model={"name": new})
    history = await run_of(stack, caller, agent)
    assert history.of("delegate_result")[0].data["result"] == "old"
    shown = await patched(caller, agent, sub_agents=[ref("expert", expert)])
    assert shown["sub_agents"][0]["version"] == 2
    history = await run_of(stack, caller, agent)
    assert history.of("delegate_result")[0].data["result"] == "new"
    await caller.call("DELETE", f"/v1/agents/{expert}", expect=204)
    script = model.script(handing_over("expert"), said("done"))
    history = await run_of(stack, caller, agent, model=script)
    assert history.of("delegate_result")[0].data["result"] == "new", "a pinned version outlives its agent"


async def test_the_limits_of_a_reference_and_of_its_agent_both_hold(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    compute = Reply(tool_calls=[ToolCall("python", {"code": "1"})])
    endless = model.script(compute)
    expert = await made(caller, endless, tools=["python"], limits={"max_steps": 4})
    script = model.script(handing_over("expert"), handing_over("strict"), said("done"))
    team = [ref("expert", expert), ref("strict", expert, limits={"max_steps": 2})]
    agent = await made(caller, script, tools=[], sub_agents=team)
    await run_of(stack, caller, agent)
    assert len(model.asked(endless)) == 6


async def test_an_agent_that_is_not_there_is_refused_by_the_path_of_its_reference(stack: Stack, caller: Caller) -> None:
    expert = await made(caller)
    unknown = f"agt_{uuid4().hex}"
    inner = {"name": "lead", "sub_agents": [ref("expert", expert), ref("ghost", unknown)]}
    field, message = await refused(caller, sub_agents=[inner])
    assert (field, unknown in message) == ("sub_agents.0.sub_agents.1.agent_id", True)
    field, message = await refused(caller, sub_agents=[ref("expert", expert, version=7)])
    assert (field, "version 7" in message) == ("sub_agents.0.agent_id", True)
    async with calling(stack.url, await new_key(stack)) as stranger:
        field, _ = await refused(stranger, sub_agents=[ref("expert", expert)])
        assert field == "sub_agents.0.agent_id"


async def test_an_agent_can_not_be_below_itself(caller: Caller) -> None:
    first = await caller.agent(name="first", model="x")
    second = await caller.agent(name="second", model="x", sub_agents=[ref("one", first)])
    third = await caller.agent(name="third", model="x", sub_agents=[ref("two", second)])
    for sub_agents, field, path in [
        ([ref("me", first)], "sub_agents.0.agent_id", "first → first"),
        ([ref("third", third)], "sub_agents.0.agent_id", "first → third → second → first"),
        (
            [{"name": "lead", "sub_agents": [ref("second", second)]}],
            "sub_agents.0.sub_agents.0.agent_id",
            "first → lead → second → first",
        ),
    ]:
        problem = await patched(caller, first, expect=422, sub_agents=sub_agents)
        [error] = problem["errors"]
        assert (error["field"], path in error["message"]) == (field, True), error


async def test_levels_are_counted_through_references(caller: Caller) -> None:
    agent = await made(caller)
    for _ in range(3):
        agent = await made(caller, sub_agents=[ref("below", agent)])
    field, message = await refused(caller, sub_agents=[ref("below", agent)])
    assert (field, "at most 3 levels" in message) == ("sub_agents.0", True)


async def test_cancelling_a_run_reaches_the_agents_at_the_leaves(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    slow = Reply(tokens=["tick "] * 1000, token_delay=0.05)
    leaves = [model.script(slow) for _ in range(2)]
    middle = model.script(handing_over("left", "right"), said("never"))
    script = model.script(handing_over("middle"), said("never"))
    below = [
        {"name": name, "model": {"name": leaf}, "tools": []}
        for name, leaf in zip(("left", "right"), leaves, strict=True)
    ]
    team = [{"name": "middle", "model": {"name": middle}, "tools": [], "sub_agents": below}]
    agent = await made(caller, script, tools=[], sub_agents=team)
    async with caller.following(agent_id=agent) as stream:
        seen: set[str] = set()
        while seen != {"middle:2/left:2", "middle:2/right:3"}:
            seen.add((await stream.until("message_chunk")).data["path"])
        run_id = stream.events[0].data["run_id"]
        await caller.post(f"/v1/runs/{run_id}/cancel")
        await stream.rest()
    history = await assert_history(stack.database, run_id)
    assert history.run["status"] == "cancelled"
    assert {event.path for event in history.of("message_discarded")} == seen
    assert [len(model.asked(name)) for name in (script, middle, *leaves)] == [1, 1, 1, 1]
