"""`logging`: one line for each run, model call and tool call. Never what was said, asked or found."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import structlog

from orchestrator.host import PluginHost
from orchestrator.middleware.calls import ModelCall, RunCall, RunOutcome, ToolCall
from orchestrator.middleware.middleware import Middleware, ModelNext, RunNext, ToolNext
from orchestrator.models.turn import Turn
from orchestrator.tools.toolbox import ToolOutcome

log = structlog.get_logger(__name__)


class Logging(Middleware):
    """Lines are named `run`, `model_call` and `tool_call`."""

    def __init__(self, host: PluginHost) -> None:
        del host

    async def around_run(self, call: RunCall, call_next: RunNext) -> RunOutcome:
        about = {"workflow": call.workflow, "agent_id": call.agent_id, "attempt": call.attempt}
        with _line("run", call, **about, input_characters=len(call.input)) as line:
            outcome = await call_next(call)
            line |= {"outcome": outcome.status, "finish_reason": outcome.finish_reason}
        return outcome

    async def around_model(self, call: ModelCall, call_next: ModelNext) -> Turn:
        with _line("model_call", call.run, path=call.path, model=call.model, messages=len(call.messages)) as line:
            turn = await call_next(call)
            line |= {"outcome": "ok", "finish_reason": turn.finish_reason}
            line |= {"input_tokens": turn.usage.input_tokens, "output_tokens": turn.usage.output_tokens}
        return turn

    async def around_tool(self, call: ToolCall, call_next: ToolNext) -> ToolOutcome:
        with _line("tool_call", call.run, path=call.path, tool=call.name, effect=call.effect) as line:
            outcome = await call_next(call)
            line["outcome"] = outcome.status
        return outcome


@contextmanager
def _line(event: str, run: RunCall, **about: Any) -> Generator[dict[str, Any]]:
    """Logs when the block is left, however that is."""
    started = time.perf_counter()
    line: dict[str, Any] = {}
    try:
        yield line
    except BaseException as error:
        line["outcome"] = type(error).__name__
        raise
    finally:
        milliseconds = round((time.perf_counter() - started) * 1000, 1)
        ids = {"run_id": run.run_id, "session_id": run.session_id, "org_id": run.org_id}
        log.info(event, **ids, **about, **line, ms=milliseconds)
