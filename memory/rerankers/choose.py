"""Which reranker a process uses: the endpoint that the settings name, else none."""

from __future__ import annotations

from kernel.errors import BadSettings
from kernel.settings import Settings
from memory.rerankers.endpoint import EndpointReranker
from memory.rerankers.port import Reranker


def choose_reranker(settings: Settings) -> Reranker | None:
    """The reranker for `rerank_base_url`, `rerank_api_key` and `rerank_model`, or None. The caller closes it.

    Raises:
        BadSettings: an endpoint without a model, or a model without an endpoint.
    """
    if settings.rerank_base_url is None and not settings.rerank_model:
        return None
    if settings.rerank_base_url is None or not settings.rerank_model:
        raise BadSettings(
            "a reranker needs both LONGHAUL_RERANK_BASE_URL and LONGHAUL_RERANK_MODEL",
            suggestions=("set the one that is missing, or neither",),
        )
    return EndpointReranker(
        base_url=settings.rerank_base_url, api_key=settings.rerank_api_key, model=settings.rerank_model
    )
