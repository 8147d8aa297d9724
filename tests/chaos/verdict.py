"""The verdict on a run that has ended, and on all of them at the end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg

from kernel.postgres import UNAVAILABLE, Pool
from kernel.replay import read_frames
from tests.chaos.course import Course
from tests.chaos.follower import Follower
from tests.faults.outside import Outside
from tests.faults.plans import IDEMPOTENT, ONCE, calls
from tests.history import History, assert_history

T = TypeVar("T")

_AWAY = (*UNAVAILABLE, asyncpg.PostgresConnectionError, asyncpg.QueryCanceledError)
_PATIENCE = 60.0

_NEVER = {
    "runs that have not ended": "SELECT count(*) FROM runs WHERE finished_at IS NULL",
    "runs without exactly one done": """
        SELECT count(*) FROM runs r
        WHERE (SELECT count(*) FROM events e WHERE e.run_id = r.id AND e.type = 'done') <> 1""",
    "requests that were taken in twice": """
        SELECT coalesce(sum(times - 1), 0) FROM (
            SELECT count(*) AS times FROM messages WHERE path = '' AND position = 0 AND role = 'user'
            GROUP BY content::text HAVING count(*) > 1) AS twice""",
}


class Verdict:
    """Judges by the database itself, not through a proxy."""

    def __init__(self, database: Pool, outside: Outside) -> None:
        self._database = database
        self._outside = outside
        self.statuses: Counter[str] = Counter()
        self.attempts: Counter[int] = Counter()

    async def on(self, course: Course, followers: list[Follower]) -> None:
        """Everything that must hold of one run that has ended."""
        try:
            history = await _patiently(lambda: assert_history(self._database, course.run_id))
        except AssertionError as error:
            course.finding(f"its history is not whole: {error}")
            return
        log = await _patiently(lambda: self._log(history))
        for follower in followers:
            if follower.frames != log:
                course.finding(f"a follower got other bytes than the log holds: {_difference(follower.frames, log)}")
        self._judge_end(course, history)
        self._judge_effects(course, history)

    async def on_all(self) -> list[str]:
        """What is wrong with all runs together."""
        found = []
        for what, query in _NEVER.items():
            number = await _patiently(lambda query=query: self._database.fetchval(query))  # type: ignore[misc]
            if number:
                found.append(f"{number} {what}")
        return found

    async def _log(self, history: History) -> bytes:
        run = history.run
        entries = await read_frames(
            self._database, run["org_id"], run["session_id"], after=run["first_seq"] - 1, limit=100_000
        )
        return b"".join(entry.data for entry in entries if entry.run_id == run["id"])

    def _judge_end(self, course: Course, history: History) -> None:
        status, reason = history.run["status"], history.run["finish_reason"]
        self.statuses[status if status != "failed" else f"failed ({reason})"] += 1
        self.attempts[history.run["attempt"]] += 1
        if status == "cancelled" and course.cancelled_at is None:
            course.finding("it was cancelled, and nobody asked for that")
        elif status == "failed" and reason == "poisoned":
            hurt = course.hurt.intersection(course.owners)
            if len(hurt) < 3:  # an outage of a store is no death
                course.finding(f"it was parked though only {len(hurt)} of its owners were killed or frozen")
        elif status not in ("succeeded", "cancelled"):
            course.finding(f"it {status}: {history.run['error']}")

    def _judge_effects(self, course: Course, history: History) -> None:
        for effect, path in calls(course.plan):
            seen = self._outside.seen.pop(path, [])
            if effect == ONCE and len(seen) > 1:
                course.finding(f"{path} was done {len(seen)} times: {seen}")
            elif effect == IDEMPOTENT and len({request.key for request in seen}) > 1:
                course.finding(f"{path} was repeated under another key: {seen}")
            if history.run["status"] == "succeeded" and effect == IDEMPOTENT and not seen:
                course.finding(f"{path} was never done")


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Postgres is restarted now and then."""
    give_up = time.monotonic() + _PATIENCE
    while True:
        try:
            return await call()
        except _AWAY:
            if time.monotonic() > give_up:
                raise
        await asyncio.sleep(0.2)


def _difference(got: bytes, wanted: bytes) -> str:
    frames, log = got.split(b"\n\n"), wanted.split(b"\n\n")
    for place, (one, other) in enumerate(zip(frames, log, strict=False)):
        if one != other:
            return f"at its event {place + 1} of {len(log) - 1}: {one[:300]!r} instead of {other[:300]!r}"
    return f"{len(frames) - 1} events instead of {len(log) - 1}"
