"""A worker within the test's process that dies after a commit of the test's choice, and a look at what it left.

It dies by never hearing of its journal again: what it still does reaches no store. `apart` then tells what is not
together that belongs together.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import asyncpg
import orjson
from langgraph.checkpoint.serde.types import ERROR
from redis.asyncio import Redis

from kernel.fanout import Publisher
from kernel.journal import Journal
from kernel.leases import Leases
from kernel.postgres import Pool
from orchestrator.checkpoints import StrictMsgpack
from orchestrator.engine import Engine
from worker.charges import Charges
from worker.executor import Executor
from worker.vigil import Vigil


class Boundary:
    """What the journal takes for its pool: commits for real, and may die of it.

    Args:
        dies_after: the number of the commit whose answer never comes; 0: the first is not even sent.
        seed: of the turns of the event loop that pass before an answer is heard.
    """

    def __init__(self, pool: Pool, *, dies_after: int | None = None, seed: int = 0) -> None:
        self._pool = pool
        self._dies_after = dies_after
        self._pace = random.Random(seed)
        self.commits = 0
        self.died = asyncio.Event()

    async def fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        await self._die_if_due()
        rows = await self._pool.fetch(statement, *arguments)
        self.commits += 1
        for _ in range(self._pace.randrange(12)):
            await asyncio.sleep(0)
        await self._die_if_due()
        return rows

    async def _die_if_due(self) -> None:
        if self.commits == self._dies_after:
            self.died.set()
            await asyncio.get_running_loop().create_future()


class Follower(Publisher):
    """Hears when a run has ended, and tells nobody else."""

    ended: asyncio.Event

    def publish(
        self, org_id: str, session_id: str, run_id: str, *, first: int, last: int, final: bool, frames: bytes
    ) -> None:
        if final:
            self.ended.set()


async def live(pool: Pool, redis: Redis, engine: Engine, boundary: Boundary, name: str) -> None:
    """A worker's life: claims a run, and works until that has ended or the worker dies."""
    follower = Follower(redis)
    follower.ended = asyncio.Event()
    journal = Journal(cast(Pool, boundary), follower, on_next_run=lambda: None)
    leases = Leases(pool, worker=name, lease_seconds=60)
    executor = Executor(
        leases=leases, journal=journal, engine=engine, charges=Charges(pool), vigil=Vigil(), slots=1, ring=_no_bell
    )
    work = [asyncio.create_task(journal.run()), asyncio.create_task(executor.run())]
    executor.look()
    ends = [asyncio.create_task(event.wait()) for event in (boundary.died, follower.ended)]
    await asyncio.wait([*ends, *work], return_when=asyncio.FIRST_COMPLETED)
    if boundary.died.is_set():
        await executor.abandon()
        for task in work:
            task.cancel()
    else:
        await executor.drain(5, 5)
        journal.close()
    for end in ends:
        end.cancel()
    await asyncio.gather(*ends, return_exceptions=True)
    await asyncio.gather(*work, return_exceptions=boundary.died.is_set())


async def _no_bell(times: int) -> None:
    return


# -- what belongs together -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Rows:
    """What a run has in Postgres, each row with the transaction that wrote it."""

    run_id: str
    finished: bool
    steps: dict[str, tuple[int, str, str]] = field(default_factory=dict)  # id: transaction, path, state
    events: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    messages: dict[tuple[str, int], tuple[int, str]] = field(default_factory=dict)  # (path, position): …, role
    outcomes: set[tuple[int, str, int]] = field(default_factory=set)  # transaction, path, position
    writes: set[tuple[int, str, str]] = field(default_factory=set)  # transaction, path, node
    checkpoints: list[tuple[int, str, asyncpg.Record]] = field(default_factory=list)

    def together(self, transaction: int, path: str, *states: str) -> bool:
        """Whether a step of one of these states was recorded in this transaction."""
        return any((transaction, path, state) == step for step in self.steps.values() for state in states)


async def read(pool: Pool, run_id: str) -> Rows:
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):

        async def select(columns: str, rest: str) -> list[asyncpg.Record]:
            return await connection.fetch(f"SELECT t.xmin::text::bigint AS tx, {columns} FROM {rest}", run_id)

        finished = await connection.fetchval("SELECT finished_at IS NOT NULL FROM runs WHERE id = $1", run_id)
        rows = Rows(run_id, finished)
        for row in await select("step_id, path, state", "steps t WHERE run_id = $1"):
            rows.steps[row["step_id"]] = (row["tx"], row["path"], row["state"])
        for row in await select("type, data", "events t WHERE run_id = $1 ORDER BY seq"):
            rows.events.append((row["tx"], row["type"], orjson.loads(row["data"])))
        for row in await select("path, position, role", "messages t WHERE run_id = $1"):
            rows.messages[row["path"], row["position"]] = (row["tx"], row["role"])
        for row in await select("path, position", "effects t WHERE run_id = $1 AND finished_at IS NOT NULL"):
            rows.outcomes.add((row["tx"], row["path"], row["position"]))
        threads = "(thread_id = $1 OR starts_with(thread_id, $1 || '/'))"
        for row in await select("thread_id, task_path, channel", f"checkpoint_writes t WHERE {threads}"):
            if row["channel"] != ERROR:
                node = row["task_path"].split(", ")[-1]
                rows.writes.add((row["tx"], row["thread_id"][len(run_id) + 1 :], node))
        columns = "thread_id, checkpoint_ns, checkpoint_id, parent_id, format, checkpoint"
        for row in await select(columns, f"checkpoints t WHERE {threads} ORDER BY checkpoint_id"):
            rows.checkpoints.append((row["tx"], row["thread_id"][len(run_id) + 1 :], row))
    return rows


def apart(rows: Rows) -> list[str]:
    """What belongs together and was not written in one transaction, or is missing; nothing if all is well."""
    return [*_steps_apart(rows), *_messages_apart(rows), *_checkpoints_ahead(rows)]


def _steps_apart(rows: Rows) -> Iterator[str]:
    """A step's record, its events, and what the graph goes on from."""
    end = next((tx for tx, type, _ in rows.events if type == "done"), None)  # nothing goes on from there
    resumable = rows.writes | {(tx, path, state) for tx, path, _ in rows.checkpoints for state in _NODES}
    for step_id, (tx, path, state) in rows.steps.items():
        if (path, state) == ("", "RESPOND") and tx != end:
            yield f"step {step_id} is not together with the run's end"
        if tx != end and (tx, path, state) not in resumable:
            yield f"step {step_id} is not together with its writes or its checkpoint"
    for tx, path, node in rows.writes:
        if not rows.together(tx, path, node):
            yield f"the writes of {node} at {path!r} are not together with its step"
    for type, state in (("usage", "THINK"), ("message", "RESPOND")):
        said = Counter((tx, data.get("path", "")) for tx, its_type, data in rows.events if its_type == type)
        done = Counter((tx, path) for tx, path, its_state in rows.steps.values() if its_state == state)
        if said != done:
            yield f"{type} events {said} are not together with their {state} steps {done}"


def _messages_apart(rows: Rows) -> Iterator[str]:
    """A message is together with the step that said it, the result of a call with its outcome."""
    for (path, position), (tx, role) in rows.messages.items():
        match role:
            case "user":
                fine = not path or rows.together(tx, path, "THINK")
            case "assistant":
                fine = rows.together(tx, path, "THINK", "RESPOND")
            case _:
                fine = (tx, path, position) in rows.outcomes
        if not fine:
            yield f"message {position} of {path!r} ({role}) is not together with what made it"


_NODES = ("THINK", "ACT", "DELEGATE", "RESPOND")


def _checkpoints_ahead(rows: Rows) -> Iterator[str]:
    """A checkpoint stands on its parent, and on the steps and messages that it takes for done."""
    known = {(path, row["checkpoint_id"]) for _, path, row in rows.checkpoints}
    for _, path, row in rows.checkpoints:
        name = f"checkpoint {row['checkpoint_id']} of {path!r}"
        if row["parent_id"] is not None and (path, row["parent_id"]) not in known:
            yield f"{name} has a parent that is missing"
        state = StrictMsgpack().loads_typed((row["format"], row["checkpoint"]))["channel_values"]
        waiting = {node for node in _NODES if f"branch:to:{node}" in state}
        prefix = f"{path}/" if path else ""
        needed = [f"{prefix}{state['round'] - 1}-think"] if state["round"] else []
        for node, calls in (("ACT", state["calls"]), ("DELEGATE", state["delegations"])):
            step_id = f"{prefix}{state['round']}-{node.lower()}"
            if calls and node not in waiting:
                needed.append(step_id)
            if step_id in needed or step_id in rows.steps:
                for call in calls:
                    if (path, call["position"]) not in rows.messages:
                        yield f"{name} lacks the result at {call['position']}"
        for step_id in needed:
            if step_id not in rows.steps:
                yield f"{name} takes step {step_id} for done"
        calls = {call["position"] for call in (*state["calls"], *state["delegations"])}
        for position in range(state["position"]):
            if position not in calls and (path, position) not in rows.messages:
                yield f"{name} lacks message {position}"
