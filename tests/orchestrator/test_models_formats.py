"""What endpoints don't take of a request: it is found out once, and the call is made without it."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from cli.rehearsal import ChatRequest, HttpError, ModelServer, Reply
from kernel.agent_config import ModelChoice
from orchestrator.errors import ImagesRefused, ModelRefused
from orchestrator.models import Models, ResponseFormat
from orchestrator.tools.tool import NoSecrets
from tests.orchestrator.test_models_endpoints import settings
from tests.orchestrator.turns import ASK, Script, chunk, raw, scripted, take

FORMAT = ResponseFormat({"type": "object", "properties": {"city": {"type": "string"}}})
OTHER = ResponseFormat({"type": "array"})
IMAGE = "data:image/png;base64,iVBORw0KGgo="


def refusing(*fields: str, status: int = 400) -> Any:
    """A brain that refuses requests with one of these fields."""

    def answer(request: ChatRequest) -> Reply:
        for field in fields:
            if field in request.body:
                message = f"Unknown field: {field} is not permitted"
                return Reply(fault=HttpError(status, {"error": {"message": message}}))
        return Reply(["fine"])

    return answer


async def test_the_response_format_goes_to_the_endpoint() -> None:
    async with scripted(Reply(["{}"])) as (chat, server):
        assert (await take(chat, response_format=FORMAT)).text == "{}"
    sent = server.requests[-1].body
    assert sent["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": dict(FORMAT.schema)},
    }
    assert "JSON Schema" not in str(sent["messages"])


@pytest.mark.parametrize("status", [400, 422])
async def test_an_endpoint_that_refuses_the_response_format_is_told_in_words_from_then_on(status: int) -> None:
    async with ModelServer(refusing("response_format", status=status)) as server:
        models = Models(settings(server.url))
        for _ in range(2):
            assert (await take(models.chat("m"), response_format=FORMAT)).text == "fine"
        assert (await take(models.chat("m"), response_format=OTHER)).text == "fine"
        await models.aclose()
    sent = [received.body for received in server.requests]
    assert ["response_format" in body for body in sent] == [True, False, False, True, False]
    system = sent[1]["messages"][0]
    assert system["role"] == "system"
    assert system["content"].startswith("Be brief.")
    assert '"city"' in system["content"]


async def test_a_request_that_is_refused_either_way_is_an_error() -> None:
    broken = Reply(fault=HttpError(400, {"error": {"message": "too long"}}))
    async with ModelServer(Script([broken])) as server:
        models = Models(settings(server.url))
        error = (await take(models.chat("m"), response_format=FORMAT)).error
        await models.aclose()
    assert isinstance(error, ModelRefused)
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [400, 422])
async def test_fields_that_an_endpoint_does_not_know_are_left_out(status: int) -> None:
    async with ModelServer(refusing("max_completion_tokens", "stream_options", status=status)) as server:
        models = Models(settings(server.url))
        for _ in range(2):
            chat = await models.choose(ModelChoice(name="m", max_tokens=50), NoSecrets())
            assert (await take(chat)).text == "fine"
        await models.aclose()
    bodies = [received.body for received in server.requests]
    assert len(bodies) == 4
    assert all(body["max_tokens"] == 50 and "stream_options" not in body for body in bodies[2:])


async def test_a_parameter_that_the_caller_asked_for_is_never_left_out() -> None:
    async with ModelServer(refusing("seed")) as server:
        models = Models(settings(server.url))
        error = (await take(await models.choose(ModelChoice(name="m", seed=1), NoSecrets()))).error
        await models.aclose()
    assert isinstance(error, ModelRefused)
    assert "seed" in error.message
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "this model does not support image input", ImagesRefused),
        (404, "No endpoints found that support image input", ImagesRefused),
        (400, "content must be a string", ModelRefused),
    ],
)
async def test_a_model_that_takes_no_images_says_so(status: int, message: str, kind: type[ModelRefused]) -> None:
    refused = Reply(fault=HttpError(status, {"error": {"message": message}}))
    asked = [*ASK, HumanMessage([{"type": "image_url", "image_url": {"url": IMAGE}}])]
    async with scripted(refused) as (chat, _):
        with pytest.raises(ModelRefused) as caught:
            _ = [piece async for piece in chat.stream_turn(asked)]
    assert type(caught.value) is kind
    assert message in caught.value.message
    assert "takes images" in caught.value.suggestions[0]


async def test_a_refusal_where_no_image_was_sent_is_none_of_images() -> None:
    async with scripted(Reply(fault=HttpError(400, {"error": {"message": "no image, no vision"}}))) as (chat, _):
        error = (await take(chat)).error
    assert type(error) is ModelRefused


# reasoning, under all its names


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"thinking": "hm"},
        {"reasoning_details": [{"type": "reasoning.text", "text": "h"}, {"type": "reasoning.summary", "summary": "m"}]},
        {"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
        {"content": [{"type": "thinking", "thinking": "hm"}]},
        {"reasoning": "hm", "thinking": True},
    ],
)
async def test_reasoning_is_understood_under_each_of_its_names(delta: dict[str, Any]) -> None:
    async with scripted(raw(chunk(delta), chunk({"content": "Yes"}, "stop"))) as (chat, _):
        taken = await take(chat)
    assert taken.error is None
    assert (taken.reasoning, taken.text, taken.message.content) == ("hm", "Yes", "Yes")


async def test_reasoning_that_nobody_can_read_is_left_out() -> None:
    encrypted = {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}, 7], "thinking": True}
    async with scripted(raw(chunk(encrypted), chunk({"content": "Yes"}, "stop"))) as (chat, _):
        taken = await take(chat)
    assert (taken.reasoning, taken.text, taken.error) == ("", "Yes", None)
