"""The OpenAPI document is true, and nothing that it allows or forbids brings a 5xx."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.problems import ProblemView
from tests.api.checks import ok

# Not every bound can be said in a schema: that an agent exists, how deep and how large metadata is.
CHECKS = ("--exclude-checks", "positive_data_acceptance")


# A body may be refused for its size before anybody looks at what is wrong with it.
CONFIG = """
[checks]
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 406, 413, 415, 422]
"""


async def schemathesis(url: str, api_key: str, folder: Path, *arguments: str) -> None:
    """Runs schemathesis over the API; it must find nothing."""
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", f"{url}/openapi.json"),
        *("--header", f"Authorization: Bearer {api_key}"),
        *("--no-color", "--warnings", "off", "--generation-database", "none", "--request-timeout", "10"),
        *("--suppress-health-check", "filter_too_much"),  # paths and names have many rules
        *CHECKS,
        *arguments,
        cwd=folder,  # it leaves a folder of its own where it runs
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, output.decode()


# In parts, each of which a test has the time for.
AREAS = {
    "agents": "^/v1/agents",
    "runs": "^/v1/runs",
    "sessions": "^/v1/sessions",
    "skills": "^/v1/skills",
    "documents": "^/v1/documents",
    "memories": "^/v1/memories",
    "the rest": "^/(?!v1/(agents|runs|sessions|skills|documents|memories))",
}


@pytest.mark.busy
@pytest.mark.parametrize("area", AREAS)
async def test_schemathesis_finds_no_5xx_and_no_drift(url: str, api_key: str, folder: Path, area: str) -> None:
    await schemathesis(
        url,
        api_key,
        folder,
        *("--phases", "coverage,fuzzing", "--max-examples", "12", "--no-shrink"),
        *("--include-path-regex", AREAS[area]),
        *("--exclude-path-regex", "/(events|wait)$"),  # of runs that are there, these take their time
    )


@pytest.mark.busy
async def test_schemathesis_finds_nothing_in_streams_of_what_is_not_there(url: str, api_key: str, folder: Path) -> None:
    arguments = ("--phases", "fuzzing", "--max-examples", "20", "--include-path-regex", "/(events|wait)$")
    await schemathesis(url, api_key, folder, *arguments)


@pytest.fixture
async def document(nobody: httpx.AsyncClient) -> dict[str, Any]:
    body: dict[str, Any] = ok(await nobody.get("/openapi.json"))
    return body


async def test_every_route_is_in_the_document(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods} == {
        "GET /",
        "GET /health",
        "GET /ready",
        "GET /metrics",
        "GET /openapi.json",
        "GET /docs",
        "POST /v1/agents",
        "GET /v1/agents",
        "GET /v1/agents/{agent_id}",
        "PATCH /v1/agents/{agent_id}",
        "DELETE /v1/agents/{agent_id}",
        "GET /v1/agents/{agent_id}/versions",
        "GET /v1/agents/{agent_id}/versions/{version}",
        "GET /v1/secrets",
        "PUT /v1/secrets/{secret_name}",
        "DELETE /v1/secrets/{secret_name}",
        "POST /v1/skills",
        "POST /v1/skills/import",
        "GET /v1/skills",
        "GET /v1/skills/{skill_id}",
        "PATCH /v1/skills/{skill_id}",
        "DELETE /v1/skills/{skill_id}",
        "GET /v1/skills/{skill_id}/versions",
        "GET /v1/skills/{skill_id}/versions/{version}",
        "POST /v1/sources",
        "GET /v1/sources",
        "GET /v1/sources/{source_id}",
        "PATCH /v1/sources/{source_id}",
        "DELETE /v1/sources/{source_id}",
        "POST /v1/memories",
        "POST /v1/memories/batch",
        "GET /v1/memories",
        "POST /v1/memories/search",
        "GET /v1/memories/export",
        "POST /v1/memories/erase",
        "GET /v1/memories/{memory_id}",
        "PATCH /v1/memories/{memory_id}",
        "DELETE /v1/memories/{memory_id}",
        "POST /v1/memories/{memory_id}/supersede",
        "POST /v1/documents",
        "GET /v1/documents",
        "GET /v1/documents/{document_id}",
        "PUT /v1/documents/{document_id}",
        "DELETE /v1/documents/{document_id}",
        "GET /v1/documents/{document_id}/content",
        "GET /v1/documents/{document_id}/passages",
        "GET /v1/documents/{document_id}/events",
        "POST /v1/sessions",
        "GET /v1/sessions",
        "GET /v1/sessions/{session_id}",
        "PATCH /v1/sessions/{session_id}",
        "DELETE /v1/sessions/{session_id}",
        "GET /v1/sessions/{session_id}/messages",
        "GET /v1/sessions/{session_id}/events",
        "GET /v1/sessions/{session_id}/files",
        "PUT /v1/sessions/{session_id}/files/{file_path}",
        "GET /v1/sessions/{session_id}/files/{file_path}",
        "DELETE /v1/sessions/{session_id}/files/{file_path}",
        "POST /v1/sessions/{session_id}/runs",
        "POST /v1/sessions/{session_id}/stream-token",
        "POST /v1/runs",
        "GET /v1/runs",
        "POST /v1/runs/batch",
        "GET /v1/runs/{run_id}",
        "GET /v1/runs/{run_id}/events",
        "GET /v1/runs/{run_id}/wait",
        "GET /v1/runs/{run_id}/steps",
        "POST /v1/runs/{run_id}/cancel",
        "POST /v1/runs/{run_id}/pause",
        "POST /v1/runs/{run_id}/resume",
        "POST /v1/runs/{run_id}/retry",
        "POST /v1/runs/{run_id}/stream-token",
        "POST /v1/runs/{run_id}/tool-results",
        "GET /v1/approvals",
        "GET /v1/approvals/{approval_id}",
        "POST /v1/approvals/{approval_id}/decide",
    }


async def test_operations_have_names_of_their_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


async def test_references_lead_somewhere(nobody: httpx.AsyncClient, document: dict[str, Any]) -> None:
    text = (await nobody.get("/openapi.json")).text
    references = set(re.findall(r'"\$ref":"([^"]+)"', text))
    assert len(references) > 20
    for reference in references:
        at = document
        for step in reference.removeprefix("#/").split("/"):
            at = at[step]


async def test_problems_are_as_the_document_says(nobody: httpx.AsyncClient) -> None:
    for answer in (await nobody.get("/v1/runs"), await nobody.get("/nothing"), await nobody.put("/v1/runs")):
        ProblemView.model_validate_json(answer.content)


async def test_the_page_needs_nothing_from_elsewhere(nobody: httpx.AsyncClient) -> None:
    answer = await nobody.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.findall(r"""(?:src|href)=["'][^#]|url\(|https?://|@import""", answer.text)
