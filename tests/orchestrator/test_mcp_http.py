"""MCP over HTTP meets the rules of egress, and servers that answer anything but MCP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from kernel.mcp_servers import McpEndpoint
from kernel.tool_definitions import McpServer
from orchestrator.kit import KitScope
from orchestrator.mcp.connections import McpConnections
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.tool import NoSecrets, Vault
from tests.mcp_servers.running import http_offer
from tests.orchestrator.test_egress import serving
from tests.orchestrator.test_mcp import Client, connections

SECRET = "hush-this-is-the-secret"

Answers = Callable[[web.Request, Any], Awaitable[web.StreamResponse]]


class SecretVault(NoSecrets):
    """Holds one secret."""

    async def reveal(self, name: str) -> str:
        if name != "crm_key":
            raise ToolFailure(f"There is no secret named {name!r}.", reached=False)
        return SECRET

    def redact(self, text: str, *, cut: bool = False) -> str:
        return text.replace(SECRET, "[secret]")


async def tools(connections: McpConnections, definition: McpServer, vault: Vault) -> list[str]:
    return [tool.name for tool in await connections.make(definition, KitScope("org_a", "ses", "run", vault))]


@asynccontextmanager
async def answering(answers: Answers, **fields: Any) -> AsyncIterator[Client]:
    """A client of a server of the newer protocol with one tool, `go`, whose calls get what `answers` gives."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.method != "POST":
            return web.Response(status=405)
        asked = await request.json()
        match asked["method"]:
            case "server/discover":
                found: dict[str, Any] = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
            case "tools/list":
                found = {"tools": [{"name": "go", "inputSchema": {"type": "object"}}]}
            case _:
                return await answers(request, asked)
        return web.json_response(reply(asked, {"resultType": "complete", "ttlMs": 0, "cacheScope": "public", **found}))

    async with serving(handle) as port, connections(allow=[f"127.0.0.1:{port}"]) as held:
        yield Client(held, McpServer(type="mcp", name="srv", url=f"http://127.0.0.1:{port}/mcp", **fields))


def reply(asked: Any, result: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": asked["id"], "result": result}


def text(words: str) -> dict[str, Any]:
    return {"resultType": "complete", "content": [{"type": "text", "text": words}]}


async def outcome(answers: Answers, **fields: Any) -> tuple[str, str]:
    """How a call ends that is answered so."""
    async with answering(answers, **fields) as client:
        assert await client.names() == ["srv_go"]
        ended = await client.call("go")
        return ended.status, ended.result


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/mcp",
        "http://localhost:1/mcp",
        "http://169.254.169.254/mcp",
        "http://2130706433/mcp",
        "http://[::1]/mcp",
    ],
)
async def test_a_private_address_is_refused(url: str) -> None:
    async with connections() as held:
        client = Client(held, McpServer(type="mcp", name="inside", url=url))
        assert await client.names() == ["inside_unavailable"]
        assert "private or special address" in (await client.call("unavailable")).result


async def test_a_name_is_resolved_once_and_its_address_judged(tmp_path: Path) -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"]

    async with http_offer(tmp_path / "diary") as server:
        url = f"http://mcp.example:{server.port}/mcp"
        definition = McpServer(type="mcp", name="named", url=url)
        async with connections(resolve=resolve) as held:
            assert await Client(held, definition).names() == ["named_unavailable"]
        assert asked == ["mcp.example"]
        async with connections(allow=[f"mcp.example:{server.port}"], resolve=resolve) as held:
            # The address was let through, and the server itself does not know itself by this name.
            said = (await Client(held, definition).call("unavailable")).result
            assert "HTTP 421" in said


async def test_a_redirect_to_elsewhere_is_not_followed() -> None:
    reached: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        reached.append(request.path)
        return web.Response()

    async with serving(elsewhere) as other:

        async def redirect(request: web.Request, asked: Any) -> web.Response:
            return web.Response(status=307, headers={"Location": f"http://127.0.0.1:{other}/stolen"})

        status, said = await outcome(redirect)
    assert status == "error"
    assert "not followed" in said
    assert reached == []


async def test_a_secret_reaches_the_server_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    async with http_offer(tmp_path / "diary") as server, connections(allow=[f"127.0.0.1:{server.port}"]) as held:
        auth = {"source": "crm_key", "target": "X-Api-Key", "prefix": "Key "}
        definition = McpServer.model_validate(
            {"type": "mcp", "name": "crm", "url": server.url, "auth_config": auth, "tools": ["headers", "fail"]}
        )
        (fail, headers) = await held.make(definition, KitScope("org_a", "ses", "run", SecretVault()))
        context: Any = _Context()
        seen: Any = await headers.run({}, context)
        assert seen["x-api-key"] == f"Key {SECRET}"
        assert seen["idempotency-key"] == "run:step:call"
        with pytest.raises(ToolFailure) as failed:
            await fail.run({}, context)
        server.kill()
        await server.process.wait()
        with pytest.raises(ToolFailure) as broken:
            await fail.run({}, context)
    said = [caplog.text, *capfd.readouterr(), str(failed.value), str(broken.value), repr(held.__dict__), repr(headers)]
    assert SECRET not in "".join(said)


class _Context:
    idempotency_key = "run:step:call"


async def test_a_tool_whose_description_holds_the_credential_is_left_out() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        found: dict[str, Any] = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
        if asked["method"] == "tools/list":
            told = {"name": "told", "description": request.headers["Authorization"], "inputSchema": {"type": "object"}}
            found = {"tools": [told, {"name": "fine", "inputSchema": {"type": "object"}}]}
        return web.json_response(reply(asked, {"resultType": "complete", "ttlMs": 0, "cacheScope": "public", **found}))

    async with serving(handle) as port, connections(allow=[f"127.0.0.1:{port}"]) as held:
        definition = McpServer.model_validate(
            {"type": "mcp", "name": "srv", "url": f"http://127.0.0.1:{port}", "auth_config": {"source": "crm_key"}}
        )
        assert await tools(held, definition, SecretVault()) == ["srv_fine"]


async def test_orgs_and_credentials_have_sessions_of_their_own(tmp_path: Path) -> None:
    async with http_offer(tmp_path / "diary") as server, connections(allow=[f"127.0.0.1:{server.port}"]) as held:
        plain = McpServer(type="mcp", name="crm", url=server.url, tools=["add"])
        keyed = plain.model_copy(
            update={
                "auth_config": McpServer.model_validate(
                    {"type": "mcp", "name": "x", "url": "http://x.example", "auth_config": {"source": "crm_key"}}
                ).auth_config
            }
        )
        assert await tools(held, plain, SecretVault()) == ["crm_add"]
        assert await tools(held, keyed, SecretVault()) == ["crm_add"]
        assert held.open == 2


async def test_a_secret_that_is_not_there_leaves_a_tool_that_says_so() -> None:
    definition = McpServer.model_validate(
        {"type": "mcp", "name": "crm", "url": "http://x.example", "auth_config": {"source": "nope"}}
    )
    async with connections() as held:
        (tool,) = await held.make(definition, KitScope("org_a", "ses", "run", SecretVault()))
        assert "no secret named 'nope'" in tool.description


async def test_a_server_of_the_operator_may_be_private_and_gets_his_headers(tmp_path: Path) -> None:
    async with http_offer(tmp_path / "diary") as server:
        endpoint = McpEndpoint.model_validate({"url": server.url, "headers": {"X-Team": "ours"}})
        async with McpHeld(endpoint) as held:
            client = Client(held, McpServer(type="mcp", name="own", server="own"))
            assert orjson.loads((await client.call("headers")).result)["x-team"] == "ours"


@asynccontextmanager
async def McpHeld(endpoint: McpEndpoint) -> AsyncIterator[McpConnections]:
    held = McpConnections({"own": endpoint})
    try:
        yield held
    finally:
        await held.aclose()


async def test_json_without_an_end_is_cut_off() -> None:
    async def flood(request: web.Request, asked: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"jsonrpc":"2.0","id":1,"result":"')
        while True:
            await response.write(b"x" * 1_000_000)

    status, said = await outcome(flood)
    assert status == "unknown"
    assert "more than 8 MiB" in said


async def test_events_without_an_end_are_cut_off() -> None:
    async def flood(request: web.Request, asked: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        note = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x" * 10_000}}
        while True:
            await response.write(b"event: message\ndata: " + orjson.dumps(note) + b"\n\n")

    status, said = await outcome(flood)
    assert status == "unknown"
    assert "more than 8 MiB" in said


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"{oh no", "application/json", "no answer in JSON-RPC"),
        (b"[1, 2]", "application/json", "no answer in JSON-RPC"),
        (b'{"jsonrpc": "2.0", "id": "another", "result": {}}', "application/json", "no answer in JSON-RPC"),
        (b"<html>", "text/html", "sent text/html"),
        (bytes(range(256)), "application/octet-stream", "sent application/octet-stream"),
        (b"", "", "not an answer to the call"),
        (b"event: message\ndata: {oh no\n\n", "text/event-stream", "not valid JSON"),
        (b"event: message\n", "text/event-stream", "broke off during the call"),
    ],
)
async def test_an_answer_that_is_none_is_a_clear_error(body: bytes, kind: str, words: str) -> None:
    async def answer(request: web.Request, asked: Any) -> web.Response:
        return web.Response(body=body, headers={"Content-Type": kind} if kind else {})

    status, said = await outcome(answer)
    assert status == "unknown"  # for all that anybody knows it was done
    assert words in said


@pytest.mark.parametrize(
    ("status", "ends", "words"),
    [(401, "error", "does not accept the credentials"), (404, "error", "HTTP 404"), (503, "unknown", "HTTP 503")],
)
async def test_an_http_error_says_its_status(status: int, ends: str, words: str) -> None:
    async def answer(request: web.Request, asked: Any) -> web.Response:
        return web.Response(status=status, text="an error page")

    ended, said = await outcome(answer)
    assert ended == ends
    assert words in said
    assert "error page" not in said


async def test_a_compressed_answer_is_refused() -> None:
    async def answer(request: web.Request, asked: Any) -> web.Response:
        return web.Response(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})

    _, said = await outcome(answer)
    assert "compressed" in said


async def test_a_result_of_the_wrong_shape_is_a_clear_error() -> None:
    async def answer(request: web.Request, asked: Any) -> web.Response:
        return web.json_response(reply(asked, {"content": 5}))

    _, said = await outcome(answer)
    assert "no result of a tool" in said


async def test_a_result_that_depends_on_a_person_is_declined() -> None:
    async def answer(request: web.Request, asked: Any) -> web.Response:
        ask = {
            "method": "elicitation/create",
            "params": {"message": "?", "mode": "form", "requestedSchema": {"type": "object", "properties": {}}},
        }
        return web.json_response(reply(asked, {"resultType": "input_required", "inputRequests": {"a": ask}}))

    status, said = await outcome(answer)
    assert status == "error"
    assert "wants something of a person" in said


async def test_a_call_that_is_put_off_is_asked_for_again() -> None:
    states: list[Any] = []

    async def answer(request: web.Request, asked: Any) -> web.Response:
        states.append(asked["params"].get("requestState"))
        if len(states) < 3:
            return web.json_response(reply(asked, {"resultType": "input_required", "requestState": f"s{len(states)}"}))
        return web.json_response(reply(asked, text("done")))

    assert await outcome(answer) == ("ok", "done")
    assert states == [None, "s1", "s2"]


async def test_a_failure_of_one_call_does_not_touch_another() -> None:
    release = asyncio.Event()
    arrived = asyncio.Event()
    calls = iter(range(2))

    async def answer(request: web.Request, asked: Any) -> web.StreamResponse:
        if next(calls) == 0:
            arrived.set()
            await release.wait()
            return web.json_response(reply(asked, text("patience")))
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with answering(answer) as client:
        await client.names()
        patient = asyncio.create_task(client.call("go"))
        await arrived.wait()
        broken = await client.call("go")
        assert "broke off" in broken.result
        release.set()
        assert (await patient).result == "patience"


async def test_a_session_that_the_server_has_forgotten_is_opened_again(tmp_path: Path) -> None:
    """Of the older protocol. Nothing was done, so also a call that must not be made twice is made in the new one."""
    opened: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.method != "POST":
            return web.Response(status=405)
        asked = await request.json()
        if asked["method"] == "server/discover":
            return web.Response(status=400)
        if asked["method"] == "initialize":
            opened.append(f"s{len(opened)}")
            info = {"name": "srv", "version": "1"}
            found = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info}
            return web.json_response(reply(asked, found), headers={"Mcp-Session-Id": opened[-1]})
        if "id" not in asked:
            return web.Response(status=202)
        if asked["method"] == "tools/list":
            return web.json_response(reply(asked, {"tools": [{"name": "go", "inputSchema": {"type": "object"}}]}))
        if request.headers["Mcp-Session-Id"] == "s0":
            return web.Response(status=404)
        return web.json_response(reply(asked, {"content": [{"type": "text", "text": "done"}]}))

    async with serving(handle) as port, connections(allow=[f"127.0.0.1:{port}"]) as held:
        client = Client(held, McpServer(type="mcp", name="srv", url=f"http://127.0.0.1:{port}/mcp"))
        ended = await client.call("go")
        assert (ended.status, ended.result) == ("ok", "done")
        assert opened == ["s0", "s1"]
