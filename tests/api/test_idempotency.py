"""Idempotency keys: sent again, done once."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from kernel.postgres import Pool
from kernel.settings import Settings
from tests.api.checks import MISSING, ok, problem
from tests.api.serving import serving
from tests.api.streams import opened

KEY = {"Idempotency-Key": "the same key"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/runs", {"input": "a"}, 202),
        ("/v1/runs/batch", {"runs": [{"input": "a"}, {"input": "b"}]}, 202),
        ("/v1/sessions", {"title": "a"}, 201),
        ("/v1/sessions", None, 201),
        ("/v1/agents", {"name": "a"}, 201),
    ],
)
async def test_a_request_that_is_sent_again_gets_the_same_answer_and_does_nothing(
    client: httpx.AsyncClient, path: str, body: Any, status: int
) -> None:
    first = await client.post(path, json=body, headers=KEY)
    again = await client.post(path, json=body, headers=KEY)
    ok(first, status)
    ok(again, status)
    assert again.content == first.content
    assert again.headers.get("location") == first.headers.get("location")
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    noun = path.split("/")[2]
    count = len(ok(await client.get(f"/v1/{noun}"))["data"])
    assert count == {"/v1/agents": 2, "/v1/runs/batch": 2}.get(path, 1)


async def test_a_run_in_a_session_is_taken_in_once(client: httpx.AsyncClient) -> None:
    session = ok(await client.post("/v1/sessions"), 201)
    path = f"/v1/sessions/{session['id']}/runs"
    answers = [await client.post(path, json={"input": "a"}, headers=KEY) for _ in range(3)]
    assert len({ok(answer, 202)["id"] for answer in answers}) == 1
    assert ok(await client.get(f"/v1/sessions/{session['id']}"))["last_seq"] == 1


async def test_a_cancel_that_is_sent_again_gets_its_first_answer(client: httpx.AsyncClient) -> None:
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    answers = [await client.post(f"/v1/runs/{run['id']}/cancel", headers=KEY) for _ in range(2)]
    assert answers[0].content == answers[1].content


async def test_a_key_is_good_for_one_request_only(client: httpx.AsyncClient) -> None:
    ok(await client.post("/v1/runs", json={"input": "a"}, headers=KEY), 202)
    problem(await client.post("/v1/runs", json={"input": "b"}, headers=KEY), 422, "Idempotency-Key")
    problem(await client.post("/v1/sessions", json={}, headers=KEY), 422, "Idempotency-Key")
    assert len(ok(await client.get("/v1/runs"))["data"]) == 1


async def test_what_is_kept_of_a_body_can_not_be_guessed(client: httpx.AsyncClient, database: Pool, org: str) -> None:
    body = {"input": "a", "secrets": {"PIN": "1234"}}
    ok(await client.post("/v1/runs", json=body, headers=KEY), 202)
    sent = client.build_request("POST", "/v1/runs", json=body).content
    kept = await database.fetchval("SELECT request_hash FROM idempotency_keys WHERE org_id = $1", org)
    assert hashlib.sha256(sent).digest() not in kept
    assert len(kept) == 32


async def test_a_key_is_good_across_a_change_of_sealing_keys(
    client: httpx.AsyncClient, settings: Settings, api_key: str
) -> None:
    first = await client.post("/v1/runs", json={"input": "a"}, headers=KEY)
    changed = settings.model_copy(update={"sealing_keys": SecretStr(f"new:{'A' * 43}")})
    async with serving(changed) as url, httpx.AsyncClient(base_url=url) as other:
        headers = KEY | {"Authorization": f"Bearer {api_key}"}
        again = await other.post("/v1/runs", json={"input": "a"}, headers=headers)
        assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
        problem(await other.post("/v1/runs", json={"input": "b"}, headers=headers), 422, "Idempotency-Key")


async def test_orgs_do_not_share_keys(client: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
    first = await client.post("/v1/runs", json={"input": "a"}, headers=KEY)
    second = await stranger.post("/v1/runs", json={"input": "a"}, headers=KEY)
    assert ok(first, 202)["id"] != ok(second, 202)["id"]


async def test_a_refused_request_may_be_sent_again_under_its_key(client: httpx.AsyncClient) -> None:
    body = {"input": "a", "agent_id": MISSING["agt"]}
    problem(await client.post("/v1/runs", json=body, headers=KEY), 422, "agent_id")
    problem(await client.post("/v1/runs", json=body, headers=KEY), 422, "agent_id")
    ok(await client.post("/v1/runs", json={"input": "a"}, headers=KEY), 202)


async def test_twins_at_the_same_moment_make_one_run(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(client.post("/v1/runs", json={"input": "a"}, headers=KEY) for _ in range(12)))
    assert len({ok(answer, 202)["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert len(ok(await client.get("/v1/runs"))["data"]) == 1


async def test_a_twin_of_a_request_that_takes_too_long_is_a_409(
    client: httpx.AsyncClient, database: Pool, org: str
) -> None:
    async with database.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(
            "INSERT INTO idempotency_keys (org_id, key, route, request_hash, status, body) "
            "VALUES ($1, $2, 'POST /v1/runs', '\\x00', 0, 'null')",
            org,
            KEY["Idempotency-Key"],
        )
        problem(await client.post("/v1/runs", json={"input": "a"}, headers=KEY, timeout=15), 409)
        await transaction.rollback()
    ok(await client.post("/v1/runs", json={"input": "a"}, headers=KEY), 202)


async def test_a_stream_that_is_asked_for_again_is_the_same_runs(client: httpx.AsyncClient) -> None:
    body = {"input": "a"}
    async with opened(client, "/v1/runs", method="POST", json=body, headers=KEY) as stream:
        [queued] = await stream.take(1)
    async with opened(client, "/v1/runs", method="POST", json=body, headers=KEY) as stream:
        assert stream.answer.headers["idempotency-replayed"] == "true"
        assert stream.answer.headers["location"] == f"/v1/runs/{queued.data['run_id']}"
        assert await stream.take(1) == [queued]
        ok(await client.post(f"/v1/runs/{queued.data['run_id']}/cancel"))
        assert [frame.event for frame in await stream.rest()] == ["done"]
    as_json = ok(await client.post("/v1/runs", json=body, headers=KEY), 202)
    assert as_json["id"] == queued.data["run_id"]
