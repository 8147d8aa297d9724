"""Who may call what. A refusal never says which part of a credential was wrong."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt
import pytest
from pydantic import SecretStr

from api.auth import check_jwt_settings
from kernel.errors import BadSettings
from kernel.postgres import Pool
from kernel.settings import Settings
from kernel.tenants import create_key, list_keys, revoke_key
from tests.api.checks import MISSING, ok, problem
from tests.api.serving import serving

JWT_KEY = "the-key-of-the-identity-provider-in-tests"


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def test_a_key_opens_its_org(client: httpx.AsyncClient) -> None:
    assert ok(await client.get("/v1/sessions"))["data"] == []


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Bearer",
        b"Bearer x",
        b"Basic dXNlcjpwYXNz",
        b"Bearer lh_" + b"0" * 32 + b"_" + b"a" * 43,
        b"Bearer lh_short_secret",
        b"Bearer \xff\xfe",
        b"Bearer " + b"a" * 9000,
        b"Bearer eyJhbGciOiJub25lIn0.e30.",
    ],
)
async def test_what_is_no_credential_is_a_401_that_does_not_say_why(nobody: httpx.AsyncClient, header: bytes) -> None:
    answer = await nobody.get("/v1/runs", headers=[(b"Authorization", header)])
    body = problem(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert body["detail"] == "The credential is missing or not valid."


async def test_without_a_credential_there_is_a_401(nobody: httpx.AsyncClient) -> None:
    for path in ("/v1/runs", f"/v1/runs/{MISSING['run']}", f"/v1/runs/{MISSING['run']}/events", "/v1/agents"):
        problem(await nobody.get(path), 401)


async def test_a_key_whose_secret_is_off_by_one_is_refused(nobody: httpx.AsyncClient, api_key: str) -> None:
    wrong = api_key[:-1] + ("a" if api_key[-1] != "a" else "b")
    problem(await nobody.get("/v1/runs", headers=bearer(wrong)), 401)


async def test_an_expired_key_is_refused(nobody: httpx.AsyncClient, database: Pool, org: str) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    secret = (await create_key(database, org, name="old", expires_at=past)).secret.get_secret_value()
    problem(await nobody.get("/v1/runs", headers=bearer(secret)), 401)


async def test_a_revoked_key_is_refused(nobody: httpx.AsyncClient, database: Pool, org: str) -> None:
    new = await create_key(database, org, name="gone")
    await revoke_key(database, org, new.key.id)
    problem(await nobody.get("/v1/runs", headers=bearer(new.secret.get_secret_value())), 401)


async def test_keys_are_stored_as_hashes_only(database: Pool, org: str) -> None:
    secret = (await create_key(database, org, name="secret")).secret.get_secret_value()
    rows = await database.fetch("SELECT api_keys::text AS row FROM api_keys WHERE org_id = $1", org)
    assert len(rows) == 1
    assert secret.rsplit("_", 1)[1] not in rows[0]["row"]
    assert [key.name for key in await list_keys(database, org)] == ["secret"]


async def test_scopes_are_needed(nobody: httpx.AsyncClient, database: Pool, org: str) -> None:
    keys = {
        scopes: (await create_key(database, org, name="scoped", scopes=scopes)).secret.get_secret_value()
        for scopes in (("read",), ("write",), ("admin",))
    }
    reading, writing, admin = keys.values()
    ok(await nobody.get("/v1/runs", headers=bearer(reading)))
    assert problem(await nobody.post("/v1/runs", json={"input": "a"}, headers=bearer(reading)), 403)["suggestions"]
    ok(await nobody.post("/v1/runs", json={"input": "a"}, headers=bearer(writing)), 202)
    problem(await nobody.get("/v1/runs", headers=bearer(writing)), 403)
    ok(await nobody.get("/v1/runs", headers=bearer(admin)))
    ok(await nobody.post("/v1/runs", json={"input": "a"}, headers=bearer(admin)), 202)


async def test_what_a_user_starts_bears_the_users_id(nobody: httpx.AsyncClient, database: Pool, org: str) -> None:
    secret = (await create_key(database, org, name="ann", user_id="ann")).secret.get_secret_value()
    run = ok(await nobody.post("/v1/runs", json={"input": "a"}, headers=bearer(secret)), 202)
    assert run["user_id"] == "ann"


def claims(org: Any, **changes: Any) -> dict[str, Any]:
    given = {"org": org, "sub": "ann", "aud": "longhaul", "scope": "read write", "exp": time.time() + 60, **changes}
    return {name: value for name, value in given.items() if value is not None}


def token(given: dict[str, Any], key: str = JWT_KEY) -> dict[str, str]:
    return bearer(jwt.encode(given, key, algorithm="HS256"))


async def test_a_jwt_of_the_identity_provider_opens_its_org(settings: Settings, org: str) -> None:
    with_jwt = settings.model_copy(update={"jwt_key": SecretStr(JWT_KEY)})
    async with serving(with_jwt) as url, httpx.AsyncClient(base_url=url) as client:
        run = ok(await client.post("/v1/runs", json={"input": "a"}, headers=token(claims(org))), 202)
        assert run["user_id"] == "ann"
        problem(await client.post("/v1/runs", json={"input": "a"}, headers=token(claims(org, scope="read"))), 403)
        problem(await client.get("/v1/runs", headers=token(claims(org, scope=None))), 403)
        for wrong in (
            claims(org, exp=time.time() - 60),
            claims(org, exp=None),
            claims(org, aud="someone else"),
            claims(org, sub=None),
            claims(org, sub=""),
            claims(org, sub="\x00"),
            claims("org_" + "0" * 32),
            claims("not an org"),
            claims(5),
            claims(org, scope=["read"]),
        ):
            problem(await client.get("/v1/runs", headers=token(wrong)), 401)
        forged = token(claims(org), key="x" * 40)
        problem(await client.get("/v1/runs", headers=forged), 401)


async def test_without_a_jwt_key_no_jwt_is_taken(nobody: httpx.AsyncClient, org: str) -> None:
    problem(await nobody.get("/v1/runs", headers=token(claims(org))), 401)


@pytest.mark.parametrize(("key", "algorithm"), [("not pem", "RS256"), ("too short", "HS256")])
def test_a_jwt_key_that_does_not_fit_its_algorithm_is_found_at_boot(
    settings: Settings, key: str, algorithm: str
) -> None:
    odd = settings.model_copy(update={"jwt_key": SecretStr(key), "jwt_algorithm": algorithm})
    with pytest.raises(BadSettings, match="LONGHAUL_JWT"):
        check_jwt_settings(odd)


def test_a_jwt_key_that_fits_is_taken(settings: Settings) -> None:
    check_jwt_settings(settings)
    check_jwt_settings(settings.model_copy(update={"jwt_key": SecretStr(JWT_KEY)}))
