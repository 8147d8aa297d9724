"""One question to an org's Postgres, in a process that is made for it and ends with it.

Run as a script, alone: it imports nothing of this project, and has neither its environment nor its connections. Whoever
names a server also decides what it says: a sign-in that takes ten minutes of CPU time, an answer of gigabytes, types
without end. Here that meets limits of the operating system, and nobody else waits for it. The task comes as JSON on
standard input; the answer goes to standard output as JSON: `lines` and whether there are `more`, or a `failure`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import signal
import ssl
import sys
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncpg

_MEMORY_BYTES = 768 * 1_048_576
_CPU_SECONDS = 5
_PATIENCE = 3.0  # beyond the statement timeout, until a silent server is given up


class Failed(Exception):
    """Why there is no answer, in words for whoever asked."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.retryable = retryable


def main() -> None:
    """Reads the task, answers it."""
    task = json.load(sys.stdin)
    _limit()
    try:
        answer = asyncio.run(_answer(task))
    except Failed as failed:
        answer = {"failure": failed.message, "retryable": failed.retryable}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()


def protection(mode: str, name: str) -> ssl.SSLContext | bool:
    """How a connection to the server of this name is protected; `mode` is libpq's sslmode."""
    if mode == "disable":
        return False
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.name = name
    context.check_hostname = False
    if mode == "require":
        context.verify_mode = ssl.CERT_NONE
        return context
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = mode == "verify-full"
    context.load_default_certs()
    return context


class _NamedContext(ssl.SSLContext):
    """Checks certificates against the host's name, though the connection goes to an address."""

    name: str = ""

    def wrap_bio(
        self, incoming: Any, outgoing: Any, server_side: bool = False, server_hostname: Any = None, session: Any = None
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, self.name or server_hostname, session)


def _limit() -> None:
    for kind, most in (
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_CPU, _CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):
            if sys.platform == "linux":
                raise


async def _answer(task: Mapping[str, Any]) -> dict[str, Any]:
    # To be told to end is to be cancelled: the server is then told that nobody waits any more.
    doing = asyncio.current_task()
    assert doing is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, doing.cancel)
    async with _reading(task) as connection:
        prepared = await connection.prepare(task["sql"])
        lines: list[str] = []
        size = 0
        async for record in prepared.cursor(*task["arguments"], prefetch=50):
            line = record[0]
            size += len(line.encode())
            if len(line) > task["row_characters"] or (not lines and size > task["answer_bytes"]):
                raise Failed(
                    f"A row of the answer is longer than {task['row_characters']} characters: select fewer or shorter "
                    "columns."
                )
            if len(lines) == task["max_rows"] or size > task["answer_bytes"]:
                return {"lines": lines, "more": True}
            lines.append(line)
    return {"lines": lines, "more": False}


@contextlib.asynccontextmanager
async def _reading(task: Mapping[str, Any]) -> AsyncGenerator[asyncpg.Connection[Any]]:
    import asyncpg

    seconds = task["seconds"]
    try:
        async with asyncio.timeout(task["connect_seconds"] + seconds + _PATIENCE):
            connection = await asyncpg.connect(
                **task["where"],
                ssl=protection(task["mode"], task["name"]),
                passfile="/dev/null",
                timeout=task["connect_seconds"],
                statement_cache_size=0,
                server_settings=task["settings"],
            )
            try:
                async with connection.transaction(readonly=True):
                    # After a first query nothing can make the transaction writable any more.
                    if danger := await connection.fetchval(task["danger"]):
                        raise Failed(
                            f"The source's role {danger}: its owner must give it a role that may only read.",
                        )
                    yield connection
            finally:
                connection.terminate()
    except Failed:
        raise
    except asyncpg.QueryCanceledError:
        raise Failed(f"The question took longer than {seconds:g} s: ask for less at a time.") from None
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError):
        raise Failed("The source refuses the sign-in: its owner must correct the secret.") from None
    except asyncpg.PostgresConnectionError:
        raise Failed("The connection to the source broke.", retryable=True) from None
    except asyncpg.PostgresError as error:
        raise Failed(_told(error)) from None
    except (TimeoutError, OSError, asyncpg.InterfaceError):
        raise Failed("The source does not answer.", retryable=True) from None
    except Exception:
        raise Failed("The source answers with what no Postgres would say.") from None


def _told(error: asyncpg.PostgresError) -> str:
    parts = [f"The database says: {error.args[0] if error.args else type(error).__name__}"[:1_000]]
    if hint := getattr(error, "hint", None):
        parts.append(f"Hint: {hint}"[:500])
    return "\n".join(parts)


if __name__ == "__main__":
    main()
