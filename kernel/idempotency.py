"""Idempotency keys: a request that is sent again gets the stored answer again and does nothing.

The answer is stored in the transaction of the write, so either both are there or neither. A request that
comes while its twin is still at work waits for it. Refused requests store nothing and may be sent again. What is kept
of a request is a fingerprint (`Sealer.fingerprint`): a body may hold secrets.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import asyncpg

from kernel.errors import Conflict, InvalidInput
from kernel.postgres import Connection, Pool
from kernel.sealing import same
from kernel.sql import statements

SQL = statements(__package__, "idempotency.sql")


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """A request under its key (1 to 255 characters). `route` is where it went, `fingerprint` one of its body."""

    org_id: str
    key: str
    route: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer as it was given: its HTTP status and its JSON text."""

    status: int
    body: bytes


async def answer_once(
    db: Pool, request: KeyedRequest, write: Callable[[Connection], Awaitable[StoredAnswer]]
) -> tuple[StoredAnswer, bool]:
    """The answer to `request` and whether it is a replay; `write` runs in a transaction unless it is.

    Raises:
        InvalidInput: the key was used for another request.
        Conflict: its twin is still at work after five seconds.
    """
    async with db.acquire() as connection, connection.transaction():
        await connection.execute(SQL.limit_wait)
        try:
            claimed = await connection.fetchval(
                SQL.claim, request.org_id, request.key, request.route, request.fingerprint
            )
        except asyncpg.LockNotAvailableError:
            raise Conflict(
                "A request with this Idempotency-Key is still being worked on.",
                field="Idempotency-Key",
                suggestions=("send it again later",),
            ) from None
        if not claimed:
            return await _stored(connection, request), True
        answer = await write(connection)
        await connection.execute(SQL.keep, request.org_id, request.key, answer.status, answer.body.decode())
        return answer, False


async def _stored(connection: Connection, request: KeyedRequest) -> StoredAnswer:
    row = await connection.fetchrow(SQL.get, request.org_id, request.key)
    if row is None:
        raise Conflict("The Idempotency-Key has just expired.", suggestions=("send the request again",))
    if row["route"] != request.route or not same(row["request_hash"], request.fingerprint):
        raise InvalidInput(
            "This Idempotency-Key was used for another request.",
            field="Idempotency-Key",
            suggestions=("use a new key for a new request",),
        )
    return StoredAnswer(row["status"], row["body"].encode())
