"""Secrets over the API: they go in, their names come out."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from kernel.postgres import Pool
from kernel.secrets import MOST_SECRETS
from tests.api.checks import ok, problem

VALUE = "sk-hunter2-hunter2"


async def put(client: httpx.AsyncClient, name: str, value: object = VALUE) -> httpx.Response:
    return await client.put(f"/v1/secrets/{name}", json={"value": value})


async def test_a_secret_goes_in_and_only_its_name_comes_out(client: httpx.AsyncClient) -> None:
    made = await put(client, "payments.key")
    secret = ok(made, 201)
    assert set(secret) == {"name", "created_at", "updated_at"}
    again = await put(client, "payments.key", "another")
    assert ok(again)["created_at"] == secret["created_at"]
    listed = await client.get("/v1/secrets")
    assert [item["name"] for item in ok(listed)["data"]] == ["payments.key"]
    assert VALUE not in made.text + again.text + listed.text
    assert (await client.delete("/v1/secrets/payments.key")).status_code == 204
    assert ok(await client.get("/v1/secrets"))["data"] == []
    problem(await client.delete("/v1/secrets/payments.key"), 404)


async def test_secrets_are_listed_by_name_in_pages(client: httpx.AsyncClient) -> None:
    for name in ("c", "a", "B", "d"):
        ok(await put(client, name), 201)
    first = ok(await client.get("/v1/secrets?limit=3"))
    rest = ok(await client.get("/v1/secrets", params={"cursor": first["next_cursor"]}))
    assert [item["name"] for item in first["data"] + rest["data"]] == ["B", "a", "c", "d"]
    assert rest["next_cursor"] is None


@pytest.mark.parametrize("name", ["1st", "a b", "a/b", "-", "x" * 101, "a%00"])
async def test_a_name_that_no_tool_could_give_is_not_there(client: httpx.AsyncClient, name: str) -> None:
    assert (await put(client, name)).status_code in (404, 422)


@pytest.mark.parametrize("value", ["", "x" * 8_193, "é" * 4_097, 12, None, "a\x00b"])
async def test_a_value_out_of_bounds_is_refused_and_not_repeated(client: httpx.AsyncClient, value: object) -> None:
    refused = await put(client, "name", value)
    problem(refused, 422, "value")
    assert not isinstance(value, str) or len(value) < 2 or value not in refused.text


async def test_a_value_may_be_eight_kilobytes_of_anything(client: httpx.AsyncClient) -> None:
    ok(await put(client, "pem", "-----BEGIN\n" + "é" * 4_090), 201)


async def test_an_org_has_so_many_at_most(client: httpx.AsyncClient, database: Pool, org: str) -> None:
    await database.execute(
        """INSERT INTO secrets (org_id, name, sealed, key_id)
           SELECT $1, 'n' || n, decode(repeat('00', 40), 'hex'), 'k' FROM generate_series(1, $2) n""",
        org,
        MOST_SECRETS - 1,
    )
    answers = await asyncio.gather(*(put(client, f"late{number}") for number in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert (await put(client, "n7")).status_code == 200  # in its place there is room


async def test_another_orgs_secrets_do_not_exist(client: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
    ok(await put(client, "token"), 201)
    assert ok(await stranger.get("/v1/secrets"))["data"] == []
    problem(await stranger.delete("/v1/secrets/token"), 404)
    ok(await put(stranger, "token"), 201)


async def test_nobody_gets_in_without_a_credential(nobody: httpx.AsyncClient) -> None:
    problem(await nobody.get("/v1/secrets"), 401)
    problem(await put(nobody, "token"), 401)


async def test_a_run_may_bring_secrets_of_its_own(client: httpx.AsyncClient, database: Pool, org: str) -> None:
    body = {"input": "hello", "secrets": {"token": VALUE}}
    run = (await client.post("/v1/runs", json=body)).json()
    assert await database.fetchval("SELECT count(*) FROM run_secrets WHERE run_id = $1", run["id"]) == 1
    batch = ok(
        await client.post("/v1/runs/batch", json={"runs": [body, {"input": "x"}]}, headers={"Idempotency-Key": "k"}),
        202,
    )
    assert [result["problem"] for result in batch["results"]] == [None, None]
    assert await database.fetchval("SELECT count(*) FROM run_secrets WHERE org_id = $1", org) == 2
    assert VALUE not in (await client.get(f"/v1/runs/{run['id']}")).text
