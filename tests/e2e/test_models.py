"""Which model answers, and in which shape: fallbacks, reasoning, structured answers, images, callers' endpoints."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from yarl import URL

from cli.rehearsal import BreakOff, HttpError, ModelServer, Reply, ToolCall
from tests.e2e.caller import Caller, calling
from tests.e2e.conftest import OwnStack, new_key
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer", "minimum": 1}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
FITS = '{"city": "Bergen", "people": 291940}'
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
IMAGE = "data:image/png;base64," + base64.b64encode(PNG).decode()
BUSY = Reply(fault=HttpError(503, {"error": {"message": "overloaded"}}))


async def finished(stack: Stack, caller: Caller, **fields: Any) -> tuple[dict[str, Any], list[Any]]:
    """Runs, checks what it left behind, and gives the run and its events."""
    run = await caller.run(**fields)
    history = await assert_history(stack.database, run["id"])
    return run, history.events


def of(events: list[Any], *types: str) -> list[dict[str, Any]]:
    return [event.data for event in events if event.type in types]


# fallbacks and reasoning


async def test_a_fallback_answers_and_the_usage_says_which(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    first, second = model.script(BUSY), model.script(said("from the second"))
    run, events = await finished(stack, caller, model={"name": first, "fallbacks": [second]})
    assert (run["status"], run["answer"]) == ("succeeded", "from the second")
    assert [usage["model"] for usage in of(events, "usage")] == [second]
    assert len(model.asked(first)) == 2, "it was tried again before"
    assert of(events, "error", "message_discarded") == []


async def test_what_a_model_said_before_it_broke_off_is_discarded(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    first = model.script(Reply(tokens=["once ", "upon ", "a"], fault=BreakOff(2), token_delay=0.01))
    second = model.script(said("the whole story"))
    agent = await caller.agent(model={"name": first, "fallbacks": [second]})
    run, events = await finished(stack, caller, agent_id=agent)
    assert run["answer"] == "the whole story"
    [discarded] = of(events, "message_discarded")
    [message] = of(events, "message")
    assert discarded["message_id"] != message["message_id"]
    chunks = of(events, "message_chunk")
    assert "".join(c["text"] for c in chunks if c["message_id"] == discarded["message_id"]) == "once upon "


async def test_when_all_models_fail_the_error_says_what_each_said(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    first, second = model.script(BUSY), model.script(Reply(fault=HttpError(404, {"error": {"message": "gone"}})))
    run, _ = await finished(stack, caller, model={"name": first, "fallbacks": [second]})
    assert (run["status"], run["error"]["code"]) == ("failed", "model_refused")
    for what in (first, second, "overloaded", "gone"):
        assert what in run["error"]["message"]


async def test_reasoning_is_shown_as_thinking(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(Reply(reasoning=["Let me ", "see."], tokens=["42"]))
    run, events = await finished(stack, caller, model=script)
    assert run["answer"] == "42"
    assert "".join(thought["text"] for thought in of(events, "tool_thinking")) == "Let me see."


# structured answers


async def test_an_answer_that_fits_comes_parsed(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(said(FITS))
    agent = await caller.agent(model=script, response_schema=SCHEMA)
    run, events = await finished(stack, caller, agent_id=agent)
    assert (run["answer"], run["output"]) == (FITS, {"city": "Bergen", "people": 291940})
    [message] = of(events, "message")
    assert (message["content"], message["parsed"]) == (FITS, run["output"])
    assert "".join(chunk["text"] for chunk in of(events, "message_chunk")) == FITS
    assert model.asked(script)[0].body["response_format"]["json_schema"]["schema"] == SCHEMA


async def test_a_run_without_a_schema_has_no_output(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    run, events = await finished(stack, caller, model=model.script(said(FITS)))
    assert (run["answer"], run["output"]) == (FITS, None)
    assert "parsed" not in of(events, "message")[0]


async def test_the_schema_of_the_run_goes_before_the_agents(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    agent = await caller.agent(model=model.script(said("[1, 2]")), response_schema=SCHEMA)
    run, _ = await finished(stack, caller, agent_id=agent, response_schema={"type": "array"})
    assert run["output"] == [1, 2]


async def test_a_code_fence_around_the_answer_is_taken_off(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(said(f"Here it is:\n```json\n{FITS}\n```\nAnything else?"))
    run, events = await finished(stack, caller, model=script, response_schema=SCHEMA)
    assert (run["answer"], run["output"]["city"]) == (FITS, "Bergen")
    assert len(of(events, "message_discarded")) == 1
    assert len(model.asked(script)) == 1


async def test_an_answer_that_does_not_fit_is_corrected(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(said('{"city": "Bergen"}'), said("It has 291940."), said(FITS))
    run, events = await finished(stack, caller, model=script, response_schema=SCHEMA)
    assert (run["status"], run["answer"]) == ("succeeded", FITS)
    _, second, third = model.asked(script)
    assert [message["role"] for message in second.messages] == ["system", "user", "assistant", "user"]
    assert second.messages[-2]["content"] == '{"city": "Bergen"}'
    assert '"people" is a required property' in second.messages[-1]["content"]
    assert "not valid JSON" in third.messages[-1]["content"]
    assert len(of(events, "usage")) == 3
    assert len(of(events, "message_discarded")) == 2
    # What was rejected is no part of the conversation.
    messages = (await caller.get(f"/v1/sessions/{run['session_id']}/messages"))["data"]
    assert [message["content"] for message in messages] == ["hello", FITS]


async def test_an_answer_that_never_fits_fails_the_run_and_is_quoted(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(said('{"city": 7}'))
    run, events = await finished(stack, caller, model=script, response_schema=SCHEMA)
    assert (run["status"], run["error"]["code"], run["output"]) == ("failed", "invalid_answer", None)
    assert '{"city": 7}' in run["error"]["message"]
    assert "required property" in run["error"]["message"]
    assert run["error"]["suggestions"]
    assert len(model.asked(script)) == 3
    assert len(of(events, "message_discarded")) == 3
    assert run["usage"]["output_tokens"] == sum(usage["output_tokens"] for usage in of(events, "usage")) > 0


async def test_corrections_stay_within_the_budget(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(said("nonsense"))
    fields = {"model": script, "response_schema": SCHEMA, "budget": {"max_steps": 2}}
    run, _ = await finished(stack, caller, **fields)
    assert (run["status"], run["finish_reason"]) == ("succeeded", "step_limit")
    assert len(model.asked(script)) == 2


async def test_an_answer_may_be_corrected_after_tools_were_used(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    compute = Reply(tool_calls=[ToolCall("python", {"code": "291940"})])
    script = model.script(compute, said("Well."), said(FITS))
    run, _ = await finished(stack, caller, model=script, response_schema=SCHEMA)
    assert run["output"] == {"city": "Bergen", "people": 291940}
    steps = (await caller.get(f"/v1/runs/{run['id']}/steps"))["data"]
    assert sorted(step["state"] for step in steps) == ["ACT", "RESPOND", "THINK", "THINK", "THINK"]


async def test_an_endpoint_without_response_formats_is_told_in_words(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    refusal = Reply(fault=HttpError(400, {"error": {"message": "response_format is not supported"}}))
    script = model.script(refusal, said(FITS))
    run, _ = await finished(stack, caller, model=script, response_schema=SCHEMA)
    assert run["output"] == {"city": "Bergen", "people": 291940}
    first, second = model.asked(script)
    assert "response_format" in first.body
    assert "response_format" not in second.body
    assert '"additionalProperties":false' in second.messages[0]["content"]


# images


def picture(text: str = "What is this?", url: str = IMAGE) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": text}, {"type": "image", "url": url}]}]


async def test_images_reach_the_model_now_and_in_later_turns(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    session = await caller.session()
    script = model.script(said("A square."))
    run, _ = await finished(stack, caller, session=session, input=picture(), model=script)
    assert run["answer"] == "A square."
    sent = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": IMAGE}}]
    assert model.asked(script)[0].messages[-1] == {"role": "user", "content": sent}
    later = model.script(said("Still a square."))
    await finished(stack, caller, session=session, input="And now?", model=later)
    assert [message["content"] for message in model.asked(later)[0].messages[1:]] == [sent, "A square.", "And now?"]
    shown = (await caller.get(f"/v1/sessions/{session}/messages"))["data"]
    assert shown[0]["content"] == picture()[0]["content"]


async def test_the_address_of_an_image_is_handed_on_and_not_fetched(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    async with ModelServer(lambda request: Reply()) as elsewhere:
        address = str(URL(elsewhere.url).with_scheme("https") / "cat.png")
        script = model.script(said("A cat."))
        await finished(stack, caller, input=picture(url=address), model=script)
        assert model.asked(script)[0].messages[-1]["content"][1] == {
            "type": "image_url",
            "image_url": {"url": address},
        }
        assert elsewhere.accepted == 0


async def test_an_echo_says_the_text_of_what_it_got(stack: Stack, caller: Caller) -> None:
    run, _ = await finished(stack, caller, input=picture("look here"), workflow="echo")
    assert run["answer"] == "look here"


async def test_a_model_that_takes_no_images_ends_the_run_with_an_error_that_says_so(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    refusal = HttpError(400, {"error": {"message": "this model does not support image inputs"}})
    script = model.script(Reply(fault=refusal))
    run, _ = await finished(stack, caller, input=picture(), model=script)
    assert run["error"]["code"] == "model_refuses_images"
    assert "takes images" in run["error"]["suggestions"][0]


# callers' endpoints


async def test_a_private_address_of_a_caller_is_refused(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    asked = len(model.server.requests)
    run, _ = await finished(stack, caller, model={"name": "m", "base_url": model.url})
    assert (run["status"], run["error"]["code"]) == ("failed", "model_address_refused")
    assert any("LONGHAUL_EGRESS_ALLOW" in hint for hint in run["error"]["suggestions"])
    assert len(model.server.requests) == asked


async def test_an_unknown_provider_is_an_error_that_names_it(stack: Stack, caller: Caller) -> None:
    run, _ = await finished(stack, caller, model={"provider": "nobody"})
    assert run["error"]["code"] == "unknown_provider"
    assert "'nobody'" in run["error"]["message"]


async def test_a_callers_endpoint_gets_the_callers_key_and_never_the_deployments(
    own: OwnStack, model: ScriptedModel
) -> None:
    async with ModelServer(lambda request: said("from elsewhere")) as elsewhere:
        stack = await own.stack(LONGHAUL_EGRESS_ALLOW=URL(elsewhere.url).authority)
        async with calling(stack.url, await new_key(stack)) as caller:
            choice = {"name": "m", "base_url": elsewhere.url}
            run, _ = await finished(stack, caller, model=choice)
            assert run["answer"] == "from elsewhere"
            keyed = {"model": {**choice, "api_key": "gateway"}, "secrets": {"gateway": "key-of-the-gateway"}}
            run, events = await finished(stack, caller, **keyed)
            assert run["answer"] == "from elsewhere"
            without = {"model": {**choice, "api_key": "missing"}}
            run, _ = await finished(stack, caller, **without)
            assert run["error"]["code"] == "model_misconfigured"
            log = stack.logs()
    authorizations = [received.headers.get("authorization") for received in elsewhere.requests]
    assert authorizations == [None, "Bearer key-of-the-gateway"]
    assert "key-of-the-gateway" not in orjson.dumps([dict(event.data) for event in events]).decode() + log


@pytest.mark.parametrize(
    "choice",
    [
        {"api_key": "k"},
        {"base_url": "ftp://example.com"},
        {"base_url": "https://example.com", "provider": "acme"},
        {"api_key": "not a name", "base_url": "https://example.com"},
        {"fallbacks": ["m"] * 9},
        {"idle_timeout_seconds": 0},
    ],
)
async def test_a_choice_that_makes_no_sense_is_refused_at_once(caller: Caller, choice: dict[str, Any]) -> None:
    answer = await caller.post("/v1/runs", {"input": "hello", "model": choice}, expect=422)
    assert answer.json()["errors"][0]["field"].startswith("model")
