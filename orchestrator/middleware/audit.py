"""`audit`: an entry of the audit log for each run, model call and tool call, whatever becomes of it.

Entries are written in the background, many at once, so that no run waits for them. Those that Postgres can't take
stay in line; beyond so many they go to the worker's log instead, each as a line `audit_entry`. What a worker that is
killed had not written yet, a fraction of a second's worth, is lost.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from kernel.audit import Action, AuditEntry, write_audit
from kernel.postgres import STORE_ERRORS, Pool
from kernel.tasks import end
from orchestrator.host import PluginHost
from orchestrator.middleware.calls import ModelCall, RunCall, RunOutcome, ToolCall
from orchestrator.middleware.middleware import Middleware, ModelNext, RunNext, ToolNext
from orchestrator.models.turn import Turn
from orchestrator.tools.toolbox import ToolOutcome

log = structlog.get_logger(__name__)

_MOST_WAITING: Final = 20_000
_BATCH: Final = 500
_GATHERED: Final = 0.05  # seconds for which entries wait for company
_AGAIN_AFTER: Final = 1.0
_FAREWELL: Final = 2.0


class Audit(Middleware):
    """A run has an entry with the outcome `started`, and one that says how it ended or was left."""

    def __init__(self, host: PluginHost) -> None:
        self._writer = AuditWriter(host.db)

    async def around_run(self, call: RunCall, call_next: RunNext) -> RunOutcome:
        self._writer.add(_entry(call, "run", call.agent, "started", {"attempt": call.attempt}))
        with self._entered(call, "run", call.agent, attempt=call.attempt, workflow=call.workflow) as entry:
            outcome = await call_next(call)
            entry |= {"outcome": outcome.status, "finish_reason": outcome.finish_reason}
        return outcome

    async def around_model(self, call: ModelCall, call_next: ModelNext) -> Turn:
        with self._entered(call.run, "model_call", call.model, path=call.path) as entry:
            turn = await call_next(call)
            entry |= {"input_tokens": turn.usage.input_tokens, "output_tokens": turn.usage.output_tokens}
        return turn

    async def around_tool(self, call: ToolCall, call_next: ToolNext) -> ToolOutcome:
        about = {"path": call.path, "call_id": call.context.call_id, "effect": call.effect}
        with self._entered(call.run, "tool_call", call.name, **about) as entry:
            outcome = await call_next(call)
            entry["outcome"] = outcome.status
        return outcome

    async def aclose(self) -> None:
        await self._writer.aclose()

    @contextmanager
    def _entered(self, run: RunCall, action: Action, subject: str, **details: Any) -> Generator[dict[str, Any]]:
        began, started = datetime.now(UTC), time.perf_counter()
        told: dict[str, Any] = {"outcome": "ok"}
        try:
            yield told
        except BaseException as error:
            told["outcome"] = str(getattr(error, "code", None) or type(error).__name__)
            raise
        finally:
            outcome = told.pop("outcome")
            details |= told | {"ms": round((time.perf_counter() - started) * 1000)}
            self._writer.add(_entry(run, action, subject, outcome, details, began))


class AuditWriter:
    """Writes entries in the background; the task starts with the first one."""

    def __init__(self, db: Pool) -> None:
        self._db = db
        self._waiting: deque[AuditEntry] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def add(self, entry: AuditEntry) -> None:
        """Takes an entry to be written soon. Never waits."""
        if len(self._waiting) >= _MOST_WAITING:
            _log(self._waiting.popleft())
        self._waiting.append(entry)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="audit")
        self._wake.set()

    async def aclose(self) -> None:
        """Writes what waits, within two seconds; the rest goes to the log."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=_FAREWELL)
            await end(self._task)
        for entry in self._waiting:
            _log(entry)
        self._waiting.clear()

    async def _run(self) -> None:
        while self._waiting or not self._closing:
            await self._wake.wait()
            self._wake.clear()
            if not self._closing:
                await asyncio.sleep(_GATHERED)
            while self._waiting:
                batch = [self._waiting[at] for at in range(min(_BATCH, len(self._waiting)))]
                try:
                    await write_audit(self._db, batch)
                except STORE_ERRORS as error:
                    log.warning("audit_not_written", error=repr(error), waiting=len(self._waiting))
                    if self._closing:
                        return
                    await asyncio.sleep(_AGAIN_AFTER)
                    continue
                except Exception:  # this batch can't be stored, and the next must not wait for it
                    log.exception("audit_not_storable")
                    for entry in batch:
                        _log(entry)
                for entry in batch:
                    if self._waiting and self._waiting[0] is entry:
                        self._waiting.popleft()


def _entry(
    run: RunCall, action: Action, subject: str, outcome: str, details: dict[str, Any], at: datetime | None = None
) -> AuditEntry:
    return AuditEntry(
        run.org_id,
        at or datetime.now(UTC),
        run.run_id,
        run.session_id,
        run.agent_id,
        run.user_id,
        action,
        subject,
        outcome,
        {name: value for name, value in details.items() if value != ""},
    )


def _log(entry: AuditEntry) -> None:
    log.warning("audit_entry", **{**asdict(entry), "at": entry.at.isoformat()})
