"""Where a run is in its session's log: what a follower of the run must know before it can follow.

Thousands may ask at once, after a process has gone and its followers come to another. So while Postgres answers for
some, the questions of the others gather, and the next statement asks all of them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import islice
from typing import Final

from kernel.errors import NotFound
from kernel.postgres import Pool
from kernel.sql import statements

SQL = statements(__package__, "places.sql")

_AT_ONCE: Final = 500
_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """The run's events are those of `run_id` in the session's log, from `first_seq` to `end_seq`; None: it goes on."""

    org_id: str
    session_id: str
    first_seq: int
    end_seq: int | None


class Places:
    """Asks Postgres where runs are."""

    def __init__(self, db: Pool) -> None:
        self._db = db
        self._questions: dict[str, asyncio.Future[Place | None]] = {}  # not asked yet
        self._asking: asyncio.Task[None] | None = None

    async def of(self, org_id: str, run_id: str) -> Place:
        """The place of a run, read after the call.

        Raises:
            NotFound: no such run in the org.
            OSError, TimeoutError, asyncpg.PostgresError: Postgres does not answer.
        """
        question = self._questions.get(run_id)
        if question is None:
            question = self._questions[run_id] = asyncio.get_running_loop().create_future()
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_all(), name="places")
        place = await asyncio.shield(question)
        if place is None or place.org_id != org_id:
            raise NotFound(f"There is no run {run_id}.", field="run_id")
        return place

    async def _ask_all(self) -> None:
        try:
            while self._questions:
                await self._ask({id: self._questions.pop(id) for id in list(islice(self._questions, _AT_ONCE))})
        finally:
            self._asking = None

    async def _ask(self, questions: dict[str, asyncio.Future[Place | None]]) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                rows = await self._db.fetch(SQL.places, list(questions))
        except Exception as error:  # whatever it is, it is theirs who asked
            for question in questions.values():
                question.set_exception(error)
                question.exception()  # who asked may have left
            return
        for row in rows:
            place = Place(row["org_id"], row["session_id"], row["first_seq"], row["end_seq"])
            questions.pop(row["id"]).set_result(place)
        for question in questions.values():
            question.set_result(None)
