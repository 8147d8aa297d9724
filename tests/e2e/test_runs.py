"""Runs from the request to the last event: answers, tools, sub-agents, conversations, limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from cli.rehearsal import BreakOff, ChatRequest, Reply, ToolCall
from tests.e2e.caller import Caller
from tests.history import History, assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack


def calling(*calls: ToolCall, saying: Sequence[str] = ()) -> Reply:
    return Reply(tokens=saying, tool_calls=calls)


def python(code: str) -> ToolCall:
    return ToolCall("python", {"code": code})


def hand_over(agent: str, task: str) -> ToolCall:
    return ToolCall("delegate", {"agent": agent, "task": task})


def told(request: ChatRequest, role: str) -> list[str]:
    """What the model was told in messages of this role."""
    return [str(message["content"]) for message in request.messages if message["role"] == role]


async def finished(stack: Stack, caller: Caller, **fields: Any) -> History:
    """The checked history of a run that succeeds."""
    run = await caller.run(**fields)
    assert run["status"] == "succeeded", run
    return await assert_history(stack.database, run["id"])


async def test_echo_answers_with_the_input(stack: Stack, caller: Caller) -> None:
    async with caller.following("say it back", workflow="echo") as stream:
        events = await stream.rest()
    history = await assert_history(stack.database, events[0].data["run_id"])
    assert history.types == ["run_queued", "run_started", "state_entered", "state_entered", "message", "done"]
    [message] = history.of("message")
    assert (message.data["role"], message.data["content"]) == ("assistant", "say it back")
    run = await caller.get(f"/v1/runs/{history.run['id']}")
    assert (run["status"], run["finish_reason"], run["answer"]) == ("succeeded", "stop", "say it back")


async def test_a_models_answer_is_streamed_in_chunks_that_add_up(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    words = [f"word{number} " for number in range(20)]
    script = model.script(Reply(tokens=words, token_delay=0.005, usage=(11, 20)))
    async with caller.following("go on", model=script) as stream:
        events = await stream.rest()
    chunks = [event.data["text"] for event in events if event.type == "message_chunk"]
    assert len(chunks) > 5
    assert "".join(chunks) == "".join(words)
    history = await assert_history(stack.database, events[0].data["run_id"])
    assert events[-1].data["usage"] == {"input_tokens": 11, "output_tokens": 20, "cost": 0.0}
    assert stream.frames == b"".join(event.frame for event in await caller.events(history.run["id"]))


async def test_the_model_gets_the_key_the_instructions_the_variables_and_the_tools(
    caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(said("fine"))
    agent = await caller.agent(model=script, instructions="You speak {language}.", tools=["python", "recall"])
    await caller.run("hello there", agent_id=agent, variables={"language": "Latin"}, tools=["python"])
    [request] = model.asked(script)
    assert told(request, "system") == ["You speak Latin."]
    assert told(request, "user") == ["hello there"]
    assert list(request.tools) == ["python"]
    received = [one for one in model.server.requests if one.body.get("model") == script]
    assert received[0].headers["authorization"] == "Bearer sk-of-the-tests"


async def test_a_tool_is_called_and_its_result_goes_back_to_the_model(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(
        calling(python("print(6 * 7)"), saying=["I will ", "compute."]),
        lambda request: said("It is " + told(request, "tool")[0]),
    )
    history = await finished(stack, caller, input="6 times 7?", model=script)
    [thinking] = history.of("tool_thinking")
    assert thinking.data["text"] == "I will compute."
    [start], [result] = history.of("tool_start"), history.of("tool_result")
    assert (start.data["name"], start.data["arguments"]) == ("python", {"code": "print(6 * 7)"})
    assert (result.data["status"], orjson.loads(result.data["result"])) == ("ok", {"stdout": "42\n"})
    assert [event.data["state"] for event in history.of("state_entered")] == ["THINK", "ACT", "THINK", "RESPOND"]
    # The words before the call were shown as an answer until it came: they are taken back.
    assert [event.data["message_id"] for event in history.of("message_discarded")] == [
        history.of("message_chunk")[0].data["message_id"]
    ]
    assert [message["role"] for message in history.messages] == ["user", "assistant", "tool", "assistant"]


async def test_tool_calls_of_one_answer_run_side_by_side(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(
        calling(*(python(f"{number} * 10") for number in (1, 2, 3))),
        lambda request: said(" ".join(told(request, "tool"))),
    )
    history = await finished(stack, caller, input="thrice", model=script)
    kinds = [event.type for event in history.of("tool_start", "tool_result")]
    assert kinds[:3] == ["tool_start"] * 3
    results = {event.data["call_id"]: event.data["result"] for event in history.of("tool_result")}
    assert sorted(orjson.loads(result)["value"] for result in results.values()) == ["10", "20", "30"]
    # The model gets them in the order in which it asked, whichever was done first.
    assert [orjson.loads(text)["value"] for text in told(model.asked(script)[1], "tool")] == ["10", "20", "30"]


async def test_a_call_that_is_wrong_comes_back_to_the_model_which_corrects_it(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(
        calling(ToolCall("python", '{"code": "1 +')),
        calling(ToolCall("python", {"kode": "1 + 1"})),
        calling(ToolCall("no_such_tool", {})),
        calling(python("1 / 0")),
        calling(python("1 + 1")),
        said("two"),
    )
    history = await finished(stack, caller, input="1 + 1?", model=script)
    results = [(event.data["status"], event.data["result"]) for event in history.of("tool_result")]
    assert [status for status, _ in results] == ["error", "error", "error", "error", "ok"]
    for (_, text), hint in zip(results, ("not valid JSON", "kode", "no_such_tool", "ZeroDivisionError"), strict=False):
        assert hint in text
    assert [len(told(request, "tool")) for request in model.asked(script)] == [0, 1, 2, 3, 4, 5]


async def test_a_tool_that_the_agent_lacks_is_denied(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(calling(python("1")), said("then not"))
    agent = await caller.agent(model=script, tools=["recall"])
    history = await finished(stack, caller, input="compute", agent_id=agent)
    assert [event.data["status"] for event in history.of("tool_result")] == ["denied"]


async def test_an_address_of_our_own_network_is_not_fetched(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(calling(ToolCall("http_fetch", {"url": f"{stack.url}/metrics"})), said("no"))
    history = await finished(stack, caller, input="look inside", model=script)
    [result] = history.of("tool_result")
    assert result.data["status"] == "error"
    assert "longhaul_" not in result.data["result"]


async def test_tasks_are_handed_to_sub_agents_side_by_side(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    helper = model.script(lambda request: said(f"done with {told(request, 'user')[0]}"))
    script = model.script(
        calling(hand_over("left", "task one"), hand_over("right", "task two"), python("3")),
        lambda request: said(" and ".join(told(request, "tool"))),
    )
    helpers: list[dict[str, Any]] = [
        {"name": name, "model": {"name": helper}, "instructions": f"You are {name}.", "tools": []}
        for name in ("left", "right")
    ]
    agent = await caller.agent(model=script, sub_agents=helpers)
    history = await finished(stack, caller, input="delegate", agent_id=agent)
    starts, results = history.of("delegate_start"), history.of("delegate_result")
    assert [event.data["agent"] for event in starts] == ["left", "right"]
    assert {event.data["agent"]: event.data["result"] for event in results} == {
        "left": "done with task one",
        "right": "done with task two",
    }
    assert max(event.seq for event in starts) < min(event.seq for event in results)
    assert {event.path for event in history.of("message")} == {"", *(event.path for event in starts)}
    assert [event.data["name"] for event in history.of("tool_result")] == ["python"]
    # A sub-agent sees its task and nothing of the conversation.
    assert [told(request, "user") for request in model.asked(helper)] in (
        [["task one"], ["task two"]],
        [["task two"], ["task one"]],
    )
    shown = (await caller.get(f"/v1/sessions/{history.run['session_id']}/messages"))["data"]
    assert [message["role"] for message in shown] == ["user", "assistant", "tool", "tool", "tool", "assistant"]


async def test_a_sub_agent_uses_tools_and_sub_agents_of_its_own(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    inner = model.script(calling(python("'deep'")), lambda request: said(f"inner {told(request, 'tool')[0]}"))
    outer = model.script(calling(hand_over("inner", "dig")), lambda request: said(f"outer {told(request, 'tool')[0]}"))
    script = model.script(calling(hand_over("outer", "go")), lambda request: said(told(request, "tool")[0]))
    tree: dict[str, Any] = {"name": "inner", "model": {"name": inner}, "tools": ["python"]}
    tree = {"name": "outer", "model": {"name": outer}, "tools": [], "sub_agents": [tree]}
    agent = await caller.agent(model=script, sub_agents=[tree])
    history = await finished(stack, caller, input="dive", agent_id=agent)
    paths = [event.path for event in history.of("delegate_start")]
    assert len(paths) == 2
    assert paths[1].startswith(f"{paths[0]}/inner:")
    assert {event.path for event in history.of("tool_result")} == {paths[1]}
    [answer] = [event.data["content"] for event in history.of("message") if not event.path]
    assert answer.startswith("outer inner ")
    assert "deep" in answer
    steps = (await caller.get(f"/v1/runs/{history.run['id']}/steps?limit=100"))["data"]
    assert len(steps) == len(history.steps) == 4 + 4 + 4
    assert {step["path"] for step in steps} == {"", *paths}


async def test_a_sub_agent_that_is_not_there_is_an_error_for_the_model(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(
        calling(hand_over("nobody", "task"), hand_over("helper", " "), ToolCall("delegate", "{broken")), said("alone")
    )
    agent = await caller.agent(model=script, sub_agents=[{"name": "helper", "tools": []}])
    history = await finished(stack, caller, input="delegate", agent_id=agent)
    assert history.of("delegate_start") == []
    texts = told(model.asked(script)[1], "tool")
    assert len(texts) == 3
    assert all(text.startswith("Error: ") for text in texts)
    assert "helper" in texts[0]


async def test_delegation_ends_at_the_agents_depth(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    deep = model.script(calling(hand_over("below", "further")), said("myself then"))
    script = model.script(calling(hand_over("deep", "down")), said("ok"))
    tree = {"name": "deep", "model": {"name": deep}, "tools": [], "sub_agents": [{"name": "below", "tools": []}]}
    agent = await caller.agent(model=script, sub_agents=[tree], limits={"max_depth": 1})
    history = await finished(stack, caller, input="dive", agent_id=agent)
    assert [event.data["agent"] for event in history.of("delegate_start")] == ["deep"]
    assert "delegate" not in model.asked(deep)[0].tools


async def test_a_failing_sub_agent_is_a_result_that_its_parent_can_work_with(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    broken = model.script(Reply(tokens=["half"], fault=BreakOff(1)))
    script = model.script(
        calling(hand_over("broken", "try")), lambda request: said(f"sorry: {told(request, 'tool')[0]}")
    )
    agent = await caller.agent(model=script, sub_agents=[{"name": "broken", "model": {"name": broken}, "tools": []}])
    history = await finished(stack, caller, input="delegate", agent_id=agent)
    [error] = history.of("error")
    assert error.path == history.of("delegate_start")[0].path
    assert "broken failed" in history.of("delegate_result")[0].data["result"]


async def test_a_conversation_goes_on_over_runs(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(calling(python("1")), said("first answer"), said("second answer"))
    session = await caller.session()
    await finished(stack, caller, input="first question", session=session, model=script)
    await finished(stack, caller, input="second question", session=session, model=script)
    conversation = [(message["role"], message["content"]) for message in model.asked(script)[2].messages[1:]]
    assert conversation == [
        ("user", "first question"),
        ("assistant", "first answer"),
        ("user", "second question"),
    ]
    shown = (await caller.get(f"/v1/sessions/{session}/messages"))["data"]
    assert [message["role"] for message in shown] == ["user", "assistant", "tool", "assistant", "user", "assistant"]


async def test_input_may_be_several_messages(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(said("ok"))
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    await finished(stack, caller, input=messages, model=script)
    assert [message["content"] for message in model.asked(script)[0].messages[1:]] == ["one", "two", "three"]


async def test_a_run_keeps_the_version_of_the_agent_that_it_started_with(caller: Caller, model: ScriptedModel) -> None:
    script = model.script(said("ok"))
    agent = await caller.agent(model=script, instructions="old")
    session = await caller.session(agent_id=agent)
    first = await caller.run(session=session)
    await caller.call("PATCH", f"/v1/agents/{agent}", {"instructions": "new"}, expect=200)
    second = await caller.run(session=session)
    assert (first["agent_version"], second["agent_version"]) == (1, 2)
    assert [told(request, "system") for request in model.asked(script)] == [["old"], ["new"]]


async def test_at_the_step_limit_the_run_answers_with_what_it_knows(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(calling(python("'found it'")))
    history = await finished(stack, caller, input="for ever", model=script, budget={"max_steps": 3})
    assert history.run["finish_reason"] == "step_limit"
    answer = history.of("message")[-1].data["content"]
    for part in ("3 steps", "found it", "max_steps"):
        assert part in answer
    assert len(model.asked(script)) == 3


async def test_at_the_end_of_its_token_budget_the_run_answers_with_what_it_knows(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    call = Reply(tool_calls=[python("'found it'")], usage=(60, 10))
    script = model.script(call)
    history = await finished(stack, caller, input="for ever", model=script, budget={"max_tokens": 100})
    assert history.run["finish_reason"] == "token_limit"
    assert "max_tokens" in history.of("message")[-1].data["content"]
    assert orjson.loads(history.run["usage"])["input_tokens"] == 120


async def test_calls_beyond_the_budget_are_not_made_and_the_model_is_told(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(calling(python("1"), python("2"), python("3")), said("enough"))
    history = await finished(stack, caller, input="thrice", model=script, budget={"max_tool_calls": 2})
    assert sorted(event.data["status"] for event in history.of("tool_result")) == ["denied", "ok", "ok"]
    assert "limit of 2" in told(model.asked(script)[1], "tool")[2]


async def test_a_budget_lowers_the_agents_limits_and_never_raises_them(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(calling(python("1")))
    agent = await caller.agent(model=script, limits={"max_steps": 2})
    history = await finished(stack, caller, agent_id=agent, input="go", budget={"max_steps": 50})
    assert history.run["finish_reason"] == "step_limit"
    assert len(model.asked(script)) == 2


async def test_a_run_that_takes_too_long_expires(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(Reply(tokens=["tick "] * 1000, token_delay=0.02))
    run = await caller.run("for ever", model=script, budget={"timeout_seconds": 1})
    assert (run["status"], run["finish_reason"]) == ("expired", "deadline")
    history = await assert_history(stack.database, run["id"])
    assert history.of("message_chunk")
    assert sorted(history.types[-3:]) == ["done", "error", "message_discarded"]


async def test_a_request_for_an_agent_that_names_unknown_tools_ends_with_an_error_that_says_so(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    agent = await caller.agent(model=model.script(said("never")), tools=["teleport"])
    run = await caller.run(agent_id=agent)
    assert (run["status"], run["error"]["code"]) == ("failed", "unknown_tool")
    assert "teleport" in run["error"]["message"]
    await assert_history(stack.database, run["id"])
