"""Resident memory of the API and a worker: idle after their start, and idle again after the load of all other rows."""

from __future__ import annotations

import asyncio

from bench.processes import resident_mb
from bench.report import Bound, Line, Section
from bench.side_process import output_of
from bench.stats import Spread
from bench.subject import Subject

KEY = "memory"
TITLE = "Resident memory of one process"

_SETTLE = 3.0
_BOUNDS = {"api": Bound(90), "worker": Bound(160)}
_LIBRARIES = {
    "api": "uvicorn uvloop httptools starlette.routing asyncpg redis.asyncio arq.connections pydantic_settings"
    " structlog orjson prometheus_client jwt",
    "worker": "uvloop asyncpg redis.asyncio arq.worker pydantic_settings structlog orjson aiohttp langgraph.graph"
    " langchain_openai",
}


class MemoryRow:
    """`before` the load, then `after` it."""

    def __init__(self) -> None:
        self._lines: list[Line] = []

    async def before(self, subject: Subject) -> None:
        """Weighs the idle processes, and their libraries alone."""
        await asyncio.sleep(_SETTLE)
        for name, bound in _BOUNDS.items():
            self._lines.append(Line(f"{name}, idle", "MB", _weight(subject, name), bound, single=True))
        for name, modules in _LIBRARIES.items():
            imports = "\n".join(f"import {module}" for module in modules.split())
            weigh = "import os\nfrom bench.processes import resident_mb\nprint(resident_mb(os.getpid()))"
            floor = float(await output_of(f"{imports}\n{weigh}"))
            self._lines.append(
                Line(f"a Python with the libraries of the {name}", "MB", Spread(floor, floor), single=True)
            )

    async def after(self, subject: Subject) -> list[Section]:
        """The finished section."""
        await asyncio.sleep(_SETTLE)
        loaded = [
            Line(f"{name}, idle again after the load", "MB", _weight(subject, name), bound, single=True)
            for name, bound in _BOUNDS.items()
        ]
        return [Section(KEY, TITLE, [*self._lines, *loaded])]


def _weight(subject: Subject, name: str) -> Spread:
    weight = resident_mb(subject.pids[name])
    return Spread(weight, weight)
