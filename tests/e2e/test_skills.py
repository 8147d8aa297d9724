"""Skills over real HTTP: an agent gets them by name, a model opens them and calls their tools."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from cli.rehearsal import Reply, ToolCall
from tests.conftest import MakeStack
from tests.e2e.caller import Caller, Event, calling
from tests.e2e.conftest import OwnStack, new_key
from tests.history import assert_history
from tests.orchestrator.engines import SEARXNG, engine
from tests.scripts import ScriptedModel, said
from tests.stack import Stack

SKILL_MD = "---\nname: {name}\ndescription: {description}\n---\n{body}\n"


@dataclass(frozen=True, slots=True)
class World:
    """A stack with skills in folders and a search engine, and what of the outside its agents may reach."""

    stack: Stack
    url: str
    asked: list[str]


@pytest.fixture(scope="module")
async def world(make_stack: MakeStack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    asked: list[str] = []

    async def outside(request: web.Request) -> web.StreamResponse:
        asked.append(request.path_qs)
        if request.path == "/search":
            return web.json_response(SEARXNG)
        if request.path.startswith("/weather/"):
            return web.json_response({"city": request.path.rpartition("/")[2], "celsius": 11})
        return web.Response(text="<title>Tea</title><nav>Menu</nav><p>Brew it.", content_type="text/html")

    root = tmp_path_factory.mktemp("skills")
    await asyncio.to_thread(_write, root)
    async with engine(outside) as url:
        stack = await make_stack(
            LONGHAUL_SKILLS_DIR=str(root),
            LONGHAUL_SEARCH_ENGINE="searxng",
            LONGHAUL_SEARCH_URL=url,
            LONGHAUL_EGRESS_ALLOW=url.removeprefix("http://"),
        )
        yield World(stack, url, asked)
        await stack.stop()


def _write(root: Path) -> None:
    for name, body in {"house-style": "Write short sentences.", "weather": "The deployment's way."}.items():
        (root / name / "references").mkdir(parents=True)
        text = SKILL_MD.format(name=name, description=f"How {name} is done.", body=body)
        (root / name / "SKILL.md").write_text(text)
        (root / name / "references" / "words.md").write_text("Say tea, not hot beverage.")


@pytest.fixture
async def caller(world: World) -> AsyncIterator[Caller]:
    async with calling(world.stack.url, await new_key(world.stack)) as caller:
        yield caller


def opening(name: str, file: str | None = None) -> ToolCall:
    return ToolCall("open_skill", {"name": name} | ({"file": file} if file else {}))


def results(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.data["name"], event.data["result"]) for event in events if event.type == "tool_result"]


def told(model: ScriptedModel, script: str) -> tuple[str, list[str]]:
    """The system prompt and the names of the tools that the model was given with its first call."""
    first = model.asked(script)[0]
    return str(first.messages[0]["content"]), list(first.tools)


def weather(url: str) -> dict[str, Any]:
    return {
        "name": "weather",
        "description": "Says what the weather is.",
        "instructions": "# Weather\n\nCelsius, always. Cities are in references/cities.md.",
        "tools": [
            {
                "type": "http",
                "name": "get_weather",
                "description": "The weather of a city.",
                "parameter_schema": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}},
                    "required": ["city"],
                },
                "execution_config": {"url": f"{url}/weather/{{city}}"},
            }
        ],
        "allowed_tools": ["http_fetch", "no_such_tool"],
        "references": {"references/cities.md": "Bergen, Oslo"},
    }


async def test_a_model_opens_a_skill_of_its_org_and_calls_its_tool(
    world: World, caller: Caller, model: ScriptedModel
) -> None:
    await caller.post("/v1/skills", weather(world.url), expect=201)
    script = model.script(
        Reply(tool_calls=[opening("weather")]),
        Reply(tool_calls=[opening("weather", "references/cities.md")]),
        Reply(tool_calls=[ToolCall("get_weather", {"city": "Bergen"})]),
        said("It is 11 degrees."),
    )
    agent = await caller.agent(model=script, tools=[], skills=["weather"])
    run = await caller.run("weather in Bergen?", agent_id=agent)
    assert run["status"] == "succeeded"
    (name, body), (_, cities), (called, answer) = results(await caller.events(run["id"]))
    assert (name, called) == ("open_skill", "get_weather")
    assert body.startswith("# Weather\n\nCelsius, always.")
    assert "Files that open_skill gives: references/cities.md" in body
    assert cities == "Bergen, Oslo"
    assert '"celsius":11' in answer.replace(" ", "").replace("\\", "")
    assert "/weather/Bergen" in world.asked
    prompt, tools = told(model, script)
    assert "- weather: Says what the weather is." in prompt
    assert "Celsius" not in prompt
    assert set(tools) == {"get_weather", "http_fetch", "open_skill"}
    await assert_history(world.stack.database, run["id"])


async def test_a_skill_of_a_folder_is_there_for_every_org(world: World, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(
        Reply(tool_calls=[opening("house-style")]),
        Reply(tool_calls=[opening("house_style", "references/words.md")]),
        said("Tea."),
    )
    agent = await caller.agent(model=script, tools=[], skills=["house_style"])
    run = await caller.run(agent_id=agent)
    body, words = (result for _, result in results(await caller.events(run["id"])))
    assert body.startswith("Write short sentences.")
    assert words == "Say tea, not hot beverage."
    await assert_history(world.stack.database, run["id"])


async def test_an_orgs_own_skill_comes_first_and_is_nobody_elses(
    world: World, caller: Caller, model: ScriptedModel
) -> None:
    await caller.post("/v1/skills", weather(world.url), expect=201)
    async with calling(world.stack.url, await new_key(world.stack)) as stranger:
        for who, start in ((caller, "# Weather"), (stranger, "The deployment's way.")):
            script = model.script(Reply(tool_calls=[opening("weather")]), said("Done."))
            run = await who.run(agent_id=await who.agent(model=script, tools=[], skills=["weather"]))
            [(_, body)] = results(await who.events(run["id"]))
            assert body.startswith(start)
            await assert_history(world.stack.database, run["id"])


async def test_a_sub_agent_has_skills_of_its_own(world: World, caller: Caller, model: ScriptedModel) -> None:
    below = model.script(Reply(tool_calls=[opening("house_style")]), said("Short."))
    above = model.script(
        Reply(tool_calls=[ToolCall("delegate", {"agent": "writer", "task": "write"})]), said("As the writer said.")
    )
    writer = {"name": "writer", "tools": [], "skills": ["house_style"], "model": {"name": below}}
    run = await caller.run(agent_id=await caller.agent(model=above, tools=[], sub_agents=[writer]))
    assert run["status"] == "succeeded"
    assert "house_style" in told(model, below)[0]
    assert "house_style" not in told(model, above)[0]
    assert model.asked(below)[1].messages[-1]["content"].startswith("Write short sentences.")
    await assert_history(world.stack.database, run["id"])


async def test_the_web_is_searched_and_a_page_read(world: World, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(
        Reply(tool_calls=[ToolCall("web_search", {"query": "green tea", "limit": 1})]),
        Reply(tool_calls=[ToolCall("read_page", {"url": f"{world.url}/page"})]),
        said("Brew it."),
    )
    run = await caller.run(agent_id=await caller.agent(model=script, tools=[], skills=["web_search"]))
    (_, found), (_, page) = results(await caller.events(run["id"]))
    assert [result["title"] for result in orjson.loads(found)["results"]] == ["Green tea"]
    assert orjson.loads(page)["text"] == "Brew it."
    assert set(told(model, script)[1]) == {"web_search", "read_page"}
    await assert_history(world.stack.database, run["id"])


async def test_an_unknown_skill_ends_the_run_with_what_there_is(
    world: World, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(said("never asked"))
    run = await caller.run(agent_id=await caller.agent(model=script, skills=["wether", "web_search"]))
    assert run["status"] == "failed"
    assert run["error"]["code"] == "unknown_skill"
    assert "'wether'" in run["error"]["message"]
    assert "web_search" not in run["error"]["message"]
    assert "wether: did you mean weather?" in run["error"]["suggestions"]
    assert model.asked(script) == []
    await assert_history(world.stack.database, run["id"])


async def test_a_sub_agents_unknown_skill_is_told_to_its_parent(
    world: World, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(
        Reply(tool_calls=[ToolCall("delegate", {"agent": "writer", "task": "write"})]), said("I had to do it.")
    )
    writer = {"name": "writer", "skills": ["nothing_such"]}
    run = await caller.run(agent_id=await caller.agent(model=script, sub_agents=[writer]))
    assert run["status"] == "succeeded"
    assert "nothing_such" in str(model.asked(script)[1].messages[-1]["content"])
    await assert_history(world.stack.database, run["id"])


async def test_a_built_in_skill_that_is_not_configured_says_what_to_do(stack: Stack, model: ScriptedModel) -> None:
    async with calling(stack.url, await new_key(stack)) as caller:
        script = model.script(said("never asked"))
        run = await caller.run(agent_id=await caller.agent(model=script, skills=["web_search"]))
    assert run["error"]["code"] == "unknown_skill"
    assert any("LONGHAUL_SEARCH_ENGINE" in line for line in run["error"]["suggestions"])
    await assert_history(stack.database, run["id"])


async def test_a_run_keeps_to_the_versions_that_were_there_when_it_was_made(
    own: OwnStack, model: ScriptedModel
) -> None:
    stack = await own.stack(workers=0)
    async with calling(stack.url, await new_key(stack)) as caller:
        agent = await caller.agent(tools=[], skills=["guide"])

        async def start() -> str:
            script = model.script(Reply(tool_calls=[opening("guide")]), said("Done."))
            return str((await caller.start(agent_id=agent, model=script))["id"])

        early = await start()
        guide = {"name": "guide", "description": "A guide.", "instructions": "First."}
        made = (await caller.post("/v1/skills", guide, expect=201)).json()
        first = await start()
        await caller.call("PATCH", f"/v1/skills/{made['id']}", {"instructions": "Second."}, expect=200)
        second = await start()
        await caller.call("DELETE", f"/v1/skills/{made['id']}", expect=204)
        late = await start()
        await caller.post("/v1/skills", guide | {"instructions": "Another."}, expect=201)
        another = await start()
        await stack.add_worker()
        for run_id, text in ((first, "First."), (second, "Second."), (another, "Another.")):
            assert (await caller.finished(run_id))["status"] == "succeeded"
            assert results(await caller.events(run_id)) == [("open_skill", text)]
        for run_id in (early, late):
            assert (await caller.finished(run_id))["error"]["code"] == "unknown_skill"
    for run_id in (early, first, second, late, another):
        await assert_history(stack.database, run_id)


async def test_skills_that_are_not_valid_keep_a_worker_from_starting(own: OwnStack, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "SKILL.md").write_text("---\nname: other\n---\n")
    stack = await own.stack(workers=0)
    worker = stack.spawn_worker({"LONGHAUL_SKILLS_DIR": str(tmp_path)})
    assert await worker.wait() != 0
    assert "broken: description: is missing" in worker.log
    assert "Traceback" not in worker.log
