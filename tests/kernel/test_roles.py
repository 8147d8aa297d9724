"""Roles: what keys and tokens carry besides scopes, for those who decide."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from pydantic import SecretStr

from api.auth import Authenticator
from kernel.errors import InvalidInput, Unauthenticated
from kernel.postgres import Pool
from kernel.settings import Settings
from kernel.tenants import authenticate, create_key, list_keys

_LONGHAUL = str(Path(sys.executable).with_name("longhaul"))
_JWT_KEY = "the-key-of-the-identity-provider-in-tests"


async def test_a_key_carries_its_roles(database: Pool, org: str) -> None:
    made = await create_key(database, org, name="mia", roles=["manager", "clerk", "manager"])
    assert made.key.roles == ("clerk", "manager")
    assert [key.roles for key in await list_keys(database, org)] == [("clerk", "manager")]
    principal = await authenticate(database, made.secret.get_secret_value())
    assert principal.roles == {"clerk", "manager"}


@pytest.mark.parametrize("roles", [["Manager"], [""], ["a" * 65], ["a b"], [f"role{n}" for n in range(33)]])
async def test_what_is_no_role_is_refused(database: Pool, org: str, roles: list[str]) -> None:
    with pytest.raises(InvalidInput) as refused:
        await create_key(database, org, name="mia", roles=roles)
    assert refused.value.field == "roles"


async def test_a_token_carries_its_roles(database: Pool, org: str, settings: Settings) -> None:
    authenticator = Authenticator(database, settings.model_copy(update={"jwt_key": SecretStr(_JWT_KEY)}))

    def header(**more: Any) -> bytes:
        claims = {"org": org, "sub": "mia", "aud": "longhaul", "scope": "write", "exp": time.time() + 60, **more}
        return b"Bearer " + jwt.encode(claims, _JWT_KEY, algorithm="HS256").encode()

    assert (await authenticator.principal(header(roles=["manager"]))).roles == {"manager"}
    assert (await authenticator.principal(header())).roles == frozenset()
    for wrong in ("manager", ["Manager"], [1], {"manager": True}, None):
        with pytest.raises(Unauthenticated):
            await authenticator.principal(header(roles=wrong))


async def test_roles_are_given_and_shown_at_the_command_line(database_url: str) -> None:
    async def keys(*arguments: str) -> str:
        command = [_LONGHAUL, "keys", *arguments, "--org", "with roles", "--database-url", database_url]
        environment = {"PATH": "/usr/bin:/bin"}
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=True, timeout=30, env=environment
        )
        return done.stdout

    await keys("create", "mia", "--role", "manager", "--role", "clerk")
    assert "roles clerk,manager  mia" in await keys("list")
