"""`rate_limit`: so many runs in a minute for each org and each user, so many tool calls for each org.

Token buckets in Redis, shared by all workers: full at first, refilled evenly. With Redis away everything is let
through, and a line is logged: limits protect, and must not be what takes the service down.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Final

import structlog
from redis.exceptions import RedisError

from orchestrator.host import PluginHost
from orchestrator.middleware.calls import RunCall, RunOutcome, ToolCall
from orchestrator.middleware.errors import Refused
from orchestrator.middleware.middleware import Middleware, RunNext, ToolNext
from orchestrator.tools.toolbox import ToolOutcome

log = structlog.get_logger(__name__)

_PATIENCE: Final = 0.5

# Takes one token from every bucket, or from none. Gives the milliseconds until all of them have one.
_TAKE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local wait, levels = 0, {}
for i, key in ipairs(KEYS) do
  local most = tonumber(ARGV[i])
  local bucket = redis.call('HMGET', key, 'level', 'at')
  local level = most
  if bucket[1] then
    level = math.min(most, tonumber(bucket[1]) + math.max(0, now - tonumber(bucket[2])) * most / 60000)
  end
  levels[i] = level
  if level < 1 then wait = math.max(wait, math.ceil((1 - level) * 60000 / most)) end
end
if wait == 0 then
  for i, key in ipairs(KEYS) do
    redis.call('HSET', key, 'level', tostring(levels[i] - 1), 'at', tostring(now))
    redis.call('PEXPIRE', key, 61000)
  end
end
return wait
"""


class RateLimit(Middleware):
    """`LONGHAUL_RATE_RUNS_ORG`, `LONGHAUL_RATE_RUNS_USER` and `LONGHAUL_RATE_TOOL_CALLS_ORG`; 0 limits nothing."""

    def __init__(self, host: PluginHost) -> None:
        self._redis = host.redis
        self._take = host.redis.register_script(_TAKE)
        self._runs_org = host.settings.rate_runs_org
        self._runs_user = host.settings.rate_runs_user
        self._tool_calls_org = host.settings.rate_tool_calls_org

    async def around_run(self, call: RunCall, call_next: RunNext) -> RunOutcome:
        if call.attempt == 1:  # one that goes on was counted when it began
            buckets = [(f"lh:{call.org_id}:rate:runs", self._runs_org)]
            if call.user_id is not None:
                buckets.append((f"lh:{call.org_id}:rate:runs:{call.user_id}", self._runs_user))
            await self._pass(buckets, "runs")
        return await call_next(call)

    async def around_tool(self, call: ToolCall, call_next: ToolNext) -> ToolOutcome:
        await self._pass([(f"lh:{call.run.org_id}:rate:tools", self._tool_calls_org)], "tool calls")
        return await call_next(call)

    async def _pass(self, buckets: Sequence[tuple[str, int]], what: str) -> None:
        limited = [(key, most) for key, most in buckets if most]
        if not limited:
            return
        try:
            async with asyncio.timeout(_PATIENCE):
                wait = await self._take(keys=[key for key, _ in limited], args=[most for _, most in limited])
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("rate_limit_not_known", error=repr(error), effect="let through")
            return
        if wait:
            seconds = math.ceil(int(wait) / 1000)
            raise Refused(
                "rate_limited",
                f"There were too many {what} within a minute.",
                suggestions=(f"try again in {seconds} s",),
            )
