"""Tools side by side: one answer of the model asks for fifty calls of an HTTP tool that takes 100 ms each.

Measured as a follower sees it, from the first `tool_start` to the last `tool_result`. The floor are the same fifty
requests, sent straight to the same server over connections that are open already.
"""

from __future__ import annotations

import asyncio

from bench.http import BenchFailed, Connection, Server
from bench.report import Bound, Line, Section
from bench.script import Act, play
from bench.stats import latency
from bench.subject import Subject

KEY = "tools"
TITLE = "HTTP tools side by side"

_CALLS = 50
_MS = 100
_BYTES = 500
_ROUNDS = 12
_WARM_UP = 2
_START = b"event: tool_start\n"
_RESULT = b"event: tool_result\n"
_MUST = Bound(400)


async def measure(subject: Subject) -> list[Section]:
    """Reads, which go without a commit, then calls that change something, each of them with its row in the ledger."""
    connection = await subject.api.connect()
    reads = await _rounds(subject, connection, "GET")
    posts = await _rounds(subject, connection, "POST")
    lines = [
        Line("GET: first tool_start to last tool_result", "ms", latency(reads), _MUST),
        Line("POST, each on a connection of its own", "ms", latency(posts)),
        Line("the same requests sent straight to the server", "ms", latency(await _straight(subject))),
    ]
    connection.close()
    return [Section(KEY, f"{TITLE}: {_CALLS} calls of {_MS} ms in one answer ({_ROUNDS} runs each)", lines)]


async def _rounds(subject: Subject, connection: Connection, method: str) -> list[float]:
    tool = {
        "type": "http",
        "name": "page",
        "description": "a page",
        "parameter_schema": {"type": "object", "properties": {"n": {"type": "integer"}}},
        "execution_config": {"url": f"http://{subject.pages}/{_BYTES}/{_MS}?n={{n}}", "method": method},
    }
    calls = [("page", {"n": number}) for number in range(_CALLS)]
    body = {"input": play(Act(calls=calls), Act(tokens=1)), "tools": [tool], "budget": {"max_tool_calls": _CALLS}}
    request = subject.api.request("POST", "/v1/runs", body, stream=True)
    times = []
    for number in range(-_WARM_UP, _ROUNDS):
        run = await connection.call(request)
        good = bytes(run.body).count(b'"status":"ok"')
        if good != _CALLS:
            raise BenchFailed(f"{good} of {_CALLS} calls went well; the stream ends with {bytes(run.body[-500:])!r}")
        if number >= 0:
            times.append((run.arrival(_RESULT, last=True) - run.arrival(_START)) * 1e3)
    return times


async def _straight(subject: Subject) -> list[float]:
    host, _, port = subject.pages.rpartition(":")
    server = Server(host, int(port), "")
    connections = [await server.connect() for _ in range(_CALLS)]
    request = server.request("GET", f"/{_BYTES}/{_MS}")
    times = []
    for _ in range(_ROUNDS):
        exchanges = [connection.send(request) for connection in connections]
        await asyncio.gather(*(exchange.until("ended") for exchange in exchanges))
        times.append((max(exchange.ended for exchange in exchanges) - exchanges[0].sent) * 1e3)
    for connection in connections:
        connection.close()
    return times
