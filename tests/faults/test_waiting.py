"""Runs that wait for a decision while workers and APIs die: nothing is asked twice, decided twice or made twice."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cli.rehearsal import Reply, ToolCall
from tests.conftest import MakeStack
from tests.e2e.caller import Caller, calling
from tests.e2e.deciders import asked, decide, ended, results, waiting
from tests.faults.crew import SHORT_LEASES, holder, org_with_key, staff
from tests.faults.outside import Outside, outside_world
from tests.scripts import ScriptedModel, said
from tests.stack import Stack

CAREFUL: dict[str, Any] = {"http_post": {}}


@pytest.fixture(scope="module")
async def outside() -> AsyncIterator[Outside]:
    async with outside_world() as outside:
        yield outside


@pytest.fixture(scope="module")
async def reaching(make_stack: MakeStack, outside: Outside) -> AsyncIterator[Stack]:
    """One API and leases of a second. Each test says how many workers it wants."""
    stack = await make_stack(
        workers=0, LONGHAUL_GRACE_SECONDS="10", LONGHAUL_EGRESS_ALLOW=outside.address, **SHORT_LEASES
    )
    yield stack
    await stack.stop()


@pytest.fixture
async def caller(reaching: Stack) -> AsyncIterator[Caller]:
    async with calling(reaching.url, (await org_with_key(reaching))[1]) as caller:
        yield caller


def sending(outside: Outside, *paths: str, beside: str | None = None) -> Reply:
    calls = [ToolCall("http_post", {"url": outside.url + path, "body": {"n": 1}}) for path in paths]
    if beside is not None:
        calls.append(ToolCall("http_fetch", {"url": outside.url + beside}))
    return Reply(tool_calls=calls)


async def test_an_approved_call_whose_worker_is_killed_is_neither_made_nor_asked_for_again(
    reaching: Stack, caller: Caller, model: ScriptedModel, outside: Outside
) -> None:
    await staff(reaching, 2)
    outside.pause = 60.0
    script = model.script(sending(outside, "/killed"), said("I will look"))
    agent = await caller.agent(model=script, tools=["http_post"], approvals=CAREFUL)
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        await waiting(stream)
        await decide(caller, request, "approve")
        worker = holder(reaching, (await stream.until("run_resumed")).data)
        await outside.until_seen("/killed")
        await worker.kill()
        history = await ended(reaching, stream)
    outside.pause = 0.0
    assert len(outside.seen["/killed"]) == 1
    assert [(row["status"], row["executions"]) for row in history.effects] == [("unknown", 1)]
    assert "nobody can tell" in results(model.asked(script)[-1])[0]


async def test_what_is_decided_while_nobody_has_the_run_is_acted_upon_by_the_next_owner(
    reaching: Stack, caller: Caller, model: ScriptedModel, outside: Outside
) -> None:
    [worker] = await staff(reaching, 1)
    outside.pause = 60.0
    script = model.script(sending(outside, "/approved", "/denied", beside="/beside"), said("done"))
    agent = await caller.agent(model=script, tools=["http_post", "http_fetch"], approvals=CAREFUL)
    async with caller.following(agent_id=agent) as stream:
        first, second = await asked(stream), await asked(stream)
        await outside.until_seen("/beside")
        await worker.kill()
        outside.pause = 0.0
        await decide(caller, first, "approve")
        await decide(caller, second, "deny")
        await reaching.add_worker()
        history = await ended(reaching, stream)
    assert [len(outside.seen[path]) for path in ("/approved", "/denied", "/beside")] == [1, 0, 2]
    assert [row["status"] for row in history.effects] == ["ok", "denied", "ok"]
    assert history.of("run_waiting") == []


async def test_a_worker_that_is_told_to_go_leaves_a_run_that_waits_waiting(
    reaching: Stack, caller: Caller, model: ScriptedModel, outside: Outside
) -> None:
    [worker] = await staff(reaching, 1)
    outside.pause = 1.0
    script = model.script(sending(outside, "/later", beside="/slow"), said("done"))
    agent = await caller.agent(model=script, tools=["http_post", "http_fetch"], approvals=CAREFUL)
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        await outside.until_seen("/slow")
        worker.send(signal.SIGTERM)
        await waiting(stream)
        assert await worker.wait() == 0
        outside.pause = 0.0
        await reaching.add_worker()
        await decide(caller, request, "approve")
        history = await ended(reaching, stream)
    assert (history.run["attempt"], history.run["deaths"], history.run["epoch"]) == (1, 0, 2)
    assert [len(outside.seen[path]) for path in ("/later", "/slow")] == [1, 1]


async def test_a_decision_survives_the_api_that_took_it(
    reaching: Stack, caller: Caller, model: ScriptedModel, outside: Outside
) -> None:
    await staff(reaching, 1)
    agent = await caller.agent(
        model=model.script(sending(outside, "/api"), said("done")), tools=["http_post"], approvals=CAREFUL
    )
    run = await caller.start(agent_id=agent)
    doomed = await reaching.add_api()
    async with caller.stream(f"/v1/runs/{run['id']}/events") as stream:
        request = await asked(stream)
        await waiting(stream)
        await decide(caller.at(doomed.url), request, "approve", expect=200)
        await doomed.kill()
        history = await ended(reaching, stream)
    assert len(outside.seen["/api"]) == 1
    assert history.approvals[0]["status"] == "approved"
