"""The library ddgs: public search engines, asked without a key as a browser would.

It has an HTTP client of its own, which looks like a browser's and has to. So it is given a proxy that is ours and that
keeps it to the egress rules: no connection to a private address, also not after a redirect. It goes only to the engines
that it knows, never to an address of a caller. It is for development and small use: engines throttle it and change
their pages without notice. A process that is to end waits for searches that are under way, some seconds at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from orchestrator.egress.gate import Gate
from orchestrator.egress.tunnel import Tunnel
from orchestrator.search.port import SearchFailed, SearchLimited, SearchResult
from orchestrator.search.results import tidy

_AT_ONCE: Final = 4
_SECONDS: Final = 8
_NOTHING_FOUND: Final = "No results found."


class Ddgs:
    """Searches on threads of its own, because the library blocks; at most four searches at once, others wait.

    Args:
        backend: engines of the library, by commas.
        allow: `host:port` pairs that may be reached although they are private.
    """

    name = "ddgs"

    def __init__(self, backend: str = "auto", *, allow: Collection[str] = ()) -> None:
        self._backend = backend
        self._tunnel = Tunnel(Gate(allow), seconds=2 * _SECONDS)
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="ddgs")

    async def search(self, query: str, limit: int) -> list[SearchResult]:
        proxy = await self._tunnel.url()
        found = await asyncio.get_running_loop().run_in_executor(self._threads, self._search, query, limit, proxy)
        return tidy(((entry.get("title"), entry.get("href"), entry.get("body")) for entry in found), limit)

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._tunnel.aclose()

    def _search(self, query: str, limit: int, proxy: str) -> list[dict[str, Any]]:
        from ddgs import DDGS
        from ddgs.exceptions import DDGSException, RatelimitException, TimeoutException

        try:
            return DDGS(proxy, timeout=_SECONDS).text(query, max_results=limit, backend=self._backend)
        except RatelimitException:
            raise SearchLimited("ddgs takes no more requests for now", retry_after=None) from None
        except TimeoutException:
            raise SearchFailed("no search engine answered ddgs in time", retryable=True) from None
        except DDGSException as error:
            if str(error) == _NOTHING_FOUND:
                return []
            raise SearchFailed("no search engine answered ddgs", retryable=True) from None
