"""Asks an org's Postgres: one question, one connection, in a transaction that can't write.

What holds whatever the question is: it runs as a role that is no superuser and may not touch the server's files or
programs, in a read-only transaction that is rolled back, as part of a SELECT of ours, under a statement timeout; of
the answer so many rows and bytes come over, and no more. The extended protocol takes one statement only. What holds
whatever the server is: it talks to a process of its own (`postgres_process.py`), with limits.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import orjson

from kernel.sql import statements
from orchestrator.data.dsn import Dsn
from orchestrator.data.process import asked
from orchestrator.data.question import checked
from orchestrator.egress.gate import Gate
from orchestrator.egress.resolver import Resolve
from orchestrator.tools.errors import ToolFailure

SQL = statements(__package__, "postgres.sql")

_PROCESS: Final = Path(__file__).with_name("postgres_process.py")
_START_SECONDS: Final = 10.0
_CONNECT_SECONDS: Final = 5.0
_ROW_CHARACTERS: Final = 16_384
_ANSWER_BYTES: Final = 48_000
_DESCRIPTION_BYTES: Final = 2_000_000
_MOST_OUTPUT: Final = 6_000_000
_MAX_DEPTH: Final = 100
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
    """An answer: rows as JSON objects; a number that no float can hold is a text. `more` says that there are others
    that did not come over."""

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
        lines, more = await self._ask(
            dsn,
            {
                "sql": bounded,
                "arguments": [_ROW_CHARACTERS + 1],
                "max_rows": max_rows,
                "row_characters": _ROW_CHARACTERS,
                "answer_bytes": _ANSWER_BYTES,
            },
            seconds,
        )
        return Rows([_row(line) for line in lines], more)

    async def describe(self, dsn: str, *, seconds: float) -> list[dict[str, Any]]:
        """Its tables and views that the role may read, each with its columns; at most 200.

        Raises:
            ToolFailure: the database did not answer.
        """
        lines, _ = await self._ask(
            dsn,
            {
                "sql": SQL.describe,
                "arguments": [],
                "max_rows": 200,
                "row_characters": _DESCRIPTION_BYTES,
                "answer_bytes": _DESCRIPTION_BYTES,
            },
            seconds,
        )
        return [_row(line) for line in lines]

    async def _ask(self, dsn: str, question: dict[str, Any], seconds: float) -> tuple[Sequence[str], bool]:
        address = Dsn.parse(dsn)
        task = question | {
            "where": await address.pinned(self._gate, self._resolve),
            "mode": address.mode,
            "name": address.host,
            "settings": _SERVER_SETTINGS | {"statement_timeout": str(round(seconds * 1000))},
            "danger": SQL.danger,
            "connect_seconds": _CONNECT_SECONDS,
            "seconds": seconds,
        }
        # Where the machine has its certificates is no secret, and no address.
        env = {name: os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ}
        try:
            async with self._turns:
                output = await asked(
                    _PROCESS,
                    orjson.dumps(task),
                    seconds=_START_SECONDS + _CONNECT_SECONDS + seconds,
                    most_bytes=_MOST_OUTPUT,
                    env=env,
                )
        except TimeoutError:
            raise ToolFailure("The source does not answer.", retryable=True) from None
        try:
            answer = json.loads(output)
        except ValueError:
            raise ToolFailure("The source's answer needs too much memory or time.") from None
        if "failure" in answer:
            raise ToolFailure(answer["failure"], retryable=answer["retryable"])
        return answer["lines"], answer["more"]


def _row(line: str) -> dict[str, Any]:
    """A row as the server's JSON has it; the type `json` may hold anything that looks like it."""
    try:
        row = json.loads(line, parse_float=_number, parse_int=_number, parse_constant=str)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or _is_deep(row, _MAX_DEPTH):
        raise ToolFailure("The answer holds JSON that can't be read here: select parts of it, or cast it to text.")
    return row


def _number(text: str) -> int | float | str:
    """The number that stands there, exactly; where no float is that number, its digits."""
    if text.lstrip("-").isdigit() and len(text) < 16:
        return int(text)
    near = float(text)
    return near if Decimal(repr(near)) == Decimal(text) else text


def _is_deep(value: object, levels: int) -> bool:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels == 0 or any(_is_deep(item, levels - 1) for item in below)
