"""The rehearsal model: its server as clients of OpenAI see it, its brain, and the program."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import aiohttp
import openai
import pytest

from cli.rehearsal import BreakOff, ChatRequest, ModelServer, RehearsalBrain, Reply, ToolCall
from cli.rehearsal.brain import WHO, split
from cli.rehearsal.embeddings import embed
from cli.rehearsal.protocol import read_request

ASK: Any = [{"role": "user", "content": "Hello"}]
TOKENS = [f"token{i} " for i in range(700)]
PYTHON = {"type": "function", "function": {"name": "python", "parameters": {"type": "object"}}}
REMEMBER = {"type": "function", "function": {"name": "remember", "parameters": {"type": "object"}}}
RECALL = {"type": "function", "function": {"name": "recall", "parameters": {"type": "object"}}}
FETCH = {"type": "function", "function": {"name": "http_fetch", "parameters": {"type": "object"}}}


def delegate_to(*agents: str) -> dict[str, Any]:
    properties = {"agent": {"type": "string", "enum": list(agents)}, "task": {"type": "string"}}
    return {"type": "function", "function": {"name": "delegate", "parameters": {"properties": properties}}}


# the server


def brain(request: ChatRequest) -> Reply:
    match request.model:
        case "tools":
            return Reply(tool_calls=[ToolCall("a", {"x": 1}), ToolCall("b", "{oops")])
        case "slow":
            return Reply(["a", "b", "c"], first_delay=0.01, token_delay=0.01)
        case "breaks-off":
            return Reply(["a", "b"], fault=BreakOff(1))
        case "fails":
            raise RuntimeError("no idea")
        case _:
            return Reply(TOKENS, reasoning=["well"])


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer(brain) as server:
        yield server


@pytest.fixture
async def client(server: ModelServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=server.url, api_key="sk-x", max_retries=0) as client:
        yield client


async def test_a_streamed_answer_has_a_chunk_for_each_token(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="m", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert texts == TOKENS
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.completion_tokens, chunks[-1].choices) == (len(TOKENS) + 1, [])


async def test_usage_is_streamed_only_when_it_is_asked_for(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="m", messages=ASK, stream=True)
    assert [chunk.usage async for chunk in stream if chunk.usage] == []


async def test_a_whole_answer_has_the_same_content(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="m", messages=ASK)
    assert answer.choices[0].message.content == "".join(TOKENS)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(TOKENS) + 1


@pytest.mark.parametrize("stream", [True, False])
async def test_tool_calls_arrive_as_they_were_scripted(client: openai.AsyncOpenAI, stream: bool) -> None:
    arguments = {0: "", 1: ""}
    if stream:
        chunks = await client.chat.completions.create(model="tools", messages=ASK, stream=True)
        async for chunk in chunks:
            for piece in chunk.choices[0].delta.tool_calls or ():
                assert piece.function is not None
                arguments[piece.index] += piece.function.arguments or ""
            reason = chunk.choices[0].finish_reason
    else:
        answer = await client.chat.completions.create(model="tools", messages=ASK)
        for index, call in enumerate(answer.choices[0].message.tool_calls or ()):
            assert call.type == "function"
            arguments[index] = call.function.arguments
        reason = answer.choices[0].finish_reason
    assert (json.loads(arguments[0]), arguments[1], reason) == ({"x": 1}, "{oops", "tool_calls")


async def test_delays_are_kept(client: openai.AsyncOpenAI) -> None:
    started = asyncio.get_running_loop().time()
    stream = await client.chat.completions.create(model="slow", messages=ASK, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "abc"
    assert asyncio.get_running_loop().time() - started >= 0.03


async def test_an_answer_can_break_off(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="breaks-off", messages=ASK, stream=True)
    text = ""
    with pytest.raises(openai.APIError):
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert text == "a"


async def test_embeddings_are_deterministic_and_near_for_related_texts(client: openai.AsyncOpenAI) -> None:
    texts = ["the depot is far away", "far away depots", "green tea"]
    answer = await client.embeddings.create(model="any", input=texts)
    far, depots, tea = (entry.embedding for entry in answer.data)
    assert far == pytest.approx(embed(texts[0]), abs=1e-6)
    assert math.hypot(*far) == pytest.approx(1)
    assert _dot(far, depots) > _dot(far, tea)
    floats = await client.embeddings.create(model="any", input="深圳", encoding_format="float", dimensions=8)
    assert len(floats.data[0].embedding) == 8


async def test_there_is_one_model(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["rehearsal"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/chat/completions", b"{", 400),
        ("/chat/completions", b"[]", 400),
        ("/chat/completions", b'{"model": "m", "messages": []}', 400),
        ("/chat/completions", b'{"model": 7, "messages": [{}]}', 400),
        ("/chat/completions", b'{"model": "fails", "messages": [{}]}', 500),
        ("/embeddings", b'{"input": 7}', 400),
        ("/embeddings", b'{"input": "x", "dimensions": 0}', 400),
        ("/nothing", b"{}", 404),
    ],
)
async def test_a_bad_request_gets_an_error_object(server: ModelServer, path: str, body: bytes, status: int) -> None:
    async with aiohttp.ClientSession() as session, session.post(server.url + path, data=body) as answer:
        assert (answer.status, bool((await answer.json())["error"]["message"])) == (status, True)


async def test_what_is_not_http_is_refused_and_the_server_lives_on(
    server: ModelServer, client: openai.AsyncOpenAI
) -> None:
    port = int(server.url.split(":")[2].removesuffix("/v1"))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"\x16\x03\x01\x02\x00\x01garbage\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 400")
    writer.close()
    assert (await client.chat.completions.create(model="m", messages=ASK)).choices


async def test_requests_on_one_connection_are_answered_in_order(server: ModelServer) -> None:
    port = int(server.url.split(":")[2].removesuffix("/v1"))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for path, end in (("models", ""), ("nothing", "connection: close\r\n")):
        writer.write(f"GET /v1/{path} HTTP/1.1\r\nhost: x\r\n{end}\r\n".encode())
    answers = (await reader.read()).decode()
    writer.close()
    assert re.findall(r"HTTP/1.1 (\d+)", answers) == ["200", "404"]
    assert [received.path for received in server.requests] == ["/v1/models", "/v1/nothing"]


# the brain


def converse(
    question: str,
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    facts: Sequence[str] = (),
    results: Mapping[str, Callable[[Mapping[str, Any]], str]] | None = None,
) -> tuple[list[list[ToolCall]], str]:
    """The rounds of tool calls that the brain asks for, and the answer after them."""
    recalled = "\n\nRecalled memory:\n" + "\n".join(f"- {fact}" for fact in facts) if facts else ""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": f"You help.{recalled}"},
        {"role": "user", "content": question},
    ]
    rounds: list[list[ToolCall]] = []
    while len(rounds) < 5:
        reply = RehearsalBrain()(read_request({"model": "m", "messages": messages, "tools": list(tools)}))
        if not reply.tool_calls:
            return rounds, "".join(reply.tokens)
        rounds.append(list(reply.tool_calls))
        made = [(f"call_{len(rounds)}_{i}", call) for i, call in enumerate(reply.tool_calls)]
        functions = [{"id": i, "function": {"name": c.name, "arguments": json.dumps(c.arguments)}} for i, c in made]
        messages.append({"role": "assistant", "content": None, "tool_calls": functions})
        for id_, call in made:
            assert isinstance(call.arguments, Mapping)
            result = (results or {}).get(call.name)
            text = result(call.arguments) if result else "done"
            messages.append({"role": "tool", "tool_call_id": id_, "content": text})
    raise AssertionError("the brain never came to an answer")


def run_python(arguments: Mapping[str, Any]) -> str:
    """What a sandbox would say: the value of the last line."""
    *lines, last = str(arguments["code"]).splitlines()
    names: dict[str, Any] = {"print": lambda _: None}
    exec("\n".join(lines), names)
    return json.dumps({"result": eval(last, names)})


def ask_agent(*tools: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], str]:
    return lambda arguments: converse(arguments["task"], tools, results={"python": run_python})[1]


def test_memory_a_computation_and_an_expert_are_woven_into_one_answer() -> None:
    rounds, answer = converse(
        "How many hours does a courier need to reach the depot Meridian at 5500 km/h? "
        "Compute it, and ask the researcher what to pack.",
        [PYTHON, delegate_to("critic", "researcher")],
        facts=["The supply depot Meridian is 384400 km away.", "The cafeteria closes at 6."],
        results={"python": run_python, "delegate": ask_agent()},
    )
    [[python, delegate]] = rounds
    assert "384400 / 5500" in str(python.arguments)
    assert isinstance(delegate.arguments, Mapping)
    assert delegate.arguments["agent"] == "researcher"
    assert "what to pack" in delegate.arguments["task"].lower()
    assert WHO in answer
    assert "69.89 hours" in answer
    assert "The supply depot Meridian is 384400 km away." in answer
    assert "The researcher says: Pack water" in answer


def test_a_checker_computes_for_itself_with_the_numbers_it_was_given() -> None:
    rounds, answer = converse(
        "How many days does the Bergen warehouse need to ship 12500 parcels? "
        "Compute it with Python, and have the checker confirm it.",
        [PYTHON, REMEMBER, RECALL, delegate_to("checker")],
        facts=["the warehouse in Bergen ships at most 340 parcels a day."],
        results={"python": run_python, "delegate": ask_agent(PYTHON)},
    )
    assert [[call.name for call in calls] for calls in rounds] == [["python", "delegate"]]
    assert answer.count("36.76 days") == 2


def test_a_missing_number_is_looked_for_in_memory_first() -> None:
    rounds, answer = converse(
        "How long does the Bergen warehouse need to ship 680 parcels?",
        [PYTHON, RECALL],
        results={"python": run_python, "recall": lambda _: "- Bergen ships 340 parcels a day."},
    )
    assert [[call.name for call in calls] for calls in rounds] == [["recall"], ["python"]]
    assert "2 days" in answer


def test_it_remembers_once() -> None:
    rounds, answer = converse("Remember: tea is at four.", [REMEMBER, PYTHON])
    assert rounds == [[ToolCall("remember", {"text": "tea is at four."})]]
    assert "tea is at four." in answer


@pytest.mark.parametrize(
    ("question", "number"),
    [
        ("What is (17 + 4) * 3?", "63"),
        ("Compute 2^10 - 1", "1023"),
        ("12,500 / 340", None),
        ("How long for 300 km at 60 km/h?", "5 hours"),
        ("How many minutes for 90 pages at 30 pages per hour?", "180 minutes"),
        ("共384400公里，每小时5500公里，需要多少小时？", "69.89"),
        ("Released on 2024-01-05, call 555-1234.", None),
        ("9 + " * 3000 + "9 =", None),
    ],
)
def test_arithmetic_goes_to_python(question: str, number: str | None) -> None:
    rounds, answer = converse(question, [PYTHON], results={"python": run_python})
    if number is None:
        return
    assert [call.name for calls in rounds for call in calls] == ["python"]
    assert number in answer


def test_a_failing_tool_is_reported_and_not_called_again() -> None:
    rounds, answer = converse("Compute 6 * 7", [PYTHON], results={"python": lambda _: "error: line 1 broke"})
    assert len(rounds) == 1
    assert "line 1 broke" in answer


def test_an_address_is_fetched() -> None:
    rounds, _ = converse("Please read https://example.com/a?b=c, and tell me.", [FETCH])
    assert rounds == [[ToolCall("http_fetch", {"url": "https://example.com/a?b=c"})]]


def test_without_tools_it_calls_none() -> None:
    rounds, answer = converse("Remember: compute 6 * 7, and ask the researcher.")
    assert rounds == []
    assert WHO in answer


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "text", "text": "你好，世界"}, {"type": "image_url"}]}],
        [{"role": "assistant", "content": "Hi", "tool_calls": None}],
        [{"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": "unknown", "content": "{}"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [{"id": 7, "function": None}]}],
        [{}],
    ],
)
def test_odd_conversations_get_an_answer(messages: list[dict[str, Any]]) -> None:
    reply = RehearsalBrain()(read_request({"model": "m", "messages": messages, "tools": [PYTHON]}))
    assert WHO in "".join(reply.tokens)


@pytest.mark.parametrize("text", ["", "  two  words\n", "你好，世界 hello", "  ", "a\u3000b。\n\nc "])
def test_tokens_join_to_the_text(text: str) -> None:
    assert "".join(split(text)) == text


# the program


async def start(*arguments: str, **options: Any) -> tuple[asyncio.subprocess.Process, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, **options
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        return process, json.loads(await process.stdout.readline())["url"]


async def test_the_program_serves_until_sigterm() -> None:
    process, url = await start("-m", "cli.rehearsal")
    async with openai.AsyncOpenAI(base_url=url, api_key="sk-x") as client:
        answer = await client.chat.completions.create(model="rehearsal", messages=ASK)
    assert WHO in (answer.choices[0].message.content or "")
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        assert await process.wait() == 0


async def test_the_program_ends_when_its_parent_is_gone() -> None:
    parent = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-m', 'cli.rehearsal'], stdin=-3); sys.stdin.read()"
    )
    process, _ = await start("-c", parent, stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    async with asyncio.timeout(15):
        await process.wait()
        assert await process.stdout.read() == b"", "the pipe ends when the orphan has ended"


async def test_a_taken_port_is_said_plainly(server: ModelServer) -> None:
    port = server.url.split(":")[2].removesuffix("/v1")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli.rehearsal", "--port", port, stderr=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert f"port {port}" in errors.decode()
    assert "Traceback" not in errors.decode()


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
