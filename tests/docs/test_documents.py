"""What the documents say is run here, as a reader would run it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import orjson

from kernel.agent_config import AgentConfig
from kernel.events import EVENT_TYPES
from kernel.settings import Settings
from kernel.tenants import create_key, ensure_org
from orchestrator.graph import Graph
from orchestrator.tools.tool import Tool, ToolContext
from orchestrator.tools.toolbox import Toolbox
from tests.stack import Stack

ROOT = Path(__file__).parents[2]


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text("utf-8"), re.MULTILINE | re.DOTALL)


async def shell(script: str, **environment: str) -> str:
    """What a script prints; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", script, env={"PATH": "/usr/bin:/bin", **environment}, stdout=-1, stderr=-1
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    return out.decode()


def example(document: str, name: str) -> Any:
    """The object `name` that one of the document's Python blocks defines."""
    for block in blocks(document, "python"):
        scope: dict[str, Any] = {"__name__": "example"}
        exec(compile(block, document, "exec"), scope)
        if name in scope:
            return scope[name]
    raise AssertionError(f"no block of {document} defines {name}")


async def test_the_requests_of_the_readme_do_what_it_says(stack: Stack) -> None:
    org = await ensure_org(stack.database, "readers of the readme")
    key = (await create_key(stack.database, org, name="reader")).secret.get_secret_value()
    streamed, resumed, agent = [await shell(block, URL=stack.url, KEY=key) for block in blocks("README.md", "bash")]
    assert streamed.count("event: done\n") == 1
    run, stream = resumed.split("}retry:", 1)
    assert orjson.loads(run + "}")["status"] in {"succeeded", "failed"}
    assert "id: 3\n" not in stream
    assert "id: 4\n" in stream
    assert stream.count("event: done\n") == 1
    assert orjson.loads(agent)["version"] == 1


def test_the_agent_of_the_readme_is_one() -> None:
    [config] = blocks("README.md", "json")
    agent = AgentConfig.model_validate_json(config)
    kinds = [tool if isinstance(tool, str) else tool.type for tool in agent.tools]
    assert kinds == ["python", "ask_user", "http", "mcp"]


async def test_the_tool_of_the_guide_can_be_called() -> None:
    tool = example("docs/extending.md", "ParcelStatus")()
    assert isinstance(tool, Tool)
    context = ToolContext("org", None, None, "ses", "run", "call", "run:step:call")
    toolbox = Toolbox([tool])
    found = await toolbox.call("parcel_status", {"number": "LH-1"}, context, allowed=["parcel_status"])
    missing = await toolbox.call("parcel_status", {"number": "LH-2"}, context, allowed=["parcel_status"])
    assert (found.status, orjson.loads(found.result)) == ("ok", {"number": "LH-1", "where": "in Bergen"})
    assert missing.status == "error"
    assert "There is no parcel LH-2" in missing.result


def test_the_workflow_of_the_guide_compiles() -> None:
    graph: Graph = example("docs/extending.md", "graph")
    assert {"THINK", "ACT", "DELEGATE", "RESPOND"} <= set(graph.get_graph().nodes)


def test_the_production_guide_lists_every_setting_and_no_other() -> None:
    listed = set(re.findall(r"^\| `([A-Z0-9_]+)`", (ROOT / "docs/production.md").read_text("utf-8"), re.MULTILINE))
    known = set()
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        known.add(f"LONGHAUL_{name.upper()}" if alias is None else str(alias.choices[0]))  # type: ignore[union-attr]
    assert listed == known


def test_the_readme_explains_every_event() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert [name for name in EVENT_TYPES if f"`{name}`" not in text] == []


def test_links_between_the_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_promise_names_a_test_that_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs/promises.md").read_text("utf-8"))
    assert len(named) > 20
    for file, test in named:
        assert (ROOT / file).exists(), f"docs/promises.md names {file}"
        text = (ROOT / file).read_text("utf-8")
        assert not test or f"def {test}(" in text, f"docs/promises.md names {test}, which is not in {file}"
