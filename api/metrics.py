"""`/metrics` for Prometheus: this process's requests and streams, and the figures of the whole deployment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from api.endpoint import Answer, Call, Endpoint, NoQuery
from api.figures import DeploymentFigures
from kernel.postgres import Pool

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


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
