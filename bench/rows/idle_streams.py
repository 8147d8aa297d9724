"""What idle subscribers cost: a thousand streams of a thousand sessions that nothing happens in.

Measured before any load, when the API's heap has no freed memory that would hide what the streams take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from bench.http import Connection, Exchange, Server
from bench.processes import resident_mb
from bench.report import Bound, Line, Section
from bench.side_process import side_process
from bench.stats import Spread
from bench.subject import Subject

KEY = "idle-streams"
TITLE = "1,000 idle SSE connections"

_STREAMS = 1000
_SAMPLE = 25
_OPENERS = 8
_SETTLE = 2.0


async def measure(subject: Subject) -> list[Section]:
    """Opens the streams, weighs the API before and after, and sees that a sample of the streams is alive."""
    sessions = await _make_sessions(subject.api)
    requests = [subject.api.request("GET", f"/v1/sessions/{session}/events", stream=True) for session in sessions]
    added, streams = await _added(subject.api, subject.pids["api"], requests)
    step = _STREAMS // _SAMPLE
    sample = [(sessions[place], streams[place][1]) for place in range(0, _STREAMS, step)]
    delivered = await _deliver(subject.api, sample)
    for connection, _ in streams:
        connection.close()
    floor = await _floor()
    return [
        Section(
            KEY,
            f"{TITLE} on as many sessions",
            [
                Line("resident memory they add to the API", "MB", added, Bound(25), single=True),
                Line("the same on a uvicorn that does nothing else", "MB", floor, single=True),
            ],
            [f"alive: a run in each of {delivered} of the sessions reached its stream to done"],
        )
    ]


async def _make_sessions(api: Server) -> list[str]:
    request = api.request("POST", "/v1/sessions", {})
    left: Iterator[int] = iter(range(_STREAMS))

    async def make() -> list[str]:
        connection = await api.connect()
        made = [str((await connection.call(request, status=201)).json()["id"]) for _ in left]
        connection.close()
        return made

    return [session for some in await asyncio.gather(*(make() for _ in range(_OPENERS))) for session in some]


async def _added(server: Server, pid: int, requests: list[bytes]) -> tuple[Spread, list[tuple[Connection, Exchange]]]:
    await asyncio.sleep(_SETTLE)
    before = resident_mb(pid)
    streams: dict[int, tuple[Connection, Exchange]] = {}
    left = enumerate(requests)

    async def open_some() -> None:
        for place, request in left:
            connection = await server.connect()
            exchange = connection.send(request, watch=b"event: done\n")
            streams[place] = (connection, (await exchange.until("begun")).expect(200))

    await asyncio.gather(*(open_some() for _ in range(_OPENERS)))
    await asyncio.sleep(_SETTLE)
    added = resident_mb(pid) - before
    return Spread(added, added), [streams[place] for place in range(len(requests))]


async def _deliver(api: Server, sample: list[tuple[str, Exchange]]) -> int:
    connection = await api.connect()
    for session, _ in sample:
        await connection.call(
            api.request("POST", f"/v1/sessions/{session}/runs", {"input": "alive?", "workflow": "echo"}), status=202
        )
    connection.close()
    async with asyncio.timeout(10):
        for _, exchange in sample:
            await exchange.until("seen")
    return len(sample)


async def _floor() -> Spread:
    async with side_process("bench.bare") as bare:
        server = Server("127.0.0.1", int(bare.said["port"]), "none")
        added, streams = await _added(server, bare.pid, [server.request("GET", "/hold")] * _STREAMS)
        for connection, _ in streams:
            connection.close()
    return added
