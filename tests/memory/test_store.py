"""Remembering and recalling on the real Postgres, with the offline embedder."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel.errors import InvalidInput, NotFound
from kernel.ids import is_id, new_id
from kernel.postgres import Pool, open_pool
from kernel.tenants import ensure_org
from memory.embedders.lexical import LexicalEmbedder
from memory.errors import MemoryUnavailable
from memory.records import MAX_SOURCE, MAX_TEXT, Scope
from memory.store import PostgresMemory
from memory.writing import SQL
from tests.memory.corpus import ENGLISH, ENGLISH_UNRELATED, ZH_UNRELATED, ZHONGWEN


@pytest.fixture
def alice(org: str) -> Scope:
    return Scope(org, user_id="alice", agent_id=new_id("agt"), session_id=new_id("ses"), run_id=new_id("run"))


async def recalled(memory: PostgresMemory, scope: Scope, query: str) -> list[str]:
    return [item.text for item in await memory.recall(scope, query)]


@pytest.mark.parametrize("corpus", [ENGLISH, ZHONGWEN], ids=["english", "chinese"])
async def test_a_question_recalls_the_memory_that_answers_it_first(
    memory: PostgresMemory, alice: Scope, corpus: Mapping[str, str]
) -> None:
    for text in corpus:
        await memory.remember(alice, text)
    first = {query: (await recalled(memory, alice, query))[:1] for query in corpus.values()}
    assert first == {query: [text] for text, query in corpus.items()}


@pytest.mark.parametrize(
    ("corpus", "queries"), [(ENGLISH, ENGLISH_UNRELATED), (ZHONGWEN, ZH_UNRELATED)], ids=["english", "chinese"]
)
async def test_an_unrelated_question_recalls_nothing(
    memory: PostgresMemory, alice: Scope, corpus: Mapping[str, str], queries: list[str]
) -> None:
    for text in corpus:
        await memory.remember(alice, text)
    assert {query: await recalled(memory, alice, query) for query in queries} == {query: [] for query in queries}


async def test_more_of_the_question_covered_ranks_higher(memory: PostgresMemory, alice: Scope) -> None:
    most = await memory.remember(alice, "The orders database in Frankfurt is backed up at midnight.")
    some = await memory.remember(alice, "The orders team sits in Frankfurt.")
    least = await memory.remember(alice, "The database course starts in May.")
    items = await memory.recall(alice, "When is the orders database in Frankfurt backed up?")
    assert [item.id for item in items] == [most.id, some.id, least.id]
    assert 1 >= items[0].score > items[1].score > items[2].score > 0


async def test_a_short_memory_beats_a_long_one_that_covers_as_much(memory: PostgresMemory, alice: Scope) -> None:
    filler = " ".join(f"detail{number}" for number in range(200))
    await memory.remember(alice, f"Zanzibar {filler}")
    short = await memory.remember(alice, "Zanzibar is where the server stands.")
    assert (await memory.recall(alice, "Zanzibar"))[0].id == short.id


async def test_a_misspelt_question_still_finds_its_memory(memory: PostgresMemory, alice: Scope) -> None:
    item = await memory.remember(alice, "Kubernetes cluster")
    assert [found.id for found in await memory.recall(alice, "kubernets clusters?")] == [item.id]
    assert [found.id for found in await memory.recall(alice, "kubernets")] == [item.id]


async def test_what_comes_back_is_what_was_kept(memory: PostgresMemory, alice: Scope) -> None:
    item = await memory.remember(alice, "  Tea, not coffee.\n", kind="preference", source="a form")
    assert is_id("mem", item.id)
    assert (item.text, item.kind, item.source, item.user_id) == ("Tea, not coffee.", "preference", "a form", "alice")
    [found] = await memory.recall(alice, "tea or coffee?")
    assert (found.id, found.text, found.kind, found.created_at) == (item.id, item.text, item.kind, item.created_at)


async def test_provenance_is_kept(memory: PostgresMemory, alice: Scope, database: Pool) -> None:
    item = await memory.remember(alice, "The sky is blue.")
    row = await database.fetchrow("SELECT agent_id, session_id, run_id FROM memories WHERE id = $1", item.id)
    assert row is not None
    assert tuple(row) == (alice.agent_id, alice.session_id, alice.run_id)


async def test_the_same_text_again_updates_the_memory(memory: PostgresMemory, alice: Scope) -> None:
    first = await memory.remember(alice, "Tea, not coffee.", source="a form")
    again = await memory.remember(alice, " Tea, not coffee. ", kind="preference")
    assert again.id == first.id
    assert again.created_at == first.created_at
    assert again.updated_at > first.updated_at
    assert (again.kind, again.source) == ("preference", None)
    assert len(await memory.recall(alice, "tea")) == 1


async def test_the_same_text_at_the_same_time_is_one_memory(memory: PostgresMemory, alice: Scope) -> None:
    items = await asyncio.gather(*(memory.remember(alice, "Tea, not coffee.") for _ in range(8)))
    assert len({item.id for item in items}) == 1


async def test_a_users_memory_is_recalled_for_that_user_alone(memory: PostgresMemory, alice: Scope) -> None:
    await memory.remember(alice, "The secret word is marzipan.")
    bob = replace(alice, user_id="bob")
    nobody = replace(alice, user_id=None)
    assert await recalled(memory, bob, "secret word marzipan") == []
    assert await recalled(memory, nobody, "secret word marzipan") == []
    assert await recalled(memory, alice, "secret word marzipan") == ["The secret word is marzipan."]


async def test_a_memory_without_a_user_is_recalled_for_the_whole_org(memory: PostgresMemory, alice: Scope) -> None:
    nobody = replace(alice, user_id=None)
    await memory.remember(nobody, "The canteen opens at noon.")
    for scope in (alice, replace(alice, user_id="bob"), nobody):
        assert await recalled(memory, scope, "When does the canteen open?") == ["The canteen opens at noon."]


async def test_two_users_may_keep_the_same_text(memory: PostgresMemory, alice: Scope) -> None:
    bob = replace(alice, user_id="bob")
    hers = await memory.remember(alice, "I live in Lisbon.")
    his = await memory.remember(bob, "I live in Lisbon.")
    assert hers.id != his.id
    assert [item.id for item in await memory.recall(bob, "Lisbon")] == [his.id]


async def test_another_org_recalls_nothing_of_it(memory: PostgresMemory, alice: Scope, database: Pool) -> None:
    stranger = await ensure_org(database, f"org {uuid4().hex}")
    for user in ("alice", None):
        await memory.remember(replace(alice, user_id=user), f"The launch code is 0000 for {user}.")
    for user in ("alice", None):
        assert await memory.recall(Scope(stranger, user_id=user), "launch code 0000") == []


async def test_agent_and_session_hide_nothing(memory: PostgresMemory, alice: Scope) -> None:
    await memory.remember(alice, "I live in Lisbon.")
    elsewhere = Scope(alice.org_id, user_id="alice", agent_id=new_id("agt"), session_id=new_id("ses"))
    assert await recalled(memory, elsewhere, "Lisbon") == ["I live in Lisbon."]


async def test_no_more_than_the_limit_comes_back(memory: PostgresMemory, alice: Scope) -> None:
    for number in range(8):
        await memory.remember(alice, f"Lisbon has hill number {number}.")
    assert len(await memory.recall(alice, "Lisbon hill")) == 5
    assert len(await memory.recall(alice, "Lisbon hill", limit=1)) == 1
    for limit in (0, 51):
        with pytest.raises(InvalidInput) as refused:
            await memory.recall(alice, "Lisbon hill", limit=limit)
        assert refused.value.field == "limit"


@pytest.mark.parametrize("text", ["", " \n\t", "\x00", "\ud800"])
async def test_nothing_is_not_remembered(memory: PostgresMemory, alice: Scope, text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        await memory.remember(alice, text)
    assert refused.value.field == "text"


async def test_a_text_over_the_limit_is_refused(memory: PostgresMemory, alice: Scope) -> None:
    assert len((await memory.remember(alice, "x " * (MAX_TEXT // 2 - 1) + "xx")).text) == MAX_TEXT
    with pytest.raises(InvalidInput) as refused:
        await memory.remember(alice, "猫" * (MAX_TEXT + 1))
    assert refused.value.field == "text"
    with pytest.raises(InvalidInput) as refused:
        await memory.remember(alice, "猫", source="y" * (MAX_SOURCE + 1))
    assert refused.value.field == "source"


async def test_the_longest_chinese_text_is_kept_and_found(memory: PostgresMemory, alice: Scope) -> None:
    text = "".join(chr(0x4E00 + number * 7 % 20000) for number in range(MAX_TEXT))
    item = await memory.remember(alice, text)
    assert [found.id for found in await memory.recall(alice, text[4000:4010])] == [item.id]


async def test_nul_and_lone_surrogates_are_dropped(memory: PostgresMemory, alice: Scope) -> None:
    item = await memory.remember(alice, "Lis\x00bon \ud800calls")
    assert item.text == "Lisbon calls"
    assert [found.id for found in await memory.recall(alice, "Lis\x00bon\udfff?")] == [item.id]


@pytest.mark.parametrize("query", ["", "   ", "?!…", "what is it?", "\x00"])
async def test_a_question_without_content_recalls_nothing(memory: PostgresMemory, alice: Scope, query: str) -> None:
    await memory.remember(alice, "Lisbon calls")
    assert await memory.recall(alice, query) == []


async def test_of_a_long_question_both_ends_count(memory: PostgresMemory, alice: Scope) -> None:
    await memory.remember(alice, "Zanzibar is an island.")
    filler = "lorem ipsum dolor " * 2000
    for query in (f"Zanzibar Zanzibar Zanzibar {filler}", f"{filler} Zanzibar Zanzibar Zanzibar"):
        assert len(await memory.recall(alice, query)) <= 1
    assert await recalled(memory, alice, "x" * 100_000 + " Zanzibar") == ["Zanzibar is an island."]


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(text=st.text(st.characters() | st.sampled_from("'\\\"&|!():*<-> \x00%_$"), min_size=1, max_size=60))
async def test_any_text_can_be_kept_and_asked_for(memory: PostgresMemory, alice: Scope, text: str) -> None:
    try:
        item = await memory.remember(alice, text)
    except InvalidInput:
        assert not text.replace("\x00", "").encode("utf-8", "ignore").strip() or not text.strip()
    else:
        assert item.text
    await memory.recall(alice, text)


async def test_remembering_for_an_unknown_org_is_refused(memory: PostgresMemory) -> None:
    with pytest.raises(NotFound):
        await memory.remember(Scope(new_id("org")), "Lisbon calls")


async def test_the_memories_of_an_org_go_with_it(memory: PostgresMemory, database: Pool) -> None:
    org = new_id("org")
    await database.execute("INSERT INTO orgs (id, name) VALUES ($1, $1)", org)
    await memory.remember(Scope(org), "Lisbon calls")
    await database.execute("DELETE FROM orgs WHERE id = $1", org)
    assert not await database.fetchval("SELECT EXISTS (SELECT FROM memories WHERE org_id = $1)", org)


async def test_a_closed_pool_is_memory_unavailable(database_url: str, alice: Scope) -> None:
    pool = await open_pool(database_url, size=1, name="tests")
    memory = PostgresMemory(pool, LexicalEmbedder())
    await pool.close()
    with pytest.raises(MemoryUnavailable):
        await memory.recall(alice, "Lisbon")
    with pytest.raises(MemoryUnavailable):
        await memory.remember(alice, "Lisbon calls")


async def test_a_schema_without_memories_is_memory_unavailable(database_url: str, org: str) -> None:
    async with asyncpg.create_pool(
        database_url, min_size=1, max_size=1, server_settings={"search_path": "pg_catalog"}
    ) as pool:
        with pytest.raises(MemoryUnavailable):
            await PostgresMemory(pool, LexicalEmbedder()).recall(Scope(org), "Lisbon")


async def test_a_stalled_postgres_is_given_up_and_found_again(own_database: Pool) -> None:
    scope = Scope(await ensure_org(own_database, "stalled"))
    memory = PostgresMemory(own_database, LexicalEmbedder(), patience=0.2)
    patient = PostgresMemory(own_database, LexicalEmbedder())
    await patient.remember(scope, "Lisbon calls")
    async with own_database.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE memories IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(MemoryUnavailable):
            await memory.recall(scope, "Lisbon")
    assert await recalled(patient, scope, "Lisbon") == ["Lisbon calls"]


async def test_a_new_connection_looks_no_types_up(database_url: str, alice: Scope) -> None:
    """Type lookups of the driver would be statements of their own, and slow ones."""
    statements: list[str] = []

    async def listen(connection: asyncpg.Connection[asyncpg.Record]) -> None:
        connection.add_query_logger(lambda record: statements.append(record.query))

    async with asyncpg.create_pool(database_url, min_size=1, max_size=1, init=listen) as pool:
        memory = PostgresMemory(pool, LexicalEmbedder())
        await memory.remember(alice, "Alice lives in Lisbon.")
        assert len(await memory.recall(alice, "Where does Alice live?")) == 1
    assert [text for text in statements if "typinfo" in text] == []


async def test_remembering_is_one_statement(database_url: str, alice: Scope) -> None:
    statements: list[str] = []

    async def listen(connection: asyncpg.Connection[asyncpg.Record]) -> None:
        connection.add_query_logger(lambda record: statements.append(record.query))

    async with asyncpg.create_pool(database_url, min_size=1, max_size=1, init=listen) as pool:
        memory = PostgresMemory(pool, LexicalEmbedder())
        await memory.remember(alice, "Alice lives in Lisbon.")
        statements.clear()
        await memory.remember(alice, "Alice has a bicycle.")
    assert [text for text in statements if "pg_advisory_unlock_all" not in text] == [SQL.write]
