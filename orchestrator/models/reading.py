"""Reading one answer from its connection: event stream or plain JSON, whatever the endpoint chose to send.

Ends at `[DONE]`, or at the end of the body once a finish reason was given; an end before that means that the
answer broke off. What was said before a failure comes out before the failure is raised.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from orchestrator.errors import ModelError
from orchestrator.models.diagnosis import Diagnosis
from orchestrator.models.endpoint import Answer
from orchestrator.models.sse import DONE, EventReader
from orchestrator.models.turn import MAX_ANSWER, Delta, Turn, TurnBuilder

_END_PATIENCE = 1.0  # seconds for usage and [DONE] after the finish reason


class Reading:
    """One answer being read."""

    __slots__ = ("_answer", "_builder", "_diagnosis", "_done", "_events", "_first", "_trouble")

    def __init__(self, answer: Answer, diagnosis: Diagnosis) -> None:
        self._answer = answer
        self._diagnosis = diagnosis
        self._builder = TurnBuilder(diagnosis)
        self._events = EventReader()
        self._first = True
        self._done = False
        self._trouble: ModelError | None = None

    async def more(self) -> list[Delta] | None:
        """The deltas of the next read, perhaps none; None when the answer is complete.

        Raises:
            ModelError: the answer is garbled, reports an error, broke off, or stopped coming.
        """
        if self._trouble is not None:
            raise self._trouble
        if self._done:
            return None
        data = await self._read()
        if self._first:
            self._first = False
            if data.lstrip().startswith(b"{"):
                self._builder.absorb(await self._rest(data))
                return self._end(said_done=True)
        try:
            if data:
                self._absorb(self._events.feed(data))
                return self._end(said_done=True) if self._done else self._builder.drain()
            self._absorb(self._events.end())
            return self._end(said_done=self._done)
        except ModelError as error:
            self._trouble = error
            return self._builder.drain()

    def turn(self, model: str = "") -> Turn:
        """The whole answer of `model`, once `more` gave None."""
        return self._builder.turn(model)

    def _absorb(self, events: Iterable[bytes]) -> None:
        for event in events:
            if event == DONE:
                self._done = True
                return
            self._builder.absorb(event)

    def _end(self, *, said_done: bool) -> list[Delta]:
        self._done = True
        if not self._builder.recognised and (said_done or self._events.saw_event):
            raise self._diagnosis.garbled("it holds no choices")
        if not (said_done or self._builder.finished):
            raise self._diagnosis.broke_off()
        return self._builder.drain()

    async def _read(self) -> bytes:
        if not self._builder.finished:
            return await self._answer.read()
        try:  # the answer is complete; what may follow is not worth failing or waiting for
            async with asyncio.timeout(_END_PATIENCE):
                return await self._answer.read()
        except (ModelError, TimeoutError):
            return b""

    async def _rest(self, first: bytes) -> bytes:
        body = bytearray(first)
        while data := await self._answer.read():
            body += data
            if len(body) > 2 * MAX_ANSWER:
                raise self._diagnosis.garbled(f"it is longer than {2 * MAX_ANSWER} bytes")
        if not body:
            raise self._diagnosis.broke_off()
        return bytes(body)
