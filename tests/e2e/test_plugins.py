"""Plug-ins that can't be used keep a worker from starting, with an error that says which; others cost nothing."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import orjson
import pytest

from cli.rehearsal import Reply, ToolCall
from tests.e2e.caller import calling
from tests.e2e.conftest import OwnStack, new_key
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import SECRET_KEY, Stack
from tests.waiting import eventually

TOOL = """
from orchestrator.tools.tool import Arguments, Tool

class Nothing(Arguments):
    pass

class Ping(Tool[Nothing]):
    name = "{name}"
    description = "Answers."
    arguments = Nothing
    effect = "read"

    def __init__(self, host):
        assert host.egress is not None

    async def run(self, arguments, context):
        return "pong"
"""


def distribution(folder: Path, name: str, modules: dict[str, str], entries: str) -> str:
    """Installs one; the folder, for PYTHONPATH."""
    place = folder / name
    metadata = place / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entries)
    for module, text in modules.items():
        (place / f"{module}.py").write_text(text)
    return str(place)


@pytest.fixture(scope="module")
async def bare(stack: Stack) -> Stack:
    """The shared stack, for its stores; nothing is added to it that stays."""
    return stack


async def started_in_vain(stack: Stack, **environment: str) -> str:
    """What a worker logs that ends because it can't start."""
    worker = stack.spawn_worker(environment)
    try:
        assert await asyncio.wait_for(worker.wait(), 30) == 2, worker.log
        return worker.log
    finally:
        stack.programs.remove(worker)


async def test_a_tool_that_the_operator_lists_by_its_path_can_be_called(
    own: OwnStack, model: ScriptedModel, tmp_path: Path
) -> None:
    place = distribution(tmp_path, "listed", {"listed_tools": TOOL.format(name="ping")}, "")
    stack = await own.stack(PYTHONPATH=place, LONGHAUL_TOOLS="listed_tools:Ping")
    script = model.script(Reply(tool_calls=[ToolCall("ping", {})]), said("it answers"))
    async with calling(stack.url, await new_key(stack)) as caller:
        agent = await caller.agent(model=script, tools=["ping"])
        run = await caller.run("ping?", agent_id=agent)
        history = await assert_history(stack.database, run["id"])
        assert history.of("tool_result")[0].data["result"] == "pong"
        # A path that a caller names is a name like any other.
        agent = await caller.agent(model=script, tools=["python"])
        refused = await caller.post("/v1/runs", {"input": "x", "agent_id": agent, "tools": ["listed_tools:Ping"]})
        assert refused.status == 422


@pytest.mark.parametrize(
    ("module", "entries", "told"),
    [
        ("raise RuntimeError('no licence')", "[longhaul.tools]\nbad = broken_parts:Tool", "no licence"),
        ("import sys\nsys.exit(3)", "[longhaul.skills]\nbad = broken_parts:skill", "SystemExit: 3"),
        ("Tool = 7", "[longhaul.tools]\nbad = broken_parts:Tool", "gives a int where a Tool is needed"),
        ("", "[longhaul.workflows]\nbad = broken_parts:graph", "has no attribute"),
        ("async def agent_chat(s, r): ...", "[longhaul.workflows]\nagent_chat = broken_parts:agent_chat", "this name"),
        (TOOL.format(name="python"), "[longhaul.tools]\nbad = broken_parts:Ping", "taken by one of Longhaul"),
        (TOOL.format(name="no spaces"), "[longhaul.tools]\nbad = broken_parts:Ping", "not valid"),
        ("class H:\n types=['nope']\n def handle(self, e): ...", "[longhaul.events]\nbad = broken_parts:H", "'nope'"),
        ("factory = 3", "[longhaul.models]\nbad = broken_parts:factory", "function"),
    ],
)
async def test_a_broken_plugin_is_named_and_no_worker_starts(
    bare: Stack, tmp_path: Path, module: str, entries: str, told: str
) -> None:
    place = distribution(tmp_path, "broken", {"broken_parts": module}, entries)
    log = await started_in_vain(bare, PYTHONPATH=place)
    assert "broken 1.0" in log
    assert told in log
    assert "worker_started" not in log
    [line] = [orjson.loads(line) for line in log.splitlines() if "worker_failed" in line]
    assert any("longhaul doctor" in suggestion for suggestion in line["suggestions"])


async def test_two_distributions_with_one_name_are_both_named(bare: Stack, tmp_path: Path) -> None:
    entries = "[longhaul.tools]\nping = {}_parts:Ping"
    places = [
        distribution(tmp_path, name, {f"{name}_parts": TOOL.format(name="ping")}, entries.format(name))
        for name in ("acme", "bcme")
    ]
    log = await started_in_vain(bare, PYTHONPATH=":".join(places))
    assert "acme 1.0" in log
    assert "bcme 1.0" in log


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("LONGHAUL_MIDDLEWARE", "logging,nope", "logging, validation, rate_limit, cache, metrics, tracing, audit"),
        ("LONGHAUL_MIDDLEWARE", "logging,logging", "named twice"),
        ("LONGHAUL_MEMORY", "nope", "use one of: postgres"),
        ("LONGHAUL_TOOLS", "os:getcwd", "os:getcwd"),
    ],
)
async def test_a_name_that_nothing_has_keeps_a_worker_from_starting(
    bare: Stack, variable: str, value: str, told: str
) -> None:
    assert told in await started_in_vain(bare, **{variable: value})


async def test_a_middleware_that_breaks_or_hangs_fails_its_run_and_no_other(
    own: OwnStack, model: ScriptedModel, tmp_path: Path
) -> None:
    layers = """
import asyncio
from orchestrator.middleware.middleware import Middleware

class Broken(Middleware):
    async def around_run(self, call, call_next):
        if call.input == "break":
            raise KeyError("internals")
        outcome = await call_next(call)
        if call.input == "hang":
            await asyncio.Event().wait()
        return outcome

    async def around_model(self, call, call_next):
        if call.run.input == "break the model":
            raise KeyError("internals")
        return await call_next(call)
"""
    place = distribution(tmp_path, "layers", {"layers": layers}, "[longhaul.middleware]\nbroken = layers:Broken")
    stack = await own.stack(PYTHONPATH=place, LONGHAUL_MIDDLEWARE="broken", LONGHAUL_SLOTS="1")
    async with calling(stack.url, await new_key(stack)) as caller:
        for input in ("break", "break the model"):
            run = await caller.run(input, model=model.script(said("never")))
            [error] = (await assert_history(stack.database, run["id"])).of("error")
            assert (run["status"], error.data["code"]) == ("failed", "middleware_failed")
            assert "'broken'" in error.data["message"]
            assert "internals" not in str(error.data)
        # The answer is out before the layer hangs, and the slot is free again a little later.
        hung = await caller.run("hang", workflow="echo", deadline_seconds=20)
        assert hung["status"] == "succeeded"
        after = await caller.run("hello", workflow="echo")
        assert after["answer"] == "hello"
        for run in (hung, after):
            await assert_history(stack.database, run["id"])


async def test_optional_parts_are_imported_by_no_process_that_does_not_use_them(bare: Stack) -> None:
    """`-X importtime` says all that a process imports, while it starts and after."""
    optional = {"duckdb", "mcp", "ddgs", "sqlglot", "boto3", "moto"}
    # Where OpenTelemetry is installed, a library of LangChain's imports it in the worker.
    never_in_the_api = (
        optional
        | {"opentelemetry", "obstore"}
        | {"langgraph", "langchain_core", "langchain_openai", "orchestrator", "worker"}
    )
    api = bare.spawn_api({"PYTHONPROFILEIMPORTTIME": "1"})
    worker = bare.spawn_worker({"PYTHONPROFILEIMPORTTIME": "1"})
    try:
        for program, unwanted in ((api, never_in_the_api), (worker, optional)):
            await bare.until_ready(program)
            imported = {
                line.rpartition("|")[2].strip().partition(".")[0]
                for line in program.log.splitlines()
                if line.startswith("import time:")
            }
            assert "kernel" in imported
            assert imported & unwanted == set(), f"{program.name} imports them"
    finally:
        for program in (api, worker):
            await program.stop()
            bare.programs.remove(program)


async def test_the_doctor_says_what_is_there_and_what_is_wrong(bare: Stack, tmp_path: Path) -> None:
    entries = "[longhaul.tools]\nping = doctored:Ping\n[longhaul.events]\nbad = doctored:nothing"
    place = distribution(tmp_path, "doctored", {"doctored": TOOL.format(name="ping")}, entries)

    async def doctor(*arguments: str, **environment: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).parent / "longhaul"), "doctor", *arguments),
            env={
                "PATH": "/usr/bin:/bin",
                "DATABASE_URL": bare.database_url,
                "REDIS_URL": bare.redis_url,
                "LONGHAUL_SECRET_KEY": SECRET_KEY,
                "LONGHAUL_MIDDLEWARE": "logging,audit",
                **environment,
            },
            stdout=-1,
            stderr=-1,
        )
        out, err = await asyncio.wait_for(process.communicate(), 50)
        assert not err, err.decode()
        assert SECRET_KEY.encode() not in out
        return process.returncode, out.decode()

    code, report = await doctor("--json", "--data-dir", str(tmp_path / "none"))
    found = orjson.loads(report)
    assert (code, found["problems"], found["ok"]) == (0, [], True)
    assert found["sections"]["middleware, outermost first"] == ["logging", "audit"]
    assert any(line.startswith("Postgres: PostgreSQL") for line in found["sections"]["stores"])
    assert "python (read)" in found["sections"]["tools"]

    code, report = await doctor("--data-dir", str(tmp_path / "none"), PYTHONPATH=place)
    assert code == 1
    assert "ping (read)" in report
    assert "longhaul.tools: ping, of doctored 1.0 (doctored:Ping)" in report
    assert "'bad' (longhaul.events, doctored 1.0) can't be used" in report


async def test_event_handlers_of_a_plugin_may_fail_and_hang_beside_runs(own: OwnStack, tmp_path: Path) -> None:
    handlers = """
import time
import structlog
from orchestrator.bus import on

log = structlog.get_logger("handlers")

@on("*")
async def failing(event):
    raise ValueError(event.type)

@on("*", timeout=0.2)
def hanging(event):
    time.sleep(3600)

class Good:
    types = ("done",)

    def __init__(self, host):
        self._db = host.db

    async def handle(self, event):
        status = await self._db.fetchval("SELECT status FROM runs WHERE id = $1", event.run_id)
        log.info("good_was_told", run_id=event.run_id, status=status)
"""
    entries = "[longhaul.events]\nfailing = handlers:failing\nhanging = handlers:hanging\ngood = handlers:Good"
    place = distribution(tmp_path, "handlers", {"handlers": handlers}, entries)
    stack = await own.stack(PYTHONPATH=place)
    async with calling(stack.url, await new_key(stack)) as caller:
        runs = [await caller.run("hello", workflow="echo") for _ in range(3)]
    for run in runs:
        await assert_history(stack.database, run["id"])
    [worker] = stack.workers

    async def told() -> bool:
        lines = [orjson.loads(line) for line in worker.log.splitlines() if "good_was_told" in line]
        return [(line["run_id"], line["status"]) for line in lines] == [(run["id"], "succeeded") for run in runs]

    await eventually(told, within=5, what="the good handler has been told")
    assert await worker.stop() == 0


WIDENING = """
from dataclasses import replace

from orchestrator.middleware.middleware import Middleware

class Widening(Middleware):
    def __init__(self, host):
        pass

    async def around_tool(self, call, call_next):
        return await call_next(replace(call, arguments={**call.arguments, "code": call.arguments["code"] + " * 100"}))
"""


async def test_a_layer_makes_no_call_of_which_nobody_was_asked(
    own: OwnStack, model: ScriptedModel, tmp_path: Path
) -> None:
    entries = "[longhaul.middleware]\nwidening = widening:Widening\n"
    place = distribution(tmp_path, "widened", {"widening": WIDENING}, entries)
    stack = await own.stack(PYTHONPATH=place, LONGHAUL_MIDDLEWARE="widening")
    script = model.script(Reply(tool_calls=[ToolCall("python", {"code": "6"})]), said("done"))
    async with calling(stack.url, await new_key(stack)) as caller:
        results = []
        for pattern in ("100", "never"):
            approvals = {"python": {"when": {"arguments": {"properties": {"code": {"pattern": pattern}}}}}}
            agent = await caller.agent(model=script, tools=["python"], approvals=approvals)
            run = await caller.run("count", agent_id=agent)
            history = await assert_history(stack.database, run["id"])
            results += [(event.data["status"], event.data["result"]) for event in history.of("tool_result")]
            script = model.script(Reply(tool_calls=[ToolCall("python", {"code": "6"})]), said("done"))
    assert results[0][0] == "denied"
    assert "a person has to approve" in results[0][1]
    assert results[1] == ("ok", '{"value":"600"}')
