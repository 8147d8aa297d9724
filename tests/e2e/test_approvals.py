"""Calls that need approval: asked for, decided by those who may, and gone on with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cli.rehearsal import Reply, ToolCall
from tests.e2e.caller import Caller, calling
from tests.e2e.conftest import OwnStack, new_key
from tests.e2e.deciders import asked, decide, ended, person, python, results, waiting
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack
from tests.waiting import eventually

ONLY_BIG = {"when": {"arguments": {"properties": {"code": {"pattern": "big"}}}}}


def delegating(*agents: str) -> Reply:
    return Reply(tool_calls=[ToolCall("delegate", {"agent": agent, "task": "go"}) for agent in agents])


# -- policies ----------------------------------------------------------------------------------------------------------


async def test_an_approved_call_is_made(caller: Caller, stack: Stack, model: ScriptedModel) -> None:
    script = model.script(python("6 * 7"), said("done"))
    agent = await caller.agent(model=script, tools=["python"], approvals={"python": {"prompt": "May it count?"}})
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        assert (request["kind"], request["name"], request["arguments"]) == ("tool", "python", {"code": "6 * 7"})
        assert request["prompt"] == "May it count?"
        await waiting(stream)
        run = await caller.get(f"/v1/runs/{request['run_id']}")
        assert run["status"] == "waiting"
        [operation] = request["operations"]
        assert operation["op"] == "approve"
        body = {**operation["body"], "comment": "go on"}
        shown = (await caller.call(operation["method"], operation["path"], body, expect=200)).json()
        assert (shown["status"], shown["comment"], shown["approvers"]) == ("approved", "go on", 1)
        resolved = await stream.until("approval_resolved")
        assert (resolved.data["decision"], resolved.data["comment"]) == ("approved", "go on")
        resumed = await stream.until("run_resumed")
        assert resumed.data["reason"] == "what it waited for was decided"
        history = await ended(stack, stream)
    assert (history.run["attempt"], history.run["epoch"], history.run["deaths"]) == (1, 2, 0)
    assert results(model.asked(script)[-1]) == ['The person who approved this call said: go on\n{"value":"42"}']
    assert [step["state"] for step in history.steps] == ["THINK", "ACT", "THINK", "RESPOND"]


@pytest.mark.parametrize(
    ("approvals", "code", "asks"),
    [
        ({"python": {"when": "never"}}, "1", False),
        ({"python": ONLY_BIG}, "'small'", False),
        ({"python": ONLY_BIG}, "'big'", True),
        ({"*": {}}, "1", True),
        ({"*": {}, "python": {"when": "never"}}, "1", False),
        ({"remember": {}}, "1", False),
    ],
)
async def test_the_policy_of_a_tool_says_whether_it_asks(
    caller: Caller, stack: Stack, model: ScriptedModel, approvals: Any, code: str, asks: bool
) -> None:
    agent = await caller.agent(model=model.script(python(code), said("done")), tools=["python"], approvals=approvals)
    async with caller.following(agent_id=agent) as stream:
        if asks:
            await decide(caller, await asked(stream), "approve")
        history = await ended(stack, stream)
    assert len(history.approvals) == asks
    assert len(history.effects) == 1


@pytest.mark.parametrize(
    ("arguments", "asks"),
    [({"query": "x", "limit": 3}, False), ({"query": "x", "limit": "8"}, True), ({"query": "x"}, True)],
)
async def test_a_condition_holds_for_the_arguments_as_the_tool_takes_them(
    caller: Caller, stack: Stack, model: ScriptedModel, arguments: dict[str, Any], asks: bool
) -> None:
    many = {"properties": {"limit": {"type": "integer", "minimum": 5}}, "required": ["limit"]}
    script = model.script(Reply(tool_calls=[ToolCall("recall", arguments)]), said("done"))
    agent = await caller.agent(model=script, tools=["recall"], approvals={"recall": {"when": {"arguments": many}}})
    async with caller.following(agent_id=agent) as stream:
        if asks:
            await decide(caller, await asked(stream), "approve")
        history = await ended(stack, stream)
    assert len(history.approvals) == asks


async def test_a_call_that_is_not_valid_goes_back_to_the_model_and_asks_nobody(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    script = model.script(Reply(tool_calls=[ToolCall("python", {"kode": "1"})]), said("sorry"))
    agent = await caller.agent(model=script, tools=["python"], approvals={"*": {}})
    async with caller.following(agent_id=agent) as stream:
        history = await ended(stack, stream)
    assert history.approvals == []
    assert "are not valid" in results(model.asked(script)[-1])[0]


# -- decisions ---------------------------------------------------------------------------------------------------------


async def test_a_denied_call_is_not_made_and_the_model_is_told_why(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    script = model.script(python("1"), said("as you wish"))
    agent = await caller.agent(model=script, tools=["python"], approvals={"python": {}})
    async with caller.following(agent_id=agent) as stream:
        await decide(caller, await asked(stream), "deny", comment="too costly")
        history = await ended(stack, stream)
    [row] = history.effects
    assert (row["status"], row["executions"]) == ("denied", 0)
    assert history.of("tool_start") == []
    assert "The reason: too costly" in results(model.asked(script)[-1])[0]


async def test_an_edited_call_is_made_with_the_edited_arguments(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    script = model.script(python("1 + 1"), said("done"))
    agent = await caller.agent(model=script, tools=["python"], approvals={"python": {}})
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        wrong = await decide(caller, request, "approve", arguments={"kode": "2"}, expect=422)
        assert wrong["errors"][0]["field"] == "arguments"
        shown = await decide(caller, request, "approve", arguments={"code": "2 + 2"})
        assert (shown["arguments"], shown["edited_arguments"], shown["revision"]) == (
            {"code": "1 + 1"},
            {"code": "2 + 2"},
            1,
        )
        history = await ended(stack, stream)
    [start] = history.of("tool_start")
    assert start.data["arguments"] == {"code": "2 + 2"}
    [told] = results(model.asked(script)[-1])
    assert told == (
        'A person changed the arguments of this call before it was made. It was made with: {"code":"2 + 2"}\n'
        '{"value":"4"}'
    )


async def test_arguments_are_approved_as_they_stand_or_not_at_all(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    pay = {
        "type": "client",
        "name": "pay",
        "description": "Pays.",
        "parameter_schema": {"type": "object", "properties": {"sum": {}}},
    }
    agent = await caller.agent(
        model=model.script(Reply(tool_calls=[ToolCall("pay", {"sum": 1})]), said("done")),
        tools=[pay],
        approvals={"pay": {"approvers": 2}},
    )
    ada, bob = [await person(stack, caller, name) for name in ("ada", "bob")]
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        await waiting(stream)
        await decide(ada, request, "approve", arguments={}, expect=202)
        # These are the model's, and not those that stand since Ada's decision.
        shown = await decide(bob, request, "approve", arguments={"sum": 1}, expect=202)
        assert (shown["revision"], shown["edited_arguments"]) == (2, {"sum": 1})
        shown = await decide(ada, request, "approve", arguments={"sum": True}, expect=202)
        assert (shown["revision"], shown["edited_arguments"]) == (3, {"sum": True})
        # Changed by another between Bob's look and his decision.
        async with stack.database.acquire() as connection, connection.transaction():
            run = "SELECT session_id FROM runs WHERE id = $1"
            await connection.execute(f"SELECT FROM sessions WHERE id = ({run}) FOR UPDATE", request["run_id"])
            late = asyncio.create_task(decide(bob, request, "approve", arguments={"sum": True}, expect=409))
            await eventually(_somebody_decides(stack))
            await connection.execute(
                """UPDATE approvals SET edited = '{"sum": 1000000}', revision = 4 WHERE id = $1""",
                request["approval_id"],
            )
        assert "changed the arguments meanwhile" in (await late)["detail"]
        await decide(bob, request, "deny")
        await ended(stack, stream)


def _somebody_decides(stack: Stack) -> Callable[[], Awaitable[bool]]:
    async def waits_for_the_session() -> bool:
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'decide_approval'"
        return bool(await stack.database.fetchval(waiting))

    return waits_for_the_session


async def test_a_decision_is_made_once(caller: Caller, stack: Stack, model: ScriptedModel) -> None:
    agent = await caller.agent(model=model.script(python("1"), said("x")), tools=["python"], approvals={"*": {}})
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        first, second = await asyncio.gather(
            *(
                caller.post(f"/v1/approvals/{request['approval_id']}/decide", {"decision": decision})
                for decision in ("approve", "deny")
            )
        )
        assert sorted((first.status, second.status)) == [200, 409]
        late = await decide(caller, request, "deny", expect=409)
        became = "approved" if first.status == 200 else "denied"
        assert late["detail"].startswith(f"The approval was {became} by key_")
        history = await ended(stack, stream)
    assert len(history.of("approval_resolved")) == 1


async def test_a_decision_that_is_sent_again_under_its_key_is_answered_as_before(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    agent = await caller.agent(model=model.script(python("1"), said("x")), tools=["python"], approvals={"*": {}})
    async with caller.following(agent_id=agent) as stream:
        path = f"/v1/approvals/{(await asked(stream))['approval_id']}/decide"
        first = await caller.post(path, {"decision": "approve"}, expect=200, Idempotency_Key="once")
        again = await caller.post(path, {"decision": "approve"}, expect=200, Idempotency_Key="once")
        assert again.json() == first.json()
        assert again.headers["Idempotency-Replayed"] == "true"
        await ended(stack, stream)


async def test_an_approval_is_decided_as_its_kind_asks(caller: Caller, stack: Stack, model: ScriptedModel) -> None:
    agent = await caller.agent(model=model.script(python("1"), said("x")), tools=["python"], approvals={"*": {}})
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        await decide(caller, request, "answer", answer="yes", expect=422)
        await decide(caller, request, "answer", expect=422)
        await decide(caller, request, "deny", arguments={"code": "2"}, expect=422)
        await decide(caller, request, "approve", answer=1, expect=422)
        await decide(caller, request, "maybe", expect=422)
        await decide(caller, request, "approve", revision=1, expect=409)
        await decide(caller, request, "approve", revision=0)
        await ended(stack, stream)


# -- who decides -------------------------------------------------------------------------------------------------------


async def test_another_orgs_approvals_are_not_there(caller: Caller, stack: Stack, model: ScriptedModel) -> None:
    stranger = caller.as_holder_of(await new_key(stack))
    agent = await caller.agent(model=model.script(python("1"), said("x")), tools=["python"], approvals={"*": {}})
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        await decide(stranger, request, "approve", expect=404)
        await stranger.get(f"/v1/approvals/{request['approval_id']}", expect=404)
        assert (await stranger.get("/v1/approvals"))["data"] == []
        assert (await stranger.get(f"/v1/approvals?run_id={request['run_id']}"))["data"] == []
        answer = await stranger.post(
            f"/v1/runs/{request['run_id']}/tool-results", {"call_id": request["call_id"], "result": 1}
        )
        assert answer.status == 404
        await decide(caller, request, "deny")
        await ended(stack, stream)


async def test_only_who_has_the_role_may_decide(caller: Caller, stack: Stack, model: ScriptedModel) -> None:
    policy = {"role": "manager"}
    script = model.script(python("1"), python("2"), said("x"))
    agent = await caller.agent(model=script, tools=["python"], approvals={"python": policy})
    manager = await person(stack, caller, "mia", roles=["manager", "cook"])
    reader = await person(stack, caller, "rob", roles=["manager"], scopes=["read"])
    admin = await person(stack, caller, "ada", scopes=["admin"])
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        assert request["role"] == "manager"
        refused = await decide(caller, request, "approve", expect=403)
        assert "the role manager" in refused["detail"]
        await decide(reader, request, "approve", expect=403)
        shown = await decide(manager, request, "approve")
        [entry] = shown["history"]
        assert (entry["user_id"], entry["role"], entry["decision"]) == ("mia", "manager", "approve")
        await decide(admin, await asked(stream), "approve")
        history = await ended(stack, stream)
    assert [row["decided_by"] for row in history.approvals] == ["mia", "ada"]


async def test_several_people_must_approve_and_one_can_deny(caller: Caller, stack: Stack, model: ScriptedModel) -> None:
    script = model.script(python("1"), python("2"), said("x"))
    agent = await caller.agent(model=script, tools=["python"], approvals={"python": {"approvers": 2}})
    one, other = await person(stack, caller, "one"), await person(stack, caller, "other")
    also_one = await person(stack, caller, "one")
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        recorded = await decide(one, request, "approve", expect=202)
        assert (recorded["status"], recorded["approvers"], recorded["approvers_needed"]) == ("pending", 1, 2)
        for same in (one, also_one):
            assert "already" in (await decide(same, request, "approve", expect=409))["detail"]
        assert (await caller.get(f"/v1/runs/{request['run_id']}"))["status"] in ("running", "waiting")
        decided = await decide(other, request, "approve")
        assert [entry["user_id"] for entry in decided["history"]] == ["one", "other"]
        second = await asked(stream)
        await decide(one, second, "approve", expect=202)
        await decide(one, second, "deny")  # may think better of it
        history = await ended(stack, stream)
    assert [row["status"] for row in history.approvals] == ["approved", "denied"]


async def test_who_approved_other_arguments_has_not_approved_these(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    script = model.script(python("1"), said("x"))
    agent = await caller.agent(model=script, tools=["python"], approvals={"python": {"approvers": 2}})
    one, other = await person(stack, caller, "one"), await person(stack, caller, "other")
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        await decide(one, request, "approve", expect=202)
        changed = await decide(other, request, "approve", arguments={"code": "2"}, expect=202)
        assert (changed["revision"], changed["approvers"]) == (1, 1)
        await decide(one, request, "approve", revision=0, expect=409)  # has not seen it yet
        await decide(one, request, "approve", revision=1)
        await ended(stack, stream)
    assert '{"value":"2"}' in results(model.asked(script)[-1])[0]


async def test_approvals_are_listed_by_status_run_and_role(caller: Caller, stack: Stack, model: ScriptedModel) -> None:
    script = model.script(python("1", "2"), said("x"))
    agent = await caller.agent(model=script, tools=["python"], approvals={"python": {"role": "manager"}})
    manager = await person(stack, caller, "mia", roles=["manager"])
    async with caller.following(agent_id=agent) as stream:
        first, second = await asked(stream), await asked(stream)
        await decide(manager, first, "deny")
        listed = (await caller.get("/v1/approvals"))["data"]
        assert [item["id"] for item in listed] == [second["approval_id"], first["approval_id"]]
        [pending] = (await caller.get("/v1/approvals?status=pending&role=manager"))["data"]
        assert pending["id"] == second["approval_id"]
        assert (await caller.get("/v1/approvals?role=cook"))["data"] == []
        page = await caller.get(f"/v1/approvals?run_id={first['run_id']}&limit=1")
        [item] = (await caller.get(f"/v1/approvals?limit=1&cursor={page['next_cursor']}"))["data"]
        assert item["id"] == first["approval_id"]
        await decide(manager, second, "approve")
        await ended(stack, stream)


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on_expiry", "status", "result"),
    [("deny", "expired", "Nobody approved this call in time"), ("approve", "approved", '{"value":"42"}')],
)
async def test_what_nobody_decides_in_time_comes_to_what_the_policy_says(
    caller: Caller, stack: Stack, model: ScriptedModel, on_expiry: str, status: str, result: str
) -> None:
    script = model.script(python("6 * 7"), said("x"))
    policy = {"expires_seconds": 1, "on_expiry": on_expiry}
    agent = await caller.agent(model=script, tools=["python"], approvals={"python": policy})
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        resolved = await stream.until("approval_resolved")
        assert (resolved.data["decision"], resolved.data["by"]) == (status, "expiry")
        assert resolved.data["at"] >= request["expires_at"]
        history = await ended(stack, stream)
        late = await decide(caller, request, "deny", expect=409)
    assert late["detail"].startswith("The approval was")
    assert history.approvals[0]["status"] == status
    assert result in results(model.asked(script)[-1])[0]
    shown = await caller.get(f"/v1/approvals/{request['approval_id']}")
    assert [entry["decision"] for entry in shown["history"]] == ["expire"]


async def test_a_run_fails_if_its_policy_says_so_and_nobody_decides(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    policy = {"expires_seconds": 1, "on_expiry": "fail"}
    agent = await caller.agent(model=model.script(python("1")), tools=["python"], approvals={"python": policy})
    async with caller.following(agent_id=agent) as stream:
        history = await ended(stack, stream, "failed")
    assert history.run["finish_reason"] == "approval_expired"
    assert history.effects == []


async def test_what_waits_for_long_may_be_decided_by_a_further_role(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    policy = {"role": "clerk", "expires_seconds": 60, "escalate": {"after_seconds": 1, "role": "manager"}}
    agent = await caller.agent(model=model.script(python("1"), said("x")), tools=["python"], approvals={"*": policy})
    manager = await person(stack, caller, "mia", roles=["manager"])
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        await decide(manager, request, "approve", expect=403)
        again = await asked(stream)
        assert (again["approval_id"], again["escalated"], again["role"]) == (request["approval_id"], True, "manager")
        assert again["arguments"] == request["arguments"]
        assert again["expires_at"] == request["expires_at"]
        [listed] = (await caller.get("/v1/approvals?role=manager"))["data"]
        assert listed["id"] == request["approval_id"]
        shown = await decide(manager, request, "approve")
        assert [entry["decision"] for entry in shown["history"]] == ["escalate", "approve"]
        await ended(stack, stream)


# -- beside other work -------------------------------------------------------------------------------------------------


async def test_calls_beside_one_that_waits_are_made_at_once_and_only_once(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    script = model.script(python("'big'", "1", "2"), said("done"))
    agent = await caller.agent(model=script, tools=["python"], approvals={"python": ONLY_BIG})
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        await waiting(stream)
        assert [event.type for event in stream.events].count("tool_result") == 2
        await decide(caller, request, "approve")
        history = await ended(stack, stream)
    assert [row["executions"] for row in history.effects] == [1, 1, 1]
    assert results(model.asked(script)[-1]) == [f'{{"value":"{value}"}}' for value in ("'big'", 1, 2)]


async def test_each_decision_is_acted_upon_while_others_are_open(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    agent = await caller.agent(model=model.script(python("1", "2"), said("x")), tools=["python"], approvals={"*": {}})
    async with caller.following(agent_id=agent) as stream:
        first, second = await asked(stream), await asked(stream)
        await waiting(stream)
        await decide(caller, second, "approve")
        result = await stream.until("tool_result")
        assert result.data["call_id"] == second["call_id"]
        rest = await stream.until("run_waiting")
        assert rest.data["approval_ids"] == [first["approval_id"]]
        await decide(caller, first, "approve")
        history = await ended(stack, stream)
    assert [row["executions"] for row in history.effects] == [1, 1]
    assert history.run["attempt"] == 1


async def test_what_is_decided_while_other_calls_are_under_way_is_not_lost(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    slow = "total = 0\nfor i in range(3000000):\n    total += i\ntotal"
    script = model.script(python("'big'", slow), said("done"))
    agent = await caller.agent(model=script, tools=["python"], approvals={"python": ONLY_BIG})
    async with caller.following(agent_id=agent) as stream:
        await decide(caller, await asked(stream), "approve")
        history = await ended(stack, stream)
    assert [row["executions"] for row in history.effects] == [1, 1]


async def test_a_sub_agent_waits_while_its_sibling_goes_on_and_neither_is_repeated(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    careful = model.script(python("1"), python("2"), said("careful done"))
    quick = model.script(python("3"), python("4"), python("5"), said("quick done"))
    script = model.script(delegating("careful", "quick"), said("all done"))
    team = [
        {"name": "careful", "model": {"name": careful}, "tools": ["python"], "approvals": {"python": {}}},
        {"name": "quick", "model": {"name": quick}, "tools": ["python"]},
    ]
    agent = await caller.agent(model=script, sub_agents=team, tools=[])
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        assert request["path"] == "careful:2"
        await waiting(stream)
        assert [e.data["agent"] for e in stream.events if e.type == "delegate_result"] == ["quick"]
        await decide(caller, request, "approve")
        await decide(caller, await asked(stream), "approve")
        history = await ended(stack, stream)
    assert len(model.asked(quick)) == 4
    assert len(model.asked(careful)) == 3
    assert len(model.asked(script)) == 2
    assert {row["executions"] for row in history.effects} == {1}


# -- other ways to stop ------------------------------------------------------------------------------------------------


async def test_cancelling_a_waiting_run_cancels_what_it_waits_for(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    agent = await caller.agent(model=model.script(python("1")), tools=["python"], approvals={"*": {}})
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        await waiting(stream)
        await caller.post(f"/v1/runs/{request['run_id']}/cancel", expect=200)
        history = await ended(stack, stream, "cancelled")
    assert history.approvals[0]["status"] == "cancelled"
    late = await decide(caller, request, "approve", expect=409)
    assert late["detail"].startswith("The approval was cancelled, because its run ended,")


async def test_a_run_expires_while_it_waits(caller: Caller, stack: Stack, model: ScriptedModel) -> None:
    agent = await caller.agent(model=model.script(python("1")), tools=["python"], approvals={"*": {}})
    async with caller.following(agent_id=agent, deadline_seconds=1) as stream:
        history = await ended(stack, stream, "expired")
    assert history.approvals[0]["status"] == "cancelled"


async def test_a_paused_run_that_waits_needs_both_to_be_resumed_and_decided(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    script = model.script(python("1"), python("2"), said("x"))
    agent = await caller.agent(model=script, tools=["python"], approvals={"*": {}})
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        await waiting(stream)
        run = f"/v1/runs/{request['run_id']}"

        async def states() -> tuple[str, str]:
            row = await stack.database.fetchrow(
                "SELECT status, left_because FROM runs WHERE id = $1", request["run_id"]
            )
            assert row is not None
            return row["status"], row["left_because"]

        await caller.post(f"{run}/pause", expect=200)
        await decide(caller, request, "approve")
        assert await states() == ("waiting", "paused")
        await caller.post(f"{run}/resume", expect=200)
        request = await asked(stream)
        await waiting(stream)
        await caller.post(f"{run}/pause", expect=200)
        await caller.post(f"{run}/resume", expect=200)
        assert await states() == ("waiting", "approval")
        await decide(caller, request, "approve")
        await ended(stack, stream)


# -- without a worker --------------------------------------------------------------------------------------------------


async def test_a_waiting_run_holds_no_slot_and_survives_every_process(own: OwnStack, model: ScriptedModel) -> None:
    stack = await own.stack(LONGHAUL_SLOTS="1")
    async with calling(stack.url, await new_key(stack)) as caller:
        agent = await caller.agent(model=model.script(python("1"), said("x")), tools=["python"], approvals={"*": {}})
        run = await caller.start(agent_id=agent)

        async def rests() -> bool:
            return bool((await caller.get(f"/v1/runs/{run['id']}"))["status"] == "waiting")

        await eventually(rests, what="the run waits")
        assert (await caller.run("through", workflow="echo"))["status"] == "succeeded"
        for program in list(stack.programs):
            await program.kill()
        api = await stack.add_api()
        caller = caller.at(api.url)
        [approval] = (await caller.get("/v1/approvals?status=pending"))["data"]
        await decide(caller, {"approval_id": approval["id"]}, "approve")
        await stack.add_worker()
        assert (await caller.finished(run["id"]))["status"] == "succeeded"
    history = await assert_history(stack.database, run["id"])
    assert (history.run["attempt"], history.run["deaths"]) == (1, 0)
