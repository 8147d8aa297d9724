"""The search engine that the settings name."""

from __future__ import annotations

from importlib.util import find_spec

from kernel.errors import BadSettings
from kernel.settings import Settings
from orchestrator.search.brave import Brave
from orchestrator.search.ddgs import Ddgs
from orchestrator.search.exa import Exa
from orchestrator.search.port import SearchEngine
from orchestrator.search.searxng import SearXNG
from orchestrator.search.tavily import Tavily


def choose_engine(settings: Settings) -> SearchEngine | None:
    """The engine, None if none is named. Reaches nothing yet.

    Raises:
        BadSettings: what the engine needs is not there.
    """
    key, url = settings.search_key, settings.search_url
    match settings.search_engine:
        case "none":
            return None
        case "searxng":
            if url is None:
                raise BadSettings("LONGHAUL_SEARCH_URL is needed for searxng")
            return SearXNG(url)
        case "brave":
            return Brave(key, url) if url else Brave(key)
        case "tavily":
            return Tavily(key, url) if url else Tavily(key)
        case "exa":
            return Exa(key, url) if url else Exa(key)
        case "ddgs":
            if find_spec("ddgs") is None:
                raise BadSettings("LONGHAUL_SEARCH_ENGINE is ddgs, which is not installed: install longhaul[search]")
            return Ddgs(allow=settings.egress_allow)
