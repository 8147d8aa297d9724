"""Spaces: what vectors can be compared in. One for each model and length of vectors, each with a table of its own.

A deployment has one space that serves. One that changes its model has two for a while: the new one is filled in the
background while the old one still serves, then it takes its place (`filling.py`).

What always holds: a process writes vectors of its own model only, into its model's space; a space is made once, however
many processes see that it is missing; a process whose space was retired under it writes memories without vectors, which
those of the new model are given in the background, and does not bring the old space back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Literal

from kernel.postgres import Pool
from kernel.sql import statements
from memory.embedders.port import Embedder
from memory.errors import EmbedderUnavailable

SQL = statements(__package__, "spaces.sql")

_MOST_DIMENSIONS: Final = 4000  # of a halfvec in an HNSW index


@dataclass(frozen=True, slots=True)
class Space:
    """A space that is not retired. `filling`: not all memories have a vector in it yet."""

    id: int
    model: str
    dimensions: int
    state: Literal["filling", "serving"]

    @property
    def table(self) -> str:
        return f"memory_space_{self.id}"


class Spaces:
    """The spaces of a deployment, as one process knows them.

    Args:
        embedder: the model that this process writes vectors of.
        fresh: seconds for which what was read counts.
    """

    def __init__(self, pool: Pool, embedder: Embedder, *, fresh: float = 30.0) -> None:
        self._pool = pool
        self._embedder = embedder
        self._fresh = fresh
        self._known: tuple[Space, ...] = ()
        self._read_at: float | None = None
        self._had: set[tuple[str, int]] = set()

    async def known(self) -> tuple[Space, ...]:
        """All that are not retired, the oldest first; as of some seconds ago."""
        if self._read_at is None or time.monotonic() - self._read_at > self._fresh:
            await self._read()
        return self._known

    async def own(self, dimensions: int) -> Space | None:
        """The space that vectors of this process' model go to, made on first use; None once it was retired.

        Raises:
            EmbedderUnavailable: no space can hold vectors of this length.
        """
        name = (self._embedder.model, dimensions)
        space = _named(await self.known(), *name)
        if space is None and name not in self._had:
            if not 1 <= dimensions <= _MOST_DIMENSIONS:
                raise EmbedderUnavailable(
                    f"the model {name[0]!r} makes vectors of {dimensions} numbers; 1 to {_MOST_DIMENSIONS} can be kept",
                    suggestions=("choose another model, or ask the endpoint for shorter vectors",),
                )
            await self._pool.fetchval(SQL.open_space, *name)
            space = _named(await self._read(), *name)
        if space is not None:
            self._had.add(name)
        return space

    def forget(self) -> None:
        """What is known is out of date: a table was not there."""
        self._read_at = None

    async def _read(self) -> tuple[Space, ...]:
        self._known = tuple(Space(**row) for row in await self._pool.fetch(SQL.spaces))
        self._read_at = time.monotonic()
        return self._known


def _named(spaces: tuple[Space, ...], model: str, dimensions: int) -> Space | None:
    return next((space for space in spaces if (space.model, space.dimensions) == (model, dimensions)), None)
