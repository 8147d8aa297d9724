"""What an API process does not import before it has to, and that everything works once it has to."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import create_server

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kernel.settings import Settings
from tests.api.checks import ok, problem
from tests.waiting import eventually

SECRET = "the-key-of-the-identity-provider-in-tests"
SPARED = {
    "rich.console",
    "pygments",
    "cryptography.hazmat.bindings._rust",
    "yaml",
    "kernel.skill_format",
    "api.openapi",
}
"""Each costs megabytes, or brings what does."""

SKILL = "---\nname: pdf-forms\ndescription: Fills in forms.\n---\nDo it."


class Process:
    """An API process that tells what it imports."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._log = log

    def imported(self) -> set[str]:
        """All modules so far."""
        lines = self._log.read_text().splitlines()
        return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


@asynccontextmanager
async def telling(settings: Settings, folder: Path, **changes: str) -> AsyncIterator[Process]:
    """A process that serves."""
    with closing(create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    log = folder / "log"
    with log.open("w") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "api",
            env={
                "PATH": os.environ["PATH"],
                "DATABASE_URL": settings.database_url.get_secret_value(),
                "REDIS_URL": settings.redis_url.get_secret_value(),
                "LONGHAUL_SECRET_KEY": settings.secret_key.get_secret_value(),
                "LONGHAUL_PORT": str(port),
                "PYTHONPROFILEIMPORTTIME": "1",
                **changes,
            },
            stderr=errors,
        )
    found = Process(f"http://127.0.0.1:{port}", log)

    async def ready() -> bool:
        assert process.returncode is None
        async with httpx.AsyncClient() as client:
            try:
                return (await client.get(f"{found.url}/ready")).status_code == 200
            except httpx.TransportError:
                return False

    try:
        await eventually(ready, within=30, every=0.05, what="the API serves")
        yield found
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def claims(org: str) -> dict[str, object]:
    return {
        "org": org,
        "sub": "someone",
        "scope": "read",
        "aud": "longhaul",
        "exp": datetime.now(UTC) + timedelta(minutes=5),
    }


async def test_what_few_requests_need_is_imported_by_the_first_of_them(
    settings: Settings, api_key: str, org: str, tmp_path: Path
) -> None:
    async with (
        telling(settings, tmp_path, LONGHAUL_JWT_KEY=SECRET) as process,
        httpx.AsyncClient(base_url=process.url, headers={"Authorization": f"Bearer {api_key}"}) as client,
    ):
        ok(await client.post("/v1/runs", json={"input": "a"}), 202)
        user = {"Authorization": f"Bearer {jwt.encode(claims(org), SECRET, 'HS256')}"}
        ok(await client.get("/v1/runs", headers=user))
        imported = process.imported()
        assert {"api.process", "structlog.dev", "jwt.algorithms"} <= imported
        assert imported & SPARED == set()

        assert (await client.put("/v1/secrets/key", json={"value": "x"})).status_code in (200, 201)
        ok(await client.post("/v1/skills/import", json={"files": {"SKILL.md": SKILL}}), 201)
        both = await asyncio.gather(client.get("/openapi.json"), client.get("/openapi.json"))
        assert ok(both[0])["paths"].keys() >= {"/v1/runs", "/v1/agents"}
        assert both[0].content == both[1].content
        assert process.imported() & SPARED == SPARED - {"rich.console", "pygments"}


async def test_tokens_signed_with_a_private_key_are_taken_where_the_settings_name_its_algorithm(
    settings: Settings, org: str, tmp_path: Path
) -> None:
    key, stranger = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    variables = {"LONGHAUL_JWT_KEY": public, "LONGHAUL_JWT_ALGORITHM": "RS256"}
    async with (
        telling(settings, tmp_path, **variables) as process,
        httpx.AsyncClient(base_url=process.url) as client,
    ):
        for signer, status in ((key, 200), (stranger, 401)):
            token = jwt.encode(claims(org), signer, "RS256")
            answer = await client.get("/v1/runs", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == status
        assert process.imported() & {"rich.console", "yaml"} == set()


async def test_a_token_that_names_an_algorithm_of_public_keys_is_refused_where_hmac_is_set(
    settings: Settings, org: str, tmp_path: Path
) -> None:
    token = jwt.encode(claims(org), rsa.generate_private_key(public_exponent=65537, key_size=2048), "RS256")
    async with (
        telling(settings, tmp_path, LONGHAUL_JWT_KEY=SECRET) as process,
        httpx.AsyncClient(base_url=process.url) as client,
    ):
        problem(await client.get("/v1/runs", headers={"Authorization": f"Bearer {token}"}), 401)
