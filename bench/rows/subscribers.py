"""Ten thousand subscribers at one API process: what they cost while nothing happens, how they come back all at once,
how fast events reach them, what one costs who stops reading, and how the process leaves them.

One thing follows another in such an order that none disturbs the next. Subscribers share the machine with what they
follow.
"""

from __future__ import annotations

import asyncio
import resource
import time
from typing import Any

from bench.crowded import CrowdedApi, crowded_api
from bench.http import BenchFailed
from bench.processes import socket_bytes
from bench.report import Bound, Line, Section, Unit
from bench.script import question
from bench.stats import Spread, percentile, rate
from bench.subject import Subject

KEY = "subscribers"
TITLE = "10,000 SSE subscribers on one API process"

_VIEWERS = 10_000
_FILES = _VIEWERS + 500
_OPENED_AT_ONCE = 64
_BACK_AT_ONCE = 1000
_STORMS = 2
_SETTLE = 2.0
_IDLE_SECONDS = 10.0
_RUNS = 150
_TOKENS = 8
_DELAY = 0.002
_FIRST = b"event: message_chunk\n"
_STALLED = 100
_BURST = (30_000, 0.25)
_STEADY = (5_000, 3.0)
_FAST = (15_000, 2.0)
_MOST_GONE = 30.0


async def measure(subject: Subject) -> list[Section]:
    """The whole row. Raises BenchFailed where a process may not open enough files."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < _FILES:
        raise BenchFailed(f"it needs {_FILES:,} open files, and the hard limit is {files:,} (ulimit -Hn)")
    async with crowded_api(subject, _VIEWERS + 1) as api:
        return [Section(KEY, TITLE, *await _Trial(api).run())]


class _Trial:
    """Lines and notes as they come."""

    def __init__(self, api: CrowdedApi) -> None:
        self._api = api
        self._sessions, self._stalled = api.sessions[:-1], api.sessions[-1]
        self._stalled_since = 0.0
        self._giving_up: asyncio.Task[dict[str, Any]] | None = None
        self._notes: list[str] = []

    async def run(self) -> tuple[list[Line], list[str]]:
        try:
            return await self._measure(), self._notes
        finally:
            if self._giving_up is not None:
                self._giving_up.cancel()

    async def _measure(self) -> list[Line]:
        others = await self._api.connections()
        memory = await self._open()
        stalled = await self._stall()
        storms = await self._storms()
        held = _single("connections to Postgres that the process holds", "", await self._api.connections() - others, 20)
        idle = await self._idle()
        token = await self._first_token()
        delivery = await self._deliver()
        gone = await self._gone()
        end = await self._leave()
        return [memory, idle, storms, token, *delivery, stalled, gone, held, end]

    async def _open(self) -> Line:
        await asyncio.sleep(_SETTLE)
        before = self._api.resident()
        opened = await self._api.crowd.ask(
            "open", **self._api.address, viewers=self._api.viewers(self._sessions), at_most=_OPENED_AT_ONCE
        )
        _check_all(opened)
        await asyncio.sleep(_SETTLE)
        self._notes.append(f"opened in {opened['seconds']:.1f} s, {_OPENED_AT_ONCE} at a time")
        await self._expect(_VIEWERS)
        return _single("resident memory of each, idle", "KB", (self._api.resident() - before) / _VIEWERS, 24)

    async def _stall(self) -> Line:
        """A hundred who don't read, on a session that is suddenly busy."""
        await self._api.stallers.ask(
            "open",
            **self._api.address,
            path=self._stalled.path,
            authorization=self._stalled.authorization,
            count=_STALLED,
        )
        await self._api.feed([self._stalled])
        resident, kernel = self._api.resident(), socket_bytes()
        await self._api.publish(*_BURST)
        self._stalled_since = time.monotonic()
        self._giving_up = asyncio.create_task(self._api.stallers.ask("gone", seconds=_MOST_GONE + _SETTLE))
        await asyncio.sleep(_SETTLE)
        cost = (self._api.resident() - resident) / _STALLED
        what = "a subscriber that stops reading"
        after = socket_bytes()
        if kernel is None or after is None:
            what += ", without the kernel's share"
        else:
            cost += (after - kernel) / 1024 / _STALLED
        return _single(what, "KB", cost, 300)

    async def _storms(self) -> Line:
        took = []
        for _ in range(_STORMS):
            storm = await self._api.crowd.ask("storm", at_most=_BACK_AT_ONCE)
            _check_all(storm)
            took.append(storm["seconds"])
        await self._expect(0)
        return Line("all come back with their last id, 1,000 at a time", "s", Spread(min(took), max(took)), Bound(3, 3))

    async def _idle(self) -> Line:
        await asyncio.sleep(_SETTLE)
        used, began = self._api.processor(), time.monotonic()
        await asyncio.sleep(_IDLE_SECONDS)
        share = (self._api.processor() - used) / (time.monotonic() - began)
        return _single("processor time while idle, with heartbeats, of one core", "%", share * 100, 4)

    async def _first_token(self) -> Line:
        server = self._api.server
        connection = await server.connect()
        times = []
        for number in range(_RUNS):
            body = {"input": question(number % 100, _TOKENS, _DELAY)}
            run = connection.send(server.request("POST", "/v1/runs", body, stream=True))
            (await run.until("ended")).expect(200)
            times.append((run.arrival(_FIRST) - run.sent) * 1e3)
        connection.close()
        times.sort()
        spread = Spread(percentile(times, 0.5), percentile(times, 0.99))
        return Line("the first token of a new run meanwhile: median and p99", "ms", spread, Bound(1000, 1000))

    async def _deliver(self) -> list[Line]:
        await self._api.feed(self._sessions)
        lines = []
        for number, (events, seconds) in enumerate((_STEADY, _FAST)):
            used = self._api.processor()
            sent = await self._api.publish(events, seconds)
            seen = await self._expect(sent["events"])
            used = self._api.processor() - used
            if number == 0:
                spread = Spread(seen["p50_ms"], seen["p95_ms"])
                lines.append(Line(f"publish to client at {events:,} events a second", "ms", spread, Bound(20, 20)))
            elif used:
                per_core = [sent["events"] / used]
                lines.append(
                    Line(
                        "events from Redis to sockets, by core",
                        "/s",
                        rate(per_core),
                        Bound(15_000, at_least=True),
                        True,
                    )
                )
                self._notes.append(
                    f"that was measured at {sent['events'] / sent['seconds']:,.0f} events a second,"
                    f" {seen['p95_ms']:.1f} ms on the way at the p95"
                )
        return lines

    async def _gone(self) -> Line:
        assert self._giving_up is not None
        gone = await self._giving_up
        if gone["left"]:
            raise BenchFailed(f"{gone['left']} of {_STALLED} subscribers who read nothing are still connected")
        return _single("given up that long after", "s", gone["last_at"] - self._stalled_since, _MOST_GONE)

    async def _leave(self) -> Line:
        ending = asyncio.create_task(self._api.crowd.ask("end"))
        sent, code = await self._api.end()
        ended = await ending
        if code != 0 or ended["clean"] != _VIEWERS:
            raise BenchFailed(f"on SIGTERM {ended['clean']} streams ended in order, and the exit code was {code}")
        self._notes.append("on SIGTERM every stream got its last chunk, and the exit code was 0")
        return _single("SIGTERM to the end of the last stream", "s", ended["last_at"] - sent, 3)

    async def _expect(self, events: int) -> dict[str, float]:
        """What the crowd has seen since the last time: so many events, none missing, nobody gone."""
        seen: dict[str, float] = await self._api.crowd.ask("seen", events=events)
        if seen["holes"] or seen["alive"] != _VIEWERS or seen["events"] != events:
            raise BenchFailed(f"of {events} events and {_VIEWERS} subscribers these were seen: {seen}")
        return seen


def _single(label: str, unit: Unit, value: float, at_most: float) -> Line:
    return Line(label, unit, Spread(value, value), Bound(at_most), single=True)


def _check_all(answer: dict[str, object]) -> None:
    if answer["failed"]:
        raise BenchFailed(f"{answer['failed']} connections failed: {answer['failures']}")
