"""What Postgres knows of the whole deployment, as metrics: runs, queue, workers, and what the workers report.

Each figure is one row in a table here: `GAUGES` name a statement, `COUNTERS` and `HISTOGRAMS` a place in the
figures that every worker writes with its heartbeat. They are read when someone asks and kept for two seconds,
so scraping costs the database next to nothing. With Postgres away there are none, and the rest is still served.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import asyncpg
import orjson
import structlog
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from kernel.postgres import UNAVAILABLE, Pool
from kernel.sql import statements

log = structlog.get_logger(__name__)

SQL = statements(__package__, "figures.sql")

_KEPT_SECONDS: Final = 2.0
_PATIENCE: Final = 5.0


@dataclass(frozen=True, slots=True)
class GaugeFigure:
    """Samples are the rows of a statement: labels, then the value."""

    name: str
    help: str
    labels: tuple[str, ...]
    sql: str


@dataclass(frozen=True, slots=True)
class WorkerFigure:
    """Samples are found at `place` in the figures of each worker."""

    name: str
    help: str
    place: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MeasuredFigure:
    """What workers count by name and outcome, as `orchestrator.measures` has it, and how long it took. `label` says
    what the names are."""

    name: str
    help: str
    measured: str
    label: str


GAUGES: Final = (
    GaugeFigure("longhaul_runs_unfinished", "Runs by status, now.", ("status",), SQL.runs_unfinished),
    GaugeFigure("longhaul_runs_recent", "Runs made within the last hour, by status.", ("status",), SQL.runs_recent),
    GaugeFigure("longhaul_queue_depth", "Queued runs that could start now.", (), SQL.queue_claimable),
    GaugeFigure("longhaul_queue_oldest_seconds", "Age of the oldest of them.", (), SQL.queue_oldest),
    GaugeFigure("longhaul_workers", "Workers seen within 15 seconds.", (), SQL.workers),
    GaugeFigure("longhaul_slots", "Slots of these workers.", (), SQL.slots),
    GaugeFigure("longhaul_slots_busy", "Slots that hold a run.", (), SQL.slots_busy),
)
COUNTERS: Final = (
    WorkerFigure("longhaul_worker_claims", "Runs claimed.", ("claimed",)),
    WorkerFigure("longhaul_worker_resumes", "Of these, runs that had been started before.", ("resumed",)),
    WorkerFigure("longhaul_worker_lost", "Runs whose lease was lost.", ("lost",)),
    WorkerFigure("longhaul_worker_handed_back", "Runs handed back to the queue unfinished.", ("handed_back",)),
    WorkerFigure("longhaul_worker_stuck", "Runs whose code did not end when told to.", ("stuck",)),
    WorkerFigure("longhaul_journal_flushes", "Group commits of the journal.", ("journal", "commits")),
    WorkerFigure("longhaul_journal_slices", "Batches of single runs in them.", ("journal", "slices")),
    WorkerFigure("longhaul_journal_events", "Events in them.", ("journal", "events")),
    WorkerFigure("longhaul_journal_flush_seconds", "Time spent in them.", ("journal", "seconds")),
)
HISTOGRAMS: Final = (
    WorkerFigure("longhaul_pickup_seconds", "From a run's submission to its claim.", ("pickup",)),
    WorkerFigure("longhaul_first_token_seconds", "From a run's submission to its first text.", ("first_token",)),
)
MEASURED: Final = (
    MeasuredFigure("longhaul_run_attempt", "Attempts of runs, by workflow.", "runs", "workflow"),
    MeasuredFigure("longhaul_model_call", "Calls of models, through all layers.", "models", "model"),
    MeasuredFigure("longhaul_tool_call", "Calls of tools, through all layers.", "tools", "tool"),
    MeasuredFigure("longhaul_event_handler_call", "Events that handlers were told.", "handlers", "handler"),
    MeasuredFigure("longhaul_turn_reading", "Turns of conversations read for memories.", "extractions", "kind"),
)


class DeploymentFigures(Collector):
    """The samples as they were last read."""

    def __init__(self, db: Pool) -> None:
        self._db = db
        self._lock = asyncio.Lock()
        self._read_at = float("-inf")
        self._gauges: list[tuple[GaugeFigure, list[tuple[Any, ...]]]] = []
        self._workers: list[tuple[str, dict[str, Any]]] = []

    async def refresh(self) -> None:
        """Reads them anew unless they are fresh."""
        async with self._lock:
            if time.monotonic() - self._read_at < _KEPT_SECONDS:
                return
            try:
                async with asyncio.timeout(_PATIENCE), self._db.acquire() as connection:
                    self._gauges = [
                        (gauge, [tuple(row) for row in await connection.fetch(gauge.sql)]) for gauge in GAUGES
                    ]
                    rows = await connection.fetch(SQL.worker_figures)
                    self._workers = [(row["worker"], orjson.loads(row["figures"])) for row in rows]
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                self._gauges, self._workers = [], []
                log.warning("figures_not_read", error=f"{type(error).__name__}: {error}")
            self._read_at = time.monotonic()

    def collect(self) -> Iterable[Metric]:
        for gauge, rows in self._gauges:
            family = GaugeMetricFamily(gauge.name, gauge.help, labels=gauge.labels)
            for *labels, value in rows:
                family.add_metric([str(label) for label in labels], float(value))
            yield family
        for figure in COUNTERS:
            counter = CounterMetricFamily(figure.name, figure.help, labels=("worker",))
            for worker, count in self._of_workers(figure):
                counter.add_metric((worker,), float(count))
            yield counter
        for figure in HISTOGRAMS:
            histogram = HistogramMetricFamily(figure.name, figure.help, labels=("worker",))
            for worker, shown in self._of_workers(figure):
                histogram.add_metric((worker,), _buckets(shown), float(shown["sum"]))
            yield histogram
        for measured in MEASURED:
            yield from self._measured(measured)

    def _measured(self, figure: MeasuredFigure) -> Iterator[Metric]:
        counter = CounterMetricFamily(f"{figure.name}s", figure.help, labels=("worker", figure.label, "outcome"))
        histogram = HistogramMetricFamily(f"{figure.name}_seconds", figure.help, labels=("worker", figure.label))
        place = WorkerFigure(figure.name, figure.help, ("measures", figure.measured))
        for worker, names in self._of_workers(place):
            for name, shown in names.items():
                for outcome, count in shown["outcomes"].items():
                    counter.add_metric((worker, name, outcome), float(count))
                if shown["seconds"] is not None:
                    histogram.add_metric((worker, name), _buckets(shown["seconds"]), float(shown["seconds"]["sum"]))
        for family in (counter, histogram):
            if family.samples:
                yield family

    def _of_workers(self, figure: WorkerFigure) -> Iterator[tuple[str, Any]]:
        for worker, figures in self._workers:
            value: Any = figures
            for step in figure.place:
                value = value.get(step) if isinstance(value, dict) else None
            if value is not None:
                yield worker, value


def _buckets(shown: dict[str, Any]) -> list[tuple[str, float]]:
    """Prometheus counts cumulatively; the last bucket has no bound."""
    bounds = [*(str(bound) for bound in shown["buckets"]), "+Inf"]
    return list(zip(bounds, (float(count) for count in accumulate(shown["counts"])), strict=True))
