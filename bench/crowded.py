"""An API process of its own for a crowd of subscribers, their sessions, and the processes they are in.

The sessions belong to several orgs and have one event each, so that every subscriber has an id to come back with. Half
of the subscribers come with an API key, half with a stream token.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from typing import Any

import orjson

from api.stream_tokens import StreamTokens
from bench.http import BenchFailed, Server
from bench.processes import processor_seconds, resident_mb
from bench.side_process import SideProcess, side_process
from bench.subject import Subject
from cli.supervisor import ProcessService
from kernel.ids import new_id
from kernel.postgres import Pool, open_pool
from kernel.tenants import Principal, create_key, ensure_org

_ORGS = 10
_START_SECONDS = 20.0
_END_SECONDS = 20.0
_TOKEN_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Followed:
    """A session that somebody follows, and a key of its org."""

    org_id: str
    id: str
    key: str

    @property
    def path(self) -> str:
        return f"/v1/sessions/{self.id}/events"

    @property
    def authorization(self) -> str:
        return f"Bearer {self.key}"


class CrowdedApi:
    """The API process with `sessions`; `crowd`, `flood` and `stallers` take the commands of these modules."""

    def __init__(
        self, subject: Subject, database: Pool, service: ProcessService, port: int, sessions: Sequence[Followed]
    ) -> None:
        self.sessions = sessions
        self.server = Server("127.0.0.1", port, sessions[0].key)
        self.crowd: SideProcess
        self.flood: SideProcess
        self.stallers: SideProcess
        self._subject = subject
        self._database = database
        self._service = service
        self._port = port

    @property
    def pid(self) -> int:
        if self._service.pid is None:
            raise BenchFailed("the API process has gone")
        return self._service.pid

    @property
    def address(self) -> dict[str, Any]:
        """For commands that connect to it."""
        return {"host": "127.0.0.1", "port": self._port}

    def processor(self) -> float:
        """Seconds of processor time that it has used."""
        return processor_seconds(self.pid) or 0.0

    def resident(self) -> float:
        """KB of 1,024 bytes."""
        return resident_mb(self.pid) * 1e6 / 1024

    async def connections(self) -> int:
        """To Postgres, of all API processes of the stack."""
        statement = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'longhaul-api'"
        return int(await self._database.fetchval(statement))

    def viewers(self, sessions: Sequence[Followed]) -> list[tuple[str, str]]:
        """Path and Authorization header of a subscriber of each."""
        tokens = StreamTokens(self._service.spec.env["LONGHAUL_SECRET_KEY"], _TOKEN_SECONDS)
        found: list[tuple[str, str]] = []
        for number, session in enumerate(sessions):
            if number % 2:
                holder = Principal(session.org_id, None, frozenset({"read"}))
                found.append((str(tokens.issue(holder, session.id, session.path)["url"]), ""))
            else:
                found.append((session.path, session.authorization))
        return found

    async def feed(self, sessions: Sequence[Followed]) -> None:
        """Makes the flood's events those of these sessions, after the one they have."""
        run_id = new_id("run")
        await self.flood.ask("sources", sources=[(one.org_id, one.id, run_id, 1) for one in sessions])

    async def publish(self, rate: int, seconds: float) -> dict[str, Any]:
        """Lets the flood go. How many events it was, and how long it took."""
        return await self.flood.ask("publish", redis_url=self._subject.redis_url, rate=rate, seconds=seconds)

    async def end(self) -> tuple[float, int]:
        """SIGTERM. When it was sent (monotonic), and the exit code."""
        sent = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        async with asyncio.timeout(_END_SECONDS):
            return sent, await self._service.wait()


@asynccontextmanager
async def crowded_api(subject: Subject, sessions: int) -> AsyncIterator[CrowdedApi]:
    """All of it for the time of the block, with so many sessions."""
    async with AsyncExitStack() as stack:
        database = await open_pool(subject.database_url, size=1, name="bench")
        stack.push_async_callback(database.close)
        followed = await _make_sessions(database, sessions)
        port = _free_port()
        service = subject.further_api("api-crowded", port)
        stack.push_async_callback(service.stop)
        await service.start()
        api = CrowdedApi(subject, database, service, port, followed)
        api.crowd = await stack.enter_async_context(side_process("bench.crowd"))
        api.flood = await stack.enter_async_context(side_process("bench.flood"))
        api.stallers = await stack.enter_async_context(side_process("bench.stallers"))
        await _until_ready(service, api.server)
        yield api


async def _make_sessions(database: Pool, count: int) -> list[Followed]:
    holders: list[tuple[str, str]] = []
    for number in range(_ORGS):
        org_id = await ensure_org(database, f"bench crowd {number}")
        holders.append((org_id, (await create_key(database, org_id, name="bench")).secret.get_secret_value()))
    made = [Followed(holders[number % _ORGS][0], new_id("ses"), holders[number % _ORGS][1]) for number in range(count)]
    ids, orgs = [one.id for one in made], [one.org_id for one in made]
    await database.execute(
        "INSERT INTO sessions (id, org_id, last_seq) SELECT *, 1 FROM unnest($1::text[], $2::text[])", ids, orgs
    )
    await database.execute(
        "INSERT INTO events (session_id, seq, org_id, run_id, type, data, at)"
        " SELECT id, 1, org_id, $3, 'message_chunk', $4::json, now()"
        " FROM unnest($1::text[], $2::text[]) AS s (id, org_id)",
        ids,
        orgs,
        new_id("run"),
        orjson.dumps({"message_id": "msg_0", "text": "hello", "path": ""}).decode(),
    )
    return made


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


async def _until_ready(service: ProcessService, server: Server) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and service.exit_code is None:
        try:
            connection = await server.connect()
            await connection.call(server.request("GET", "/ready"))
        except (OSError, BenchFailed):
            await asyncio.sleep(0.05)
        else:
            connection.close()
            return
    raise BenchFailed(f"the API process does not get ready: {service.log_tail()[-500:]}")
