"""Runs that spend, and people who are asked about it: what tests of budgets have in common."""

from __future__ import annotations

from typing import Any, Final

import orjson

from cli.rehearsal import Reply, ToolCall
from tests.e2e.caller import Caller
from tests.history import History, assert_history
from tests.scripts import ScriptedModel
from tests.stack import Stack
from tests.waiting import eventually

PRICES: Final = orjson.dumps(
    {"script-*": {"input": 10.0, "output": 20.0}, "default": {"input": 1, "output": 1}}
).decode()
"""What scripts cost: per token, 0.00001 in and 0.00002 out."""
COMPUTE: Final = ToolCall("python", {"code": "'found it'"})


def computing(*, usage: tuple[int, int] = (60, 10), calls: int = 1) -> Reply:
    return Reply(tool_calls=[COMPUTE] * calls, usage=usage)


def delegating(*names: str, usage: tuple[int, int] = (10, 10)) -> Reply:
    return Reply(tool_calls=[ToolCall("delegate", {"agent": name, "task": "go"}) for name in names], usage=usage)


def member(name: str, script: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "model": {"name": script}, "tools": ["python"], **more}


async def ended(stack: Stack, caller: Caller, **fields: Any) -> History:
    run = await caller.run(**fields)
    return await assert_history(stack.database, run["id"])


def answer_of(history: History) -> str:
    return str([event for event in history.of("message") if not event.path][-1].data["content"])


async def decide(caller: Caller, approval_id: str, decision: str, *, expect: int = 200, **fields: Any) -> None:
    await caller.post(f"/v1/approvals/{approval_id}/decide", {"decision": decision, **fields}, expect=expect)


async def open_limit(caller: Caller, run_id: str) -> dict[str, Any]:
    """The approval that the run waits for."""
    async with caller.stream(f"/v1/runs/{run_id}/events") as stream:
        await stream.until("run_waiting")
        seen = [event for event in stream.events if event.type == "approval_required"][-1]
    shown: dict[str, Any] = await caller.get(f"/v1/approvals/{seen.data['approval_id']}")
    return shown


async def open_limit_after(caller: Caller, run_id: str, before: str) -> str:
    async with caller.stream(f"/v1/runs/{run_id}/events") as stream:
        while (event := await stream.until("approval_required")).data["approval_id"] == before:
            pass
        await stream.until("run_waiting")
        return str(event.data["approval_id"])


async def until_asked(model: ScriptedModel, script: str, times: int) -> None:
    async def asked() -> bool:
        return len(model.asked(script)) >= times

    await eventually(asked, what=f"{script} is asked {times} times")
