"""Writing memories: batches, changes, ends and removals, and that what is counted is what is there."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from kernel.errors import Conflict, InvalidInput, NotFound
from kernel.ids import new_id
from kernel.postgres import Pool
from memory.errors import MemoryUnavailable
from memory.records import MAX_BATCH, Changes, NewMemory, Scope
from memory.store import PostgresMemory
from tests.memory.counts import assert_counts
from tests.memory.hashing import HashingEmbedder


@pytest.fixture
def alice(org: str) -> Scope:
    return Scope(org, user_id="alice", agent_id=new_id("agt"), session_id=new_id("ses"))


def changes(**fields: Any) -> Changes:
    return Changes(frozenset(fields), **fields)


async def test_a_batch_comes_back_in_its_order(memory: PostgresMemory, alice: Scope, database: Pool) -> None:
    texts = [f"Lisbon has hill number {number}." for number in range(300)]
    items = await memory.remember_all(alice, [NewMemory(text) for text in texts])
    assert [item.text for item in items] == texts
    assert [item.id for item in items] == sorted({item.id for item in items})
    again = await memory.remember_all(alice, [NewMemory(text, "preference") for text in reversed(texts)])
    assert [item.id for item in again] == [item.id for item in reversed(items)]
    assert [item.created_at for item in again] == [item.created_at for item in reversed(items)]
    await assert_counts(database, alice.org_id)


async def test_of_duplicates_in_a_batch_the_last_one_counts(
    memory: PostgresMemory, alice: Scope, database: Pool
) -> None:
    items = await memory.remember_all(
        alice,
        [NewMemory("Tea."), NewMemory("Milk."), NewMemory(" Tea. ", "preference"), NewMemory("Tea.", scope="org")],
    )
    assert [item.kind for item in items] == ["preference", "fact", "preference", "fact"]
    assert items[0].id == items[2].id
    assert len({item.id for item in items}) == 3
    await assert_counts(database, alice.org_id)


async def test_one_batch_may_go_to_all_shelves_of_the_asker(
    memory: PostgresMemory, alice: Scope, database: Pool
) -> None:
    items = await memory.remember_all(
        alice, [NewMemory("The harbour opens.", scope=scope) for scope in ("user", "session", "agent", "org")]
    )
    assert [(item.scope, item.owner) for item in items] == [
        ("user", "alice"),
        ("session", alice.session_id),
        ("agent", alice.agent_id),
        ("org", None),
    ]
    assert len({item.id for item in items}) == 4
    listed = await memory.list(Scope(alice.org_id, session_id=alice.session_id))
    assert {item.scope for item in listed} == {"session", "org"}
    await assert_counts(database, alice.org_id)


async def test_nothing_to_keep_is_nothing_kept(memory: PostgresMemory, alice: Scope) -> None:
    assert await memory.remember_all(alice, []) == []


async def test_a_batch_with_one_bad_memory_is_refused_whole(
    memory: PostgresMemory, alice: Scope, database: Pool
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await memory.remember_all(alice, [NewMemory("Tea."), NewMemory(" ")])
    assert refused.value.field == "memories.1.text"
    with pytest.raises(InvalidInput):
        await memory.remember_all(alice, [NewMemory("Tea.")] * (MAX_BATCH + 1))
    assert await memory.list(alice) == []
    await assert_counts(database, alice.org_id)


@pytest.mark.parametrize(
    "metadata", [{"a": "b\x00c"}, {str(number): [1, 2] for number in range(900)}], ids=["nul", "large as jsonb"]
)
async def test_metadata_that_postgres_cant_keep_is_refused(
    memory: PostgresMemory, alice: Scope, metadata: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await memory.remember_all(alice, [NewMemory("Tea.", metadata=metadata)])
    assert refused.value.field == "metadata"
    assert await memory.list(alice) == []


async def test_where_the_embedder_fails_nothing_of_a_batch_is_kept(
    database: Pool, alice: Scope, memory: PostgresMemory
) -> None:
    embedder = HashingEmbedder()
    failing = PostgresMemory(database, embedder)
    item = await failing.remember(alice, "Tea.")
    embedder.failures = 3
    with pytest.raises(MemoryUnavailable, match="nothing was remembered"):
        await failing.remember_all(alice, [NewMemory("Milk."), NewMemory("Bread.")])
    with pytest.raises(MemoryUnavailable):
        await failing.change(alice, item.id, changes(text="Coffee."))
    with pytest.raises(MemoryUnavailable):
        await failing.supersede(alice, item.id, NewMemory("Coffee."))
    assert await memory.list(alice) == [await memory.get(alice, item.id)]
    assert (await memory.get(alice, item.id)).text == "Tea."
    await assert_counts(database, alice.org_id)


async def test_a_memory_is_found_by_its_context_until_that_changes(
    memory: PostgresMemory, alice: Scope, database: Pool
) -> None:
    [item] = await memory.remember_all(alice, [NewMemory("We sail on.", context="Zanzibar")])
    assert [found.id for found in await memory.recall(alice, "Zanzibar")] == [item.id]
    await memory.remember_all(alice, [NewMemory("We sail on.", context="Madagascar")])
    assert await memory.recall(alice, "Zanzibar") == []
    assert [found.id for found in await memory.recall(alice, "Madagascar")] == [item.id]
    await assert_counts(database, alice.org_id)


async def test_a_text_that_changes_is_found_by_its_new_words(
    memory: PostgresMemory, alice: Scope, database: Pool
) -> None:
    item = await memory.remember(alice, "The office is in Lisbon.", source="a form")
    changed = await memory.change(alice, item.id, changes(text="The office is in Zanzibar."))
    assert (changed.id, changed.text, changed.source) == (item.id, "The office is in Zanzibar.", "a form")
    assert changed.updated_at > item.updated_at
    assert await memory.recall(alice, "Lisbon") == []
    assert [found.id for found in await memory.recall(alice, "Zanzibar")] == [item.id]
    # And its old text can be kept again, as another memory.
    assert (await memory.remember(alice, "The office is in Lisbon.")).id != item.id
    await assert_counts(database, alice.org_id)


async def test_two_memories_of_a_scope_cant_have_one_text(memory: PostgresMemory, alice: Scope, database: Pool) -> None:
    tea, milk = await memory.remember_all(alice, [NewMemory("Tea."), NewMemory("Milk.")])
    with pytest.raises(Conflict):
        await memory.change(alice, milk.id, changes(text="Tea."))
    assert (await memory.get(alice, milk.id)).text == "Milk."
    await memory.supersede(alice, tea.id, None)
    assert (await memory.change(alice, milk.id, changes(text="Tea."))).text == "Tea."
    await assert_counts(database, alice.org_id)


async def test_only_what_is_given_changes(memory: PostgresMemory, alice: Scope, database: Pool) -> None:
    [item] = await memory.remember_all(
        alice,
        [NewMemory("Tea.", source="a form", confidence=0.7, entities=["Tea"], metadata={"a": [1]}, context="x y")],
    )
    changed = await memory.change(alice, item.id, changes(kind="preference", source=None, confidence=0.2))
    assert changed == replace(
        item, kind="preference", source=None, confidence=0.2, updated_at=changed.updated_at, entities=["tea"]
    )
    cleared = await memory.change(alice, item.id, changes(metadata=None))
    assert cleared.metadata is None
    kinds = await database.fetch(
        "SELECT kind FROM memory_space_1 WHERE memory = (SELECT no FROM memories WHERE id = $1)", item.id
    )
    assert [row["kind"] for row in kinds] in (["preference"], [])


async def test_what_is_superseded_stays_and_is_recalled_no_more(
    memory: PostgresMemory, alice: Scope, database: Pool
) -> None:
    old = await memory.remember(alice, "Alice lives in Lisbon.")
    new = await memory.supersede(alice, old.id, NewMemory("Alice lives in Porto."))
    ended = await memory.get(alice, old.id)
    assert (ended.text, ended.superseded_by) == (old.text, new.id)
    assert ended.ended_at is not None
    assert [item.id for item in await memory.recall(alice, "Where does Alice live?")] == [new.id]
    with pytest.raises(Conflict):
        await memory.change(alice, old.id, changes(kind="summary"))
    # What was true before may become true again.
    back = await memory.supersede(alice, new.id, NewMemory("Alice lives in Lisbon."))
    assert back.id not in (old.id, new.id)
    await assert_counts(database, alice.org_id)


async def test_a_memory_may_be_superseded_by_its_own_words(
    memory: PostgresMemory, alice: Scope, database: Pool
) -> None:
    old = await memory.remember(alice, "Tea.")
    new = await memory.supersede(alice, old.id, NewMemory("Tea.", "preference", scope="org"))
    assert (new.scope, new.id != old.id) == ("org", True)
    again = await memory.supersede(alice, new.id, NewMemory("Tea.", "fact"))
    assert (again.scope, again.kind, again.id != new.id) == ("org", "fact", True)
    await assert_counts(database, alice.org_id)


async def test_of_two_that_supersede_a_memory_at_the_same_time_one_does(
    memory: PostgresMemory, alice: Scope, database: Pool
) -> None:
    old = await memory.remember(alice, "Alice lives in Lisbon.")
    await asyncio.gather(*(memory.supersede(alice, old.id, NewMemory(f"Alice lives in {city}.")) for city in "ABCDE"))
    listed = await memory.list(alice)
    assert len(listed) == 1
    assert (await memory.get(alice, old.id)).superseded_by == listed[0].id
    await assert_counts(database, alice.org_id)


async def test_nobody_forgets_what_they_dont_see(memory: PostgresMemory, alice: Scope, database: Pool) -> None:
    bob = replace(alice, user_id="bob")
    hers, his = await memory.remember(alice, "Tea."), await memory.remember(bob, "Tea.")
    assert await memory.forget(alice, [hers.id, his.id, hers.id, new_id("mem")]) == 1
    assert await memory.forget(Scope(new_id("org")), [his.id], everyone=True) == 0
    with pytest.raises(NotFound):
        await memory.get(alice, hers.id)
    assert await memory.forget(alice, [his.id], everyone=True) == 1
    await assert_counts(database, alice.org_id)
    assert not await database.fetchval("SELECT count(*) FROM memory_terms WHERE org_id = $1", alice.org_id)


async def test_erasing_a_user_leaves_nothing_of_them(memory: PostgresMemory, alice: Scope, database: Pool) -> None:
    bob = replace(alice, user_id="bob")
    await memory.remember_all(alice, [NewMemory(f"Tea number {number}.") for number in range(1100)])
    ended = await memory.remember(alice, "Milk.")
    await memory.supersede(alice, ended.id, None)
    await memory.remember(bob, "Coffee.")
    await memory.remember_all(alice, [NewMemory("The canteen opens at noon.", scope="org")])
    exported = [item async for item in memory.export(alice.org_id, "alice")]
    assert len(exported) == 1101
    assert [item.id for item in exported] == sorted(item.id for item in exported)
    assert await memory.erase(alice.org_id, "alice") == 1101
    assert [item async for item in memory.export(alice.org_id, "alice")] == []
    owners = await database.fetch("SELECT owner FROM memory_shelves WHERE org_id = $1", alice.org_id)
    assert {row["owner"] for row in owners} == {"", "bob"}
    assert len(await memory.list(bob)) == 2
    assert await memory.erase(alice.org_id, "alice") == 0
    await assert_counts(database, alice.org_id)


async def test_forgetting_a_document_removes_its_passages(memory: PostgresMemory, alice: Scope, database: Pool) -> None:
    one, other = new_id("doc"), new_id("doc")
    for document in (one, other):
        await memory.remember_all(
            alice, [NewMemory(f"Passage {page} of {document}", page=page, document_id=document) for page in range(1, 9)]
        )
    assert await memory.forget_document(new_id("org"), one) == 0
    assert await memory.forget_document(alice.org_id, one) == 8
    assert {item.document_id for item in await memory.list(alice)} == {other}
    await assert_counts(database, alice.org_id)


async def test_lists_go_on_where_the_page_before_ended(memory: PostgresMemory, alice: Scope) -> None:
    items = await memory.remember_all(
        alice, [NewMemory(f"Tea {number}.", scope="org" if number % 3 else "user") for number in range(20)]
    )
    listed = []
    after = None
    while page := await memory.list(alice, after=after, limit=7):
        listed += page
        after = page[-1].id
        await memory.forget(alice, [after])  # what a page ended with may be gone by the next one
    assert sorted(item.id for item in listed) == sorted(item.id for item in items)
    assert [item.id for item in listed] == sorted((item.id for item in items), reverse=True)


@pytest.mark.parametrize("seed", range(4))
async def test_whoever_writes_at_the_same_time_the_counts_stay_right(
    database: Pool, alice: Scope, seed: int, memory: PostgresMemory
) -> None:
    """Writers, changers and removers of one org on the same shelves and the same words, all at once."""
    other = PostgresMemory(database, HashingEmbedder(), patience=30.0)

    async def one(number: int) -> None:
        dice = random.Random(seed * 100 + number)
        mine = replace(alice, user_id=dice.choice(["alice", "bob"]))
        backend = memory if number % 2 else other
        for _ in range(12):
            batch = [
                NewMemory(
                    " ".join(dice.choices(["tea", "milk", "bread", "salt", "rice"], k=3)),
                    scope=dice.choice(["org", "user", "session", "agent"]),
                    context=dice.choice([None, "morning", "evening"]),
                )
                for _ in range(dice.randint(1, 8))
            ]
            items = await backend.remember_all(mine, batch)
            item = dice.choice(items)
            try:
                match dice.randrange(5):
                    case 0:
                        await backend.forget(mine, [item.id for item in items])
                    case 1:
                        await backend.change(mine, item.id, changes(text=f"changed {dice.randrange(30)}"))
                    case 2:
                        await backend.supersede(mine, item.id, NewMemory(f"new {dice.randrange(30)}", scope="org"))
                    case 3 if dice.random() < 0.3:
                        await backend.erase(mine.org_id, "bob")
                    case _:
                        await backend.change(mine, item.id, changes(kind="summary"))
            except (Conflict, NotFound):
                pass  # another one was there first

    await asyncio.gather(*(one(number) for number in range(6)))
    await assert_counts(database, alice.org_id)
