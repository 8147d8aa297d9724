"""Which embedder a process uses: the endpoint that the settings name, else the offline one."""

from __future__ import annotations

from kernel.errors import BadSettings
from kernel.settings import Settings
from memory.embedders.lexical import LexicalEmbedder
from memory.embedders.openai import OpenAIEmbedder
from memory.embedders.port import Embedder

_OFFLINE = "lexical"


def choose_embedder(settings: Settings) -> Embedder:
    """The embedder for `embedding_base_url`, `embedding_api_key` and `embedding_model`. The caller closes it.

    Raises:
        BadSettings: an endpoint without a model, or a model without an endpoint.
    """
    offline = settings.embedding_model == _OFFLINE
    if settings.embedding_base_url is None:
        if offline:
            return LexicalEmbedder()
        raise BadSettings(
            f"LONGHAUL_EMBEDDING_MODEL is {settings.embedding_model!r}, but no endpoint is named that has it",
            suggestions=("set LONGHAUL_EMBEDDING_BASE_URL, such as https://api.openai.com/v1",),
        )
    if offline:
        raise BadSettings(
            "LONGHAUL_EMBEDDING_BASE_URL is set, but no model is named",
            suggestions=("set LONGHAUL_EMBEDDING_MODEL, such as text-embedding-3-small",),
        )
    return OpenAIEmbedder(
        base_url=settings.embedding_base_url, api_key=settings.embedding_api_key, model=settings.embedding_model
    )
