"""Orgs, their API keys, and who calls.

A key looks like `lh_<32 hex>_<43 characters>`: the first part finds its row, the second is 256 random bits.
Only the SHA-256 of the whole key is stored, so a key is shown once, when it is made. A slow hash would add
nothing: nobody guesses 256 bits.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, get_args

from pydantic import SecretStr

from kernel.agent_config import AgentConfig
from kernel.agents import create_agent
from kernel.errors import InvalidInput, NotFound, Unauthenticated
from kernel.ids import is_id, new_id
from kernel.postgres import Connection, Pool
from kernel.sql import statements

SQL = statements(__package__, "tenants.sql")

Scope: TypeAlias = Literal["read", "write", "admin"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

_ROLE: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_MOST_ROLES: Final = 32
_KEY: Final = re.compile(r"lh_([0-9a-f]{32})_[A-Za-z0-9_-]{43}")
_REFUSED: Final = "The credential is missing or not valid."


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. `key_id` is None for a JWT; `user_id` is None for a key that stands for no one user. `roles` say what
    the caller may decide for others."""

    org_id: str
    user_id: str | None
    scopes: frozenset[str]
    key_id: str | None = None
    roles: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key's record; the key itself is not in it."""

    id: str
    org_id: str
    name: str
    user_id: str | None
    scopes: tuple[str, ...]
    roles: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made, with its secret: the only time it can be shown."""

    key: ApiKey
    secret: SecretStr


async def ensure_org(db: Pool, name: str) -> str:
    """The id of the org of this name, which is made if need be, with its default agent `assistant`."""
    found: str | None = await db.fetchval(SQL.org_by_name, name)
    if found is not None:
        return found
    async with db.acquire() as connection, connection.transaction():
        org_id: str | None = await connection.fetchval(SQL.add_org, new_id("org"), name)
        if org_id is None:  # made by another process just now
            return str(await connection.fetchval(SQL.org_by_name, name))
        agent = await create_agent(connection, org_id, AgentConfig(name="assistant"))
        await connection.execute(SQL.set_default_agent, org_id, agent.id)
        return org_id


async def org_exists(db: Pool | Connection, org_id: str) -> bool:
    """Whether there is such an org."""
    return bool(await db.fetchval(SQL.org_exists, org_id))


async def create_key(
    db: Pool | Connection,
    org_id: str,
    *,
    name: str,
    scopes: Collection[str] = ("read", "write"),
    user_id: str | None = None,
    roles: Collection[str] = (),
    expires_at: datetime | None = None,
) -> NewKey:
    """Makes a key for the org. `expires_at` needs a time zone.

    Raises:
        InvalidInput: an unknown scope, a role that is none, or a name that is not 1 to 200 characters long.
        NotFound: no such org.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise InvalidInput(
            f"Unknown scope {unknown[0]}." if unknown else "A key needs a scope.",
            field="scopes",
            suggestions=(f"use some of {', '.join(SCOPES)}",),
        )
    if not are_roles(sorted(roles)):
        raise InvalidInput(
            "A role is named by 1 to 64 of a-z, 0-9, - and _, beginning with a letter; a key has at most "
            f"{_MOST_ROLES}.",
            field="roles",
        )
    for field, text in (("name", name), ("user_id", user_id)):
        if text is not None and not 1 <= len(text) <= 200:
            raise InvalidInput(f"{field} must be 1 to 200 characters long.", field=field)
    if not await org_exists(db, org_id):
        raise NotFound(f"There is no org {org_id}.", field="org_id")
    key_id = new_id("key")
    secret = f"lh_{key_id.removeprefix('key_')}_{secrets.token_urlsafe(32)}"
    arguments = (key_id, org_id, name, _hash(secret), user_id, sorted(set(scopes)), expires_at, sorted(set(roles)))
    row = await db.fetchrow(SQL.add_key, *arguments)
    assert row is not None
    return NewKey(_key(row), SecretStr(secret))


async def list_keys(db: Pool | Connection, org_id: str) -> list[ApiKey]:
    """The org's keys, oldest first, the revoked ones too."""
    return [_key(row) for row in await db.fetch(SQL.list_keys, org_id)]


async def revoke_key(db: Pool | Connection, org_id: str, key_id: str) -> ApiKey:
    """Ends a key; API processes may go on taking it for the ten seconds that they remember it.

    Raises:
        NotFound: no such key in the org.
    """
    row = await db.fetchrow(SQL.revoke_key, org_id, key_id) if is_id("key", key_id) else None
    if row is None:
        raise NotFound(f"There is no key {key_id}.", field="key_id")
    return _key(row)


async def authenticate(db: Pool | Connection, secret: str) -> Principal:
    """Who holds the key `secret`.

    Raises:
        Unauthenticated: it is malformed, unknown, expired or revoked; the error does not say which.
    """
    shape = _KEY.fullmatch(secret)
    if shape is None:
        raise Unauthenticated(_REFUSED)
    row = await db.fetchrow(SQL.usable_key, f"key_{shape[1]}")
    if row is None or not hmac.compare_digest(row["hash"], _hash(secret)):
        raise Unauthenticated(_REFUSED)
    return Principal(row["org_id"], row["user_id"], frozenset(row["scopes"]), row["id"], frozenset(row["roles"]))


def are_roles(names: object) -> bool:
    """Whether `names` is a list of roles that a key or a JWT may carry."""
    return (
        isinstance(names, list)
        and len(names) <= _MOST_ROLES
        and all(isinstance(name, str) and _ROLE.fullmatch(name) is not None for name in names)
    )


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _key(row: Any) -> ApiKey:
    return ApiKey(**{**row, "scopes": tuple(row["scopes"]), "roles": tuple(row["roles"])})
