"""The plug-ins of docs/extending.md, as a distribution that is installed beside Longhaul and used end to end."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
from redis.asyncio import Redis

from cli.rehearsal import Reply, ToolCall
from kernel.postgres import Pool
from kernel.settings import Settings
from memory.conformance import CHECKS, Check
from memory.host import MemoryHost
from tests.conftest import MakeStack
from tests.docs.test_documents import blocks
from tests.e2e.caller import Caller, calling
from tests.e2e.conftest import new_key
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack
from tests.waiting import eventually

PAGE = "docs/extending.md"


def install(folder: Path) -> None:
    """What an installer makes of the page's project: its modules, and the metadata of a distribution."""
    [project] = [tomllib.loads(block) for block in blocks(PAGE, "toml")]
    about = project["project"]
    for block in blocks(PAGE, "python"):
        path = folder / block.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(block, "utf-8")
    (folder / "acme_longhaul/__init__.py").touch()
    metadata = folder / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    lines = [
        line
        for group, entries in about["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in entries.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
async def plugged_in(make_stack: MakeStack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder = tmp_path_factory.mktemp("installed")
    install(folder)
    stack = await make_stack(PYTHONPATH=str(folder), LONGHAUL_MEMORY="notes", LONGHAUL_MIDDLEWARE="logging,no_cards")
    yield stack
    await stack.stop()


@pytest.fixture
async def own_caller(plugged_in: Stack) -> AsyncIterator[Caller]:
    async with calling(plugged_in.url, await new_key(plugged_in)) as caller:
        yield caller


async def test_the_tool_and_the_skill_of_the_page_serve_an_agent(
    plugged_in: Stack, own_caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(Reply(tool_calls=[ToolCall("parcel_status", {"number": "LH-1"})]), said("in Bergen"))
    agent = await own_caller.agent(model=script, tools=[], skills=["parcels"])
    run = await own_caller.run("where is LH-1?", agent_id=agent)
    history = await assert_history(plugged_in.database, run["id"])
    [result] = history.of("tool_result")
    assert (result.data["status"], orjson.loads(result.data["result"])["where"]) == ("ok", "in Bergen")
    assert "Numbers begin with LH-" in str(model.asked(script)[0].messages[0]["content"])


async def test_the_workflow_of_the_page_is_known_to_the_api_and_runs(plugged_in: Stack, own_caller: Caller) -> None:
    named = {workflow["name"]: workflow["description"] for workflow in (await own_caller.get("/"))["workflows"]}
    assert named["shout"] == "From acme-longhaul 1.0."
    run = await own_caller.run("quietly", workflow="shout")
    await assert_history(plugged_in.database, run["id"])
    assert run["answer"] == "QUIETLY"


async def test_the_model_provider_of_the_page_answers(plugged_in: Stack, own_caller: Caller) -> None:
    agent = await own_caller.agent(model={"provider": "parrot", "name": "grey"}, tools=[], memory={"recall": False})
    run = await own_caller.run("say it again", agent_id=agent)
    await assert_history(plugged_in.database, run["id"])
    assert run["answer"] == "say it again"


async def test_the_memory_of_the_page_remembers_and_recalls(
    plugged_in: Stack, own_caller: Caller, model: ScriptedModel
) -> None:
    fact = "the harbour opens at seven"
    script = model.script(Reply(tool_calls=[ToolCall("remember", {"text": fact})]), said("noted"))
    await assert_history(plugged_in.database, (await own_caller.run("remember", model=script))["id"])
    script = model.script(said("at seven"))
    run = await own_caller.run("when does the harbour open", model=script)
    history = await assert_history(plugged_in.database, run["id"])
    [recalled] = history.of("memory_recalled")
    assert [item["text"] for item in recalled.data["items"]] == [fact]
    assert await plugged_in.database.fetchval("SELECT count(*) FROM memories") == 0


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
async def test_the_memory_of_the_page_conforms(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings, database: Pool, redis: Redis
) -> None:
    install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("acme_longhaul", "acme_longhaul.memory", "test_acme_memory"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    page = importlib.import_module("test_acme_memory")
    await page.test_it_conforms(check, MemoryHost(settings, database, redis))


async def test_the_middleware_of_the_page_keeps_card_numbers_from_the_model(
    plugged_in: Stack, own_caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(Reply(tool_calls=[ToolCall("python", {"code": "4111111111111111"})]), said("done"))
    run = await own_caller.run("card?", model=script)
    history = await assert_history(plugged_in.database, run["id"])
    assert "[card]" in history.of("tool_result")[0].data["result"]
    assert "4111111111111111" not in str(model.asked(script)[1].messages[-1]["content"])


async def test_the_event_handler_of_the_page_is_told_of_ends(plugged_in: Stack, own_caller: Caller) -> None:
    run = await own_caller.run("hello", workflow="echo")
    await assert_history(plugged_in.database, run["id"])
    [worker] = plugged_in.workers

    async def told() -> bool:
        lines = [orjson.loads(line) for line in worker.log.splitlines() if b"acme_was_told" in line.encode()]
        return [line["status"] for line in lines if line["run_id"] == run["id"]] == ["succeeded"]

    await eventually(told, within=5, what="the handler has been told")
