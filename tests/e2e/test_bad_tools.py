"""Tools that hang, flood, break off, answer in bytes or are called wrongly: the model is told, and the run goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from aiohttp import web

from cli.rehearsal import ChatRequest, Reply, ToolCall
from tests.conftest import MakeStack
from tests.e2e.caller import Caller, calling
from tests.e2e.conftest import new_key
from tests.history import History, assert_history
from tests.orchestrator.defined import serving
from tests.scripts import ScriptedModel, said
from tests.stack import Stack

PARALLEL = 50


class BadServer:
    """Behaves as badly as its path says."""

    def __init__(self) -> None:
        self.address = ""
        self.end = asyncio.Event()
        self.together = asyncio.Barrier(PARALLEL)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        match request.path:
            case "/hang":
                await self.end.wait()
            case "/drip":
                response = web.StreamResponse()
                await response.prepare(request)
                while not self.end.is_set():
                    await response.write(b"x")
                    await asyncio.sleep(0.05)
                return response
            case "/flood":
                response = web.StreamResponse(headers={"Content-Type": "application/json"})
                await response.prepare(request)
                for _ in range(1_600):
                    await response.write(b'"' + b"x" * 65_536)
                return response
            case "/binary":
                return web.Response(body=bytes(range(256)) * 4_000, content_type="application/pdf")
            case "/nul":
                return web.Response(text="a\x00b\ud7ff", content_type="text/plain")
            case "/break":
                assert request.transport is not None
                request.transport.abort()
            case "/garbage":
                assert request.transport is not None
                request.transport.write(b"\x00\xff garbage \r\n\r\n" * 100)
                request.transport.close()
            case "/loop":
                raise web.HTTPFound("/loop")
            case "/deep":
                return web.Response(text="[" * 100_000, content_type="application/json")
            case "/meet":
                async with asyncio.timeout(20):
                    await self.together.wait()
                return web.json_response({"met": True})
        return web.json_response({})


BAD = {
    "hang": ("error", "within 0.3 s"),
    "drip": ("error", "within 0.3 s"),
    "flood": ("ok", "cut: the body is longer than"),
    "binary": ("ok", "binary content of"),
    "nul": ("ok", "a\ufffdb"),
    "break": ("error", "broke off the connection"),
    "garbage": ("error", "did not answer in HTTP"),
    "loop": ("error", "more than 5 redirects"),
    "deep": ("ok", "[[[["),
}


@pytest.fixture(scope="module")
async def bad() -> AsyncIterator[BadServer]:
    bad = BadServer()
    async with serving(bad.answer) as port:
        bad.address = f"127.0.0.1:{port}"
        yield bad
        bad.end.set()


@pytest.fixture(scope="module")
async def reaching(make_stack: MakeStack, bad: BadServer) -> AsyncIterator[Stack]:
    stack = await make_stack(LONGHAUL_EGRESS_ALLOW=bad.address)
    yield stack
    await stack.stop()


@pytest.fixture
async def caller(reaching: Stack) -> AsyncIterator[Caller]:
    async with calling(reaching.url, await new_key(reaching)) as caller:
        yield caller


def tool(bad: BadServer, path: str, method: str = "GET", **more: Any) -> dict[str, Any]:
    execution = {"url": f"http://{bad.address}/{path}", "method": method, "timeout": 0.3}
    return {"type": "http", "name": path, "description": path, "execution_config": execution, "retries": 0, **more}


async def history_of(stack: Stack, run: dict[str, Any]) -> History:
    assert run["status"] == "succeeded", run
    return await assert_history(stack.database, run["id"])


async def test_however_badly_a_server_behaves_the_model_is_told_and_the_run_goes_on(
    reaching: Stack, caller: Caller, model: ScriptedModel, bad: BadServer
) -> None:
    script = model.script(Reply(tool_calls=[ToolCall(path, {}) for path in BAD]), said("I saw it all"))
    agent = await caller.agent(model=script, tools=[tool(bad, path) for path in BAD])
    run = await caller.run(agent_id=agent)
    history = await history_of(reaching, run)
    assert run["answer"] == "I saw it all"
    for event in history.of("tool_result"):
        status, words = BAD[event.data["name"]]
        assert (event.data["name"], event.data["status"]) == (event.data["name"], status)
        assert words in event.data["result"], event.data["name"]
        assert len(event.data["result"].encode()) <= 65_536
    assert [program.alive for program in reaching.programs] == [True, True]


async def test_a_call_that_changes_something_and_is_not_answered_has_an_unknown_outcome(
    reaching: Stack, caller: Caller, model: ScriptedModel, bad: BadServer
) -> None:
    script = model.script(Reply(tool_calls=[ToolCall("hang", {}), ToolCall("break", {})]), said("I will find out"))
    agent = await caller.agent(model=script, tools=[tool(bad, "hang", "POST"), tool(bad, "break", "POST", retries=3)])
    history = await history_of(reaching, await caller.run(agent_id=agent))
    assert [event.data["status"] for event in history.of("tool_result")] == ["unknown", "unknown"]


async def test_a_wrong_call_is_corrected_by_the_model(
    reaching: Stack, caller: Caller, model: ScriptedModel, bad: BadServer
) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}

    def corrected(request: ChatRequest) -> Reply:
        told = [message["content"] for message in request.messages if message["role"] == "tool"]
        assert all("call again" in str(text) for text in told)
        return Reply(tool_calls=[ToolCall("fine", {"n": 1})])

    script = model.script(
        Reply(tool_calls=[ToolCall("fine", {"n": 0}), ToolCall("fine", {}), ToolCall("fine", {"n": 1, "m": [None]})]),
        corrected,
        said("now it is right"),
    )
    strict = {**schema, "additionalProperties": False}
    agent = await caller.agent(model=script, tools=[tool(bad, "fine", parameter_schema=strict)])
    history = await history_of(reaching, await caller.run(agent_id=agent))
    assert [event.data["status"] for event in history.of("tool_result")] == ["error", "error", "error", "ok"]


async def test_fifty_calls_of_one_answer_are_made_side_by_side(
    reaching: Stack, caller: Caller, model: ScriptedModel, bad: BadServer
) -> None:
    script = model.script(Reply(tool_calls=[ToolCall("meet", {"n": n}) for n in range(PARALLEL)]), said("all met"))
    meeting = tool(bad, "meet", parameter_schema={"type": "object", "properties": {"n": {}}})
    meeting["execution_config"]["timeout"] = 20
    agent = await caller.agent(model=script, tools=[meeting], limits={"max_tool_calls": 60})
    began = time.perf_counter()
    history = await history_of(reaching, await caller.run(agent_id=agent))
    assert time.perf_counter() - began < 20
    assert [event.data["status"] for event in history.of("tool_result")] == ["ok"] * PARALLEL


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"url": "ftp://host/"}, "url"),
        ({"url": "http://{n}/"}, "url"),
        ({"url": "http://host/{missing}"}, ""),
        ({"method": "TRACE"}, "method"),
        ({"headers": {"Host": "evil"}}, "headers"),
        ({"headers": {"X": "a\nb"}}, "headers"),
        ({"timeout": 0}, "timeout"),
        ({"auth_config": {"source": "no name"}}, "source"),
        ({"auth_config": {"source": "a", "target": "Content-Length"}}, "target"),
    ],
)
async def test_a_definition_that_can_not_work_is_refused_with_the_agent(
    caller: Caller, change: dict[str, Any], field: str
) -> None:
    execution = {"url": "http://host/", **change}
    definition = {"type": "http", "name": "x", "description": "x", "execution_config": execution}
    refused = await caller.post("/v1/agents", {"name": "bad", "tools": [definition]}, expect=422)
    [error] = orjson.loads(refused.body)["errors"]
    assert field in error["field"]
