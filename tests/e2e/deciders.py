"""People who decide: what tests of approvals have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cli.rehearsal import ChatRequest, Reply, ToolCall
from kernel.tenants import create_key
from tests.e2e.caller import Caller, Stream
from tests.history import History, assert_history
from tests.stack import Stack


def results(request: ChatRequest) -> list[str]:
    """What the model is told of its calls."""
    return [str(message["content"]) for message in request.messages if message["role"] == "tool"]


def python(*codes: str) -> Reply:
    """Calls of the tool `python`, side by side."""
    return Reply(tool_calls=[ToolCall("python", {"code": code}) for code in codes])


async def decide(
    caller: Caller, approval: Mapping[str, Any], decision: str, *, expect: int = 200, **fields: Any
) -> dict[str, Any]:
    """Decides what an event `approval_required` asks for; the answer's body."""
    path = f"/v1/approvals/{approval['approval_id']}/decide"
    answer: dict[str, Any] = (await caller.post(path, {"decision": decision, **fields}, expect=expect)).json()
    return answer


async def person(
    stack: Stack,
    caller: Caller,
    user: str | None = None,
    *,
    roles: Sequence[str] = (),
    scopes: Sequence[str] = ("write",),
) -> Caller:
    """Somebody else of the caller's org, with a key of their own."""
    org_id = await stack.database.fetchval(
        "SELECT org_id FROM api_keys WHERE id = $1", f"key_{caller.key.split('_')[1]}"
    )
    made = await create_key(stack.database, org_id, name="person", user_id=user, roles=roles, scopes=scopes)
    return caller.as_holder_of(made.secret.get_secret_value())


async def asked(stream: Stream, **fields: Any) -> dict[str, Any]:
    """What the run asks for next."""
    return (await stream.until("approval_required", **fields)).data


async def waiting(stream: Stream) -> None:
    """Returns when the run rests."""
    await stream.until("run_waiting", reason="approval")


async def ended(stack: Stack, stream: Stream, status: str = "succeeded") -> History:
    """Reads a stream to its end; the run's checked history."""
    await stream.rest()
    history = await assert_history(stack.database, stream.events[0].data["run_id"])
    assert history.run["status"] == status, history.run["error"]
    return history
