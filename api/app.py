"""The composition root of the API: everything that a process of it is made of, put together and taken apart.

Starts only if Postgres answers; after that both stores may come and go. Redis may be away from the start.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import structlog
from prometheus_client import CollectorRegistry
from redis.asyncio import BlockingConnectionPool, Redis
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from api.access import Access
from api.agents import Agents
from api.approvals import Approvals
from api.auth import Authenticator
from api.docs import Docs
from api.documents import KnowledgeBase
from api.endpoint import Edge
from api.events import Events
from api.files import SessionFiles
from api.health import RELEASE, Health
from api.memories import Memories
from api.memory_access import MemoryAccess
from api.metrics import Metrics, RequestMetrics
from api.retries import Retries
from api.router import build_router
from api.runs import Runs
from api.secrets import Secrets
from api.sessions import Sessions
from api.skills import Skills
from api.sources import Sources
from api.stream_tokens import StreamTokens
from kernel.bell import Bell
from kernel.errors import LonghaulError
from kernel.fanout import Publisher
from kernel.files import Files
from kernel.hub import Hub
from kernel.postgres import close_pool, open_pool
from kernel.sealing import Sealer
from kernel.settings import Settings
from kernel.tasks import end
from memory.documents.store import Documents

log = structlog.get_logger(__name__)

_FAREWELL_SECONDS = 2.0
_RESTART_SECONDS = 1.0
_REDIS_CONNECTIONS = 32
_REDIS_PATIENCE = 2.0
_POSTGRES_PATIENCE = 4.0


def create_app(settings: Settings) -> App:
    """The API as an ASGI application. It needs the lifespan protocol: nothing is open before."""
    return App(settings)


class App:
    """What the server calls. `end_streams` is for its shutdown."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._router: ASGIApp = _not_started
        self._hub: Hub | None = None
        registry = CollectorRegistry()
        self._registry = registry
        inner: ASGIApp = self._route
        if settings.cors_origins:
            inner = CORSMiddleware(
                inner,
                allow_origins=settings.cors_origins,
                allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
                allow_headers=(
                    *("Authorization", "Idempotency-Key", "Last-Event-ID", "X-Request-Id", "Cache-Control"),
                    *("If-Match", "If-None-Match", "Range"),
                ),
                expose_headers=(
                    *("Location", "X-Request-Id", "Idempotency-Replayed", "Retry-After"),
                    *("ETag", "Content-Range", "Content-Disposition"),
                ),
                max_age=3600,
            )
        self._http = Access(inner, RequestMetrics(registry))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)

    def end_streams(self) -> None:
        """Ends all event streams, so that the server can go; their clients come back elsewhere."""
        if self._hub is not None:
            self._hub.close()

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._router(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with self._running():
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except LonghaulError as error:
            await send({"type": "lifespan.startup.failed", "message": error.message})
            return
        await send({"type": "lifespan.shutdown.complete"})

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        settings = self._settings
        db = await open_pool(
            settings.database_url.get_secret_value(),
            size=settings.database_pool,
            name="longhaul-api",
            connect_timeout=_POSTGRES_PATIENCE,
            answer_within=_POSTGRES_PATIENCE,
        )
        redis = Redis.from_pool(
            BlockingConnectionPool.from_url(
                settings.redis_url.get_secret_value(),
                max_connections=_REDIS_CONNECTIONS,
                timeout=_REDIS_PATIENCE,
                socket_timeout=_REDIS_PATIENCE,
                socket_connect_timeout=_REDIS_PATIENCE,
            )
        )
        hub = self._hub = Hub(redis.connection_pool, db, heartbeat=settings.heartbeat_interval)
        publisher = Publisher(redis)
        bell = Bell(redis)
        tokens = StreamTokens.from_settings(settings)
        sealer = Sealer.of(settings.sealing_keys, settings.secret_key)
        memories = MemoryAccess(settings, db, redis)
        documents = Documents.from_settings(settings, db)
        endpoints = [
            *Retries(publisher, bell, sealer).endpoints(),
            *Runs(db, hub, publisher, bell, sealer).endpoints(),
            *Sessions(db, redis).endpoints(),
            *Events(db, hub, tokens).endpoints(),
            *SessionFiles(db, Files.from_settings(settings, db)).endpoints(),
            *Agents(db).endpoints(),
            *Approvals(db, publisher, bell).endpoints(),
            *Skills(db).endpoints(),
            *Secrets(db, sealer).endpoints(),
            *Sources(db).endpoints(),
            *Memories(memories, documents).endpoints(),
            *KnowledgeBase(documents, memories, closing=lambda: hub.closing).endpoints(),
            *Health(db, redis).endpoints(),
            *Metrics(db, self._registry, streams=lambda: hub.viewers).endpoints(),
        ]
        endpoints.extend(Docs(tuple(endpoints), version=RELEASE).endpoints())
        edge = Edge(db, Authenticator(db, settings), settings.max_body_bytes, sealer)
        self._router = build_router(edge, endpoints)
        hub_task = asyncio.create_task(_keep_running("hub", hub.run), name="hub")
        publisher_task = asyncio.create_task(_keep_running("publisher", publisher.run), name="publisher")
        try:
            yield
        finally:
            hub.close()
            publisher.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(publisher_task, _FAREWELL_SECONDS)
            await end(hub_task)
            await memories.aclose()
            await bell.aclose()
            await redis.aclose()
            await close_pool(db)


async def _keep_running(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Runs until it ends by itself. An error in it is ours, but must not end what serves everybody."""
    while True:
        try:
            await run()
        except Exception as error:
            log.error("background_task_failed", task=name, exc_info=error, restart_in=_RESTART_SECONDS)
            await asyncio.sleep(_RESTART_SECONDS)
        else:
            return


async def _not_started(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("the API was not started: it needs the ASGI lifespan protocol")
