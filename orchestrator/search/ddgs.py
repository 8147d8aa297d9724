"""The library ddgs: public search engines, asked without a key as a browser would.

What it does on the network is its own: it has an HTTP client of its own, reads DDGS_PROXY from the environment, and
is not kept to the egress rules; but it goes only to the engines that it knows, never to an address of a caller. It is
for development and small use: engines throttle it and change their pages without notice. A process that is to
end waits for searches that are under way, some seconds at most.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from orchestrator.search.port import SearchFailed, SearchLimited, SearchResult
from orchestrator.search.results import tidy

_AT_ONCE: Final = 4
_SECONDS: Final = 8
_NOTHING_FOUND: Final = "No results found."


class Ddgs:
    """Searches on threads of its own, because the library blocks; at most four searches at once, others wait.

    Args:
        backend: engines of the library, by commas.
    """

    name = "ddgs"

    def __init__(self, backend: str = "auto") -> None:
        self._backend = backend
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="ddgs")

    async def search(self, query: str, limit: int) -> list[SearchResult]:
        found = await asyncio.get_running_loop().run_in_executor(self._threads, self._search, query, limit)
        return tidy(((entry.get("title"), entry.get("href"), entry.get("body")) for entry in found), limit)

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _search(self, query: str, limit: int) -> list[dict[str, Any]]:
        from ddgs import DDGS
        from ddgs.exceptions import DDGSException, RatelimitException, TimeoutException

        try:
            return DDGS(timeout=_SECONDS).text(query, max_results=limit, backend=self._backend)
        except RatelimitException:
            raise SearchLimited("ddgs takes no more requests for now", retry_after=None) from None
        except TimeoutException:
            raise SearchFailed("no search engine answered ddgs in time", retryable=True) from None
        except DDGSException as error:
            if str(error) == _NOTHING_FOUND:
                return []
            raise SearchFailed("no search engine answered ddgs", retryable=True) from None
