"""A stack whose model plays plans, with one steady worker: what others leave undone when they die, it does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import count
from typing import Any

import orjson

from tests.e2e.caller import Caller, Stream
from tests.faults.crew import log_bytes
from tests.faults.outside import Outside
from tests.faults.plans import IDEMPOTENT, ONCE, READ, Plan, calls
from tests.history import History, assert_history
from tests.stack import Program, Stack
from tests.waiting import eventually

ONE_RUN_EACH = {
    "LONGHAUL_SLOTS": "1",
    "LONGHAUL_DATABASE_POOL": "2",
    # One that outlives its run before all are dead must not go on with the others'.
    "LONGHAUL_LEASE_SECONDS": "3",
    "LONGHAUL_LEASE_RENEW_SECONDS": "1",
}

_numbers = count(1)


def scripted() -> Plan:
    """Four calls of tools, two sub-agents of which one calls another, and an answer."""
    name = f"run-{next(_numbers)}"
    clerk = Plan(name=f"{name}-clerk", steps=[[(ONCE, f"/once/{name}-clerk")]], words=2, pause=0.01)
    scout = Plan(name=f"{name}-scout", steps=[], words=3, pause=0.01)
    steps: list[list[tuple[str, Any]]] = [
        [(READ, f"/read/{name}"), (IDEMPOTENT, f"/idempotent/{name}"), (ONCE, f"/once/{name}")],
        [("scout", scout), ("clerk", clerk), (ONCE, f"/once/{name}-beside")],
    ]
    return Plan(name=name, steps=steps, words=6, pause=0.01)


@dataclass(frozen=True, slots=True)
class Scene:
    """`agent` has all the tools and sub-agents that plans name; `steady` is the stack's own worker."""

    stack: Stack
    outside: Outside
    steady: Program
    caller: Caller
    agent: str

    def follow(self, plan: Plan) -> AbstractAsyncContextManager[Stream]:
        """Takes in a run and follows it."""
        return self.caller.following(orjson.dumps(plan).decode(), agent_id=self.agent)

    def doomed(self, crash_ats: Sequence[str]) -> Program:
        """Workers that take one run each and end, or freeze, each at its crash point."""
        return self.stack.spawn_worker(
            {"CRASH_AT": " ".join(crash_ats), **ONE_RUN_EACH}, module="tests.faults.crashing_worker"
        )

    async def until_claimed(self, run_ids: Sequence[str], by: Program) -> None:
        """Waits until each run has been begun, or everyone has died."""
        query = "SELECT NOT EXISTS (SELECT FROM runs WHERE id = ANY ($1) AND status = 'queued')"

        async def begun() -> bool:
            return not by.alive or bool(await self.stack.database.fetchval(query, run_ids))

        await eventually(begun, within=30, what="all runs are claimed")

    async def checked(self, plan: Plan, stream: Stream) -> History:
        """What must hold of a run that has ended, whatever happened to it: its history is whole, its follower has
        the log byte for byte, and no effect was made twice that must not be."""
        history = await assert_history(self.stack.database, stream.events[0].data["run_id"])
        assert stream.frames == await log_bytes(self.stack, history.run["session_id"])
        for effect, path in calls(plan):
            seen = self.outside.seen[path]
            assert len(seen) <= 1 or effect != ONCE, f"{path} was done {len(seen)} times"
            assert len({request.key for request in seen}) <= 1, f"{path} was repeated under another key"
        return history
