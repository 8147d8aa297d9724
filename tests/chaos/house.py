"""The house that the chaos is in: servers, a proxy before each, and a crew of API processes and workers.

A process that ends is started again. That nobody ended it is a finding: so is one that was told to go and did not
leave in order.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cli.embedded import EmbeddedServers
from cli.rehearsal import ModelServer
from kernel.tenants import create_key, ensure_org
from migrations.runner import migrate
from tests.faults.outside import Outside, outside_world
from tests.faults.plans import Player
from tests.faults.proxy import Proxy, before_postgres, before_redis, serving
from tests.stack import Program, Stack
from tests.waiting import eventually

GRACE = 2.0
_LONGEST_FAREWELL = GRACE + 12.0
_STARTED = {"api": "Application startup complete", "worker": '"worker_started"'}

_SETTINGS = {
    "LONGHAUL_GRACE_SECONDS": f"{GRACE:g}",
    "LONGHAUL_HEARTBEAT_INTERVAL": "2",
    "LONGHAUL_MODEL_IDLE_TIMEOUT": "60",
    "LONGHAUL_LOG_LEVEL": "info",
}


@dataclass(slots=True)
class Member:
    """A process of the crew. `doom` is how it is to end, if someone said so."""

    kind: str
    program: Program
    doom: str | None = None
    told: float = 0.0
    frozen: bool = False

    @property
    def works(self) -> bool:
        return self.program.alive and self.doom is None and not self.frozen

    def tell_to_go(self) -> None:
        self.doom = "told to go"
        self.told = time.monotonic()
        self.program.send(signal.SIGTERM)


@dataclass(slots=True)
class House:
    """`finding` is told of what must not be. `deaths` are the pids of processes that were killed, with the time;
    `hurt` holds those that were killed or frozen, `farewells` the seconds from SIGTERM to the end of a process."""

    servers: EmbeddedServers
    postgres: Proxy
    redis: Proxy
    stack: Stack
    outside: Outside
    key: str
    finding: Callable[[str], None]
    crew: list[Member] = field(default_factory=list)
    deaths: dict[int, float] = field(default_factory=dict)
    hurt: set[int] = field(default_factory=set)
    farewells: list[float] = field(default_factory=list)
    _keepers: list[asyncio.Task[None]] = field(default_factory=list)
    _closing: bool = False

    def of(self, kind: str) -> list[Member]:
        """Its living processes, `api` or `worker`."""
        return [member for member in self.crew if member.kind == kind and member.program.alive]

    def any_api(self, rng: random.Random) -> str:
        """The URL of an API process, which may be frozen or just starting."""
        urls = [member.program.url for member in self.of("api")]
        return rng.choice(urls) if urls else "http://127.0.0.1:9"

    def open(self, *, apis: int, workers: int, slots: int) -> None:
        """Starts the crew and keeps it up."""
        for kind, number in (("api", apis), ("worker", workers)):
            for _ in range(number):
                self._keepers.append(asyncio.create_task(self._keep(kind, slots)))

    async def ready(self) -> None:
        """Returns when the whole crew works."""

        async def all_spawned() -> bool:
            return len(self.crew) == len(self._keepers)

        await eventually(all_spawned)
        for member in list(self.crew):
            await self.stack.until_ready(member.program)

    def kill(self, member: Member) -> None:
        """kill -9."""
        member.doom = "killed"
        self.hurt.add(member.program.pid)
        self.deaths[member.program.pid] = time.time()
        member.program.send(signal.SIGKILL)

    async def close(self) -> None:
        """Sends everyone home, in order."""
        self._closing = True
        for member in self.crew:
            member.program.send(signal.SIGCONT)
            member.tell_to_go()
        await asyncio.gather(*self._keepers)

    async def _keep(self, kind: str, slots: int) -> None:
        while not self._closing:
            spawn = self.stack.spawn_api if kind == "api" else self.stack.spawn_worker
            member = Member(kind, spawn({"LONGHAUL_SLOTS": str(slots)}))
            self.deaths.pop(member.program.pid, None)  # pids are given out again
            self.hurt.discard(member.program.pid)
            self.crew.append(member)
            await self._until_gone(member)
            self.crew.remove(member)
            if not self._closing:
                await asyncio.sleep(0.3)

    async def _until_gone(self, member: Member) -> None:
        program = member.program
        leaving = asyncio.create_task(program.wait())
        while not leaving.done():
            await asyncio.wait([leaving], timeout=0.5)
            if member.doom == "told to go" and not member.frozen and time.monotonic() > member.told + _LONGEST_FAREWELL:
                self.finding(f"{program.name} was told to go and has not gone for {_LONGEST_FAREWELL:g} s")
                await program.kill()
        code = await leaving
        name = f"{program.name} (pid {program.pid})"
        if member.doom == "told to go":
            self.farewells.append(time.monotonic() - member.told)
            if code != 0 and _STARTED[member.kind] in program.log:
                self.finding(f"{name} was told to go and ended with {code}")
        elif member.doom is None and _STARTED[member.kind] in program.log:
            self.finding(f"{name} ended by itself with {code}")


@asynccontextmanager
async def house(folder: Path, finding: Callable[[str], None], *, lease: float) -> AsyncIterator[House]:
    """Servers and proxies for the time of the block; the crew is the caller's to open and close. `lease` in seconds."""
    async with AsyncExitStack() as things:
        servers = await things.enter_async_context(EmbeddedServers(folder / "servers"))
        await migrate(servers.database_url)
        postgres, database_url = before_postgres(folder / "pg", servers.database_url)
        redis, redis_url = before_redis(folder / "rd", servers.redis_url)
        for proxy in (postgres, redis):
            await things.enter_async_context(serving(proxy))
        outside = await things.enter_async_context(outside_world(pause=0.05))
        model = await things.enter_async_context(ModelServer(Player(outside.url)))
        stack = Stack(
            folder / "stack",
            database_url=servers.database_url,
            redis_url=servers.redis_url,
            model_url=model.url,
            environment={
                **_SETTINGS,
                "LONGHAUL_LEASE_SECONDS": f"{lease:g}",
                "LONGHAUL_LEASE_RENEW_SECONDS": f"{lease / 4:g}",
                "DATABASE_URL": database_url,
                "REDIS_URL": redis_url,
                "LONGHAUL_EGRESS_ALLOW": outside.address,
            },
        )
        await stack.start(apis=0, workers=0)
        things.push_async_callback(stack.stop)
        org_id = await ensure_org(stack.database, "chaos")
        key = (await create_key(stack.database, org_id, name="chaos")).secret.get_secret_value()
        yield House(servers, postgres, redis, stack, outside, key, finding)
