"""What a user says in one conversation an agent knows in the next: found, compared and kept after the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from cli.rehearsal import ChatRequest, Hang, HttpError, Reply, ToolCall
from tests.e2e.caller import Caller
from tests.e2e.conftest import OwnStack, new_key
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack
from tests.waiting import eventually

BERGEN = "Ada's office is in Bergen, on the third floor."
OSLO = "Ada's office is in Oslo, on the third floor."


def candidate(text: str, quote: str, **fields: Any) -> dict[str, Any]:
    """What a model finds in the first message of a turn."""
    given = {"kind": "fact", "text": text, "scope": "user", "confidence": 0.9, "message": 1, "quote": quote}
    return {**given, **fields}


def found(*memories: dict[str, Any], summary: str = "") -> Reply:
    return Reply(tokens=[orjson.dumps({"memories": memories, "summary": summary}).decode()])


def decided(*decisions: dict[str, Any]) -> Reply:
    return Reply(tokens=[orjson.dumps({"decisions": decisions}).decode()])


async def a_user(stack: Stack, caller: Caller, user_id: str = "ada") -> Caller:
    """The same caller, for a user of the org."""
    org_id = await stack.database.fetchval(
        "SELECT org_id FROM agents WHERE id = $1", (await caller.get("/v1/agents"))["data"][0]["id"]
    )
    return caller.as_holder_of(await new_key(stack, org_id=org_id, user_id=user_id))


async def extracted(stack: Stack, run_id: str) -> dict[str, Any]:
    """What the job of a run came to, once it has succeeded."""

    async def done() -> Any:
        return await stack.database.fetchval(
            "SELECT progress::text FROM jobs WHERE kind = 'extract' AND key = $1 AND status = 'succeeded'", run_id
        )

    progress: dict[str, Any] = orjson.loads(await eventually(done, what="the turn is read"))
    return progress


async def memories(caller: Caller, *, ended: bool = False) -> list[dict[str, Any]]:
    """All that is kept, the newest first."""
    listed: list[dict[str, Any]] = (await caller.get(f"/v1/memories?ended={str(ended).lower()}"))["data"]
    return listed


async def hurry(stack: Stack, run_id: str) -> None:
    """Lets the next attempt begin at once, once the last one has failed."""

    async def failed() -> Any:
        return await stack.database.fetchval(
            "UPDATE jobs SET not_before = now() WHERE kind = 'extract' AND key = $1 AND status = 'queued'"
            " AND error IS NOT NULL RETURNING error::text",
            run_id,
        )

    await eventually(failed, what="an attempt has failed")


class Agents:
    """Makes agents that extract. `reads` are the answers of the model that reads turns."""

    def __init__(self, model: ScriptedModel) -> None:
        self._model = model
        self.script = ""

    async def agent(self, caller: Caller, *answers: Reply | Callable[[ChatRequest], Reply], **fields: Any) -> str:
        self.script = self._model.script(*answers)
        return await caller.agent(model=self.script, memory={"extract": True}, **fields)


@pytest.fixture
def agents(model: ScriptedModel) -> Agents:
    return Agents(model)


async def test_a_returning_user_is_known_in_a_new_session(
    stack: Stack, caller: Caller, model: ScriptedModel, agents: Agents
) -> None:
    ada = await a_user(stack, caller)
    preference = candidate(
        "Ada wants her reports as short bullet points.",
        "reports as short bullet points",
        kind="preference",
        entities=["Ada"],
    )
    agent = await agents.agent(
        ada, said("Gladly."), found(preference, summary="Ada asked for reports as bullet points.")
    )
    run = await ada.run("I am Ada. I want my reports as short bullet points.", agent_id=agent)
    assert (await extracted(stack, run["id"])) | {"input_tokens": 0, "output_tokens": 0} == {
        "added": 1,
        "superseded": 0,
        "ignored": 0,
        "dropped": {},
        "summary": True,
        "input_tokens": 0,
        "output_tokens": 0,
    }
    await assert_history(stack.database, run["id"])
    asked = model.asked(agents.script)[1]
    assert asked.tools == {}
    assert asked.body["response_format"]["type"] == "json_schema"

    other = model.script(said("Here it is."))
    run = await ada.run("How should the reports for Ada look?", model=other)
    history = await assert_history(stack.database, run["id"])
    [recalled] = history.of("memory_recalled")
    item = recalled.data["items"][0]
    assert (item["kind"], item["text"], item["scope"]) == ("preference", preference["text"], "user")
    assert item["source"].startswith("conversation of 20")
    assert preference["text"] in str(model.asked(other)[0].messages[0]["content"])


async def test_what_a_user_says_stays_theirs(
    stack: Stack, caller: Caller, model: ScriptedModel, agents: Agents
) -> None:
    ada, bob = await a_user(stack, caller), await a_user(stack, caller, "bob")
    stranger = caller.as_holder_of(await new_key(stack))
    agent = await agents.agent(ada, said("I see."), found(candidate(BERGEN, "my office is in Bergen")))
    run = await ada.run("I am Ada, my office is in Bergen on the third floor", agent_id=agent)
    await extracted(stack, run["id"])
    [kept] = await memories(ada)
    assert (kept["scope"], kept["owner"], kept["provenance"], kept["run_id"]) == ("user", "ada", "model", run["id"])
    for other in (bob, stranger):
        assert await memories(other) == []
        run = await other.run("Where is the office of Ada in Bergen?", model=model.script(said("no idea")))
        assert (await assert_history(stack.database, run["id"])).of("memory_recalled") == []
