"""The examples of the guides on skills and on web search."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path

import orjson

from cli.rehearsal import Reply, ToolCall
from kernel.agent_config import AgentConfig
from kernel.settings import Settings
from orchestrator.search.choose import choose_engine
from orchestrator.skills.folders import load_folders
from tests.docs.test_documents import blocks, shell
from tests.e2e.caller import calling
from tests.e2e.conftest import new_key
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack

SKILLS = "docs/guides/skills.md"
SEARCH = "docs/guides/web-search.md"


async def test_the_requests_of_the_guide_make_skills_that_a_run_then_opens(stack: Stack, model: ScriptedModel) -> None:
    key = await new_key(stack)
    agent, parcels, returns = [
        orjson.loads(await shell(block, URL=stack.url, KEY=key)) for block in blocks(SKILLS, "bash")
    ]
    assert agent["skills"] == ["code_executor"]
    assert [tool["name"] for tool in parcels["tools"]] == ["parcel_status"]
    assert (returns["name"], returns["references"]) == ("returns_desk", {"references/rules.md": "Within 30 days."})
    async with calling(stack.url, key) as caller:
        delays = Reply(tool_calls=[ToolCall("open_skill", {"name": "parcels", "file": "references/delays.md"})])
        desk = Reply(tool_calls=[ToolCall("open_skill", {"name": "returns_desk"})])
        script = model.script(delays, desk, said("Sorry."))
        run = await caller.run(agent_id=await caller.agent(model=script, tools=[], skills=["parcels", "returns_desk"]))
        texts = [event.data["result"] for event in await caller.events(run["id"]) if event.type == "tool_result"]
    assert texts[0] == parcels["references"]["references/delays.md"]
    assert texts[1].startswith("# Returns\n\nAsk for the order.")
    await assert_history(stack.database, run["id"])


def test_the_folder_of_the_guide_is_a_skill(tmp_path: Path) -> None:
    [text] = blocks(SKILLS, "markdown")
    (tmp_path / "returns-desk").mkdir()
    (tmp_path / "returns-desk" / "SKILL.md").write_text(text)
    [skill] = load_folders(tmp_path, ["http_fetch"])
    assert (skill.name, skill.tools) == ("returns_desk", ["http_fetch"])
    assert skill.document is not None
    instructions = asyncio.run(skill.document.read(None))
    assert instructions is not None
    assert instructions.startswith("# Returns")


async def test_each_environment_of_the_guide_is_an_engine(settings: Settings) -> None:
    stores = {
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "REDIS_URL": settings.redis_url.get_secret_value(),
        "secret_key": settings.secret_key.get_secret_value(),
    }
    names = []
    for block in blocks(SEARCH, "bash"):
        given = dict(part.split("=", 1) for part in shlex.split(block)[1:])
        own = {name.removeprefix("LONGHAUL_").lower(): value for name, value in given.items()}
        engine = choose_engine(Settings.model_validate(stores | own))
        assert engine is not None
        names.append(engine.name)
        await engine.aclose()
    assert names == ["searxng", "brave", "tavily", "exa", "ddgs"]


def test_the_agent_of_the_guide_on_search_is_valid() -> None:
    [block] = blocks(SEARCH, "json")
    assert AgentConfig.model_validate_json(block).skills == ["web_search"]
