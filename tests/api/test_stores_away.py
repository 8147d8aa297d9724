"""Postgres or Redis away: 503 with Retry-After or no notice at all, and all is well when they are back."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr

from kernel.settings import Settings
from tests.api.checks import ok, problem
from tests.api.relay import Relay, relayed
from tests.api.serving import serving
from tests.api.streams import opened
from tests.waiting import eventually


@dataclass(frozen=True, slots=True)
class Cuttable:
    """An API behind relays."""

    client: httpx.AsyncClient
    postgres: Relay
    redis: Relay


@pytest.fixture
async def cuttable(settings: Settings, folder: Path, api_key: str) -> AsyncIterator[Cuttable]:
    database_url, redis_url = settings.database_url.get_secret_value(), settings.redis_url.get_secret_value()
    there = re.search(r"host=([^&]+)&port=(\d+)", database_url)
    assert there is not None
    own = folder / uuid4().hex[:8]
    own.mkdir()
    postgres_socket = f".s.PGSQL.{there[2]}"
    redis_socket = Path(redis_url.removeprefix("unix://"))
    behind = settings.model_copy(
        update={
            "database_url": SecretStr(database_url.replace(f"host={there[1]}", f"host={own}")),
            "redis_url": SecretStr(f"unix://{own}/redis.sock"),
        }
    )
    async with (
        relayed(own / postgres_socket, Path(there[1]) / postgres_socket) as postgres,
        relayed(own / "redis.sock", redis_socket) as redis,
        serving(behind) as url,
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {api_key}"}) as client,
    ):
        yield Cuttable(client, postgres, redis)


async def test_without_postgres_there_is_a_503_that_says_when_to_come_back(cuttable: Cuttable) -> None:
    client = cuttable.client
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    await cuttable.postgres.cut()
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
    await cuttable.postgres.mend()
    ok(await client.post("/v1/runs", json={"input": "a"}, headers={"Idempotency-Key": "away"}), 202)
    assert ok(await client.get("/ready"))["status"] == "ready"


async def test_without_redis_runs_are_taken_in_and_streams_go_on(cuttable: Cuttable) -> None:
    client = cuttable.client
    await cuttable.redis.cut()
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    assert ok(await client.get("/ready"), 503)["checks"] == {"postgres": "ok", "schema": "ok", "redis": "unreachable"}
    async with opened(client, f"/v1/runs/{run['id']}/events") as stream:
        assert [frame.event for frame in await stream.take(1)] == ["run_queued"]
        ok(await client.post(f"/v1/runs/{run['id']}/cancel"))
        assert [frame.event for frame in await stream.rest()] == ["done"]
    await cuttable.redis.mend()

    async def ready() -> bool:
        return (await client.get("/ready")).status_code == 200

    await eventually(ready, what="Redis is there again")


async def test_a_stream_that_loses_postgres_ends_and_can_be_resumed(cuttable: Cuttable) -> None:
    client = cuttable.client
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    async with opened(client, f"/v1/runs/{run['id']}/events") as stream:
        await stream.take(1)
        await cuttable.postgres.cut()
        await cuttable.redis.cut()  # makes followers look in the log, which is away
        assert await stream.rest() == []
    await cuttable.postgres.mend()
    await cuttable.redis.mend()
    ok(await client.post(f"/v1/runs/{run['id']}/cancel"))
    async with opened(client, f"/v1/runs/{run['id']}/events?after=1") as stream:
        assert [frame.event for frame in await stream.rest()] == ["done"]
