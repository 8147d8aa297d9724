"""Asks a starting API whether it is ready, and how many workers are with it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import aiohttp
import orjson


class Readiness:
    """Looks at `GET /ready` of the API at `url`."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/ready"
        self._session: aiohttp.ClientSession | None = None

    async def missing(self, workers: int) -> str | None:
        """What is still missing, in words; None when the API is ready and sees at least `workers` workers."""
        if self._session is None:
            raise RuntimeError("use it as a context manager")
        try:
            async with self._session.get(self._url) as answer:
                body = await answer.read()
                if answer.status != 200:
                    return f"{self._url} answers {answer.status} {body[:300].decode('utf-8', 'replace')}"
        except (aiohttp.ClientError, TimeoutError) as error:
            return f"the API does not answer ({error or type(error).__name__})"
        try:
            seen = int(orjson.loads(body)["workers"])
        except (ValueError, KeyError, TypeError):
            return f"{self._url} does not say how many workers there are"
        return None if seen >= workers else f"{seen} of {workers} workers are up"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5), trust_env=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
