"""Asks an org's Postgres: one question, one connection, in a transaction that can't write.

What holds whatever the question is: it runs as a role that is no superuser and may not touch the server's files or
programs, in a read-only transaction that is rolled back, as part of a SELECT of ours, under a statement timeout; of
the answer so many rows and bytes come over, and no more. The extended protocol takes one statement only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import orjson

from kernel.sql import statements
from orchestrator.data.dsn import Dsn
from orchestrator.data.question import checked
from orchestrator.egress.gate import Gate
from orchestrator.egress.resolver import Resolve
from orchestrator.tools.errors import ToolFailure

SQL = statements(__package__, "postgres.sql")

_CONNECT_SECONDS: Final = 5.0
_PATIENCE: Final = 3.0  # beyond the statement timeout, until a silent server is given up
_ROW_BYTES: Final = 16_384
_ANSWER_BYTES: Final = 48_000
_AT_ONCE: Final = 8

_SERVER_SETTINGS: Final = {
    "application_name": "longhaul",
    "default_transaction_read_only": "on",
    "lock_timeout": "2000",
    "idle_in_transaction_session_timeout": "30000",
    "client_encoding": "UTF8",
}


@dataclass(frozen=True, slots=True)
class Rows:
    """An answer: rows as JSON objects. `more` says that there are others that did not come over."""

    rows: list[dict[str, Any]]
    more: bool


class PostgresSources:
    """Asks databases. One per worker: at most eight questions at once, so that many runs don't fill a small server.

    Args:
        gate: which private addresses may be reached nevertheless.
        resolve: names to addresses.
    """

    def __init__(self, gate: Gate, resolve: Resolve) -> None:
        self._gate = gate
        self._resolve = resolve
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def ask(self, dsn: str, sql: str, *, max_rows: int, seconds: float) -> Rows:
        """The answer to a question in SQL.

        Raises:
            ToolFailure: it may not be asked, or the database did not answer it; with words for the model.
        """
        question = await asyncio.to_thread(checked, sql)
        # A newline, for the question may end in a comment. In a subquery no statement can write, and none can hide.
        wrapped = f"SELECT row_to_json(answer)::text FROM (\n{question}\n) AS answer LIMIT {max_rows + 1}"  # noqa: S608
        bounded = f"SELECT left(line.text, $1) FROM ({wrapped}) AS line (text)"  # noqa: S608
        async with self._reading(dsn, seconds) as connection:
            prepared = await connection.prepare(bounded)
            lines: list[str] = []
            size = 0
            async for record in prepared.cursor(_ROW_BYTES + 1, prefetch=50):
                size += len(record[0].encode())
                if len(record[0]) > _ROW_BYTES:
                    raise ToolFailure(
                        f"A row of the answer is longer than {_ROW_BYTES} characters: select fewer or shorter columns.",
                    )
                if len(lines) == max_rows or size > _ANSWER_BYTES:
                    return Rows([orjson.loads(line) for line in lines], True)
                lines.append(record[0])
        return Rows([orjson.loads(line) for line in lines], False)

    async def describe(self, dsn: str, *, seconds: float) -> list[dict[str, Any]]:
        """Its tables and views that the role may read, each with its columns; at most 200.

        Raises:
            ToolFailure: the database did not answer.
        """
        async with self._reading(dsn, seconds) as connection:
            return [orjson.loads(row["described"]) for row in await connection.fetch(SQL.describe)]

    @asynccontextmanager
    async def _reading(self, dsn: str, seconds: float) -> AsyncGenerator[asyncpg.Connection[Any]]:
        where = await Dsn.parse(dsn).pinned(self._gate, self._resolve)
        settings = _SERVER_SETTINGS | {"statement_timeout": str(round(seconds * 1000))}
        try:
            async with self._turns, asyncio.timeout(_CONNECT_SECONDS + seconds + _PATIENCE):
                connection = await asyncpg.connect(
                    **where, timeout=_CONNECT_SECONDS, statement_cache_size=0, server_settings=settings
                )
                try:
                    async with connection.transaction(readonly=True):
                        # After a first query nothing can make the transaction writable any more.
                        if danger := await connection.fetchval(SQL.danger):
                            raise ToolFailure(
                                f"The source's role {danger}: its owner must give it a role that may only read.",
                            )
                        yield connection
                finally:
                    connection.terminate()
        except asyncpg.QueryCanceledError:
            raise ToolFailure(f"The question took longer than {seconds:g} s: ask for less at a time.") from None
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError):
            raise ToolFailure("The source refuses the sign-in: its owner must correct the secret.") from None
        except asyncpg.PostgresConnectionError:
            raise ToolFailure("The connection to the source broke.", retryable=True) from None
        except asyncpg.PostgresError as error:
            raise ToolFailure(_told(error)) from None
        except (TimeoutError, OSError, asyncpg.InterfaceError):
            raise ToolFailure("The source does not answer.", retryable=True) from None


def _told(error: asyncpg.PostgresError) -> str:
    parts = [f"The database says: {error.args[0] if error.args else type(error).__name__}"[:1_000]]
    if hint := getattr(error, "hint", None):
        parts.append(f"Hint: {hint}"[:500])
    return "\n".join(parts)
