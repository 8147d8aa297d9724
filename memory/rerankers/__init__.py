"""Rerankers: which of some texts answer a question. The port, and an adapter to endpoints."""

from memory.rerankers.choose import choose_reranker
from memory.rerankers.port import Reranker, RerankerUnavailable

__all__ = ["Reranker", "RerankerUnavailable", "choose_reranker"]
