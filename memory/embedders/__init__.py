"""Embedders: texts to vectors of one model. The port, and the two that come with Longhaul."""

from memory.embedders.choose import choose_embedder, previous_embedders
from memory.embedders.port import Embedder

__all__ = ["Embedder", "choose_embedder", "previous_embedders"]
