"""`cache`: the same question gets the same answer for a while, without the agent.

The same is: org, user, agent and its version, workflow, all that was said until now, and all that was asked for beside
it. Kept are answers that were given in one go by runs that made no call of a tool that changes something outside, or
that reads what belongs to one session. A run with secrets of its own acts for whoever they belong to: it neither leaves
an answer nor gets one.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

import orjson
import structlog
from redis.exceptions import RedisError

from orchestrator.host import PluginHost
from orchestrator.middleware.calls import RunCall, RunOutcome, ToolCall
from orchestrator.middleware.middleware import Middleware, RunNext, ToolNext
from orchestrator.tools.toolbox import ToolOutcome

log = structlog.get_logger(__name__)

_PATIENCE: Final = 0.5
_MOST_CHARACTERS: Final = 200_000
_OF_ONE_SESSION: Final = frozenset(("list_files", "read_file", "query_files", "python", "cpython"))
"""Tools that see a session's files, which are no part of what was said."""


class Cache(Middleware):
    """`LONGHAUL_CACHE_SECONDS`. A run that is answered from it ends with the finish reason `cached`."""

    def __init__(self, host: PluginHost) -> None:
        self._redis = host.redis
        self._model = host.settings.llm_model
        self._seconds = host.settings.cache_seconds
        self._not_kept: set[str] = set()  # runs under way whose answers are not kept, for what they have called

    async def around_run(self, call: RunCall, call_next: RunNext) -> RunOutcome:
        if call.attempt > 1 or call.request.get("secrets") or call.request.get("retry"):  # which may have some too
            return await call_next(call)
        key = self._key(call)
        if (text := await self._get(key)) is not None:
            return RunOutcome("succeeded", text, "cached")
        try:
            outcome = await call_next(call)
            if outcome.status == "succeeded" and outcome.finish_reason == "stop" and call.run_id not in self._not_kept:
                await self._set(key, outcome.text)
        finally:
            self._not_kept.discard(call.run_id)
        return outcome

    async def around_tool(self, call: ToolCall, call_next: ToolNext) -> ToolOutcome:
        if call.effect != "read" or call.name in _OF_ONE_SESSION:
            self._not_kept.add(call.run.run_id)
        return await call_next(call)

    def _key(self, call: RunCall) -> str:
        same = [
            call.user_id,
            call.agent_id,
            call.agent_version,
            call.workflow,
            call.input,
            self._model,
            list(call.conversation),
            dict(call.request),
        ]
        digest = hashlib.sha256(orjson.dumps(same, option=orjson.OPT_SORT_KEYS, default=str)).hexdigest()
        return f"lh:{call.org_id}:answers:{digest}"

    async def _get(self, key: str) -> str | None:
        try:
            async with asyncio.timeout(_PATIENCE):
                found = await self._redis.get(key)
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("cache_not_read", error=repr(error), effect="the agent is asked")
            return None
        return found.decode() if isinstance(found, bytes) else found

    async def _set(self, key: str, text: str) -> None:
        if not text or len(text) > _MOST_CHARACTERS:
            return
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._redis.set(key, text, px=max(1, round(self._seconds * 1000)))
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("cache_not_written", error=repr(error))
