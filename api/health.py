"""`/`, `/health` and `/ready`: what this is, whether the process lives, whether it can do its work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Literal

import asyncpg
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.endpoint import Answer, Call, Endpoint, NoQuery
from api.values import View
from kernel.postgres import UNAVAILABLE, Pool
from kernel.sql import statements
from kernel.workflows import WORKFLOWS
from migrations.runner import MigrationFailed, known_migrations, pending

log = structlog.get_logger(__name__)

SQL = statements(__package__, "health.sql")

_PATIENCE: Final = 3.0


def _release() -> str:
    try:
        return version("longhaul")
    except PackageNotFoundError:
        return "0"


# Read from files, so at import: nothing reads files once the process serves.
RELEASE: Final = _release()
_MIGRATIONS: Final = known_migrations()


class WorkflowView(View):
    """A workflow that a run can ask for."""

    name: str
    description: str


class InfoView(View):
    """What answers here."""

    name: str
    version: str
    workflows: list[WorkflowView]
    docs: str
    openapi: str


class HealthView(View):
    """The process answers."""

    status: Literal["ok"]


class ReadyView(View):
    """Whether what this needs is there. `checks` says `ok` or what is wrong, by name."""

    status: Literal["ready", "unavailable"]
    checks: dict[str, str]
    workers: int


class Health:
    """The endpoints for those who watch."""

    def __init__(self, db: Pool, redis: Redis) -> None:
        self._db = db
        self._redis = redis

    def endpoints(self) -> Iterator[Endpoint[Any, Any]]:
        yield Endpoint(
            method="GET",
            path="/",
            handler=self.info,
            tag="health",
            summary="What this is",
            scope=None,
            response=InfoView,
        )
        yield Endpoint(
            method="GET",
            path="/health",
            handler=self.health,
            tag="health",
            summary="Whether this process answers",
            scope=None,
            response=HealthView,
        )
        yield Endpoint(
            method="GET",
            path="/ready",
            handler=self.ready,
            tag="health",
            summary="Whether what it needs is there",
            description="Also counts the workers that were seen within 15 seconds; none is no reason for a 503.",
            scope=None,
            response=ReadyView,
            also={503: ReadyView},
        )

    async def info(self, call: Call[None, NoQuery]) -> Answer:
        workflows = [{"name": name, "description": text} for name, text in WORKFLOWS.items()]
        return Answer(
            {
                "name": "longhaul",
                "version": RELEASE,
                "workflows": workflows,
                "docs": "/docs",
                "openapi": "/openapi.json",
            }
        )

    async def health(self, call: Call[None, NoQuery]) -> Answer:
        return Answer(b'{"status":"ok"}')

    async def ready(self, call: Call[None, NoQuery]) -> Answer:
        (postgres, schema, workers), redis = await asyncio.gather(self._check_postgres(), self._check_redis())
        checks = {"postgres": postgres, "schema": schema, "redis": redis}
        ready = all(outcome == "ok" for outcome in checks.values())
        body = {"status": "ready" if ready else "unavailable", "checks": checks, "workers": workers}
        return Answer(body, 200 if ready else 503, () if ready else ((b"retry-after", b"1"),))

    async def _check_postgres(self) -> tuple[str, str, int]:
        try:
            async with asyncio.timeout(_PATIENCE), self._db.acquire() as connection:
                applied = {row["name"]: row["checksum"] for row in await connection.fetch(SQL.applied)}
                # Those of the next release are no obstacle: it is being rolled out, and breaks nothing of this one.
                known = {file.name: applied[file.name] for file in _MIGRATIONS if file.name in applied}
                missing = pending(_MIGRATIONS, known)
                if missing:
                    return "ok", f"not applied: {', '.join(migration.name for migration in missing)}", 0
                return "ok", "ok", int(await connection.fetchval(SQL.workers))
        except MigrationFailed as error:
            return "ok", str(error), 0
        except asyncpg.UndefinedTableError:
            return "ok", "no schema: run the migrations", 0
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            log.warning("postgres_not_ready", error=f"{type(error).__name__}: {error}")
            return "unreachable", "unknown", 0

    async def _check_redis(self) -> str:
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._redis.ping()
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("redis_not_ready", error=f"{type(error).__name__}: {error}")
            return "unreachable"
        return "ok"
