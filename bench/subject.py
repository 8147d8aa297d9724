"""What is measured: a stack with its processes as in production, on a scripted model, in a directory of its own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from bench.http import Server
from bench.processes import ProcessorTime
from bench.side_process import SideProcess, side_process
from cli import programs
from cli.stack import Stack, StackOptions
from cli.supervisor import ProcessService

API_KEY_OF_THE_MODEL = "bench"
MODEL = "bench"

# What would point the stack, or a client within the bench, at anything but loopback.
_FOREIGN = ("DATABASE_URL", "REDIS_URL", "LLM_MODEL", "PORT")
_FOREIGN_PREFIXES = ("LONGHAUL_", "OPENAI_", "LANGCHAIN_", "LANGSMITH_")


@dataclass(frozen=True, slots=True)
class Subject:
    """The running stack. `api` and `model` are where its API and its model are reached, `silent` and `pages`
    ("host:port") servers that tools may reach: one never answers, the other says how in bench/script.py."""

    api: Server
    model: Server
    model_url: str
    silent: str
    pages: str
    database_url: str
    redis_url: str
    _stack: Stack
    _environment: Mapping[str, str]
    _model_pid: int

    @property
    def pids(self) -> dict[str, int]:
        """Its processes by name, as they are now: those that end are started again."""
        order = ("api", "worker-1", "postgres", "redis")
        pids = self._stack.pids()
        return {name.removesuffix("-1"): pids[name] for name in order} | {"model": self._model_pid}

    def further_worker(self, number: int) -> ProcessService:
        """A worker for the same stack, `number` 2 or more, not started yet. Whoever starts it ends it."""
        stores = {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url}
        port = int(self._stack.url.rpartition(":")[2])
        environment = programs.base_environment(self._environment, self._stack.data, port) | stores
        return programs.worker(self._stack.data, environment, number)

    def further_api(self, name: str, port: int) -> ProcessService:
        """Another API process of the same stack, not started yet. Whoever starts it ends it."""
        stores = {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url}
        data = self._stack.data
        service = programs.api(data, programs.base_environment(self._environment, data, port) | stores)
        return ProcessService(replace(service.spec, name=name, log=data.log(name), pid_file=data.pid_file(name)))

    def processor_time(self) -> ProcessorTime:
        """Starts counting the processor time of all its processes."""
        return ProcessorTime(self.pids)


def clean_environment() -> dict[str, str]:
    """The environment without what belongs to other stacks, other models, proxies and tracing."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _FOREIGN and not name.startswith(_FOREIGN_PREFIXES) and not name.lower().endswith("_proxy")
    }


@asynccontextmanager
async def running_subject(data_dir: Path, say: Callable[[str], None]) -> AsyncIterator[Subject]:
    """Runs it for the time of the block. Raises what `cli.stack.Stack.start` raises, or BenchFailed."""
    async with side_process("bench.script") as model:
        model_url = str(model.said["url"])
        environment = clean_environment() | {
            "OPENAI_BASE_URL": model_url,
            "OPENAI_API_KEY": API_KEY_OF_THE_MODEL,
            "LLM_MODEL": MODEL,
            "LONGHAUL_LOG_FORMAT": "json",
            "LONGHAUL_EGRESS_ALLOW": f"{model.said['silent']},{model.said['pages']}",
        }
        async with Stack(StackOptions(data_dir, environment), say) as stack:
            yield _subject(stack, model, environment)


def _subject(stack: Stack, model: SideProcess, environment: Mapping[str, str]) -> Subject:
    model_url = str(model.said["url"])
    return Subject(
        api=_server(stack.url, stack.api_key),
        model=_server(model_url, API_KEY_OF_THE_MODEL),
        model_url=model_url,
        silent=str(model.said["silent"]),
        pages=str(model.said["pages"]),
        database_url=stack.database_url,
        redis_url=stack.redis_url,
        _stack=stack,
        _environment=environment,
        _model_pid=model.pid,
    )


def _server(url: str, api_key: str) -> Server:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return Server(parts.hostname, parts.port, api_key)
