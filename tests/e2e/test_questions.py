"""Questions to people, and tools that the caller runs itself: the run waits for what comes back."""

from __future__ import annotations

from typing import Any

import pytest

from cli.rehearsal import Reply, ToolCall
from tests.e2e.caller import Caller, Stream
from tests.e2e.deciders import asked, decide, ended, results, waiting
from tests.history import History
from tests.scripts import ScriptedModel, said
from tests.stack import Stack

PRICE = {
    "type": "client",
    "name": "price",
    "description": "Looks up a price in the caller's shop.",
    "parameter_schema": {
        "type": "object",
        "properties": {"sku": {"type": "string"}},
        "required": ["sku"],
        "additionalProperties": False,
    },
    "result_schema": {"type": "object", "properties": {"cents": {"type": "integer"}}, "required": ["cents"]},
    "max_result_bytes": 1_000,
}


def asking(question: str = "Which colour?", **more: Any) -> Reply:
    return Reply(tool_calls=[ToolCall("ask_user", {"question": question, **more})])


def looking_up(*skus: str) -> Reply:
    return Reply(tool_calls=[ToolCall("price", {"sku": sku}) for sku in skus])


async def post(caller: Caller, request: dict[str, Any], *, expect: int = 200, **body: Any) -> dict[str, Any]:
    """Posts what came of the call that an event asks for."""
    path = f"/v1/runs/{request['run_id']}/tool-results"
    answer: dict[str, Any] = (await caller.post(path, {"call_id": request["call_id"], **body}, expect=expect)).json()
    return answer


# -- questions ---------------------------------------------------------------------------------------------------------


async def test_an_answer_is_the_result_of_the_question(caller: Caller, stack: Stack, model: ScriptedModel) -> None:
    script = model.script(asking(), said("blue it is"))
    agent = await caller.agent(model=script, tools=["ask_user"], approvals={"*": {}})  # a question asks anyway
    async with caller.following(agent_id=agent) as stream:
        request = await asked(stream)
        assert (request["kind"], request["prompt"]) == ("question", "Which colour?")
        await waiting(stream)
        shown = await decide(caller, request, "answer", answer="blue")
        assert (shown["status"], shown["answer"]) == ("answered", "blue")
        history = await ended(stack, stream)
    assert results(model.asked(script)[-1]) == ["blue"]
    assert len(history.of("tool_start")) == 1
    assert len(history.approvals) == 1


@pytest.mark.parametrize(
    ("shape", "wrong", "right", "told"),
    [
        ({"options": ["red", "blue"]}, "green", "red", "red"),
        (
            {"schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}},
            {"n": "1"},
            {"n": 1},
            '{"n":1}',
        ),
        ({}, 7, "seven", "seven"),
        ({"schema": {"type": ["null", "string"]}}, 7, None, "null"),
    ],
)
async def test_an_answer_must_have_the_shape_that_was_asked_for(
    caller: Caller, stack: Stack, model: ScriptedModel, shape: dict[str, Any], wrong: Any, right: Any, told: str
) -> None:
    script = model.script(asking(**shape), said("thanks"))
    async with caller.following(agent_id=await caller.agent(model=script, tools=["ask_user"])) as stream:
        request = await asked(stream)
        refused = await decide(caller, request, "answer", answer=wrong, expect=422)
        assert refused["errors"][0]["field"] == "answer"
        await decide(caller, request, "approve", expect=422)
        await decide(caller, request, "answer", answer="x" * 70_000, expect=422)
        await decide(caller, request, "answer", answer=right)
        await ended(stack, stream)
    assert results(model.asked(script)[-1]) == [told]


async def test_a_question_may_be_declined(caller: Caller, stack: Stack, model: ScriptedModel) -> None:
    script = model.script(asking(), said("never mind"))
    async with caller.following(agent_id=await caller.agent(model=script, tools=["ask_user"])) as stream:
        await decide(caller, await asked(stream), "deny", comment="ask my boss")
        await ended(stack, stream)
    assert results(model.asked(script)[-1]) == [
        "The person who was asked does not want to answer. The reason: ask my boss"
    ]


async def test_a_question_that_nobody_answers_in_time_is_told_so(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    script = model.script(asking(), said("I assume blue"))
    terms = {"ask_user": {"expires_seconds": 1, "on_expiry": "approve", "role": "manager"}}
    async with caller.following(
        agent_id=await caller.agent(model=script, tools=["ask_user"], approvals=terms)
    ) as stream:
        assert (await asked(stream))["role"] == "manager"
        history = await ended(stack, stream)
    assert history.approvals[0]["status"] == "expired"
    assert results(model.asked(script)[-1])[0].startswith("Nobody answered in time.")


@pytest.mark.parametrize(
    "arguments",
    [{}, {"question": "?", "options": ["a"], "schema": {}}, {"question": "?", "schema": {"type": "colour"}}],
)
async def test_a_question_that_makes_no_sense_goes_back_to_the_model(
    caller: Caller, stack: Stack, model: ScriptedModel, arguments: dict[str, Any]
) -> None:
    script = model.script(Reply(tool_calls=[ToolCall("ask_user", arguments)]), said("sorry"))
    async with caller.following(agent_id=await caller.agent(model=script, tools=["ask_user"])) as stream:
        history = await ended(stack, stream)
    assert history.approvals == []
    assert "are not valid" in results(model.asked(script)[-1])[0]


# -- tools of the caller -----------------------------------------------------------------------------------------------


async def looked_up(caller: Caller, stack: Stack, stream: Stream, **body: Any) -> History:
    request = await asked(stream)
    start = next(event.data for event in stream.events if event.type == "tool_start")
    assert (start["call_id"], start["arguments"]) == (request["call_id"], request["arguments"])
    await waiting(stream)
    await post(caller, request, **body)
    return await ended(stack, stream)


async def test_the_caller_makes_the_call_and_posts_the_result(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    script = model.script(looking_up("a-1"), said("12.50"))
    async with caller.following(agent_id=await caller.agent(model=script, tools=[PRICE])) as stream:
        history = await looked_up(caller, stack, stream, result={"cents": 1250})
    assert results(model.asked(script)[-1]) == ['{"cents":1250}']
    [row] = history.effects
    assert (row["effect"], row["status"], row["executions"]) == ("once", "ok", 1)


async def test_tools_of_the_caller_can_come_with_the_run(caller: Caller, stack: Stack, model: ScriptedModel) -> None:
    script = model.script(looking_up("a-1"), said("12.50"))
    async with caller.following(agent_id=await caller.agent(model=script, tools=[]), tools=[PRICE]) as stream:
        await looked_up(caller, stack, stream, result={"cents": 1250})


async def test_the_caller_may_have_failed(caller: Caller, stack: Stack, model: ScriptedModel) -> None:
    script = model.script(looking_up("a-1"), said("I can't tell"))
    async with caller.following(agent_id=await caller.agent(model=script, tools=[PRICE])) as stream:
        history = await looked_up(caller, stack, stream, error="the shop is closed")
    assert [row["status"] for row in history.effects] == ["error"]
    assert results(model.asked(script)[-1]) == ["the shop is closed"]


async def test_a_result_must_be_one_of_a_call_that_was_asked_for(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    script = model.script(looking_up("a-1", "a-2"), said("done"))
    async with caller.following(agent_id=await caller.agent(model=script, tools=[PRICE])) as stream:
        first, second = await asked(stream), await asked(stream)
        await post(caller, {**first, "call_id": "another"}, result={"cents": 1}, expect=404)
        await post(caller, {**first, "run_id": f"run_{'0' * 32}"}, result={"cents": 1}, expect=404)
        await post(caller, first, result={"euro": 1}, expect=422)
        await post(caller, first, result={"cents": 1, "note": "x" * 2_000}, expect=422)
        await post(caller, first, result={"cents": 1}, error="or not", expect=422)
        await post(caller, first, expect=422)
        await post(caller, first, result={"cents": 1})
        await post(caller, first, result={"cents": 2}, expect=409)
        await decide(caller, second, "answer", answer={"cents": 2})  # the same, as for any approval
        await ended(stack, stream)
    assert results(model.asked(script)[-1]) == ['{"cents":1}', '{"cents":2}']


async def test_a_result_that_does_not_come_in_time_is_unknown(
    caller: Caller, stack: Stack, model: ScriptedModel
) -> None:
    script = model.script(looking_up("a-1"), said("I can't tell"))
    tool = {**PRICE, "expires_seconds": 1}
    async with caller.following(agent_id=await caller.agent(model=script, tools=[tool])) as stream:
        history = await ended(stack, stream)
    assert [row["status"] for row in history.effects] == ["unknown"]
    assert "did not post a result in time" in results(model.asked(script)[-1])[0]


async def test_a_call_of_the_caller_may_need_approval_first(caller: Caller, stack: Stack, model: ScriptedModel) -> None:
    script = model.script(looking_up("a-1"), said("done"))
    agent = await caller.agent(model=script, tools=[PRICE], approvals={"price": {}})
    async with caller.following(agent_id=agent) as stream:
        await decide(caller, await asked(stream, kind="tool"), "approve", arguments={"sku": "b-2"})
        request = await asked(stream, kind="client_tool")
        assert request["arguments"] == {"sku": "b-2"}
        await post(caller, request, result={"cents": 3})
        history = await ended(stack, stream)
    assert [row["kind"] for row in history.approvals] == ["tool", "client_tool"]
