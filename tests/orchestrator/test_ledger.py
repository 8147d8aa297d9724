"""The effect ledger: what was let loose is known, what is finished is not repeated, and what is lost is not guessed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from cli.rehearsal import ChatRequest, Hang, Raw, Reply, ToolCall
from kernel.effects import EffectClass
from kernel.errors import LeaseLost, StoreUnavailable
from kernel.postgres import Pool
from kernel.runs import cancel
from kernel.settings import Settings
from orchestrator.brake import Brake, Braked
from orchestrator.checkpoints import StrictMsgpack
from orchestrator.ledger import side_by_side
from orchestrator.tools.tool import Arguments, JSONValue, ToolContext
from tests.history import History
from tests.orchestrator.owners import Deed, Owners, owners_on
from tests.scripts import ScriptedModel, said
from tests.waiting import eventually

SILENCE = Reply(fault=Hang(None))


@pytest.fixture
async def owners(own_database: Pool, redis: Redis, settings: Settings, model: ScriptedModel) -> AsyncIterator[Owners]:
    async with owners_on(own_database, redis, settings) as owners:
        yield owners


def calling(*names: str) -> Reply:
    return Reply(tool_calls=[ToolCall(name, {}) for name in names])


def handing_over(*agents: str, beside: tuple[str, ...] = ()) -> Reply:
    hand_overs = [ToolCall("delegate", {"agent": agent, "task": "go"}) for agent in agents]
    return Reply(tool_calls=[*hand_overs, *(ToolCall(name, {}) for name in beside)])


def results(request: ChatRequest) -> list[str]:
    return [str(message["content"]) for message in request.messages if message["role"] == "tool"]


def ledger(history: History) -> list[tuple[str, str, str, int]]:
    """(step, tool, status, executions) of each call, in the order in which the steps' ids sort."""
    return [(row["step_id"], row["tool"], row["status"], row["executions"]) for row in history.effects]


async def until_asked(model: ScriptedModel, script: str, times: int) -> None:
    async def asked() -> bool:
        return len(model.asked(script)) == times

    await eventually(asked, what=f"the model is asked {times} times")


# before and after a call


@pytest.mark.parametrize("effect", ["idempotent", "once"])
async def test_that_a_call_was_let_loose_is_committed_before_it_is(
    owners: Owners, model: ScriptedModel, effect: EffectClass
) -> None:
    seen: list[tuple[str, str, int, str]] = []

    class Looking(Deed):
        async def run(self, arguments: Arguments, context: ToolContext) -> JSONValue:
            row = await owners.database.fetchrow("SELECT effect, status, executions, call_id, step_id FROM effects")
            assert row is not None
            seen.append((row["effect"], row["status"], row["executions"], f"{row['step_id']}:{row['call_id']}"))
            return await super().run(arguments, context)

    tool = Looking("look", effect)
    run_id = await owners.ask(model.script(calling("look"), said("done")), tools=["look"])
    history = await owners.finish(run_id, tool)
    [key] = tool.keys
    assert seen == [(effect, "started", 1, key.removeprefix(f"{run_id}:"))]
    assert ledger(history) == [("1-act", "look", "ok", 1)]
    assert [event.data["status"] for event in history.of("tool_result")] == ["ok"]


async def test_calls_that_were_never_let_loose_are_in_the_ledger_too(owners: Owners, model: ScriptedModel) -> None:
    wrong = Reply(tool_calls=[ToolCall("deed", "{broken"), ToolCall("deed", {"what": 1}), ToolCall("other", {})])
    script = model.script(wrong, calling("nothing", "deed", "deed"), said("done"))
    tools = Deed("deed", "once"), Deed("other", "once")
    run_id = await owners.ask(script, tools=["deed"], limits={"max_tool_calls": 5})
    history = await owners.finish(run_id, *tools)
    assert sorted(ledger(history)) == [
        ("1-act", "deed", "error", 0),
        ("1-act", "deed", "error", 0),
        ("1-act", "other", "denied", 0),
        ("2-act", "deed", "denied", 0),
        ("2-act", "deed", "ok", 1),
        ("2-act", "nothing", "error", 0),
    ]
    assert [len(tool.keys) for tool in tools] == [1, 0]
    assert "limit of 5" in results(model.asked(script)[2])[-1]


async def test_delegations_are_in_the_ledger_and_those_that_fail_to_begin_are_in_the_log(
    owners: Owners, model: ScriptedModel
) -> None:
    helper = model.script(calling("deed"), said("helped"))
    script = model.script(handing_over("helper", "nobody", "helper"), said("done"))
    team = [{"name": "helper", "model": {"name": helper}, "tools": ["deed"]}]
    run_id = await owners.ask(script, sub_agents=team, tools=[], limits={"max_tool_calls": 2})
    history = await owners.finish(run_id, Deed("deed", "once"))
    assert ledger(history) == [
        ("1-delegate", "delegate", "ok", 1),
        ("1-delegate", "delegate", "error", 0),
        ("1-delegate", "delegate", "denied", 0),
        ("helper:2/1-act", "deed", "denied", 0),
    ]
    told = [(event.data["name"], event.data["status"]) for event in history.of("tool_result")]
    assert sorted(told) == [("deed", "denied"), ("delegate", "denied"), ("delegate", "error")]


async def test_what_a_model_sends_as_call_ids_makes_keys_that_are_unique_and_short(
    owners: Owners, model: ScriptedModel
) -> None:
    ids: list[Any] = ["same", "same", None, "", "x" * 5_000, "two words", "naïve", "a\nb", "same"]
    calls = [
        {"index": index, "id": id, "function": {"name": "deed", "arguments": "{}"}} for index, id in enumerate(ids)
    ]
    data = json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": "tool_calls"}]})
    asking = Reply(fault=Raw([f"data: {data}\n\ndata: [DONE]\n\n".encode()]))
    script = model.script(asking, asking, said("done"))
    tool = Deed("deed", "once")
    history = await owners.finish(await owners.ask(script, tools=["deed"]), tool)
    assert len(set(tool.keys)) == len(tool.keys) == 2 * len(ids)
    assert all(key.isascii() and key.isprintable() and len(key) <= 255 for key in tool.keys)
    assert all(row["executions"] == 1 and row["status"] == "ok" for row in history.effects)
    for request, step in ((model.asked(script)[1], "1-act"), (model.asked(script)[2], "2-act")):
        written = [row["call_id"] for row in history.effects if row["step_id"] == step]
        asked = [message for message in request.messages if message.get("tool_calls")][-1]["tool_calls"]
        answered = [message["tool_call_id"] for message in request.messages if message["role"] == "tool"]
        assert [call["id"] for call in asked] == written == answered[-len(ids) :]
        assert all(len(id) <= 200 and id.isprintable() for id in written)


async def test_a_key_of_a_call_deep_down_is_no_longer_than_services_take(owners: Owners, model: ScriptedModel) -> None:
    names = [letter * 64 for letter in "abc"]
    bottom = model.script(calling("deed", "deed"), said("done"))
    tree: dict[str, Any] = {"name": names[2], "model": {"name": bottom}, "tools": ["deed"]}
    for name, below in ((names[1], names[2]), (names[0], names[1])):
        script = model.script(handing_over(below), said("done"))
        tree = {"name": name, "model": {"name": script}, "tools": [], "sub_agents": [tree]}
    script = model.script(handing_over(names[0]), said("done"))
    tool = Deed("deed", "once")
    await owners.finish(await owners.ask(script, tools=[], sub_agents=[tree], limits={"max_depth": 3}), tool)
    assert len(set(tool.keys)) == 2
    assert all(len(key) <= 255 for key in tool.keys)


# after the owner is lost


async def lose_in_call(owners: Owners, run_id: str, tool: Deed) -> None:
    """The first owner is lost while `tool` is at work, and all that it had said is committed."""
    owner = await owners.own(run_id, tool)
    await tool.until_called()
    await owners.until(run_id, "tool_start")
    await owner.is_lost()


async def test_a_lost_call_that_happens_once_is_not_made_again_and_the_model_is_told(
    owners: Owners, model: ScriptedModel
) -> None:
    tool = Deed("deed", "once", hangs=1)
    script = model.script(calling("deed"), said("I will find out"))
    run_id = await owners.ask(script, tools=["deed"])
    await lose_in_call(owners, run_id, tool)
    history = await owners.finish(run_id, tool)
    assert len(tool.keys) == 1
    assert ledger(history) == [("1-act", "deed", "unknown", 1)]
    [event] = history.of("tool_result")
    assert event.data["status"] == "unknown"
    [told] = results(model.asked(script)[1])
    assert told == event.data["result"]
    assert "nobody can tell" in told
    assert "Find out" in told
    assert len(history.of("tool_start")) == 1


@pytest.mark.parametrize("effect", ["read", "idempotent"])
async def test_a_lost_call_that_does_no_harm_is_made_again_under_the_same_key(
    owners: Owners, model: ScriptedModel, effect: EffectClass
) -> None:
    tool = Deed("deed", effect, hangs=1)
    run_id = await owners.ask(model.script(calling("deed"), said("done")), tools=["deed"])
    await lose_in_call(owners, run_id, tool)
    history = await owners.finish(run_id, tool)
    assert len(tool.keys) == 2
    assert len(set(tool.keys)) == 1
    assert ledger(history) == [("1-act", "deed", "ok", 2)]


async def test_of_parallel_calls_only_what_is_not_finished_is_taken_up(owners: Owners, model: ScriptedModel) -> None:
    finished = Deed("finished", "once"), Deed("looked", "read")
    lost, again = Deed("lost", "once", hangs=1), Deed("again", "idempotent", hangs=1)
    script = model.script(calling("finished", "lost", "again", "looked"), said("done"))
    names = ["finished", "lost", "again", "looked"]
    run_id = await owners.ask(script, tools=names)
    owner = await owners.own(run_id, *finished, lost, again)
    for tool in (lost, again):
        await tool.until_called()
    for tool in finished:
        await owners.until(run_id, "tool_result", name=tool.name)
    await owner.is_lost()
    history = await owners.finish(run_id, *finished, lost, again)
    assert [len(tool.keys) for tool in (*finished, lost, again)] == [1, 1, 1, 2]
    assert {row[1]: row[2:] for row in ledger(history)} == {
        "finished": ("ok", 1),
        "lost": ("unknown", 1),
        "again": ("ok", 2),
        "looked": ("ok", 1),
    }
    told = results(model.asked(script)[1])
    assert [text.split()[0] for text in told] == ["finished", "The", "again", "looked"]


async def test_a_finished_call_is_not_made_again_by_an_owner_who_resumes_at_the_next_step(
    owners: Owners, model: ScriptedModel
) -> None:
    tool = Deed("deed", "once")
    script = model.script(calling("deed"), SILENCE, said("done"))
    run_id = await owners.ask(script, tools=["deed"])
    owner = await owners.own(run_id, tool)
    await until_asked(model, script, 2)
    await owner.is_lost()
    history = await owners.finish(run_id, tool)
    assert len(tool.keys) == 1
    assert len(history.of("tool_result")) == 1
    assert results(model.asked(script)[2]) == ["deed done"]


async def test_a_call_that_was_lost_twice_is_unknown_once(owners: Owners, model: ScriptedModel) -> None:
    """The second owner is lost with the outcome `unknown` written and the step not finished."""
    once, slow = Deed("deed", "once", hangs=1), Deed("slow", "read", hangs=2)
    run_id = await owners.ask(model.script(calling("deed", "slow"), said("done")), tools=["deed", "slow"])
    first = await owners.own(run_id, once, slow)
    await once.until_called()
    await eventually(lambda: _are_begun(owners, run_id, 2))
    await first.is_lost()
    second = await owners.own(run_id, once, slow)
    await slow.until_called(2)
    await owners.until(run_id, "tool_result", status="unknown")
    await second.is_lost()
    history = await owners.finish(run_id, once, slow)
    assert {row[1]: row[2:] for row in ledger(history)} == {"deed": ("unknown", 1), "slow": ("ok", 3)}
    assert len(once.keys) == 1


async def test_a_tool_that_has_become_harmful_is_not_repeated(owners: Owners, model: ScriptedModel) -> None:
    """A release later: what was let loose as idempotent must not happen twice now."""
    run_id = await owners.ask(model.script(calling("deed"), said("done")), tools=["deed"])
    await lose_in_call(owners, run_id, Deed("deed", "idempotent", hangs=1))
    later = Deed("deed", "once")
    history = await owners.finish(run_id, later)
    assert later.keys == []
    assert ledger(history) == [("1-act", "deed", "unknown", 1)]


async def test_a_sub_agent_is_started_once_whoever_owns_the_run(owners: Owners, model: ScriptedModel) -> None:
    tool = Deed("deed", "once", hangs=1)
    quick, slow = model.script(said("quick")), model.script(calling("deed"), said("slow"))
    team = [
        {"name": name, "model": {"name": script}, "tools": ["deed"]}
        for name, script in (("quick", quick), ("slow", slow))
    ]
    script = model.script(handing_over("quick", "slow"), said("done"))
    run_id = await owners.ask(script, sub_agents=team, tools=[])
    owner = await owners.own(run_id, tool)
    await tool.until_called()
    await owners.until(run_id, "delegate_result", agent="quick")
    await owner.is_lost()
    history = await owners.finish(run_id, tool)
    assert ledger(history) == [
        ("1-delegate", "delegate", "ok", 1),
        ("1-delegate", "delegate", "ok", 1),
        ("slow:3/1-act", "deed", "unknown", 1),
    ]
    assert len(history.of("delegate_start")) == len(history.of("delegate_result")) == 2
    assert [len(model.asked(name)) for name in (script, quick, slow)] == [2, 1, 2]
    assert results(model.asked(script)[1]) == ["quick", "slow"]


async def test_calls_of_sub_agents_that_are_done_count_after_a_loss(owners: Owners, model: ScriptedModel) -> None:
    tool = Deed("deed", "once")
    helper = model.script(calling("deed", "deed"), said("helped"))
    script = model.script(handing_over("helper"), SILENCE, calling("deed", "deed"), said("done"))
    team = [{"name": "helper", "model": {"name": helper}, "tools": ["deed"]}]
    run_id = await owners.ask(script, sub_agents=team, tools=["deed"], limits={"max_tool_calls": 4})
    owner = await owners.own(run_id, tool)
    await until_asked(model, script, 2)
    await owner.is_lost()
    history = await owners.finish(run_id, tool)
    assert [event.data["status"] for event in history.of("tool_result")] == ["ok", "ok", "denied", "ok"]
    assert len(tool.keys) == 3


async def test_a_call_counts_once_however_often_it_is_started(owners: Owners, model: ScriptedModel) -> None:
    tool = Deed("deed", "idempotent", hangs=2)
    script = model.script(calling("deed"), calling("deed", "deed"), said("done"))
    run_id = await owners.ask(script, tools=["deed"], limits={"max_tool_calls": 2})
    for calls in (1, 2):
        owner = await owners.own(run_id, tool)
        await tool.until_called(calls)
        await owner.is_lost()
    history = await owners.finish(run_id, tool)
    assert sorted(row[2:] for row in ledger(history)) == [("denied", 0), ("ok", 1), ("ok", 3)]


async def test_the_checkpoints_of_an_older_release_are_gone_on_from(owners: Owners, model: ScriptedModel) -> None:
    """That release counted calls in a channel of the graph's state."""
    done, slow = Deed("deed", "once"), model.script(SILENCE, said("slow"))
    team = [{"name": "slow", "model": {"name": slow}, "tools": []}]
    script = model.script(calling("deed"), handing_over("slow", beside=("deed",)), said("done"))
    run_id = await owners.ask(script, sub_agents=team, tools=["deed"])
    owner = await owners.own(run_id, done)
    await until_asked(model, slow, 1)

    async def beside() -> bool:
        return bool(
            await owners.database.fetchval("SELECT count(*) FROM checkpoint_writes WHERE thread_id = $1", run_id)
        )

    await eventually(beside, what="the writes of ACT, whose sibling is still at work")
    await owner.is_lost()
    await _give_it_the_old_channel(owners.database, run_id)
    history = await owners.finish(run_id, done)
    assert history.run["status"] == "succeeded"
    assert len(done.keys) == 2
    assert [step["state"] for step in history.steps if not step["path"]].count("ACT") == 2


async def _give_it_the_old_channel(database: Pool, run_id: str) -> None:
    codec = StrictMsgpack()
    rows = await database.fetch("SELECT * FROM checkpoints WHERE thread_id = $1", run_id)
    assert rows
    for row in rows:
        checkpoint = codec.loads_typed((row["format"], row["checkpoint"]))
        checkpoint["channel_values"]["tool_calls"] = 1
        checkpoint["channel_versions"]["tool_calls"] = checkpoint["channel_versions"]["round"]
        checkpoint["updated_channels"] = [*(checkpoint.get("updated_channels") or ()), "tool_calls"]
        await database.execute(
            "UPDATE checkpoints SET checkpoint = $3 WHERE thread_id = $1 AND checkpoint_id = $2",
            *(run_id, row["checkpoint_id"], codec.dumps_typed(checkpoint)[1]),
        )
    added = await database.execute(
        "INSERT INTO checkpoint_writes SELECT org_id, thread_id, checkpoint_ns, checkpoint_id, task_id, max(idx) + 1,"
        " 'tool_calls', min(format), $2, min(task_path) FROM checkpoint_writes WHERE thread_id = $1"
        " GROUP BY org_id, thread_id, checkpoint_ns, checkpoint_id, task_id",
        *(run_id, codec.dumps_typed(1)[1]),
    )
    assert added == "INSERT 0 1"


# ends in the midst of a call


@pytest.mark.parametrize("effect", ["read", "idempotent", "once"])
async def test_a_cancel_leaves_a_call_that_is_under_way_unknown(
    owners: Owners, model: ScriptedModel, effect: EffectClass
) -> None:
    tool = Deed("deed", effect, hangs=1)
    run_id = await owners.ask(model.script(calling("deed")), tools=["deed"])
    owner = await owners.own(run_id, tool)
    await tool.until_called()
    owner.execution.cancel()
    await owner.task
    history = await owners.history(run_id)
    assert history.run["status"] == "cancelled"
    assert ledger(history) == [("1-act", "deed", "unknown", 1)]
    assert [event.data["status"] for event in history.of("tool_result")] == ["unknown"]


async def test_a_cancel_leaves_sub_agents_and_their_calls_unknown(owners: Owners, model: ScriptedModel) -> None:
    tool, quick = Deed("deed", "once", hangs=1), Deed("quick", "read")
    helper = model.script(calling("quick", "deed"))
    script = model.script(handing_over("helper", beside=("quick",)))
    team = [{"name": "helper", "model": {"name": helper}, "tools": ["deed", "quick"]}]
    run_id = await owners.ask(script, sub_agents=team, tools=["quick"])
    owner = await owners.own(run_id, tool, quick)
    await tool.until_called()
    owner.execution.cancel()
    await owner.task
    history = await owners.history(run_id)
    assert {row[:3] for row in ledger(history) if row[1] != "quick"} == {
        ("1-delegate", "delegate", "unknown"),
        ("helper:2/1-act", "deed", "unknown"),
    }
    assert history.of("delegate_result") == []


async def test_a_deadline_leaves_a_call_that_is_under_way_unknown(owners: Owners, model: ScriptedModel) -> None:
    tool = Deed("deed", "once", hangs=1)
    run_id = await owners.ask(model.script(calling("deed")), tools=["deed"], limits={"timeout_seconds": 1})
    history = await owners.finish(run_id, tool)
    assert (history.run["status"], history.run["finish_reason"]) == ("expired", "deadline")
    assert ledger(history) == [("1-act", "deed", "unknown", 1)]


async def test_a_run_that_is_cancelled_while_nobody_owns_it_leaves_no_call_open(
    owners: Owners, model: ScriptedModel
) -> None:
    tool, helper = Deed("deed", "once", hangs=2), model.script(calling("deed"))
    script = model.script(handing_over("helper", beside=("deed",)))
    team = [{"name": "helper", "model": {"name": helper}, "tools": ["deed"]}]
    run_id = await owners.ask(script, sub_agents=team, tools=["deed"])
    owner = await owners.own(run_id, tool)
    await eventually(lambda: _are_begun(owners, run_id, 3))
    await owner.is_lost()
    await owners.database.execute("UPDATE runs SET lease_until = clock_timestamp() - interval '1 s'")
    assert (await cancel(owners.database, owners.org, run_id)).outcome == "cancelled"
    history = await owners.history(run_id)
    assert {row[2] for row in ledger(history)} == {"unknown"}
    assert [event.data["status"] for event in history.of("tool_result")] == ["unknown"] * 2


async def _are_begun(owners: Owners, run_id: str, calls: int) -> bool:
    query = "SELECT count(*) = $2 FROM effects WHERE run_id = $1 AND status = 'started'"
    return bool(await owners.database.fetchval(query, run_id, calls))


async def test_a_run_that_is_parked_leaves_no_call_open(owners: Owners, model: ScriptedModel) -> None:
    tool = Deed("deed", "idempotent", hangs=9)
    run_id = await owners.ask(model.script(calling("deed")), tools=["deed"])
    for times in (1, 2, 3):
        owner = await owners.own(run_id, tool)
        await tool.until_called(times)
        await owner.is_lost()
    history = await owners.finish(run_id, tool)
    assert (history.run["status"], history.run["finish_reason"]) == ("failed", "poisoned")
    assert [row[2] for row in ledger(history)] == ["unknown"]


# what stops a run


@pytest.mark.parametrize(("effect", "quiet"), [("read", True), ("idempotent", True), ("once", False)])
async def test_the_brake_waits_for_calls_that_must_not_be_cut_short(
    owners: Owners, model: ScriptedModel, effect: EffectClass, quiet: bool
) -> None:
    tool = Deed("deed", effect, hangs=1)
    run_id = await owners.ask(model.script(calling("deed")), tools=["deed"])
    owner = await owners.own(run_id, tool)
    await tool.until_called()
    assert owner.execution.brake.quiet is quiet
    owner.execution.cancel()
    await owner.task
    assert owner.execution.brake.quiet
    await owners.history(run_id)


class Gate(Deed):
    """Opens when the test says so."""

    def __init__(self) -> None:
        super().__init__("gate", "read")
        self.open = asyncio.Event()

    async def run(self, arguments: Arguments, context: ToolContext) -> JSONValue:
        await super().run(arguments, context)
        await self.open.wait()
        return "open"


async def in_a_sub_agent(owners: Owners, model: ScriptedModel) -> str:
    """A run whose sub-agent passes the gate and then does what happens once."""
    replies = calling("gate"), calling("deed"), said("helped")
    helper = model.script(lambda request: replies[len(results(request))])
    team = [{"name": "helper", "model": {"name": helper}, "tools": ["gate", "deed"]}]
    return await owners.ask(model.script(handing_over("helper"), said("done")), sub_agents=team, tools=[])


async def test_a_lost_lease_in_a_sub_agent_reaches_the_worker_as_what_it_is(
    owners: Owners, model: ScriptedModel
) -> None:
    gate, deed = Gate(), Deed("deed", "once")
    run_id = await in_a_sub_agent(owners, model)
    run = await owners.claim(run_id)
    pen = owners.writer.pen(run)
    pen.say("run_started", {"attempt": 1, "worker": "host:1", "agent_id": run.agent_id, "agent_version": 1})
    execution = asyncio.create_task(owners.engine([gate, deed]).execute(run, pen, Brake()))
    await gate.until_called()
    await pen.committed()
    heir = await owners.own(run_id, gate, deed)
    gate.open.set()
    with pytest.raises(LeaseLost):
        await execution
    await heir.task
    assert (await owners.history(run_id)).run["status"] == "succeeded"
    assert len(deed.keys) == 1


async def test_a_brake_in_a_sub_agent_reaches_the_worker_as_what_it_is(owners: Owners, model: ScriptedModel) -> None:
    gate, deed = Gate(), Deed("deed", "once")
    run_id = await in_a_sub_agent(owners, model)
    owner = await owners.own(run_id, gate, deed)
    await gate.until_called()
    owner.execution.drain()
    gate.open.set()
    await owner.task
    assert await owners.database.fetchval("SELECT status FROM runs") == "queued"
    history = await owners.finish(run_id, gate, deed)
    assert (history.run["status"], history.run["attempt"], history.run["epoch"]) == ("succeeded", 1, 2)
    assert len(gate.keys) == len(deed.keys) == 1


@pytest.mark.parametrize("error", [LeaseLost("gone"), StoreUnavailable("away"), Braked(), OSError("hung up")])
async def test_of_calls_side_by_side_the_first_failure_comes_out_as_it_is(error: Exception) -> None:
    ended: list[str] = []

    async def fail() -> None:
        raise error

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("work")

    async def nested() -> None:
        await side_by_side([work(), fail()])

    with pytest.raises(type(error)) as raised:
        await side_by_side([work(), nested()])
    assert raised.value is error
    assert ended == ["work", "work"]
