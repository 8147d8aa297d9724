"""The callers: so many lanes, each of which takes in a run, follows it to its end, has it judged, and begins anew.

A request that is not answered is sent again under the same Idempotency-Key until it is: from then on the run is
acknowledged and must end.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import aiohttp
import orjson

from tests.chaos.course import Course
from tests.chaos.follower import Follower
from tests.chaos.house import House
from tests.chaos.verdict import Verdict
from tests.faults.plans import SUB_AGENTS, TOOLS, make_plan

_TROUBLE = (aiohttp.ClientError, TimeoutError, OSError)
_LONGEST_SILENCE = 7.0  # heartbeats come every two seconds


class Lanes:
    """`rng` draws the plans; `seconds` is about how long one run takes."""

    def __init__(self, house: House, verdict: Verdict, rng: random.Random, *, seconds: float) -> None:
        self._house = house
        self._verdict = verdict
        self._rng = rng
        self._seconds = seconds
        self._numbers = count(1)
        self._agent = ""
        self._closing = asyncio.Event()
        self._followers: dict[Course, list[Follower]] = {}
        self._sessions: list[str] = []
        self.ended = 0
        self.reconnects = 0
        self.recoveries: list[float] = []
        self.cancels: list[float] = []

    @property
    def at_work(self) -> list[Course]:
        """The runs that were taken in and have not been judged yet."""
        return [course for course in self._followers if course.acknowledged]

    async def run(self, lanes: int) -> None:
        """Keeps so many runs going until `close`, and returns when all have ended."""
        async with self._calling() as http:
            self._agent = await self._make_agent(http)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(lanes):
                    tasks.create_task(self._lane(http))

    def close(self) -> None:
        """No more runs are begun."""
        self._closing.set()

    async def cancel_some(self, rng: random.Random) -> None:
        """Cancels one run, or a few."""
        at_work = self.at_work
        async with self._calling() as http:
            for course in rng.sample(at_work, min(len(at_work), rng.randint(1, 3))):
                course.cancelled_at = time.monotonic()
                await self._insist(http, "POST", f"/v1/runs/{course.run_id}/cancel", {}, (200, 202))

    def disconnect_some(self, rng: random.Random) -> None:
        """Breaks off a tenth of all streams."""
        for followers in list(self._followers.values()):
            for follower in followers:
                if rng.random() < 0.1:
                    follower.disconnect()

    async def _lane(self, http: aiohttp.ClientSession) -> None:
        await asyncio.sleep(self._rng.uniform(0, self._seconds / 2))
        while not self._closing.is_set():
            plan = make_plan(self._rng, f"p{next(self._numbers)}", seconds=self._rng.uniform(0.3, 1) * self._seconds)
            course = Course(plan, self._house.deaths, self._house.hurt, self._house.finding)
            followers = [
                Follower(course, http, lambda: self._house.any_api(self._rng), self._rng)
                for _ in range(1 + (self._rng.random() < 0.2))
            ]
            self._followers[course] = followers
            await self._take_in(http, course)
            await asyncio.gather(*(follower.follow() for follower in followers))
            if course.cancelled_at is not None:
                self.cancels.append(time.monotonic() - course.cancelled_at)
            await self._verdict.on(course, followers)
            del self._followers[course]
            self.ended += 1
            self.reconnects += sum(follower.connects - 1 for follower in followers)
            self.recoveries += course.recoveries

    async def _take_in(self, http: aiohttp.ClientSession, course: Course) -> None:
        """Some runs go on with a session, where they may have to wait for the one before."""
        path = "/v1/runs"
        if self._sessions and self._rng.random() < 0.2:
            path = f"/v1/sessions/{self._sessions.pop(self._rng.randrange(len(self._sessions)))}/runs"
        body = {"agent_id": self._agent, "input": orjson.dumps(course.plan).decode()}
        run = await self._insist(http, "POST", path, body, (202,), key=course.plan["name"])
        course.run_id, course.session_id = run["id"], run["session_id"]
        self._sessions = [*self._sessions[-50:], course.session_id]

    async def _make_agent(self, http: aiohttp.ClientSession) -> str:
        tools = [*TOOLS.values()]
        sub_agents = [{"name": name, "tools": tools} for name in SUB_AGENTS]
        body = {"name": "chaos", "tools": tools, "sub_agents": sub_agents, "memory": {"recall": False}}
        return str((await self._insist(http, "POST", "/v1/agents", body, (201,)))["id"])

    async def _insist(
        self, http: aiohttp.ClientSession, method: str, path: str, body: object, good: tuple[int, ...], key: str = ""
    ) -> dict[str, str]:
        """Sends a request until it is answered. Nothing but an answer or a 503 with Retry-After is in order."""
        headers = {"Idempotency-Key": key} if key else {}
        while True:
            try:
                async with http.request(
                    method, self._house.any_api(self._rng) + path, data=orjson.dumps(body), headers=headers
                ) as answer:
                    text = await answer.read()
                    if answer.status in good:
                        return dict(orjson.loads(text))
                    if answer.status != 503 or "Retry-After" not in answer.headers:
                        self._house.finding(f"{method} {path} was answered with {answer.status}: {text[:500]!r}")
            except _TROUBLE:
                pass
            await asyncio.sleep(self._rng.uniform(0.2, 0.8))

    @asynccontextmanager
    async def _calling(self) -> AsyncIterator[aiohttp.ClientSession]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=_LONGEST_SILENCE)
        headers = {"Authorization": f"Bearer {self._house.key}", "Content-Type": "application/json"}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, headers=headers, connector=connector) as http:
            yield http
