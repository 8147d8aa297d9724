"""Definitions of HTTP tools, and calls of them as a model makes them, against a server on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import orjson
from aiohttp import web

from kernel.tool_definitions import HttpTool
from orchestrator.egress import EgressClient
from orchestrator.kit import KitScope
from orchestrator.tools.defined_http import HttpTools
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.redaction import Redaction
from orchestrator.tools.tool import ToolContext, Vault
from orchestrator.tools.toolbox import Toolbox, ToolOutcome

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Call = Callable[..., Awaitable[ToolOutcome]]

CONTEXT = ToolContext("org_1", None, None, "ses_1", "run_1", "call_1", "run_1:2-act:call_1")


class Pocket:
    """A vault with what it is given, as a run's is with what Postgres gives it."""

    def __init__(self, **secrets: str) -> None:
        self._secrets = secrets
        self._redaction = Redaction(secrets.values())
        self.expected: set[str] = set()

    def expect(self, *names: str) -> None:
        self.expected.update(names)

    async def ready(self) -> None:
        return

    async def reveal(self, name: str) -> str:
        if name not in self._secrets:
            raise ToolFailure(f"There is no secret named {name!r}.", reached=False)
        return self._secrets[name]

    def redact(self, text: str, *, cut: bool = False) -> str:
        return self._redaction.strike(text, cut=cut)


def definition(url: str, method: str = "GET", parameters: Mapping[str, Any] | None = None, **more: Any) -> HttpTool:
    """A tool `ask`; `parameters` are its schema's properties, `more` fields of the execution or of the tool."""
    execution = {name: more.pop(name) for name in ("headers", "body", "timeout", "auth_config") if name in more}
    if parameters is None:
        parameters = {name: {} for name in "abc"}
    return HttpTool.model_validate(
        {
            "type": "http",
            "name": "ask",
            "description": "Asks.",
            "parameter_schema": {"type": "object", "properties": dict(parameters)},
            "execution_config": {"url": url, "method": method, **execution},
            **more,
        }
    )


@asynccontextmanager
async def calling(tool: HttpTool, *ports: int, vault: Vault | None = None) -> AsyncIterator[Call]:
    """Calls the tool with keyword arguments; `ports` of loopback may be reached."""
    egress = EgressClient(allow=[f"127.0.0.1:{port}" for port in ports], timeout=300)
    vault = vault or Pocket()
    tools = await HttpTools(egress)(tool, KitScope("org_1", "ses_1", "run_1", vault))
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    toolbox = Toolbox(tools, sleep=sleep)

    async def call(**arguments: Any) -> ToolOutcome:
        return await toolbox.call("ask", arguments, replace(CONTEXT, vault=vault), allowed=["ask"])

    try:
        yield call
    finally:
        await egress.aclose()


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """A server for the time of the block; its port."""
    app = web.Application(client_max_size=8_388_608)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class Listener:
    """A server's handler that remembers what came and answers `ok`."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append(
            {
                "method": request.method,
                "path": request.rel_url.raw_path,
                "query": request.rel_url.raw_query_string,
                "pairs": list(request.query.items()),
                "headers": request.headers,
                "body": body,
            }
        )
        return web.json_response({"ok": True})


async def sent(tool: Callable[[str], HttpTool], **arguments: Any) -> dict[str, Any]:
    """What the server gets of a call; `tool` makes the definition from the server's address."""
    listener = Listener()
    async with serving(listener.answer) as port, calling(tool(f"http://127.0.0.1:{port}"), port) as call:
        outcome = await call(**arguments)
    assert outcome.status == "ok", outcome
    assert orjson.loads(outcome.result)["status"] == 200
    [seen] = listener.seen
    return seen
