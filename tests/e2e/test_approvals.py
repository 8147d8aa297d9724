"""Calls that need approval, questions, and calls that the caller makes itself: asked for, decided, gone on with."""

from __future__ import annotations

from typing import Any

from cli.rehearsal import ChatRequest, Reply, ToolCall
from tests.e2e.caller import Caller
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack


def results(request: ChatRequest) -> list[str]:
    return [str(message["content"]) for message in request.messages if message["role"] == "tool"]


def python(code: str) -> Reply:
    return Reply(tool_calls=[ToolCall("python", {"code": code})])


async def decide(caller: Caller, approval: Any, decision: str, *, expect: int = 200, **fields: Any) -> Any:
    path = f"/v1/approvals/{approval['approval_id']}/decide"
    return (await caller.post(path, {"decision": decision, **fields}, expect=expect)).json()


async def test_an_approved_call_is_made(caller: Caller, stack: Stack, model: ScriptedModel) -> None:
    script = model.script(python("6 * 7"), said("done"))
    agent = await caller.agent(model=script, tools=["python"], approvals={"python": {}})
    async with caller.following(agent_id=agent) as stream:
        asked = (await stream.until("approval_required")).data
        assert (asked["kind"], asked["name"], asked["arguments"]) == ("tool", "python", {"code": "6 * 7"})
        await stream.until("run_waiting", reason="approval")
        await decide(caller, asked, "approve")
        await stream.rest()
    history = await assert_history(stack.database, asked["run_id"])
    assert history.run["status"] == "succeeded"
    assert results(model.asked(script)[-1]) == ['{"value":"42"}']
