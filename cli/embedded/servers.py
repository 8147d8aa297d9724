"""Both servers on one data directory, for whoever needs stores but no stack: tests and the bench."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from cli.embedded.directory import DataDirectory
from cli.embedded.postgres import EmbeddedPostgres
from cli.embedded.redis import EmbeddedRedis
from cli.lock import DirectoryLock


def _silence(_: str) -> None:
    pass


class EmbeddedServers:
    """`async with EmbeddedServers(Path("data")) as servers: connect(servers.database_url)`

    The same addresses come back after stop() and start(), of both or of `postgres` and `redis` singly;
    committed rows are there again, what was in Redis is not. `say` is told of anything that takes long. `options` are
    settings of Postgres that differ from ours, such as `{"shared_buffers": "1GB"}`.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        say: Callable[[str], None] = _silence,
        options: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._data = DataDirectory(data_dir.resolve())
        self._lock = DirectoryLock(self._data.path)
        self.postgres = EmbeddedPostgres(self._data, say, options)
        self.redis = EmbeddedRedis(self._data)

    @property
    def database_url(self) -> str:
        return self.postgres.url

    @property
    def redis_url(self) -> str:
        return self.redis.url

    async def start(self) -> None:
        """Starts both side by side; either both run afterwards or none.

        Raises AlreadyRunning, ServerMissing, BadData or ProcessFailed of cli.errors.
        """
        self._data.create()
        self._lock.acquire()
        outcomes = await asyncio.gather(self.postgres.start(), self.redis.start(), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                await self.stop()
                raise outcome

    async def stop(self) -> None:
        await asyncio.gather(self.postgres.stop(), self.redis.stop())
        self._lock.release()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
