"""Owners of a run within the test's process, one after the other, and tools that tests watch at work.

An owner executes a run as a worker does, on a real journal, database and model server. It is lost by letting it know
that its lease is gone: what it has committed stays, and whatever it was doing is cut short.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from kernel.agent_config import AgentConfig
from kernel.agents import create_agent
from kernel.effects import EffectClass
from kernel.leases import ClaimedRun, Leases
from kernel.postgres import Pool
from kernel.runs import InputMessage, NewRun, submit
from kernel.settings import Settings
from kernel.tenants import ensure_org
from memory.embedders.lexical import LexicalEmbedder
from memory.store import PostgresMemory
from orchestrator.engine import Engine
from orchestrator.kit import Outfitter
from orchestrator.models.factory import Models
from orchestrator.skills.registry import SkillRegistry
from orchestrator.tools.tool import Arguments, JSONValue, Tool, ToolContext
from orchestrator.tools.toolbox import Toolbox
from tests.history import History, assert_history
from tests.kernel.writing import Writer, expire, writing
from tests.waiting import eventually
from worker.execution import Execution
from worker.figures import Figures


class Deed(Tool[Arguments]):
    """A tool that notes each call's idempotency key. Its first `hangs` calls do not end."""

    description = "Does something."
    arguments = Arguments
    timeout = 60.0

    def __init__(self, name: str, effect: EffectClass, *, hangs: int = 0) -> None:
        self.name = name
        self.effect = effect
        self.keys: list[str] = []
        self._hangs = hangs
        self._called = asyncio.Condition()

    async def run(self, arguments: Arguments, context: ToolContext) -> JSONValue:
        self.keys.append(context.idempotency_key)
        async with self._called:
            self._called.notify_all()
        if len(self.keys) <= self._hangs:
            await asyncio.Event().wait()
        return f"{self.name} done"

    async def until_called(self, times: int = 1) -> None:
        async with self._called:
            await self._called.wait_for(lambda: len(self.keys) >= times)


@dataclass(slots=True)
class Owner:
    """One claim of a run, and its execution."""

    run: ClaimedRun
    execution: Execution
    task: asyncio.Task[None]

    async def is_lost(self) -> None:
        """Another may have the run by now."""
        self.execution.lose()
        await self.task


@dataclass(frozen=True, slots=True)
class Owners:
    """Makes runs and their owners. There is one run in the database at a time."""

    database: Pool
    org: str
    writer: Writer
    models: Models

    def engine(self, tools: Sequence[Tool[Any]]) -> Engine:
        """An engine with these tools."""
        memory = PostgresMemory(self.database, LexicalEmbedder())
        return Engine(
            self.database, models=self.models, outfitter=Outfitter(Toolbox(tools), SkillRegistry(), {}), memory=memory
        )

    async def ask(self, model: str, *, request: dict[str, Any] | None = None, **agent: Any) -> str:
        """Takes in a run of a new agent; its id. `model` is a script's name."""
        config = {"name": "agent", "model": {"name": model}, "memory": {"recall": False}, **agent}
        agent_id = (await create_agent(self.database, self.org, AgentConfig.model_validate(config))).id
        new = NewRun([InputMessage("user", "do it")], agent_id=agent_id, request=request)
        return (await submit(self.database, org_id=self.org, user_id=None, session_id=None, new=new)).run.id

    async def claim(self, run_id: str) -> ClaimedRun:
        """The run under the next epoch, whoever had it before."""
        await expire(self.database, run_id)
        # A claim passes over what the last owner's last commit still holds.
        [run] = await eventually(lambda: self._leases().claim(1), what="the run can be claimed")
        assert run.id == run_id
        return run

    async def own(self, run_id: str, *tools: Tool[Any]) -> Owner:
        """Claims the run and begins to execute it."""
        run = await self.claim(run_id)
        execution = Execution(
            run,
            journal=self.writer.journal,
            engine=self.engine(tools),
            leases=self._leases(),
            figures=Figures(),
            ring=_no_bell,
        )
        return Owner(run, execution, asyncio.create_task(execution.carry_out()))

    async def finish(self, run_id: str, *tools: Tool[Any]) -> History:
        """Owns the run to its end; its checked history."""
        await (await self.own(run_id, *tools)).task
        return await self.history(run_id)

    async def history(self, run_id: str) -> History:
        """The checked history of a run that has ended."""
        return await assert_history(self.database, run_id)

    async def until(self, run_id: str, type: str, **fields: str) -> None:
        """Waits until an event of this type, with these fields, is in the run's log."""

        async def said() -> bool:
            rows = await self.database.fetch("SELECT data FROM events WHERE run_id = $1 AND type = $2", run_id, type)
            return any(all(f'"{name}":"{value}"' in row["data"] for name, value in fields.items()) for row in rows)

        await eventually(said, what=f"{type} {fields}")

    def _leases(self) -> Leases:
        return Leases(self.database, worker="host:1", lease_seconds=60)


@asynccontextmanager
async def owners_on(database: Pool, redis: Redis, settings: Settings) -> AsyncIterator[Owners]:
    """Owners for the time of the block."""
    models = Models(settings)
    async with writing(database, redis) as writer:
        yield Owners(database, await ensure_org(database, "own"), writer, models)
    await models.aclose()


async def _no_bell(times: int) -> None:
    return
