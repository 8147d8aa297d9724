"""The chat model against an endpoint that fails: what is tried again, what is reported, and what it says."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import aclosing

import pytest

from cli.rehearsal import (
    BreakOff,
    Hang,
    HangUp,
    HttpError,
    NotHttp,
    Raw,
    Reply,
)
from orchestrator.errors import (
    ModelBrokeOff,
    ModelError,
    ModelGarbled,
    ModelOverloaded,
    ModelRateLimited,
    ModelRefused,
    ModelTimedOut,
    ModelUnreachable,
)
from orchestrator.models.sse import MAX_LINE
from tests.orchestrator.turns import ASK, KEY, chat_at, chunk, failure, raw, scripted, take

# failures


async def test_text_that_came_before_the_connection_closed_is_given_and_nothing_is_tried_again() -> None:
    async with scripted(Reply(["a ", "b ", "c "], token_delay=0.001, fault=BreakOff(2)), retries=3) as (chat, server):
        taken = await take(chat)
    assert (taken.text, type(taken.error), len(server.requests)) == ("a b ", ModelBrokeOff, 1)
    assert taken.error is not None
    assert taken.error.retryable


@pytest.mark.parametrize("fault", [BreakOff(0), HangUp()])
async def test_a_connection_that_closes_before_the_first_delta_is_tried_again(fault: BreakOff | HangUp) -> None:
    async with scripted(Reply(["lost"], fault=fault), Reply(["Hi"]), retries=1) as (chat, server):
        assert (await take(chat)).text == "Hi"
    assert len(server.requests) == 2


async def test_an_empty_body_counts_as_broken_off() -> None:
    assert isinstance(await failure(Reply(fault=Raw([]))), ModelBrokeOff)


@pytest.mark.parametrize(("after", "text"), [(None, ""), (0, ""), (1, "a ")])
async def test_silence_ends_in_a_timeout(after: int | None, text: str) -> None:
    async with scripted(Reply(["a ", "b "], token_delay=0.001, fault=Hang(after)), idle=0.2) as (chat, server):
        taken = await take(chat)
        await server.until_hangups(1)
    assert isinstance(taken.error, ModelTimedOut)
    assert (taken.error.phase, taken.text) == ("idle", text)


async def test_broken_http_within_an_answer_ends_it() -> None:
    event = b"data: " + chunk({"content": "Hi"}) + b"\n\n"
    first_read = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(event), event))
        await first_read.wait()
        writer.write(b"this is no chunk\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with chat_at(f"http://127.0.0.1:{port}/v1", idle=0.3) as chat:
            with pytest.raises(ModelError) as caught:
                async for _ in chat.stream_turn(ASK):
                    first_read.set()
    assert caught.value.retryable


async def test_a_connection_that_is_never_accepted_ends_in_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]  # the queue of the listener holds one or two
        for other in waiting:
            other.setblocking(False)
            other.connect_ex(address)
        async with chat_at(f"http://127.0.0.1:{address[1]}/v1", connect=0.2) as chat:
            error = (await take(chat)).error
        for other in waiting:
            other.close()
    assert isinstance(error, ModelTimedOut)
    assert error.phase == "connect"


async def test_a_port_where_nobody_listens_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    async with chat_at(f"http://127.0.0.1:{port}/v1", retries=1) as chat:
        error = (await take(chat)).error
    assert isinstance(error, ModelUnreachable)
    assert f"http://127.0.0.1:{port}" in error.message
    assert any("OPENAI_BASE_URL" in suggestion for suggestion in error.suggestions)


async def test_https_where_http_is_spoken_is_unreachable_and_not_tried_again() -> None:
    async with (
        scripted(Reply(["Hi"])) as (_, server),
        chat_at(server.url.replace("http:", "https:"), retries=3) as chat,
    ):
        error = (await take(chat)).error
    assert isinstance(error, ModelUnreachable)
    assert (error.retryable, server.accepted) == (False, 1)


@pytest.mark.parametrize(
    ("status", "setting"),
    [
        (400, "LLM_MODEL"),
        (401, "OPENAI_API_KEY"),
        (402, "OPENAI_API_KEY"),
        (403, "OPENAI_API_KEY"),
        (404, "LLM_MODEL"),
        (404, "OPENAI_BASE_URL"),
        (405, "OPENAI_BASE_URL"),
        (413, "LLM_MODEL"),
        (422, "LLM_MODEL"),
        (308, "OPENAI_BASE_URL"),
    ],
)
async def test_a_refusal_names_the_setting_that_helps_and_is_final(status: int, setting: str) -> None:
    reply = Reply(fault=HttpError(status, {"error": {"message": "no such luck"}}, {"Location": "http://127.0.0.1:9/"}))
    async with scripted(reply, retries=3) as (chat, server):
        error = (await take(chat)).error
    assert isinstance(error, ModelRefused)
    assert (error.status, error.retryable, len(server.requests)) == (status, False, 1)
    assert any(setting in suggestion for suggestion in error.suggestions)


@pytest.mark.parametrize(
    "leak", [KEY, "sk-proj-Ab12Cd34Ef56Gh78", "Bearer abc.def", "sk-li****7d1e", "x" * 30 + "9a" * 8]
)
async def test_no_key_and_no_long_text_of_the_endpoint_is_shown(leak: str) -> None:
    text = f"Incorrect API key provided: {leak}. " + "You can find it elsewhere. " * 50
    error = await failure(Reply(fault=HttpError(401, {"error": {"message": text}})))
    shown = " ".join((str(error), repr(error), *error.suggestions))
    assert "Incorrect API key provided: [redacted]" in shown
    assert leak not in shown
    assert len(error.message) < 350
    assert error.__cause__ is None


async def test_an_excerpt_keeps_the_name_of_the_model() -> None:
    text = "The model `claude-3-5-sonnet-20241022` does not exist; did you mean gpt-4o-mini?"
    assert text in (await failure(Reply(fault=HttpError(404, {"error": {"message": text}})))).message


async def test_a_rate_limit_is_waited_for_as_asked() -> None:
    limited = Reply(fault=HttpError(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.05"}))
    async with scripted(limited, Reply(["Hi"]), retries=1) as (chat, _):
        started = asyncio.get_running_loop().time()
        assert (await take(chat)).text == "Hi"
        assert asyncio.get_running_loop().time() - started >= 0.05


@pytest.mark.parametrize("wait", ["3600", "Fri, 31 Dec 2100 23:59:59 GMT"])
async def test_a_rate_limit_that_asks_for_too_long_is_reported_at_once(wait: str) -> None:
    reply = Reply(fault=HttpError(429, {"error": {"message": "slow down"}}, {"Retry-After": wait}))
    async with scripted(reply, retries=5) as (chat, server):
        error = (await take(chat)).error
    assert isinstance(error, ModelRateLimited)
    assert error.retry_after is not None
    assert (error.retry_after >= 3600, error.retryable, len(server.requests)) == (True, True, 1)


async def test_a_spent_quota_is_no_rate_limit() -> None:
    error = await failure(Reply(fault=HttpError(429, {"error": {"message": "pay", "code": "insufficient_quota"}})))
    assert isinstance(error, ModelRefused)


@pytest.mark.parametrize("status", [500, 502, 503, 529, 408])
async def test_a_failing_endpoint_is_tried_as_often_as_configured(status: int) -> None:
    async with scripted(Reply(fault=HttpError(status, b"<html>Bad gateway</html>")), retries=2) as (chat, server):
        error = (await take(chat)).error
    assert isinstance(error, ModelOverloaded)
    assert (error.status, error.retryable, len(server.requests)) == (status, True, 3)
    assert "html" not in error.message


@pytest.mark.parametrize(
    "fault",
    [
        Raw([b"<!DOCTYPE html>\n<p>Welcome</p>\n"], "text/html"),
        Raw([b"<p>Welcome</p>"], "text/html"),
        Raw([b"\x00\xff\xfe\x80" * 50]),
        Raw([b'{"object": "list", "data": []}'], "application/json"),
        Raw([b'{"choices": [{"message": '], "application/json"),
        Raw([b'{"choices": {"a": 1}}'], "application/json"),
        Raw([b"data: {oops}\n\n"]),
        Raw([b'data: {"choices": [7]}\n\n']),
        Raw([b'data: {"choices": [{"delta": {"content": 7}}]}\n\n']),
        Raw([b'data: {"choices": [{"delta": {"tool_calls": [7]}}]}\n\n']),
        Raw([b"data: \xff\xff{}\n\n"]),
        Raw([b'data: {"type": "ping"}\n\ndata: [DONE]\n\n']),
        Raw([b"data: [DONE]\n\n"]),
        Raw([b"data: " + b"x" * 300_000] + [b"x" * 300_000] * 4, stay=True),
        Raw([b"data: " + b"x" * 60_000 + b"\n"] * (MAX_LINE // 60_000 + 1), stay=True),
        NotHttp(b"SSH-2.0-OpenSSH_9.6\r\n"),
    ],
)
async def test_garbage_is_called_garbage_and_not_tried_again(fault: Raw | NotHttp) -> None:
    async with scripted(Reply(fault=fault), retries=3) as (chat, server):
        error = (await take(chat)).error
    assert isinstance(error, ModelGarbled)
    assert (error.retryable, len(server.requests)) == (False, 1)
    assert any("OPENAI_BASE_URL" in suggestion for suggestion in error.suggestions)


async def test_garbage_after_text_does_not_take_the_text_back() -> None:
    async with scripted(Reply(fault=Raw([b"data: " + chunk({"content": "Hi"}) + b"\n\n<html>\n"]))) as (chat, _):
        taken = await take(chat)
    assert (taken.text, type(taken.error)) == ("Hi", ModelGarbled)


@pytest.mark.parametrize(
    ("reported", "kind"),
    [
        ({"message": "slow down", "type": "rate_limit_error"}, ModelRateLimited),
        ({"message": "busy", "code": 503}, ModelOverloaded),
        ({"message": "too long", "code": "context_length_exceeded"}, ModelRefused),
        ({"message": "bad key", "code": "401"}, ModelRefused),
        ("something broke", ModelOverloaded),
    ],
)
async def test_an_error_within_the_stream_is_told_apart(reported: object, kind: type[ModelError]) -> None:
    events = [chunk({"content": "Hi"}), json.dumps({"error": reported}).encode()]
    async with scripted(raw(*events), retries=3) as (chat, server):
        taken = await take(chat)
    assert (taken.text, type(taken.error), len(server.requests)) == ("Hi", kind, 1)


async def test_an_error_in_the_first_event_is_tried_again() -> None:
    busy = raw(chunk({"role": "assistant", "content": ""}), b'{"error": {"message": "busy", "code": 503}}')
    async with scripted(busy, Reply(["Hi"]), retries=1) as (chat, _):
        assert (await take(chat)).text == "Hi"


# leaving early


async def test_cancelling_closes_the_connection() -> None:
    async with scripted(Reply(["a "], fault=Hang(1)), idle=60) as (chat, server):
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in chat.stream_turn(ASK):
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        async with asyncio.timeout(5):
            await server.until_hangups(1)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_leaving_the_loop_closes_the_connection() -> None:
    async with scripted(Reply(["a "], fault=Hang(1)), idle=60) as (chat, server):
        async with aclosing(chat.stream_turn(ASK)) as pieces:
            async for _ in pieces:
                break
        async with asyncio.timeout(5):
            await server.until_hangups(1)
