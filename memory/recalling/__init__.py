"""Recall on Postgres: the pipeline from a question to memories."""

from memory.recalling.recaller import Recaller

__all__ = ["Recaller"]
