"""What `longhaul doctor` finds out, section by section. What can't be found out is a problem, and the rest goes on."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import aiohttp
import asyncpg
from pydantic import SecretStr
from redis.asyncio import Redis

from cli import programs, state
from cli.embedded.directory import DataDirectory
from cli.errors import NotRunning
from kernel.errors import BadSettings, LonghaulError
from kernel.plugins import PLUGIN_GROUPS, BadPlugin, Plugin, plugins
from kernel.settings import Settings, load_settings
from kernel.workflows import WORKFLOWS
from memory.host import MemoryHost, open_memory
from memory.in_memory import InMemory
from memory.port import Memory
from migrations.runner import MigrationFailed, known_migrations, pending
from orchestrator.egress import EgressClient
from orchestrator.host import PluginHost
from orchestrator.measures import Measures
from orchestrator.models.plugin import installed_providers
from orchestrator.skills.registry import SkillRegistry
from worker.equipment import equip
from worker.plugins import make_middleware, plugged_handlers, plugged_workflows

T = TypeVar("T")

_PATIENCE: Final = 5.0

_EXTRAS: Final[Mapping[str, tuple[str, str]]] = {
    "duckdb": ("data", "questions over uploaded files"),
    "sqlglot": ("data", "questions over databases"),
    "mcp": ("mcp", "tools of MCP servers"),
    "ddgs": ("search", "web search without a key"),
    "opentelemetry-api": ("tracing", "spans of runs, model calls and tool calls"),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that keeps a worker from starting, or from doing its work."""

    what: str
    remedies: tuple[str, ...] = ()


@dataclass(slots=True)
class Diagnosis:
    """Lines by section, and all problems."""

    sections: dict[str, list[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def shown(self) -> dict[str, Any]:
        problems = [{"what": problem.what, "remedies": list(problem.remedies)} for problem in self.problems]
        return {"ok": not self.problems, "sections": self.sections, "problems": problems}

    def problem(self, what: str, *remedies: str) -> None:
        """One more, unless it is known already."""
        if all(problem.what != what for problem in self.problems):
            self.problems.append(Problem(what, remedies))

    def of(self, title: str, look: Callable[[], T], lines: Callable[[T], Iterable[str]]) -> T | None:
        """Fills a section with what `look` gives; what it raises is a problem."""
        self.sections[title] = []
        try:
            seen = look()
        except LonghaulError as error:
            self.problem(error.message, *error.suggestions)
            return None
        self.sections[title] += lines(seen)
        return seen


async def diagnose(data_dir: Path | None = None) -> Diagnosis:
    """Looks at the environment, and where it names no stores at the stack that runs on `data_dir`."""
    found = Diagnosis()
    settings = _settings(found, data_dir)
    if settings is None:
        return found
    async with AsyncExitStack() as stack:
        await _stores(found, settings)
        await _model(found, settings)
        await _parts(found, settings, stack)
    _plugins(found)
    _extras(found)
    return found


def _settings(found: Diagnosis, data_dir: Path | None) -> Settings | None:
    """Those of the environment; what is missing is taken from the development stack, if one runs."""
    directory = data_dir or state.default_directory()
    try:
        running = state.find_running(directory)
    except NotRunning:
        running = None
    if running is not None:
        stores = {"DATABASE_URL": running.database_url, "REDIS_URL": running.redis_url}
        environment = programs.base_environment({**stores, **os.environ}, DataDirectory(directory), 8000)
        os.environ.update(environment)
    settings = found.of("settings", load_settings, _differing)
    if settings is None and running is None:
        found.problem(f"No stack runs on {directory} either.", "start one: longhaul dev")
    return settings


def _differing(settings: Settings) -> Iterable[str]:
    for name, about in type(settings).model_fields.items():
        value = getattr(settings, name)
        if value == about.get_default(call_default_factory=True):
            continue
        if isinstance(value, SecretStr):
            yield f"{name}: {_place(value.get_secret_value()) if name.endswith('_url') else 'set'}"
        elif isinstance(value, dict | tuple):
            yield f"{name}: {', '.join(map(str, value))}"
        else:
            yield f"{name}: {_place(value) if isinstance(value, str) and '://' in value else value}"


def _place(url: str) -> str:
    """An address without what may be secret in it."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


async def _timed(found: Diagnosis, title: str, what: str, look: Callable[[], Awaitable[str]], remedy: str) -> bool:
    """Whether something could be reached; adds a line that says how fast."""
    started = time.perf_counter()
    lines = found.sections.setdefault(title, [])
    try:
        seen = await look()
    except Exception as error:  # whatever a driver raises, it is the answer
        lines.append(f"{what}: not reached")
        found.problem(f"{what} can't be reached: {type(error).__name__}: {error}".rstrip(": "), remedy)
        return False
    lines.append(f"{what}: {seen} ({(time.perf_counter() - started) * 1000:.0f} ms)")
    return True


async def _stores(found: Diagnosis, settings: Settings) -> None:
    async def postgres() -> str:
        connection = await asyncpg.connect(
            settings.database_url.get_secret_value(), timeout=_PATIENCE, command_timeout=_PATIENCE
        )
        try:
            release = await connection.fetchval("SHOW server_version")
            try:
                rows = await connection.fetch("SELECT name, checksum FROM schema_migrations")
            except asyncpg.UndefinedTableError:
                rows = []
            workers = 0
            if rows:
                workers = await connection.fetchval(
                    "SELECT count(*) FROM workers WHERE seen_at > clock_timestamp() - interval '15 seconds'"
                )
            _schema(found, {row["name"]: row["checksum"] for row in rows}, workers)
        finally:
            await connection.close()
        return f"PostgreSQL {release}"

    async def redis() -> str:
        client: Redis = Redis.from_url(
            settings.redis_url.get_secret_value(), socket_connect_timeout=_PATIENCE, socket_timeout=_PATIENCE
        )
        try:
            about = await client.info("server")
        finally:
            await client.aclose()
        return f"Redis {about.get('redis_version', '')}"

    await _timed(found, "stores", "Postgres", postgres, "check DATABASE_URL and that the server is up")
    await _timed(found, "stores", "Redis", redis, "check REDIS_URL and that the server is up")


def _schema(found: Diagnosis, applied: dict[str, str], workers: int) -> None:
    try:
        missing = pending(known_migrations(), applied)
    except MigrationFailed as error:
        found.sections["schema"] = []
        found.problem(f"The schema does not fit this release: {error}.")
        return
    found.sections["schema"] = [f"{len(applied)} migrations applied", f"{workers} workers at work"]
    if missing:
        names = ", ".join(migration.name for migration in missing)
        found.problem(f"Migrations are not applied: {names}.", "longhaul migrate")


async def _model(found: Diagnosis, settings: Settings) -> None:
    base = settings.openai_base_url
    if not os.environ.get("OPENAI_BASE_URL") and not settings.openai_api_key.get_secret_value():
        found.sections["model"] = ["none configured: `longhaul dev` and `longhaul demo` use the rehearsal model"]
        return

    async def ask() -> str:
        headers = {"Authorization": f"Bearer {settings.openai_api_key.get_secret_value()}"}
        timeout = aiohttp.ClientTimeout(total=_PATIENCE)
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.get(base.rstrip("/") + "/models", allow_redirects=False) as answer,
        ):
            if answer.status in (401, 403):
                found.problem(f"The model endpoint refuses the key (status {answer.status}).", "check OPENAI_API_KEY")
            elif answer.status >= 500:
                found.problem(f"The model endpoint fails (status {answer.status}).", "check OPENAI_BASE_URL")
            return f"{settings.llm_model}, status {answer.status}"

    await _timed(found, "model", _place(base), ask, "check OPENAI_BASE_URL")


async def _parts(found: Diagnosis, settings: Settings, stack: AsyncExitStack) -> None:
    """What a worker puts together when it starts."""
    database_url = settings.database_url.get_secret_value()
    db = asyncpg.create_pool(database_url, min_size=0, max_size=1)  # only held by what is made, never connected
    redis: Redis = Redis.from_url(settings.redis_url.get_secret_value())
    stack.push_async_callback(redis.aclose)
    egress = EgressClient(allow=settings.egress_allow)
    stack.push_async_callback(egress.aclose)
    found.sections["memory"] = [settings.memory]
    memory: Memory = InMemory()  # if that can't be opened, the rest is looked at all the same
    try:
        memory = await stack.enter_async_context(open_memory(MemoryHost(settings, db, redis)))
    except LonghaulError as error:
        found.problem(error.message, *error.suggestions)
    if settings.memory == "postgres":
        found.sections["memory"] = [f"postgres, embeddings by {settings.embedding_model}"]
    host = PluginHost(settings, db, redis, egress, Measures(), memory)
    outfitter = found.of(
        "tools",
        lambda: equip(settings, db, memory, stack, host),
        lambda made: [f"{name} ({made.tools.tool(name).effect})" for name in made.tools.names],
    )
    skills = outfitter.skills if outfitter is not None else None
    found.sections["skills"] = list(skills.names) if isinstance(skills, SkillRegistry) else []
    found.of("workflows", lambda: plugged_workflows(host), lambda _: WORKFLOWS)
    found.of("model providers", installed_providers, list)
    found.of("middleware, outermost first", lambda: make_middleware(host), list)
    found.of("event handlers", lambda: plugged_handlers(host), lambda all: [_hears(*pair) for pair in all.items()])


def _hears(name: str, handler: Any) -> str:
    return f"{name}: {', '.join(handler.types)}"


def _plugins(found: Diagnosis) -> None:
    lines = found.sections["plug-ins"] = []
    for group in PLUGIN_GROUPS:
        try:
            of_group = plugins(group)
        except BadPlugin as error:
            found.problem(error.message, *error.suggestions)
            continue
        lines += [
            f"longhaul.{group}: {plugin.name}, of {plugin.origin} ({_state(plugin)})" for plugin in of_group.values()
        ]


def _state(plugin: Plugin) -> str:
    try:
        plugin.load()
    except BadSettings:
        return "can't be imported"
    return plugin.target


def _extras(found: Diagnosis) -> None:
    lines = found.sections["optional parts"] = []
    for distribution, (extra, purpose) in _EXTRAS.items():
        try:
            lines.append(f"{distribution} {version(distribution)}: {purpose}")
        except PackageNotFoundError:
            lines.append(f"{distribution} is not installed: {purpose} (pip install 'longhaul[{extra}]')")
    box = shutil.which("bwrap")
    lines.append(f"bubblewrap {box}: real Python" if box else "bubblewrap is not installed: real Python for agents")
