"""How good recall is, on conversations whose answers are known; and what never comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import get_args
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel.postgres import Pool
from kernel.tenants import ensure_org
from memory.embedders.lexical import LexicalEmbedder
from memory.embedders.port import Embedder
from memory.recalling import ranking
from memory.records import KINDS, Filter, Kind, MemoryItem, NewMemory, Scope, ScopeKind
from memory.store import PostgresMemory
from tests.memory.conversations import Asked, ConceptEmbedder, WithoutVectors, conversations


@dataclass(frozen=True, slots=True)
class Backend:
    """A memory that has heard all conversations."""

    memory: PostgresMemory
    scope: Scope
    asked: Sequence[Asked]

    async def found(self, *, limit: int = 10, language: str = "") -> float:
        """The share of questions whose answer is among the first `limit`."""
        asked = [each for each in self.asked if each.language.startswith(language)]
        hits = 0
        for each in asked:
            items = await self.memory.recall(self.scope, each.query, limit=limit)
            hits += any(item.text == each.answer for item in items)
        return hits / len(asked)


async def backend(database: Pool, embedder: Embedder) -> Backend:
    turns, asked = conversations()
    scope = Scope(await ensure_org(database, f"conversations {uuid4().hex}"))
    memory = PostgresMemory(database, embedder, patience=30.0, embedder_patience=30.0)
    await memory.remember_all(scope, turns)
    return Backend(memory, scope, asked)


@pytest.fixture(scope="module")
async def words_alone(database: Pool) -> Backend:
    return await backend(database, WithoutVectors())


@pytest.fixture(scope="module")
async def with_spelling(database: Pool) -> Backend:
    return await backend(database, LexicalEmbedder())


@pytest.fixture(scope="module")
async def with_meaning(database: Pool) -> Backend:
    return await backend(database, ConceptEmbedder())


async def test_the_corpus_tells_designs_apart(words_alone: Backend) -> None:
    assert len(words_alone.asked) >= 60
    assert 0.4 < await words_alone.found() < 0.9


@pytest.mark.parametrize("language", ["en", "zh"])
async def test_the_offline_embedder_never_makes_recall_worse(
    words_alone: Backend, with_spelling: Backend, language: str
) -> None:
    for limit in (1, 5, 10):
        alone = await words_alone.found(limit=limit, language=language)
        assert await with_spelling.found(limit=limit, language=language) >= alone


@pytest.mark.parametrize("language", ["en", "zh"])
async def test_a_model_of_meaning_makes_it_better(words_alone: Backend, with_meaning: Backend, language: str) -> None:
    assert await with_meaning.found(language=language) > await words_alone.found(language=language) + 0.1
    assert await with_meaning.found(language=language) > 0.95


@pytest.mark.parametrize("name", ["words_alone", "with_spelling", "with_meaning"])
async def test_what_stands_beside_a_hit_gains_by_it(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: Backend = request.getfixturevalue(name)
    spread = await heard.found()
    monkeypatch.setattr(ranking, "SPREAD", 0.0)
    assert spread > await heard.found()


async def test_speaker_and_day_are_found(words_alone: Backend) -> None:
    item = (await words_alone.memory.recall(words_alone.scope, "Maria in January on a Monday", limit=1))[0]
    assert item.thread is not None
    assert item.thread.startswith("en-")


# --- what never comes back ---

_USERS = ("ana", "ben")
_SESSIONS = ("ses_1", "ses_2")
_AGENTS = ("agt_1", "agt_2")
_OWNERS = (_USERS, _AGENTS, _SESSIONS)
_WORDS = ("harbour", "lantern", "violin", "orchard", "gondola", "苹果", "灯塔")

_memories = st.builds(
    lambda words, kind, scope, owners, validity, place: (words, kind, scope, owners, validity, place),
    st.lists(st.sampled_from(_WORDS), min_size=1, max_size=4),
    st.sampled_from(KINDS),
    st.sampled_from(get_args(ScopeKind)),
    st.tuples(st.integers(0, 1), st.sampled_from(_USERS), st.sampled_from(_AGENTS), st.sampled_from(_SESSIONS)),
    st.sampled_from(("always", "always", "now", "past", "future", "ended")),
    st.integers(0, 5),
)
_maybe = st.one_of(st.none(), st.integers(0, 1))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    memories=st.lists(_memories, min_size=4, max_size=16),
    asker=st.tuples(st.integers(0, 1), _maybe, _maybe, _maybe),
    kinds=st.lists(st.sampled_from(KINDS), max_size=2, unique=True),
    scopes=st.lists(st.sampled_from(get_args(ScopeKind)), max_size=2, unique=True),
    query=st.lists(st.sampled_from(_WORDS), min_size=1, max_size=3),
    everyone=st.booleans(),
)
async def test_nothing_comes_back_that_the_asker_may_not_see_or_that_does_not_count(
    database: Pool,
    memories: list[tuple[list[str], Kind, ScopeKind, tuple[int, str, str, str], str, int]],
    asker: tuple[int, int | None, int | None, int | None],
    kinds: list[Kind],
    scopes: list[ScopeKind],
    query: list[str],
    everyone: bool,
) -> None:
    memory = PostgresMemory(database, LexicalEmbedder(), patience=30.0)
    orgs = [await ensure_org(database, f"org {uuid4().hex}") for _ in range(2)]
    now = datetime.now(UTC)
    day = timedelta(days=1)
    windows = {"past": (None, now - day), "future": (now + day, None), "now": (now - day, now + day)}
    kept: list[tuple[MemoryItem, Scope, str]] = []
    for number, (words, kind, shelf, (org, user, agent, session), validity, place) in enumerate(memories):
        writer = Scope(orgs[org], user, agent, session)
        starts, ends = windows.get(validity, (None, None))
        new = NewMemory(
            f"{' '.join(words)} {number}", kind, shelf, valid_from=starts, valid_until=ends, thread="t", place=place
        )
        [item] = await memory.remember_all(writer, [new])
        if validity == "ended":
            await memory.supersede(writer, item.id, None)
        kept.append((item, writer, validity))

    of, *numbers = asker
    who = (None if number is None else names[number] for number, names in zip(numbers, _OWNERS, strict=True))
    scope = Scope(orgs[of], *who)
    owners = {"org": None, "user": scope.user_id, "agent": scope.agent_id, "session": scope.session_id}
    allowed = {
        item.id
        for item, writer, validity in kept
        if writer.org_id == scope.org_id
        and validity in ("always", "now")
        and (everyone or item.scope == "org" or (owners[item.scope] is not None and item.owner == owners[item.scope]))
        and (not kinds or item.kind in kinds)
        and (not scopes or item.scope in scopes)
    }
    items = await memory.recall(
        scope, " ".join(query), limit=50, where=Filter(kinds=kinds, scopes=scopes), everyone=everyone
    )
    assert {item.id for item in items} <= allowed
    asked = {item.id for item, _, _ in kept if item.id in allowed and set(query) <= set(item.text.split())}
    assert asked <= {item.id for item in items}


async def test_what_is_not_valid_any_more_does_not_crowd_out_what_is(database: Pool, org: str) -> None:
    memory, scope = PostgresMemory(database, LexicalEmbedder(), patience=30.0), Scope(org)
    over = datetime.now(UTC) - timedelta(days=1)
    await memory.remember_all(
        scope, [NewMemory(f"The gate code is {number}.", valid_until=over) for number in range(1000, 1300)]
    )
    valid = await memory.remember(scope, "The gate code was changed by the caretaker, it is 7777 from now on.")
    assert [item.id for item in await memory.recall(scope, "gate code")] == [valid.id]


async def test_a_neighbour_that_no_arm_finds_comes_back(database: Pool, org: str) -> None:
    memory, scope = PostgresMemory(database, LexicalEmbedder(), patience=30.0), Scope(org)
    said = ["Good morning.", "What is the launch code?", "Zero seven nine.", "Thanks a lot."]
    await memory.remember_all(scope, [NewMemory(text, thread="talk", place=place) for place, text in enumerate(said)])
    items = [item.text for item in await memory.recall(scope, "launch code")]
    assert items[0] == "What is the launch code?"
    assert "Zero seven nine." in items
    assert "Thanks a lot." not in items


async def test_versions_of_one_fact_do_not_fill_the_list(database: Pool, org: str) -> None:
    memory, scope = PostgresMemory(database, LexicalEmbedder(), patience=30.0), Scope(org)
    versions = [
        f"The harbour office opens at eight each morning, closes every evening (notice {number})."
        for number in range(8)
    ]
    other = "Parcels for the harbour office are kept in the shed behind the church."
    await asyncio.gather(*(memory.remember(scope, text) for text in [*versions, other]))
    items = [item.text for item in await memory.recall(scope, "harbour office", limit=3)]
    assert other in items
    assert set(items) & set(versions)
