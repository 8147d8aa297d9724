"""The tools `remember`, `recall` and `forget`, called as a model calls them."""

from __future__ import annotations

import re

import orjson
import pytest

from kernel.ids import new_id
from kernel.postgres import Pool, open_pool
from memory.embedders.lexical import LexicalEmbedder
from memory.records import NewMemory, Scope
from memory.store import PostgresMemory
from orchestrator.tools.memory import Forget, Recall, Remember
from orchestrator.tools.tool import ToolContext
from orchestrator.tools.toolbox import Toolbox, ToolOutcome

NAMES = ("remember", "recall", "forget")


def context(org: str, user: str | None) -> ToolContext:
    return ToolContext(org, user, new_id("agt"), new_id("ses"), new_id("run"), "call_1", "run:1:call_1")


@pytest.fixture
def toolbox(memory: PostgresMemory) -> Toolbox:
    return Toolbox([Remember(memory), Recall(memory), Forget(memory)])


async def call(toolbox: Toolbox, name: str, arguments: object, org: str, user: str | None = "alice") -> ToolOutcome:
    return await toolbox.call(name, orjson.dumps(arguments).decode(), context(org, user), allowed=NAMES)


def shown(found: ToolOutcome) -> list[str]:
    """The lines of a recall, without the ids at their ends."""
    assert all(re.fullmatch(r"- .* \(mem_[0-9a-f]{32}\)", line) for line in found.result.splitlines()), found.result
    return [line.rpartition(" (mem_")[0] for line in found.result.splitlines()]


async def test_what_was_remembered_is_recalled(toolbox: Toolbox, org: str) -> None:
    for text in ("Deployments need two approvals.", "A deployment takes\nan hour."):
        kept = await call(toolbox, "remember", {"text": text}, org)
        assert (kept.status, orjson.loads(kept.result)["remembered"]) == ("ok", True)
    found = await call(toolbox, "recall", {"query": "What does a deployment need?"}, org)
    assert found.status == "ok"
    assert set(shown(found)) == {"- Deployments need two approvals.", "- A deployment takes an hour."}


async def test_what_a_run_remembers_is_its_users_alone(toolbox: Toolbox, org: str) -> None:
    await call(toolbox, "remember", {"text": "The secret word is marzipan."}, org, "alice")
    found = await call(toolbox, "recall", {"query": "secret word"}, org, "bob")
    assert (found.status, found.result) == ("ok", "Nothing relevant is remembered.")


async def test_a_run_for_nobody_remembers_for_the_org(toolbox: Toolbox, org: str) -> None:
    await call(toolbox, "remember", {"text": "The canteen opens at noon."}, org, None)
    found = await call(toolbox, "recall", {"query": "canteen"}, org, "bob")
    assert shown(found) == ["- The canteen opens at noon."]


async def test_a_call_repeated_keeps_one_memory(toolbox: Toolbox, org: str, database: Pool) -> None:
    for _ in range(3):
        await call(toolbox, "remember", {"text": "Tea, not coffee.", "kind": "preference"}, org)
    assert await database.fetchval("SELECT count(*) FROM memories WHERE org_id = $1", org) == 1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("remember", {}),
        ("remember", {"text": ""}),
        ("remember", {"text": "x" * 8001}),
        ("remember", {"text": "x", "kind": "procedure"}),
        ("remember", {"text": "x", "user_id": "bob"}),
        ("recall", {"query": ""}),
        ("recall", {"query": "x", "limit": 0}),
        ("recall", {"query": "x", "limit": 11}),
        ("recall", {"query": "x", "org_id": "another"}),
    ],
)
async def test_wrong_arguments_are_told_to_the_model(
    toolbox: Toolbox, org: str, name: str, arguments: dict[str, object]
) -> None:
    outcome = await call(toolbox, name, arguments, org)
    assert outcome.status == "error"
    assert "not valid" in outcome.result


async def test_a_blank_text_is_told_to_the_model(toolbox: Toolbox, org: str) -> None:
    outcome = await call(toolbox, "remember", {"text": " \n "}, org)
    assert (outcome.status, outcome.result) == ("error", "Not remembered: there is nothing to remember.")


async def test_ten_huge_memories_fit_into_one_result(toolbox: Toolbox, memory: PostgresMemory, org: str) -> None:
    for number in range(10):
        await memory.remember(Scope(org, "alice"), f"Lisbon {number} " + "猫" * 7900)
    found = await call(toolbox, "recall", {"query": "Lisbon", "limit": 10}, org)
    assert len(found.result.splitlines()) == 10
    assert all(line.endswith("… (cut)") for line in shown(found))


async def test_memory_out_of_reach_is_told_to_the_model(database_url: str, org: str) -> None:
    pool = await open_pool(database_url, size=1, name="tests")
    memory = PostgresMemory(pool, LexicalEmbedder())
    toolbox = Toolbox([Remember(memory), Recall(memory)], sleep=_at_once)
    await pool.close()
    for name, arguments in (("remember", {"text": "x"}), ("recall", {"query": "tea"})):
        outcome = await call(toolbox, name, arguments, org)
        assert outcome.status == "error"
        assert "out of reach at the moment" in outcome.result


async def _at_once(seconds: float) -> None:
    pass


async def test_what_is_for_the_session_is_recalled_there_alone(memory: PostgresMemory, org: str) -> None:
    toolbox, here, there = Toolbox([Remember(memory), Recall(memory)]), context(org, "alice"), context(org, "alice")
    arguments = orjson.dumps({"text": "The draft is called marzipan.", "for_session": True}).decode()
    await toolbox.call("remember", arguments, here, allowed=NAMES)
    asked = orjson.dumps({"query": "draft called"}).decode()
    assert shown(await toolbox.call("recall", asked, here, allowed=NAMES)) == ["- The draft is called marzipan."]
    found = await toolbox.call("recall", asked, there, allowed=NAMES)
    assert found.result == "Nothing relevant is remembered."


async def test_a_passage_of_a_document_is_cited(toolbox: Toolbox, memory: PostgresMemory, org: str) -> None:
    document = new_id("doc")
    passage = NewMemory(
        "Refunds take ten days.", "knowledge", scope="org", source="terms\n.pdf", document_id=document, page=3
    )
    await memory.remember_all(Scope(org), [passage])
    found = await call(toolbox, "recall", {"query": "how long do refunds take?", "kinds": ["knowledge"]}, org)
    assert shown(found) == ["- Refunds take ten days. [terms .pdf, p. 3]"]
    none = await call(toolbox, "recall", {"query": "how long do refunds take?", "kinds": ["preference"]}, org)
    assert none.result == "Nothing relevant is remembered."


async def test_what_is_forgotten_is_gone_and_what_is_the_orgs_stays(
    toolbox: Toolbox, memory: PostgresMemory, org: str
) -> None:
    await call(toolbox, "remember", {"text": "The secret word is marzipan."}, org, "alice")
    mine = await memory.remember(Scope(org, "bob"), "The secret word is nougat.")
    ours = await memory.remember(Scope(org), "The secret word is praline.")
    found = await call(toolbox, "recall", {"query": "secret word"}, org, "alice")
    ids = re.findall(r"mem_[0-9a-f]{32}", found.result)
    assert ours.id in ids
    for count in (1, 0):
        gone = await call(toolbox, "forget", {"ids": [*ids, mine.id]}, org, "alice")
        assert orjson.loads(gone.result) == {"forgotten": count, "not_yours_or_gone": 3 - count}
    assert [item.id for item in await memory.recall(Scope(org, "alice"), "secret word")] == [ours.id]
    assert await memory.get(Scope(org, "bob"), mine.id) == mine


async def test_forget_takes_ids_only(toolbox: Toolbox, org: str) -> None:
    assert (await call(toolbox, "forget", {"ids": ["everything"]}, org)).status == "error"
