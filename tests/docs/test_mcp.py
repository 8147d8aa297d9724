"""The guide to MCP servers: its definition and its configuration are used as they stand there."""

from __future__ import annotations

from pathlib import Path

import orjson

from kernel.settings import Settings
from kernel.tool_definitions import McpServer
from orchestrator.kit import KitScope
from orchestrator.tools.tool import NoSecrets
from tests.docs.test_documents import blocks
from tests.mcp_servers.running import http_offer
from tests.orchestrator.test_mcp import connections

GUIDE = "docs/guides/mcp.md"


class OneSecret(NoSecrets):
    """Has the secret that the guide names."""

    async def reveal(self, name: str) -> str:
        assert name == "crm_key"
        return "of-the-reader"


async def test_the_definition_of_the_guide_gives_tools(tmp_path: Path) -> None:
    definition = McpServer.model_validate_json(blocks(GUIDE, "json")[0])
    async with http_offer(tmp_path / "diary") as server, connections(allow=[f"127.0.0.1:{server.port}"]) as held:
        there = definition.model_copy(update={"url": server.url, "tools": ["add", "note"], "effects": {"add": "read"}})
        tools = await held.make(there, KitScope("org", "ses", "run", OneSecret()))
    assert [(tool.name, tool.effect) for tool in tools] == [("crm_add", "read"), ("crm_note", "once")]


def test_the_configuration_of_the_guide_is_one(settings: Settings) -> None:
    text = blocks(GUIDE, "json")[1]
    read = Settings.model_validate({**_environment(settings), "mcp_servers": text})
    assert set(read.mcp_servers) == set(orjson.loads(text))
    assert "agents" not in repr(read.mcp_servers)


def _environment(settings: Settings) -> dict[str, object]:
    return {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "secret_key": settings.secret_key,
    }
