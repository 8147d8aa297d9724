"""The pool of connections to Postgres.

Every process opens one. Connections set timeouts, so that a stalled server or network is noticed: a statement of
ours takes milliseconds, and one that takes many seconds never will be answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, TypeVar

import asyncpg

from kernel.errors import StoreUnavailable

T = TypeVar("T")

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

# What asyncpg raises when the server is away, restarting, full, read-only or shutting us out: nothing is wrong with
# the statement, and the same one will do later.
UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection whose server hung up, handed out before that was noticed
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutdown, crash recovery, starting up, a cancelled statement
    asyncpg.InsufficientResourcesError,  # disk or memory full, too many connections
    asyncpg.PostgresSystemError,  # input and output of the server's files
    asyncpg.ReadOnlySQLTransactionError,  # a standby, after a failover
)


# What a loop that looks again anyway logs and survives.
STORE_ERRORS = (*UNAVAILABLE, asyncpg.PostgresError)


async def patiently(call: Callable[[], Awaitable[T]], *, patience: float = 10.0) -> T:
    """Makes a call that does no harm when it is made twice, again and again while Postgres is away, for `patience`
    seconds at most."""
    give_up = time.monotonic() + patience
    pause = 0.05
    while True:
        try:
            return await call()
        except UNAVAILABLE:
            if time.monotonic() + pause > give_up:
                raise
        await asyncio.sleep(pause)
        pause = min(pause * 2, 1.0)


_CANCEL_SECONDS: Final = 1.0
_FAREWELL_SECONDS: Final = 2.0


class PlainConnection(asyncpg.Connection):
    """A connection that is given back to the pool without a round trip.

    asyncpg resets session state on every release. None of our statements leaves any behind: no temporary tables, no
    `SET` outside a transaction, no `LISTEN`, no session locks. A transaction left open is still rolled back.
    """

    def get_reset_query(self) -> str:
        return ""

    async def _cancel(self, waiter: asyncio.Future[None], cancel_waiter: asyncio.Future[None] | None = None) -> None:
        # asyncpg asks the server to stop a statement that took too long, and waits as long again for an answer. From a
        # server that has gone silent none will come: then the connection is given up, and whoever waits goes on.
        giving_up = asyncio.get_running_loop().call_later(_CANCEL_SECONDS, self.terminate)
        try:
            await super()._cancel(waiter, cancel_waiter)  # type: ignore[misc]  # missing in the stubs
        finally:
            giving_up.cancel()


async def open_pool(
    database_url: str, *, size: int, name: str, connect_timeout: float = 5.0, answer_within: float = 30.0
) -> Pool:
    """A pool of at most `size` connections, opened as needed; two are opened at once.

    Args:
        name: shown in `pg_stat_activity.application_name`.
        connect_timeout: seconds.
        answer_within: seconds after which a statement that has not been answered fails with TimeoutError.

    Raises:
        StoreUnavailable: the server can't be reached or refuses us.
    """
    try:
        pool = await asyncpg.create_pool(
            database_url,
            connection_class=PlainConnection,
            min_size=min(2, size),
            max_size=size,
            timeout=connect_timeout,
            command_timeout=answer_within,
            max_inactive_connection_lifetime=300.0,
            server_settings={
                "application_name": name,
                "jit": "off",  # compiling costs more than our statements take
                "idle_in_transaction_session_timeout": "30s",
            },
        )
    except (*UNAVAILABLE, asyncpg.PostgresError) as error:
        raise StoreUnavailable(
            f"Postgres can't be reached: {error}",
            suggestions=("check DATABASE_URL and that the server is up",),
        ) from error
    assert pool is not None
    return pool


async def close_pool(pool: Pool) -> None:
    """Closes the pool's connections in order, or, where the server does not answer, without its consent."""
    try:
        async with asyncio.timeout(_FAREWELL_SECONDS):
            await pool.close()
    except UNAVAILABLE:
        pool.terminate()
