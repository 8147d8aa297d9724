"""`/v1/runs`: taking runs in, looking at them, waiting for them, cancelling them.

A run is acknowledged when its transaction has committed. Only then are workers woken and followers told, and
neither can make the answer fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import asyncpg
import orjson
from pydantic import Field

from api.endpoint import Answer, Call, Endpoint, NoQuery
from api.intake import wants_stream
from api.paging import PageQuery, bad_cursor, page, read_cursor
from api.problems import problem_of
from api.run_request import RunBatch, RunRequest
from api.run_views import (
    BatchView,
    FinishedRunView,
    RunPage,
    RunView,
    StepPage,
    show_run,
    show_step,
)
from api.stream import EventStream
from api.values import AgentId, Query, SessionId
from api.wait import wait_for_end
from kernel import runs
from kernel.bell import Bell
from kernel.errors import CallerError
from kernel.events import RunStatus
from kernel.fanout import Publisher
from kernel.hub import Hub
from kernel.ids import is_id
from kernel.postgres import Connection, Pool
from kernel.runs import Run, Submitted
from kernel.sealing import Sealer
from kernel.steps import list_steps

_LONGEST_WAIT = 300.0


class RunFilter(PageQuery):
    """Which runs to list."""

    status: RunStatus | None = None
    session_id: SessionId | None = None
    agent_id: AgentId | None = None


class WaitQuery(Query):
    """How long to wait."""

    timeout: float = Field(default=30.0, ge=0, le=_LONGEST_WAIT, description="seconds")


class Runs:
    """The endpoints of runs."""

    def __init__(self, db: Pool, hub: Hub, publisher: Publisher, bell: Bell, sealer: Sealer) -> None:
        self._db = db
        self._hub = hub
        self._publisher = publisher
        self._bell = bell
        self._sealer = sealer

    def endpoints(self) -> Iterator[Endpoint[Any, Any]]:
        one, tag = "/v1/runs/{run_id}", "runs"
        submitting: dict[str, Any] = {
            "method": "POST",
            "handler": self.submit,
            "tag": tag,
            "description": "Answered with 202, or with the run's event stream where the request accepts "
            "text/event-stream. The run goes on whether anybody follows it or not.",
            "scope": "write",
            "body": RunRequest,
            "response": RunView,
            "status": 202,
            "location": "/v1/runs/{id}",
            "idempotent": True,
            "replayed": self.submitted_before,
            "stream": True,
        }
        yield Endpoint(path="/v1/runs", summary="Start a run in a new session", **submitting)
        yield Endpoint(
            path="/v1/sessions/{session_id}/runs",
            summary="Start a run in a session",
            problems=(409,),
            **submitting,
        )
        yield Endpoint(
            method="POST",
            path="/v1/runs/batch",
            handler=self.submit_batch,
            tag=tag,
            summary="Start up to 100 runs, each in a new session",
            description="Each gets a result of its own, in the order of the request: the run or a problem.",
            scope="write",
            body=RunBatch,
            response=BatchView,
            status=202,
            idempotent=True,
        )
        yield Endpoint(
            method="GET",
            path="/v1/runs",
            handler=self.list,
            tag=tag,
            summary="List runs, newest first",
            scope="read",
            query=RunFilter,
            response=RunPage,
        )
        yield Endpoint(
            method="GET",
            path=one,
            handler=self.get,
            tag=tag,
            summary="Get a run",
            scope="read",
            response=FinishedRunView,
        )
        yield Endpoint(
            method="GET",
            path=f"{one}/wait",
            handler=self.wait,
            tag=tag,
            summary="Wait until a run has ended",
            description="Answers as soon as it has, or with the run as it stands when the time is over.",
            scope="read",
            query=WaitQuery,
            response=FinishedRunView,
            seconds=_LONGEST_WAIT + 15.0,
        )
        yield Endpoint(
            method="GET",
            path=f"{one}/steps",
            handler=self.list_steps,
            tag=tag,
            summary="List a run's finished steps by their start",
            scope="read",
            query=PageQuery,
            response=StepPage,
        )
        yield Endpoint(
            method="POST",
            path=f"{one}/cancel",
            handler=self.cancel,
            tag=tag,
            summary="Cancel a run",
            description="202 if a worker has been asked to stop; 200 if the run has ended, now or before.",
            scope="write",
            response=RunView,
            also={202: RunView},
            idempotent=True,
        )
        yield Endpoint(
            method="POST",
            path=f"{one}/pause",
            handler=self.pause,
            tag=tag,
            summary="Pause a run",
            description="A queued run is held, a running one stops after its present step and waits (202 until it "
            "does), without a worker. Its deadline runs on. 409 if it has ended.",
            scope="write",
            response=RunView,
            also={202: RunView},
            problems=(409,),
            idempotent=True,
        )
        yield Endpoint(
            method="POST",
            path=f"{one}/resume",
            handler=self.resume,
            tag=tag,
            summary="Let a paused run go on",
            description="From its last finished step. A run that is not paused stays as it is. 409 if it has ended.",
            scope="write",
            response=RunView,
            problems=(409,),
            idempotent=True,
        )

    async def submit(self, call: Call[RunRequest, NoQuery]) -> Answer:
        session_id = call.path.get("session_id")
        submitted = await runs.submit(
            call.db,
            org_id=call.org_id,
            user_id=call.principal.user_id,
            session_id=session_id,
            new=call.body.new_run(),
            sealer=self._sealer,
        )
        run = submitted.run
        stream = None
        if wants_stream(call.headers):
            stream = self._follow(run.org_id, run.session_id, run.id, submitted.seq, submitted.frame)
        return Answer(show_run(run), after=partial(self._announce, [submitted], session_id is not None), app=stream)

    def submitted_before(self, call: Call[RunRequest, NoQuery], stored: bytes) -> Answer:
        if not wants_stream(call.headers):
            return Answer(stored)
        run = orjson.loads(stored)
        return Answer(
            stored,
            app=self._follow(call.org_id, run["session_id"], run["id"], run["first_seq"] - 1, replayed=True),
        )

    async def submit_batch(self, call: Call[RunBatch, NoQuery]) -> Answer:
        if isinstance(call.db, asyncpg.Pool):
            async with call.db.acquire() as connection, connection.transaction():
                results, taken = await self._submit_each(call, connection)
        else:
            results, taken = await self._submit_each(call, call.db)
        return Answer({"results": results}, after=partial(self._announce, taken, False))

    async def list(self, call: Call[None, RunFilter]) -> Answer:
        query = call.query
        cursor = read_cursor(query.cursor, str)
        if cursor is not None and not is_id("run", cursor[0]):
            raise bad_cursor()
        found = await runs.list_runs(
            call.db,
            call.org_id,
            before=cursor[0] if cursor else None,
            status=query.status,
            session_id=query.session_id,
            agent_id=query.agent_id,
            limit=query.limit + 1,
        )
        return Answer(page(found, query.limit, show=show_run, key=lambda run: (run.id,)))

    async def get(self, call: Call[None, NoQuery]) -> Answer:
        return await self._finished(await runs.get_run(call.db, call.org_id, call.path["run_id"]))

    async def wait(self, call: Call[None, WaitQuery]) -> Answer:
        run = await runs.get_run(call.db, call.org_id, call.path["run_id"])
        if run.finished_at is None:
            run = await wait_for_end(self._hub, self._db, run, call.query.timeout, call.receive)
        return await self._finished(run)

    async def list_steps(self, call: Call[None, PageQuery]) -> Answer:
        cursor = read_cursor(call.query.cursor, str, str)
        limit = call.query.limit
        after = None
        if cursor is not None:
            after = _moment(cursor[0]), cursor[1]
        found = await list_steps(call.db, call.org_id, call.path["run_id"], after=after, limit=limit + 1)
        return Answer(page(found, limit, show=show_step, key=lambda step: (step.started_at.isoformat(), step.step_id)))

    async def cancel(self, call: Call[None, NoQuery]) -> Answer:
        cancelled = await runs.cancel(call.db, call.org_id, call.path["run_id"])
        run = await runs.get_run(call.db, call.org_id, call.path["run_id"])

        async def tell() -> None:
            if cancelled.outcome == "requested":
                await self._bell.ask(run.id, "cancelled")
            elif cancelled.outcome == "cancelled":
                self._publisher.nudge(run.org_id, run.session_id)
                if cancelled.next_run is not None:
                    await self._bell.ring()

        return Answer(show_run(run), 202 if cancelled.outcome == "requested" else 200, after=tell)

    async def pause(self, call: Call[None, NoQuery]) -> Answer:
        outcome = await runs.pause(call.db, call.org_id, call.path["run_id"])
        run = await runs.get_run(call.db, call.org_id, call.path["run_id"])
        requested = outcome == "requested"
        after = partial(self._bell.ask, run.id, "paused") if requested else None
        return Answer(show_run(run), 202 if requested else 200, after=after)

    async def resume(self, call: Call[None, NoQuery]) -> Answer:
        outcome = await runs.resume(call.db, call.org_id, call.path["run_id"])
        run = await runs.get_run(call.db, call.org_id, call.path["run_id"])
        return Answer(show_run(run), after=self._bell.ring if outcome == "resumed" else None)

    async def _submit_each(
        self, call: Call[RunBatch, NoQuery], connection: Connection
    ) -> tuple[Sequence[dict[str, Any]], Sequence[Submitted]]:
        results: list[dict[str, Any]] = []
        taken: list[Submitted] = []
        for request in call.body.runs:
            try:
                submitted = await runs.submit(
                    connection,
                    org_id=call.org_id,
                    user_id=call.principal.user_id,
                    session_id=None,
                    new=request.new_run(),
                    sealer=self._sealer,
                )
            except CallerError as error:
                results.append({"run": None, "problem": problem_of(error).shown()})
            else:
                taken.append(submitted)
                results.append({"run": show_run(submitted.run), "problem": None})
        return results, taken

    async def _finished(self, run: Run) -> Answer:
        answer = runs.FinalAnswer()
        if run.finished_at is not None:
            answer = await runs.answer_of(self._db, run.org_id, run.id)
        return Answer({**show_run(run), "answer": answer.text, "output": answer.output})

    async def _announce(self, taken: Sequence[Submitted], followable: bool) -> None:
        """Wakes workers and tells followers, who can't be there yet where the session is new."""
        ready = sum(submitted.head for submitted in taken)
        if ready:
            await self._bell.ring(ready)
        for submitted in taken:
            run = submitted.run
            if followable and submitted.complete:
                self._publisher.publish(
                    run.org_id,
                    run.session_id,
                    run.id,
                    first=submitted.seq,
                    last=submitted.seq,
                    final=False,
                    frames=submitted.frame,
                )
            elif followable:
                self._publisher.nudge(run.org_id, run.session_id)
            for earlier in submitted.interrupted:
                await self._bell.ask(earlier, "cancelled")

    def _follow(
        self, org_id: str, session_id: str, run_id: str, after: int, opening: bytes = b"", replayed: bool = False
    ) -> EventStream:
        headers = {"location": f"/v1/runs/{run_id}"}
        if replayed:
            headers["idempotency-replayed"] = "true"
        return EventStream(
            self._hub,
            self._db,
            org_id=org_id,
            session_id=session_id,
            run_id=run_id,
            after=after,
            opening=opening,
            headers=headers,
        )


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise bad_cursor() from None
    if moment.tzinfo is None or not 2000 <= moment.year < 3000:
        raise bad_cursor()
    return moment
