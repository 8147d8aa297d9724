"""What stops a run short of its end. The brake brings it to a stop between two steps, because it is paused or its
worker is to go; a step that needs somebody's decision stops it by itself.

A run that is braked stops before its next step, in all its agents, with everything before that in its checkpoint.
It does not stop while a call is under way that must not be made twice: cut short, its outcome would be unknown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from langgraph.errors import GraphBubbleUp


class Braked(GraphBubbleUp):
    """The run has stopped between two steps, as it was asked to. Not an error: it can go on from there.

    As one of LangGraph's own it passes through the graph without a trace, and a state side by side with the one that
    it came through is let finish.
    """


class Waits(GraphBubbleUp):
    """A step can't be finished before somebody has decided something that it asked for. It is entered again when that
    is done; until then the run may rest."""


class Brake:
    """One per execution of a run, shared with its sub-agents."""

    def __init__(self) -> None:
        self._pulled = False
        self.held = False  # whether it has stopped an agent that could have gone on
        self._unrepeatable = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def quiet(self) -> bool:
        """Whether the run could be cut short without leaving a call with an unknown outcome."""
        return self._quiet.is_set()

    def pull(self) -> None:
        """Asks the run to stop before its next step."""
        self._pulled = True

    async def check(self) -> None:
        """To be called between two steps.

        Raises:
            Braked: the run is to stop here.
        """
        if self._pulled:
            await self._quiet.wait()
            self.held = True
            raise Braked

    @contextmanager
    def unrepeatable(self) -> Generator[None]:
        """Holds the brake off for the time of a call that must not be cut short."""
        self._unrepeatable += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._unrepeatable -= 1
            if not self._unrepeatable:
                self._quiet.set()
