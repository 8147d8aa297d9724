"""What a run remembers, later runs recall: of the same org and user, and of nobody else."""

from __future__ import annotations

from cli.rehearsal import Reply, ToolCall
from tests.e2e.caller import Caller
from tests.e2e.conftest import new_key
from tests.history import History, assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack

FACT = "The harbour of Valparaiso opens at seven"


async def remember(caller: Caller, model: ScriptedModel, text: str = FACT) -> None:
    script = model.script(Reply(tool_calls=[ToolCall("remember", {"text": text})]), said("noted"))
    run = await caller.run("please remember", model=script)
    assert run["answer"] == "noted"


async def recalling(stack: Stack, caller: Caller, model: ScriptedModel) -> tuple[History, str]:
    """Asks in a new session; the history, and the system prompt that the model got."""
    script = model.script(said("aha"))
    run = await caller.run("When does the harbour of Valparaiso open?", model=script)
    return await assert_history(stack.database, run["id"]), str(model.asked(script)[0].messages[0]["content"])


async def test_a_fact_is_recalled_in_another_session(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    await remember(caller, model)
    history, prompt = await recalling(stack, caller, model)
    [recalled] = history.of("memory_recalled")
    assert [item["text"] for item in recalled.data["items"]] == [FACT]
    assert FACT in prompt
    rows = await stack.database.fetch("SELECT id FROM memories WHERE org_id = $1", history.run["org_id"])
    assert [item["id"] for item in recalled.data["items"]] == [row["id"] for row in rows]


async def test_another_org_recalls_nothing_of_it(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    await remember(caller, model)
    stranger = caller.as_holder_of(await new_key(stack))
    history, prompt = await recalling(stack, stranger, model)
    assert history.of("memory_recalled") == []
    assert "Valparaiso" not in prompt


async def test_what_one_user_told_no_other_user_of_the_org_recalls(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    org_id = await stack.database.fetchval(
        "SELECT org_id FROM agents WHERE id = $1", (await caller.get("/v1/agents"))["data"][0]["id"]
    )
    ada, bob = [caller.as_holder_of(await new_key(stack, org_id=org_id, user_id=user)) for user in ("ada", "bob")]
    await remember(ada, model)
    assert (await recalling(stack, ada, model))[0].of("memory_recalled")
    assert (await recalling(stack, bob, model))[0].of("memory_recalled") == []
    assert (await recalling(stack, caller, model))[0].of("memory_recalled") == []


async def test_what_belongs_to_the_org_every_user_of_it_recalls(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    await remember(caller, model)
    org_id = await stack.database.fetchval(
        "SELECT org_id FROM agents WHERE id = $1", (await caller.get("/v1/agents"))["data"][0]["id"]
    )
    ada = caller.as_holder_of(await new_key(stack, org_id=org_id, user_id="ada"))
    assert (await recalling(stack, ada, model))[0].of("memory_recalled")


async def test_an_agent_that_is_not_to_recall_does_not(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    await remember(caller, model)
    script = model.script(said("aha"))
    agent = await caller.agent(model=script, memory={"recall": False})
    run = await caller.run("When does the harbour of Valparaiso open?", agent_id=agent)
    history = await assert_history(stack.database, run["id"])
    assert history.of("memory_recalled") == []


async def test_the_model_can_look_for_memories_itself(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    await remember(caller, model)
    script = model.script(Reply(tool_calls=[ToolCall("recall", {"query": "harbour of Valparaiso"})]), said("at seven"))
    run = await caller.run("look it up", model=script)
    history = await assert_history(stack.database, run["id"])
    [result] = history.of("tool_result")
    memory_id = await stack.database.fetchval("SELECT id FROM memories WHERE org_id = $1", history.run["org_id"])
    assert result.data["result"] == f"- {FACT} ({memory_id})"


async def test_the_same_fact_told_twice_is_one_memory(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    await remember(caller, model)
    await remember(caller, model)
    history, _ = await recalling(stack, caller, model)
    assert len(history.of("memory_recalled")[0].data["items"]) == 1
