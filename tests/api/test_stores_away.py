"""Postgres or Redis away: 503 with Retry-After or no notice at all, and all is well when they are back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr

from kernel.settings import Settings
from tests.api.checks import ok, problem
from tests.api.serving import serving
from tests.api.streams import opened
from tests.faults.proxy import Proxy, before_postgres, before_redis
from tests.faults.proxy import serving as proxied
from tests.waiting import eventually


@dataclass(frozen=True, slots=True)
class Cuttable:
    """An API behind proxies."""

    client: httpx.AsyncClient
    postgres: Proxy
    redis: Proxy


@pytest.fixture
async def cuttable(settings: Settings, folder: Path, api_key: str) -> AsyncIterator[Cuttable]:
    postgres, database_url = before_postgres(folder / uuid4().hex[:8], settings.database_url.get_secret_value())
    redis, redis_url = before_redis(folder / uuid4().hex[:8], settings.redis_url.get_secret_value())
    behind = settings.model_copy(update={"database_url": SecretStr(database_url), "redis_url": SecretStr(redis_url)})
    async with (
        proxied(postgres),
        proxied(redis),
        serving(behind) as url,
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {api_key}"}) as client,
    ):
        yield Cuttable(client, postgres, redis)


async def test_without_postgres_there_is_a_503_that_says_when_to_come_back(cuttable: Cuttable) -> None:
    client = cuttable.client
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    cuttable.postgres.vanish()
    for answer in (
        await client.get("/v1/runs"),
        await client.get(f"/v1/runs/{run['id']}"),
        await client.get(f"/v1/runs/{run['id']}/events"),
        await client.get(f"/v1/runs/{run['id']}/wait"),
        await client.post("/v1/runs", json={"input": "a"}),
        await client.post("/v1/runs", json={"input": "a"}, headers={"Idempotency-Key": "away"}),
        await client.post("/v1/runs/batch", json={"runs": [{"input": "a"}]}),
        await client.delete(f"/v1/sessions/{run['session_id']}"),
        await client.get("/v1/runs", headers={"Authorization": "Bearer lh_" + "0" * 32 + "_" + "a" * 43}),
    ):
        assert problem(answer, 503)["code"] == "store_unavailable"
        assert int(answer.headers["retry-after"]) >= 1
    checks = ok(await client.get("/ready"), 503)["checks"]
    assert (checks["postgres"], checks["redis"]) == ("unreachable", "ok")
    assert ok(await client.get("/health")) == {"status": "ok"}
    assert (await client.get("/metrics")).status_code == 200
    await cuttable.postgres.heal()
    ok(await client.post("/v1/runs", json={"input": "a"}, headers={"Idempotency-Key": "away"}), 202)
    assert ok(await client.get("/ready"))["status"] == "ready"


async def test_without_redis_runs_are_taken_in_and_streams_go_on(cuttable: Cuttable) -> None:
    client = cuttable.client
    cuttable.redis.vanish()
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    assert ok(await client.get("/ready"), 503)["checks"] == {"postgres": "ok", "schema": "ok", "redis": "unreachable"}
    async with opened(client, f"/v1/runs/{run['id']}/events") as stream:
        assert [frame.event for frame in await stream.take(1)] == ["run_queued"]
        ok(await client.post(f"/v1/runs/{run['id']}/cancel"))
        assert [frame.event for frame in await stream.rest()] == ["done"]
    await cuttable.redis.heal()

    async def ready() -> bool:
        return (await client.get("/ready")).status_code == 200

    await eventually(ready, what="Redis is there again")


async def test_a_stream_that_loses_postgres_ends_and_can_be_resumed(cuttable: Cuttable) -> None:
    client = cuttable.client
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    async with opened(client, f"/v1/runs/{run['id']}/events") as stream:
        await stream.take(1)
        cuttable.postgres.vanish()
        cuttable.redis.vanish()  # makes followers look in the log, which is away
        assert await stream.rest() == []
    await cuttable.postgres.heal()
    await cuttable.redis.heal()
    ok(await client.post(f"/v1/runs/{run['id']}/cancel"))
    async with opened(client, f"/v1/runs/{run['id']}/events?after=1") as stream:
        assert [frame.event for frame in await stream.rest()] == ["done"]
