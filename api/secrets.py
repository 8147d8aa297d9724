"""`/v1/secrets`: what tools send and nobody reads. Values come in here and never go out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pydantic import AwareDatetime, Field, SecretStr, field_validator

from api.endpoint import Answer, Call, Endpoint, NoQuery
from api.paging import PageQuery, page, read_cursor
from api.values import Body, View
from kernel.postgres import Pool
from kernel.sealing import Sealer
from kernel.secrets import MOST_SECRETS, Secret, delete_secret, list_secrets, put_secret

_MOST_BYTES: Final = 8_192


class SecretValue(Body):
    """A secret's value."""

    value: SecretStr = Field(min_length=1, max_length=_MOST_BYTES, description="at most 8 KB as UTF-8")

    @field_validator("value")
    @classmethod
    def _fits(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value().encode()) > _MOST_BYTES:
            raise ValueError(f"must not be longer than {_MOST_BYTES} bytes")
        return value


class SecretView(View):
    """What may be known of a secret."""

    name: str
    created_at: AwareDatetime
    updated_at: AwareDatetime


class SecretPage(View):
    """Secrets by name."""

    data: list[SecretView]
    next_cursor: str | None


class Secrets:
    """The endpoints of an org's secrets."""

    def __init__(self, db: Pool, sealer: Sealer) -> None:
        self._db = db
        self._sealer = sealer

    def endpoints(self) -> Iterator[Endpoint[Any, Any]]:
        one, tag = "/v1/secrets/{secret_name}", "secrets"
        yield Endpoint(
            method="GET",
            path="/v1/secrets",
            handler=self.list,
            tag=tag,
            summary="List the names of secrets",
            scope="read",
            query=PageQuery,
            response=SecretPage,
        )
        yield Endpoint(
            method="PUT",
            path=one,
            handler=self.put,
            tag=tag,
            summary="Keep a secret",
            description="201 if the name is new, 200 if another value stood there. It is kept sealed; tools that name "
            f"it get it, and no answer ever holds it. An org has {MOST_SECRETS} at most.",
            scope="write",
            body=SecretValue,
            response=SecretView,
            also={201: SecretView},
            problems=(409,),
        )
        yield Endpoint(
            method="DELETE",
            path=one,
            handler=self.delete,
            tag=tag,
            summary="Delete a secret",
            description="Tools that name it fail from now on; runs under way forget it within half a minute.",
            scope="write",
            status=204,
        )

    async def list(self, call: Call[None, PageQuery]) -> Answer:
        cursor = read_cursor(call.query.cursor, str)
        limit = call.query.limit
        found = await list_secrets(call.db, call.org_id, after=cursor[0] if cursor else None, limit=limit + 1)
        return Answer(page(found, limit, show=_shown, key=lambda secret: (secret.name,)))

    async def put(self, call: Call[SecretValue, NoQuery]) -> Answer:
        value = call.body.value.get_secret_value()
        secret, created = await put_secret(self._db, self._sealer, call.org_id, call.path["secret_name"], value)
        return Answer(_shown(secret), 201 if created else 200)

    async def delete(self, call: Call[None, NoQuery]) -> Answer:
        await delete_secret(self._db, call.org_id, call.path["secret_name"])
        return Answer()


def _shown(secret: Secret) -> dict[str, Any]:
    return {"name": secret.name, "created_at": secret.created_at, "updated_at": secret.updated_at}
