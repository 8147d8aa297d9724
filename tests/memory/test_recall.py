"""How recall reads: large shelves by the graph, a whole org, spaces that change, plans that stay, nothing left set."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from kernel.ids import new_id
from kernel.postgres import Pool
from memory.embedders.lexical import LexicalEmbedder
from memory.embedders.port import Nearness
from memory.recalling import Recaller, arms, question, recaller
from memory.recalling.question import Question
from memory.records import Filter, NewMemory, Scope
from memory.rerankers import RerankerUnavailable
from memory.store import PostgresMemory


@pytest.fixture
def memory(database: Pool) -> PostgresMemory:
    return PostgresMemory(database, LexicalEmbedder(), patience=30.0)


class Tables:
    """The database of a test alone, with the lexical space made."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.memory = PostgresMemory(pool, LexicalEmbedder(), patience=30.0)

    async def org(self) -> Scope:
        org = new_id("org")
        await self.pool.execute("INSERT INTO orgs (id, name) VALUES ($1, $1)", org)
        return Scope(org)

    async def into_graph(self, scope: Scope) -> int:
        """Moves the vectors of an org into the graph; how many."""
        space = await self.pool.fetchval("SELECT id FROM memory_spaces WHERE state = 'serving'")
        done = await self.pool.execute(
            f"UPDATE memory_space_{space} SET in_graph = true"
            " WHERE shelf IN (SELECT id FROM memory_shelves WHERE org_id = $1)",
            scope.org_id,
        )
        return int(done.split()[-1])


@pytest.fixture
async def tables(own_database: Pool) -> Tables:
    return Tables(own_database)


def sentences(number: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    syllables = ["ba", "ko", "ri", "tu", "me", "sa", "lo", "ni", "ve", "ga", "du", "pi"]
    words = ["".join(chance.choices(syllables, k=4)) for _ in range(number)]
    return [" ".join([*chance.sample(words, 6), f"no{place}"]) for place in range(number)]


async def test_a_large_shelf_is_searched_by_the_graph_and_what_is_new_beside_it(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "LARGE", 100)
    mine, other = await tables.org(), await tables.org()
    texts = sentences(300, seed=1)
    for scope in (mine, other):
        await tables.memory.remember_all(scope, [NewMemory(text) for text in texts])
        assert await tables.into_graph(scope) == 300
    await tables.memory.remember(mine, "Kubernetes cluster")
    # Spelled otherwise throughout: words lead nowhere, vectors do.
    for scope, expected in ((mine, ["Kubernetes cluster"]), (other, [])):
        assert [item.text for item in await tables.memory.recall(scope, "kubernets")] == expected
    for text in texts[::29]:
        [first, *_] = await tables.memory.recall(mine, text)
        owner = await tables.pool.fetchval("SELECT org_id FROM memories WHERE id = $1", first.id)
        assert (first.text, owner) == (text, mine.org_id)


async def test_a_shelf_that_was_large_is_searched_whole(tables: Tables) -> None:
    scope = await tables.org()
    await tables.memory.remember(scope, "Kubernetes cluster")
    await tables.into_graph(scope)
    assert len(await tables.memory.recall(scope, "kubernets")) == 1


async def test_the_kinds_asked_for_are_looked_for_inside_the_graph(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "LARGE", 100)
    scope = await tables.org()
    await tables.memory.remember_all(scope, [NewMemory(f"Kubernetes {n}") for n in range(400)])
    await tables.memory.remember(scope, "Kubernetes cluster", kind="procedure")
    await tables.into_graph(scope)
    items = await tables.memory.recall(scope, "kubernets", where=Filter(kinds=["procedure"]))
    assert [item.kind for item in items] == ["procedure"]


async def test_common_words_lead_to_what_has_several_of_them(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question, "_BUDGET", 40)
    scope = await tables.org()
    texts = [f"harbour lantern{n}" for n in range(100)] + [f"violin lantern{n}" for n in range(100, 200)]
    await tables.memory.remember_all(scope, [NewMemory(text) for text in [*texts, "A violin lies in the harbour"]])
    # Rare by itself is only "lantern7"; the two common words together are worth more.
    items = [item.text for item in await tables.memory.recall(scope, "harbour violin lantern7")]
    assert set(items[:2]) == {"harbour lantern7", "A violin lies in the harbour"}


async def test_a_word_that_nobody_has_hides_nothing(memory: PostgresMemory, org: str) -> None:
    await memory.remember(Scope(org), "The lighthouse keeper is called Ingrid.")
    assert await memory.recall(Scope(org), "xylophonically, who is the lighthouse keeper?")


async def test_a_document_is_asked_alone(memory: PostgresMemory, org: str) -> None:
    scope, document = Scope(org), new_id("doc")
    await memory.remember_all(
        scope,
        [NewMemory(f"The lighthouse burns oil {n}", "knowledge") for n in range(200)]
        + [NewMemory("Somewhere a lighthouse is named", "knowledge", document_id=document, page=3)],
    )
    [item] = await memory.recall(scope, "lighthouse oil", where=Filter(document_ids=[document]), limit=50)
    assert (item.document_id, item.page, item.kind) == (document, 3, "knowledge")


async def test_a_whole_org_is_searched_by_its_largest_shelves(
    memory: PostgresMemory, org: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user, number in (("ana", 3), ("ben", 2), ("cem", 1)):
        await memory.remember_all(Scope(org, user), [NewMemory(f"{user} saw a lighthouse {n}") for n in range(number)])
    found = await memory.recall(Scope(org), "lighthouse", everyone=True, limit=20)
    assert {item.text.split()[0] for item in found} == {"ana", "ben", "cem"}
    assert await memory.recall(Scope(org), "lighthouse") == []
    monkeypatch.setattr(recaller, "MOST_SHELVES", 2)
    found = await memory.recall(Scope(org), "lighthouse", everyone=True, limit=20)
    assert {item.text.split()[0] for item in found} == {"ana", "ben"}


async def test_recall_is_three_statements_on_a_new_connection_too(
    database_url: str, memory: PostgresMemory, org: str
) -> None:
    await memory.remember(Scope(org), "The lighthouse keeper is called Ingrid.")
    statements: list[str] = []

    async def listen(connection: asyncpg.Connection[asyncpg.Record]) -> None:
        connection.add_query_logger(lambda record: statements.append(record.query))

    async with asyncpg.create_pool(database_url, min_size=1, max_size=1, init=listen) as pool:
        assert await Recaller(pool, LexicalEmbedder()).recall(Scope(org), "Who is the lighthouse keeper?")
    # Type lookups of the driver would be statements of their own.
    assert len([text for text in statements if "pg_advisory_unlock_all" not in text]) == 3


async def test_the_graph_leaves_no_settings_behind(tables: Tables) -> None:
    scope = await tables.org()
    await tables.memory.remember(scope, "The lighthouse keeper is called Ingrid.")
    async with tables.pool.acquire() as connection:
        space = await connection.fetchval("SELECT id FROM memory_spaces WHERE state = 'serving'")
        names = ["hnsw.ef_search", "hnsw.iterative_scan", "hnsw.max_scan_tuples", "enable_sort"]
        read = "SELECT current_setting(name, true) FROM unnest($1::text[]) AS name"
        await connection.fetch("SELECT '[1]'::halfvec <#> '[1]'::halfvec")
        before = await connection.fetch(read, names)
        vector = "[" + ",".join(["0.1"] * LexicalEmbedder.dimensions) + "]"
        await connection.fetch(
            "SELECT memory_near($1, $2::text::halfvec, '{1}', '{2}', false, NULL, NULL, 5, 200)", space, vector
        )
        assert await connection.fetch(read, names) == before


class Reversed:
    """A reranker that turns the order round."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.texts: list[str] = []
        self._failure = failure

    async def rerank(self, query: str, texts: Sequence[str]) -> list[float]:
        self.texts = [*texts]
        if self._failure is not None:
            raise self._failure
        return [float(place) for place in range(len(texts))]

    async def aclose(self) -> None:
        """Holds nothing."""


async def test_a_reranker_has_the_last_word(memory: PostgresMemory, database: Pool, org: str) -> None:
    for text in ("The lighthouse keeper", "A lighthouse stands at the cape", "Ships pass the cape"):
        await memory.remember(Scope(org), text)
    before = [item.text for item in await memory.recall(Scope(org), "lighthouse keeper at the cape")]
    reranker = Reversed()
    with_it = PostgresMemory(database, LexicalEmbedder(), patience=30.0, reranker=reranker)
    items = await with_it.recall(Scope(org), "lighthouse keeper at the cape")
    assert reranker.texts == before
    assert [item.text for item in items] == before[::-1]
    assert all(1 >= item.score > 0 for item in items)


@pytest.mark.parametrize("failure", [RerankerUnavailable("down"), TimeoutError()])
async def test_without_its_reranker_recall_goes_on(
    memory: PostgresMemory, database: Pool, org: str, failure: Exception
) -> None:
    for text in ("The lighthouse keeper", "A lighthouse stands at the cape"):
        await memory.remember(Scope(org), text)
    without = PostgresMemory(database, LexicalEmbedder(), patience=30.0, reranker=Reversed(failure))
    expected = [item.id for item in await memory.recall(Scope(org), "lighthouse keeper")]
    assert [item.id for item in await without.recall(Scope(org), "lighthouse keeper")] == expected


class Renamed(LexicalEmbedder):
    """The same vectors under the name of another model."""

    model = "lexical-of-tomorrow"
    nearness = Nearness(floor=0.25, weight=0.3)


async def test_while_a_model_is_changed_both_spaces_answer(tables: Tables) -> None:
    scope = await tables.org()
    await tables.memory.remember(scope, "Kubernetes cluster in Oslo")
    changed = PostgresMemory(tables.pool, Renamed(), previous={LexicalEmbedder.model: LexicalEmbedder()}, patience=30.0)
    await changed.remember(scope, "Lighthouse on the cape")
    states = await tables.pool.fetch("SELECT state FROM memory_spaces ORDER BY id")
    assert [row["state"] for row in states] == ["serving", "filling"]
    for query, text in (("kubernets", "Kubernetes cluster in Oslo"), ("lighthousing", "Lighthouse on the cape")):
        assert [item.text for item in await changed.recall(scope, query)] == [text]


async def test_a_space_that_is_retired_under_a_recall_is_done_without(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = await tables.org()
    await tables.memory.remember(scope, "Kubernetes cluster in Oslo")
    whole = arms.candidates

    async def retire_first(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(recaller, "candidates", whole)
        space = await tables.pool.fetchval("UPDATE memory_spaces SET state = 'retired' RETURNING id")
        await tables.pool.execute(f"DROP TABLE memory_space_{space}")
        return await whole(*arguments, **named)

    monkeypatch.setattr(recaller, "candidates", retire_first)
    assert [item.text for item in await tables.memory.recall(scope, "cluster")] == ["Kubernetes cluster in Oslo"]


def test_a_question_of_large_shelves_is_led_by_its_rare_words() -> None:
    asked = Question("violin harbour lantern")
    violin, harbour, lantern = (
        Question("violin").numbers[0],
        Question("harbour").numbers[0],
        Question("lantern").numbers[0],
    )
    rated = asked.rated(1_000_000, {violin: 50, harbour: 60_000, lantern: 90_000}, {7: 1_000_000})
    assert rated is not None
    assert rated.any_of == [7 << 29 | violin]
    assert asked.rated(1_000_000, {}, {7: 1_000_000}) is None
