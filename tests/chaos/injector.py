"""Carries out the faults. Those that last are ended by whoever began them; a server has one at a time."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import asyncpg
from redis.asyncio import Redis

from tests.chaos.faults import WEIGHTS, Fault
from tests.chaos.house import House, Member
from tests.faults.proxy import Proxy

_END_OTHERS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name <> 'tests'
"""


class Callers(Protocol):
    """Those who have runs at work."""

    async def cancel_some(self, rng: random.Random) -> None: ...

    def disconnect_some(self, rng: random.Random) -> None: ...


class Injector:
    """`run` takes the whole schedule; `done` counts what was carried out."""

    def __init__(self, house: House, callers: Callers) -> None:
        self._house = house
        self._callers = callers
        self._postgres = asyncio.Lock()
        self._redis = asyncio.Lock()
        self.done: Counter[str] = Counter()
        on_redis = partial(self._on_proxy, house.redis, self._redis)
        on_postgres = partial(self._on_proxy, house.postgres, self._postgres)
        self._ways: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "kill a worker": partial(self._kill, "worker"),
            "freeze a worker": partial(self._freeze, "worker"),
            "tell a worker to go": partial(self._tell_to_go, "worker"),
            "kill an API": partial(self._kill, "api"),
            "freeze an API": partial(self._freeze, "api"),
            "tell an API to go": partial(self._tell_to_go, "api"),
            "restart Redis": self._restart_redis,
            "flush Redis": self._flush_redis,
            "kill clients of Redis": self._kill_redis_clients,
            "cut Redis off": partial(on_redis, _cut),
            "stall Redis": partial(on_redis, _stall),
            "delay Redis": partial(on_redis, _delay),
            "drop replies of Redis": partial(on_redis, _drop_replies),
            "refuse at Redis": partial(on_redis, _refuse),
            "restart Postgres": self._restart_postgres,
            "crash Postgres": self._crash_postgres,
            "end backends": self._end_backends,
            "cut Postgres off": partial(on_postgres, _cut),
            "stall Postgres": partial(on_postgres, _stall),
            "delay Postgres": partial(on_postgres, _delay),
            "drop replies of Postgres": partial(on_postgres, _drop_replies),
            "refuse at Postgres": partial(on_postgres, _refuse),
            "cancel runs": lambda fault: callers.cancel_some(random.Random(fault.chance)),
            "disconnect followers": self._disconnect,
        }
        assert self._ways.keys() == WEIGHTS.keys()

    async def run(self, faults: list[Fault]) -> None:
        """Begins each fault in its time, and returns when all are over and the servers are well again."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for fault in faults:
                await asyncio.sleep(began + fault.at - time.monotonic())
                tasks.create_task(self._inject(fault), name=fault.kind)
        await asyncio.gather(self._house.postgres.heal(), self._house.redis.heal())

    async def _inject(self, fault: Fault) -> None:
        await self._ways[fault.kind](fault)
        self.done[fault.kind] += 1

    # -- processes -----------------------------------------------------------------------------------------

    async def _someone(self, kind: str, fault: Fault) -> Member:
        while True:
            if working := [member for member in self._house.of(kind) if member.works]:
                return working[int(fault.chance * len(working))]
            await asyncio.sleep(0.05)

    async def _kill(self, kind: str, fault: Fault) -> None:
        self._house.kill(await self._someone(kind, fault))

    async def _tell_to_go(self, kind: str, fault: Fault) -> None:
        (await self._someone(kind, fault)).tell_to_go()

    async def _freeze(self, kind: str, fault: Fault) -> None:
        member = await self._someone(kind, fault)
        member.frozen = True
        self._house.hurt.add(member.program.pid)
        member.program.send(signal.SIGSTOP)
        await asyncio.sleep(fault.lasts)
        if member.program.alive:
            member.program.send(signal.SIGCONT)
        member.frozen = False

    # -- Redis ---------------------------------------------------------------------------------------------

    async def _restart_redis(self, fault: Fault) -> None:
        async with self._redis:
            redis = self._house.servers.redis
            await (redis.kill if fault.chance < 0.5 else redis.stop)()
            await redis.start()

    async def _flush_redis(self, fault: Fault) -> None:
        await self._tell_redis("FLUSHALL")

    async def _kill_redis_clients(self, fault: Fault) -> None:
        await self._tell_redis("CLIENT", "KILL", "TYPE", "pubsub" if fault.chance < 0.5 else "normal")

    async def _tell_redis(self, *words: str) -> None:
        async with self._redis, Redis.from_url(self._house.servers.redis_url) as client:
            await client.execute_command(*words)

    # -- Postgres ------------------------------------------------------------------------------------------

    async def _restart_postgres(self, fault: Fault) -> None:
        async with self._postgres:
            await self._house.servers.postgres.stop()
            await self._house.servers.postgres.start()

    async def _crash_postgres(self, fault: Fault) -> None:
        async with self._postgres:
            await self._house.servers.postgres.kill()
            await self._house.servers.postgres.start()

    async def _end_backends(self, fault: Fault) -> None:
        async with self._postgres:
            connection = await asyncpg.connect(self._house.servers.database_url)
            await connection.execute(_END_OTHERS)
            await connection.close()

    # -- the network ---------------------------------------------------------------------------------------

    async def _on_proxy(
        self, proxy: Proxy, lock: asyncio.Lock, act: Callable[[Proxy, Fault], Awaitable[None]], fault: Fault
    ) -> None:
        async with lock:
            await act(proxy, fault)
            await proxy.heal()

    async def _disconnect(self, fault: Fault) -> None:
        self._callers.disconnect_some(random.Random(fault.chance))


async def _cut(proxy: Proxy, fault: Fault) -> None:
    proxy.cut()


async def _stall(proxy: Proxy, fault: Fault) -> None:
    proxy.stall()
    await asyncio.sleep(fault.lasts)


async def _delay(proxy: Proxy, fault: Fault) -> None:
    proxy.delay(0.01 + 0.2 * fault.chance)
    await asyncio.sleep(fault.lasts)


async def _drop_replies(proxy: Proxy, fault: Fault) -> None:
    """Some answers get lost, of commits where it is Postgres."""
    dropped = [proxy.drop_reply(), proxy.drop_reply(b"committed"), proxy.drop_reply()]
    await asyncio.wait(dropped, timeout=1.0)


async def _refuse(proxy: Proxy, fault: Fault) -> None:
    proxy.vanish()
    await asyncio.sleep(fault.lasts)
