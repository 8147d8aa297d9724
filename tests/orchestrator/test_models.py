"""The chat model against a scripted endpoint over real HTTP: answers of every kind, well-formed or sloppy."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, ToolMessage
from pydantic import SecretStr

from cli.rehearsal import (
    ModelServer,
    Raw,
    Reply,
    ToolCall,
)
from kernel.errors import BadSettings
from kernel.settings import Settings
from orchestrator.models import Models, StreamingChat, Usage
from orchestrator.models.endpoint import Endpoint
from orchestrator.models.sse import DONE, EventReader
from tests.orchestrator.turns import ASK, KEY, WEATHER, Script, chunk, raw, scripted, take

# answers


async def test_the_deltas_make_up_the_message_and_the_turn_comes_last() -> None:
    tokens = [f"word{i} " for i in range(1000)]
    async with scripted(Reply(tokens, usage=(12, 1000))) as (chat, _):
        taken = await take(chat)
    assert taken.text == "".join(tokens) == taken.message.content
    assert taken.turn is not None
    assert (taken.turn.usage, taken.turn.finish_reason) == (Usage(12, 1000), "stop")


async def test_the_request_is_what_langchain_openai_builds() -> None:
    called = AIMessage("", tool_calls=[{"name": "weather", "args": {"city": "Bergen"}, "id": "call_1"}])
    async with ModelServer(Script([Reply(["fine"])])) as server:
        endpoint = Endpoint(server.url, SecretStr(KEY), connect_timeout=5, idle_timeout=5)
        chat = StreamingChat.on(endpoint, "m-1", temperature=0.5, max_tokens=99)
        messages = [*ASK, called, ToolMessage("rain", tool_call_id="call_1")]
        _ = [piece async for piece in chat.stream_turn(messages, tools=[WEATHER])]
        await endpoint.aclose()
    received = server.requests[-1]
    assert received.headers["authorization"] == f"Bearer {KEY}"
    body = received.body
    assert (body["model"], body["temperature"], body["max_completion_tokens"]) == ("m-1", 0.5, 99)
    assert (body["stream"], body["stream_options"], body["tools"]) == (True, {"include_usage": True}, [WEATHER])
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "tool"]
    assert json.loads(body["messages"][2]["tool_calls"][0]["function"]["arguments"]) == {"city": "Bergen"}


async def test_tool_calls_are_put_together_from_their_pieces() -> None:
    calls = [ToolCall("weather", {"city": "Bergen"}), ToolCall("weather", {"city": "北京"})]
    async with scripted(Reply(["Let me look."], tool_calls=calls)) as (chat, _):
        taken = await take(chat, [WEATHER])
    assert [call["args"] for call in taken.message.tool_calls] == [{"city": "Bergen"}, {"city": "北京"}]
    assert len({call["id"] for call in taken.message.tool_calls}) == 2
    assert taken.text == "Let me look."
    assert taken.turn is not None
    assert taken.turn.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "arguments", ['{"city": "Ber', "[1]", "null", '{"n": NaN}', '{"city": "a\\u0000b"}', "{" * 5000]
)
async def test_malformed_arguments_are_an_invalid_call_and_no_error(arguments: str) -> None:
    async with scripted(Reply(tool_calls=[ToolCall("weather", arguments)])) as (chat, _):
        message = (await take(chat)).message
    assert message.tool_calls == []
    assert message.invalid_tool_calls[0]["args"] == arguments
    assert message.invalid_tool_calls[0]["error"]


async def test_line_breaks_within_arguments_and_missing_arguments_are_understood() -> None:
    calls = [ToolCall("weather", '{"city": "a\nb"}'), ToolCall("weather", "")]
    async with scripted(Reply(tool_calls=calls)) as (chat, _):
        message = (await take(chat)).message
    assert [call["args"] for call in message.tool_calls] == [{"city": "a\nb"}, {}]


async def test_calls_without_an_index_or_with_the_same_one_are_kept_apart() -> None:
    first = {"id": "a", "function": {"name": "weather", "arguments": "{}"}}
    second = {"id": "b", "function": {"name": "weather", "arguments": '{"city": "X"}'}}
    for index in ({}, {"index": 0}):
        events = [chunk({"tool_calls": [{**call, **index}]}) for call in (first, second)]
        async with scripted(raw(*events, chunk({}, "tool_calls"), DONE)) as (chat, _):
            message = (await take(chat)).message
        assert [(call["id"], call["args"]) for call in message.tool_calls] == [("a", {}), ("b", {"city": "X"})]


async def test_calls_with_the_same_id_or_none_get_ids_of_their_own() -> None:
    calls = [{"index": i, "id": "", "function": {"name": "weather", "arguments": "{}"}} for i in range(3)]
    calls[0]["id"] = calls[1]["id"] = "same"
    async with scripted(raw(chunk({"tool_calls": calls}), chunk({}, "tool_calls"), DONE)) as (chat, _):
        message = (await take(chat)).message
    assert len({call["id"] for call in message.tool_calls} - {"", None}) == 3


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_comes_apart_from_the_text(field: str) -> None:
    async with scripted(raw(chunk({field: "hm"}), chunk({field: "…"}), chunk({"content": "Yes"}, "stop"))) as (chat, _):
        taken = await take(chat)
    assert (taken.reasoning, taken.text, taken.message.content) == ("hm…", "Yes", "Yes")


async def test_an_endpoint_that_answers_plain_json_is_understood() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    message = {"role": "assistant", "content": "Hi", "tool_calls": [call]}
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    body = json.dumps({"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": usage}).encode()
    async with scripted(Reply(fault=Raw([body], "application/json"))) as (chat, _):
        taken = await take(chat)
    assert (taken.text, len(taken.message.tool_calls)) == ("Hi", 1)
    assert taken.turn is not None
    assert taken.turn.usage == Usage(3, 1)


async def test_tokens_that_the_endpoint_had_cached_are_counted() -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 60}}
    counted = json.dumps({"choices": [], "usage": usage})
    async with scripted(raw(chunk({"content": "Hi"}, "stop"), counted.encode(), DONE)) as (chat, _):
        taken = await take(chat)
    assert taken.turn is not None
    assert taken.turn.usage == Usage(100, 5, 60)


async def test_usage_is_zero_where_it_is_not_reported() -> None:
    async with scripted(raw(chunk({"content": "Hi"}, "stop"), DONE)) as (chat, _):
        taken = await take(chat)
    assert taken.turn is not None
    assert taken.turn.usage == Usage(0, 0)


async def test_nul_and_half_characters_do_not_get_through() -> None:
    async with scripted(raw(b'{"choices":[{"delta":{"content":"a\\u0000b\\ud83dc"},"finish_reason":"stop"}]}')) as (
        chat,
        _,
    ):
        taken = await take(chat)
    assert taken.text == taken.message.content == "ab\ufffdc"


# streams


SLOPPY = (
    b"\xef\xbb\xbf: keep-alive\r\n\r\n"
    b"event: message\r\ndata:" + chunk({"content": "你好"}) + b"\r\n\r\n"
    b": keep-alive\n"
    b"id: 7\nretry: 10\ndata:   " + chunk({"content": " 👋"}) + b"\n"
    b'data: {"choices":\ndata: [{"delta": {"content": "!"}, "finish_reason": "stop"}]}\n\n'
    b"data:\n\ndata: [DONE]"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 4096])
async def test_a_sloppy_stream_is_understood_wherever_its_reads_end(size: int) -> None:
    pieces = [SLOPPY[at : at + size] for at in range(0, len(SLOPPY), size)]
    async with scripted(Reply(fault=Raw(pieces, "text/plain"))) as (chat, _):
        taken = await take(chat)
    assert taken.text == taken.message.content == "你好 👋!"


@given(st.lists(st.integers(0, len(SLOPPY)), max_size=20))
def test_events_do_not_depend_on_where_reads_end(cuts: list[int]) -> None:
    reader, whole = EventReader(), EventReader()
    edges = [0, *sorted(cuts), len(SLOPPY)]
    events = [e for a, b in pairwise(edges) for e in reader.feed(SLOPPY[a:b])]
    assert [*events, *reader.end()] == [*whole.feed(SLOPPY), *whole.end()]


async def test_the_end_mark_may_be_missing() -> None:
    async with scripted(raw(chunk({"content": "Hi"}), chunk({}, "stop"))) as (chat, _):
        assert (await take(chat)).message.content == "Hi"


async def test_an_answer_that_is_complete_does_not_wait_for_an_open_connection() -> None:
    async with scripted(raw(chunk({"content": "Hi"}), chunk({}, "stop"), stay=True), idle=60) as (chat, _):
        async with asyncio.timeout(10):
            assert (await take(chat)).message.content == "Hi"


async def test_turns_share_a_connection() -> None:
    async with scripted(Reply(["Hi"])) as (chat, server):
        for _ in range(3):
            assert (await take(chat)).text == "Hi"
    assert server.accepted == 1


async def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with scripted(Reply(["Hi"])) as (chat, _):
        assert (await take(chat)).text == "Hi"


# as one of LangChain's chat models


async def test_astream_gives_chunks_that_add_up() -> None:
    calls = [ToolCall("weather", {"city": "Bergen"}), ToolCall("weather", "oops")]
    async with scripted(Reply(["a ", "b"], tool_calls=calls, usage=(5, 2))) as (chat, server):
        chunks = [part async for part in chat.bind_tools([WEATHER]).astream(ASK)]
    whole = AIMessageChunk(content="")
    for part in chunks:
        assert isinstance(part, AIMessageChunk)
        whole = whole + part
    assert whole.text == "a b"
    assert [call["args"] for call in whole.tool_calls] == [{"city": "Bergen"}]
    assert [call["args"] for call in whole.invalid_tool_calls] == ["oops"]
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["total_tokens"] == 7
    assert whole.response_metadata["finish_reason"] == "tool_calls"
    assert server.requests[-1].body["tools"][0]["function"]["name"] == "weather"


async def test_ainvoke_gives_the_message() -> None:
    async with scripted(Reply(["a ", "b"])) as (chat, _):
        message = await chat.ainvoke(ASK)
    assert message.content == "a b"


async def test_the_key_is_not_in_the_chat() -> None:
    async with scripted(Reply(["Hi"])) as (chat, _):
        assert KEY not in repr(chat) + str(chat.model_dump()) + str(chat.openai_api_key)


# the factory


def settings(url: str) -> Settings:
    return Settings.model_validate(
        {
            "DATABASE_URL": "postgresql://localhost/x",
            "REDIS_URL": "redis://localhost",
            "OPENAI_BASE_URL": url,
            "OPENAI_API_KEY": KEY,
            "LLM_MODEL": "the-default",
            "secret_key": "s" * 32,
        }
    )


async def test_chats_are_kept_by_model_and_parameters() -> None:
    async with ModelServer(Script([Reply(["Hi"])])) as server:
        models = Models(settings(server.url))
        models.warm()
        assert models.chat() is models.chat("the-default")
        assert models.chat("other") is models.chat("other")
        assert models.chat("other", temperature=0.1) is not models.chat("other", temperature=0.2)
        first = models.chat("first")
        assert [models.chat(f"m{i}") for i in range(100)]
        assert models.chat("first") is not first, "only so many are kept"
        assert (await take(models.chat("other"))).text == "Hi"
        assert (await take(models.chat())).text == "Hi"
        await models.aclose()
    assert [received.body["model"] for received in server.requests] == ["other", "the-default"]
    assert server.accepted == 1


@pytest.mark.parametrize("url", ["", "api.example.com/v1", "ftp://example.com", "http://"])
def test_an_address_that_is_none_is_the_operators_error(url: str) -> None:
    with pytest.raises(BadSettings, match="OPENAI_BASE_URL"):
        Models(settings(url))


def test_a_key_with_a_line_break_is_the_operators_error() -> None:
    with pytest.raises(BadSettings, match="OPENAI_API_KEY") as caught:
        Endpoint("http://127.0.0.1/v1", SecretStr(f"{KEY}\n{KEY}"), connect_timeout=1, idle_timeout=1)
    assert KEY not in str(caught.value)
