"""The windows of a worker's sessions: read before a run where they hold more than its claim has brought, written anew
after it.

The claim says how many turns there were and at what version the window is, so a copy in Redis is known to be of this
moment or it is not used. A window comes from Postgres by one statement, and what is in Redis was read that way: which
of the two a run had makes no difference to what its model is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from kernel.agent_config import ContextConfig, ModelChoice
from kernel.jobs import add_job
from kernel.leases import HISTORY, ClaimedRun
from kernel.postgres import STORE_ERRORS, Pool
from kernel.runlog import RunLog
from orchestrator.transcript import Transcript
from orchestrator.window import records
from orchestrator.window.cache import WindowCache
from orchestrator.window.pieces import of_said
from orchestrator.window.record import Result, Said, Window
from orchestrator.window.references import OPEN_RESULT

log = structlog.get_logger(__name__)

COMPACT: Final = "compact"
"""The kind of the background job that sums up."""

_DUE_TOKENS: Final = 2_000
_AFTERWARDS: Final = 3.0


class Windows:
    """One per worker. Without `redis`, or with a `ttl` of 0 seconds, windows are read from Postgres."""

    def __init__(self, db: Pool, redis: Redis | None = None, *, ttl: int = 3_600) -> None:
        self.db = db
        self._cache = None if redis is None or ttl == 0 else WindowCache(redis, ttl)

    def wanted(self, run: ClaimedRun) -> bool:
        """Whether there may be more to know than the claim of the run has brought."""
        return run.window_version > 0 or len(run.history) >= HISTORY or run.retry is not None

    async def load(self, run: ClaimedRun) -> Window:
        """The window before this run, or before the run that it goes on from."""
        before = run.turn if run.retry is None else int(run.retry["turn"])
        if self._cache is not None and run.retry is None:
            found = await self._cache.get(run.org_id, run.session_id, turn=before - 1, version=run.window_version)
            if found is not None:
                return found
        return await records.load(self.db, run.org_id, run.session_id, before=before)

    async def refresh(self, org_id: str, session_id: str) -> Window:
        """The window as it is now, which Redis then has too."""
        window = await records.load(self.db, org_id, session_id)
        if self._cache is not None:
            await self._cache.put(org_id, session_id, window)
        return window

    async def after(
        self,
        run: ClaimedRun,
        config: ContextConfig,
        model: ModelChoice,
        transcript: Transcript,
        pen: RunLog,
        *,
        changed: bool,
    ) -> None:
        """What is done once a run has ended and all of it is in Postgres: its large results are noted, what fell out of
        the window is to be summed up, and Redis gets the window for the next turn. Nothing for most short sessions.

        `changed` says that the run's own steps changed the window. Never raises: the next run reads from Postgres.
        """
        results = large_results(transcript, run.turn)
        said = _said_of(run, transcript)
        if not (results or changed or self.wanted(run) or falls_out(said, config)):
            return
        try:
            async with asyncio.timeout(_AFTERWARDS):
                await pen.committed()
                if results:
                    await records.keep_results(self.db, run.org_id, run.session_id, results)
                window = await self.refresh(run.org_id, run.session_id)
                if config.summarize and falls_out(window.dialogue, config):
                    await self._ask_for_summary(run, config, model)
        except (*STORE_ERRORS, RedisError) as error:
            log.warning("window_not_kept", run_id=run.id, error=repr(error), effect="the next run reads it anew")

    async def _ask_for_summary(self, run: ClaimedRun, config: ContextConfig, model: ModelChoice) -> None:
        payload: dict[str, Any] = {
            "session_id": run.session_id,
            "run_id": run.id,
            "context": config.model_dump(),
            "model": model.model_dump(),
        }
        await add_job(self.db, COMPACT, run.session_id, payload, org_id=run.org_id)


def falls_out(said: Sequence[Said], config: ContextConfig) -> int:
    """How many of the earliest messages are to be summed up: those beyond `keep_recent` or half of `max_tokens`; none
    until they are worth a call of the model."""
    if not config.summarize or len(said) <= 2:
        return 0
    tokens = [of_said(one).tokens for one in said]
    room = config.max_tokens // 2
    kept = 0
    while kept < min(len(said), config.keep_recent) and (room := room - tokens[-1 - kept]) >= 0:
        kept += 1
    count = len(said) - max(kept, 2)
    if kept < min(len(said), config.keep_recent):  # for want of room
        return count
    worth = count >= max(config.keep_recent // 2, 2) or sum(tokens[:count]) >= _DUE_TOKENS
    return count if count > 0 and worth else 0


_LARGE: Final = 16_384


def large_results(transcript: Transcript, turn: int) -> list[Result]:
    """Results of this turn's calls that later turns are told of: 16 KB of UTF-8 or more."""
    names: dict[str, str] = {}
    found: list[Result] = []
    for _, record, message in transcript.placed(1 << 31):
        if message.type == "ai":
            names = {str(call["id"]): str(call["name"]) for call in message.tool_calls}
        elif message.type == "tool" and record is not None and len(message.content) * 4 >= _LARGE:
            text, tool = str(message.text), names.get(message.tool_call_id, "a tool")
            if (size := len(text.encode("utf-8", "replace"))) >= _LARGE and tool != OPEN_RESULT:
                found.append(Result(record, tool, size, turn))
    return found


def _said_of(run: ClaimedRun, transcript: Transcript) -> list[Said]:
    """Earlier turns and this one, as far as they are at hand: enough to see whether it is worth a look."""
    said = [Said((0, 0), message["role"], message["content"]) for message in run.history]
    for position, _, message in transcript.placed(1 << 31):
        if message.type != "tool" and not getattr(message, "tool_calls", None):
            said.append(Said((run.turn, position), message.type, message.content))
    return said
