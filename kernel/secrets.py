"""Secrets of orgs and of single runs. They go in and are used by tools; nothing here gives them out to a caller.

A run's own are stored by the statement that takes the run in (`kernel.runs`) and are gone when it has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import orjson

from kernel.errors import Conflict, NotFound
from kernel.postgres import Connection, Pool
from kernel.sealing import Sealed, Sealer
from kernel.sql import statements

SQL = statements(__package__, "secrets.sql")

MOST_SECRETS: Final = 200
"""Of one org."""


@dataclass(frozen=True, slots=True)
class Secret:
    """What may be known of a secret."""

    name: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class FoundSecrets:
    """Still sealed: the run's own, all in one, and the org's by name."""

    of_run: Sealed | None
    of_org: Mapping[str, Sealed]


async def put_secret(db: Pool | Connection, sealer: Sealer, org_id: str, name: str, value: str) -> tuple[Secret, bool]:
    """Keeps `value` under `name`, in place of what was there; and whether the name is new.

    Raises:
        Conflict: the org has as many secrets as it may have.
    """
    await sealer.ready()
    sealed = sealer.seal(value.encode(), *_org_secret(org_id, name))
    row = await db.fetchrow(SQL.put, org_id, name, sealed.data, sealed.key_id, MOST_SECRETS)
    if row is None:
        raise Conflict(f"An org may have {MOST_SECRETS} secrets at most.", suggestions=("delete one that is not used",))
    return Secret(name, row["created_at"], row["updated_at"]), row["created"]


async def list_secrets(
    db: Pool | Connection, org_id: str, *, after: str | None = None, limit: int = 20
) -> list[Secret]:
    """The org's secrets by name, those after the name `after`."""
    return [Secret(**row) for row in await db.fetch(SQL.list, org_id, after, limit)]


async def delete_secret(db: Pool | Connection, org_id: str, name: str) -> None:
    """Raises NotFound."""
    if not await db.fetchval(SQL.delete, org_id, name):
        raise NotFound(f"There is no secret {name}.", field="secret_name")


async def find_secrets(db: Pool | Connection, org_id: str, run_id: str | None, names: Sequence[str]) -> FoundSecrets:
    """Those of the run, if one is given, and those of the org that have these names."""
    of_run, of_org = None, {}
    for row in await db.fetch(SQL.find, org_id, run_id, list(names)):
        sealed = Sealed(row["key_id"], row["sealed"])
        if row["name"] is None:
            of_run = sealed
        else:
            of_org[row["name"]] = sealed
    return FoundSecrets(of_run, of_org)


def open_secret(sealer: Sealer, sealed: Sealed, org_id: str, name: str) -> str:
    """A secret of the org. Raises CannotOpen."""
    return sealer.open(sealed, *_org_secret(org_id, name)).decode()


async def seal_of_run(sealer: Sealer, org_id: str, run_id: str, secrets: Mapping[str, str]) -> Sealed:
    """A run's own secrets as they are stored with it."""
    await sealer.ready()
    return sealer.seal(orjson.dumps(secrets), *_run_secrets(org_id, run_id))


def open_of_run(sealer: Sealer, sealed: Sealed, org_id: str, run_id: str) -> dict[str, str]:
    """A run's own secrets by name. Raises CannotOpen."""
    opened: dict[str, str] = orjson.loads(sealer.open(sealed, *_run_secrets(org_id, run_id)))
    return opened


def _org_secret(org_id: str, name: str) -> tuple[str, ...]:
    return "secret", org_id, name


def _run_secrets(org_id: str, run_id: str) -> tuple[str, ...]:
    return "run secrets", org_id, run_id
