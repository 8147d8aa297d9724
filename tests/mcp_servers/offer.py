"""A server of the mcp package with tools of every sort: `python -m tests.mcp_servers.offer stdio|http [older]`.

Over HTTP it prints its port as its first line. `older` speaks only the protocols with a handshake. What it writes into
the file that `MCP_DIARY` names is how tests see what happened: a line for each process, and for each call of `note`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import anyio
import orjson
import uvicorn
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.runner import serve_loop
from mcp.server.stdio import stdio_server
from mcp_types import (
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    TextContent,
    TextResourceContents,
    ToolAnnotations,
)
from pydantic import BaseModel

Message = MutableMapping[str, Any]
App = Callable[..., Awaitable[None]]

server = MCPServer("offer", version="1")
READS = ToolAnnotations(read_only_hint=True)
REPEATS = ToolAnnotations(idempotent_hint=True)


def write_down(line: str) -> None:
    if diary := os.environ.get("MCP_DIARY"):
        with Path(diary).open("a") as file:
            file.write(f"{line}\n")


@server.tool(annotations=READS)
def add(a: int, b: int) -> dict[str, int]:
    """Adds two numbers."""
    return {"sum": a + b}


@server.tool(annotations=READS)
def greet(name: str) -> str:
    return f"Hello, {name}!"


@server.tool()
def note(text: str) -> str:
    """Writes a line into the diary: an effect that must not be had twice."""
    write_down(f"note {text}")
    return "noted"


@server.tool()
def note_and_die(text: str) -> str:
    write_down(f"note {text}")
    os._exit(1)


@server.tool()
async def note_and_wait(text: str) -> str:
    write_down(f"note {text}")
    await anyio.sleep(600)
    return "never"


@server.tool(annotations=REPEATS)
def die_once() -> str:
    """Ends the process at its first call and works at the second."""
    diary = Path(os.environ["MCP_DIARY"])
    if "dying" not in diary.read_text():
        write_down("dying")
        os._exit(1)
    return "alive"


@server.tool(annotations=READS)
async def hang() -> str:
    write_down("hang")
    await anyio.sleep(600)
    return "never"


@server.tool(annotations=READS)
async def progress(ctx: Context) -> str:
    """Reports progress without end."""
    while True:
        await ctx.info("still at it")
        await anyio.sleep(0.001)


@server.tool(annotations=READS)
def fail() -> str:
    raise ValueError("the well is dry")


@server.tool(annotations=READS)
def big(bytes: int) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text="x" * bytes)])


@server.tool(annotations=READS)
def picture() -> Image:
    return Image(data=b"\x89PNG" + bytes(996), format="png")


@server.tool(annotations=READS)
def resources() -> CallToolResult:
    text = TextResourceContents(uri="file:///a.txt", text="what stands in it")
    blob = BlobResourceContents(uri="file:///b.bin", blob="AAECAw==")
    return CallToolResult(
        content=[EmbeddedResource(type="resource", resource=text), EmbeddedResource(type="resource", resource=blob)]
    )


class Favourite(BaseModel):
    colour: str


@server.tool(annotations=READS)
async def ask(ctx: Context) -> str:
    answer = await ctx.elicit("What is your favourite colour?", Favourite)
    return answer.action


@server.tool(annotations=READS)
def environment() -> list[str]:
    return sorted(os.environ)


@server.tool(annotations=READS)
def headers(ctx: Context) -> dict[str, str]:
    return dict(ctx.headers or {})


@server.tool(annotations=READS)
async def learn(ctx: Context) -> str:
    """Adds a tool while sessions are open, and says so as the protocol of each wants it."""
    server.add_tool(lambda: "new", name="learned", description="Was not there before.")
    if ctx.protocol_version and ctx.protocol_version >= "2026":
        await ctx.notify_tools_changed()
    else:
        await ctx.request_context.session.send_tool_list_changed()
    return "learned something"


@server.tool(name="odd.name", annotations=READS)
def odd_dot() -> str:
    return "dot"


@server.tool(name="odd_name", annotations=READS)
def odd_underscore() -> str:
    return "underscore"


@server.tool(name="l" + "o" * 100 + "ng", annotations=READS)
def long_name() -> str:
    return "long"


@server.tool()
def unusable() -> str:
    """Its schema is none."""
    return "never"


server._tool_manager._tools["unusable"].parameters = {"type": "object", "properties": {"a": {"type": "nothing"}}}


def older(app: App) -> App:
    """An HTTP server that has never heard of the newer protocol."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await app(scope, receive, send)
            return
        message = await receive()
        asked = orjson.loads(message["body"])
        if asked.get("method") == "server/discover":
            body = orjson.dumps({"jsonrpc": "2.0", "id": asked["id"], "error": {"code": -32601, "message": "what?"}})
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 400, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        messages = [message]
        await app(scope, lambda: _next(messages, receive), send)

    return serve


async def _next(messages: list[Message], receive: Callable[[], Awaitable[Message]]) -> Message:
    return messages.pop() if messages else await receive()


async def over_stdio(*, handshake: bool) -> None:
    async with stdio_server() as (read, write):
        lowlevel = server._lowlevel_server
        if not handshake:
            await lowlevel.run(read, write, lowlevel.create_initialization_options())
            return
        async with lowlevel.lifespan(lowlevel) as state:
            await serve_loop(lowlevel, read, write, lifespan_state=state)


async def over_http(*, handshake: bool) -> None:
    app: Any = server.streamable_http_app()
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else without TCP_NODELAY
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    config = uvicorn.Config(older(app) if handshake else app, log_level="critical", timeout_graceful_shutdown=1)
    await uvicorn.Server(config).serve(sockets=[listening])


if __name__ == "__main__":
    write_down(f"pid {os.getpid()}")
    run = over_stdio if sys.argv[1] == "stdio" else over_http
    asyncio.run(run(handshake="older" in sys.argv))
