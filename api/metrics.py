"""Prometheus metrics: this process's requests and streams, and what Postgres knows of the whole deployment.

Figures of the deployment are one row each in `FIGURES`: a name, a help text, label names and a named statement.
They are read when someone asks and kept for two seconds, so scraping costs the database next to nothing. With
Postgres away the process's own metrics are still served.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from api.endpoint import Answer, Call, Endpoint, NoQuery
from kernel.postgres import UNAVAILABLE, Pool
from kernel.sql import statements

log = structlog.get_logger(__name__)

SQL = statements(__package__, "metrics.sql")

_KEPT_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Figure:
    """A gauge whose samples are the rows of a statement: its labels, then its value."""

    name: str
    help: str
    labels: tuple[str, ...]
    sql: str


FIGURES: Final = (
    Figure("longhaul_runs_unfinished", "Runs by status, now.", ("status",), SQL.runs_unfinished),
    Figure("longhaul_runs_recent", "Runs made within the last hour, by status.", ("status",), SQL.runs_recent),
    Figure("longhaul_queue_depth", "Queued runs that could start now.", (), SQL.queue_claimable),
    Figure("longhaul_queue_oldest_seconds", "Age of the oldest of them.", (), SQL.queue_oldest),
    Figure("longhaul_workers", "Workers seen within 15 seconds.", (), SQL.workers),
    Figure("longhaul_slots", "Slots of these workers.", (), SQL.slots),
    Figure("longhaul_slots_busy", "Slots that hold a run.", (), SQL.slots_busy),
    Figure(
        "longhaul_pickup_recent_seconds",
        "From submission to start, of first turns of the last five minutes.",
        ("quantile",),
        SQL.pickup,
    ),
)


class RequestMetrics:
    """Counts and times of the requests of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "longhaul_http_requests", "Answered requests.", ("method", "route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "longhaul_http_request_seconds",
            "Time to the complete answer; streams are not in it.",
            ("method", "route"),
            registry=registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
        )
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._timers: dict[tuple[str, str], Histogram] = {}

    def count(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """One answered request. `route` is the path's template, so the labels stay few."""
        if method not in _METHODS:
            method = "other"
        counter = self._counters.get((method, route, status))
        if counter is None:
            counter = self._counters[method, route, status] = self._requests.labels(method, route, str(status))
        counter.inc()
        if seconds is not None:
            timer = self._timers.get((method, route))
            if timer is None:
                timer = self._timers[method, route] = self._seconds.labels(method, route)
            timer.observe(seconds)


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS"})


class DeploymentFigures(Collector):
    """The samples of `FIGURES`, as they were last read."""

    def __init__(self, db: Pool) -> None:
        self._db = db
        self._lock = asyncio.Lock()
        self._read_at = float("-inf")
        self._samples: list[tuple[Figure, list[tuple[Any, ...]]]] = []

    async def refresh(self) -> None:
        """Reads them anew unless they are fresh; without Postgres there are none."""
        async with self._lock:
            if time.monotonic() - self._read_at < _KEPT_SECONDS:
                return
            try:
                async with asyncio.timeout(5), self._db.acquire() as connection:
                    self._samples = [
                        (figure, [tuple(row) for row in await connection.fetch(figure.sql)]) for figure in FIGURES
                    ]
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                self._samples = []
                log.warning("figures_not_read", error=str(error))
            self._read_at = time.monotonic()

    def collect(self) -> Iterable[Metric]:
        for figure, rows in self._samples:
            family = GaugeMetricFamily(figure.name, figure.help, labels=figure.labels)
            for *labels, value in rows:
                family.add_metric([str(label) for label in labels], float(value))
            yield family


class Metrics:
    """Everything that `/metrics` shows."""

    def __init__(self, db: Pool, registry: CollectorRegistry, *, streams: Callable[[], int]) -> None:
        self._registry = registry
        self._figures = DeploymentFigures(db)
        registry.register(self._figures)
        Gauge("longhaul_streams", "Open event streams of this process.", registry=registry).set_function(streams)

    def endpoints(self) -> Iterator[Endpoint[Any, Any]]:
        yield Endpoint(
            method="GET",
            path="/metrics",
            handler=self.show,
            tag="health",
            summary="Metrics for Prometheus",
            scope=None,
            media_type="text/plain",
        )

    async def show(self, call: Call[None, NoQuery]) -> Answer:
        await self._figures.refresh()
        return Answer(generate_latest(self._registry), content_type=CONTENT_TYPE_LATEST.encode())
