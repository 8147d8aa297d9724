"""Headers of every answer: request ids, hardening, CORS; and what of a request is logged."""

from __future__ import annotations

import re

import httpx
import pytest
import structlog
from structlog.testing import LogCapture

from kernel.settings import Settings
from tests.api.checks import MISSING, ok
from tests.api.serving import serving

ORIGIN = "https://app.example"


@pytest.fixture
def captured() -> LogCapture:
    return LogCapture()


@pytest.mark.parametrize("path", ["/", "/v1/runs", "/nothing", "/docs", "/metrics"])
async def test_every_answer_is_hardened(client: httpx.AsyncClient, path: str) -> None:
    headers = (await client.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "server" not in headers


async def test_a_sane_request_id_is_kept_and_another_is_made_anew(client: httpx.AsyncClient) -> None:
    assert (await client.get("/", headers={"X-Request-Id": "trace-1:a.b_c"})).headers["x-request-id"] == "trace-1:a.b_c"
    for odd in ("", "two words", "x" * 101, 'quo"te'):
        made = (await client.get("/", headers={"X-Request-Id": odd})).headers["x-request-id"]
        assert re.fullmatch(r"req_[0-9a-f]{32}", made)


async def test_no_origin_is_allowed_unless_configured(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/runs", headers={"Origin": ORIGIN})
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_configured_origins_may_call_and_read_what_they_need(settings: Settings, api_key: str) -> None:
    open_to_one = settings.model_copy(update={"cors_origins": (ORIGIN,)})
    async with serving(open_to_one) as url, httpx.AsyncClient(base_url=url, headers={"Origin": ORIGIN}) as browser:
        preflight = await browser.options(
            "/v1/runs",
            headers={
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
            },
        )
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        for answer in (
            await browser.post("/v1/runs", json={"input": "a"}, headers={"Authorization": f"Bearer {api_key}"}),
            await browser.get("/v1/runs"),
            await browser.get("/nothing"),
        ):
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            exposed = answer.headers["access-control-expose-headers"]
            assert {"Location", "X-Request-Id", "Idempotency-Replayed"} <= set(exposed.split(", "))
        other = await browser.get("/", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_the_access_log_has_no_query_and_no_credential(
    client: httpx.AsyncClient, api_key: str, captured: LogCapture
) -> None:
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, captured])
    try:
        await client.get(f"/v1/runs/{MISSING['run']}/events?token=secret-token", headers={"X-Request-Id": "seen"})
        ok(await client.get("/v1/runs"))
    finally:
        structlog.configure(processors=before)
    first, second = (entry for entry in captured.entries if entry["event"] == "request")
    assert (first["status"], first["route"], first["request_id"]) == (401, "/v1/runs/{run_id}/events", "seen")
    assert first["path"] == f"/v1/runs/{MISSING['run']}/events"
    assert second["org_id"].startswith("org_")
    assert second["request_id"] != "seen"
    assert "secret-token" not in str(captured.entries)
    assert api_key not in str(captured.entries)
