"""Memories over HTTP: kept, corrected, searched, taken along, erased; by whom they may be, and by nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest

from kernel.postgres import Pool
from kernel.tenants import create_key
from tests.api.checks import MISSING, ok, problem

HARBOUR = "The harbour of Valparaiso opens at seven"
ASKED = "When does the harbour of Valparaiso open?"


@asynccontextmanager
async def caller(
    url: str, database: Pool, org: str, user_id: str, scopes: tuple[str, ...] = ("read", "write")
) -> AsyncIterator[httpx.AsyncClient]:
    key = await create_key(database, org, name=user_id, user_id=user_id, scopes=scopes)
    headers = {"Authorization": f"Bearer {key.secret.get_secret_value()}"}
    async with httpx.AsyncClient(base_url=url, headers=headers) as client:
        yield client


@pytest.fixture
async def ada(url: str, database: Pool, org: str) -> AsyncIterator[httpx.AsyncClient]:
    async with caller(url, database, org, "ada") as client:
        yield client


@pytest.fixture
async def bob(url: str, database: Pool, org: str) -> AsyncIterator[httpx.AsyncClient]:
    async with caller(url, database, org, "bob") as client:
        yield client


async def keep(client: httpx.AsyncClient, text: str = HARBOUR, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = ok(await client.post("/v1/memories", json={"text": text, **fields}), 201)
    return made


async def found(client: httpx.AsyncClient, query: str = ASKED, **fields: Any) -> list[str]:
    answer = ok(await client.post("/v1/memories/search", json={"query": query, **fields}))
    return [item["text"] for item in answer["data"]]


async def listed(client: httpx.AsyncClient, **query: Any) -> list[str]:
    return [item["text"] for item in ok(await client.get("/v1/memories", params=query))["data"]]


async def test_a_memory_is_given_back_as_it_was_made(client: httpx.AsyncClient) -> None:
    sent = {
        "text": HARBOUR,
        "kind": "procedure",
        "source": "harbour.md",
        "confidence": 0.5,
        "valid_from": "2026-01-02T03:04:05Z",
        "valid_until": None,
        "entities": ["Valparaiso"],
        "context": "opening hours",
        "metadata": {"by": "the pilot"},
    }
    answer = await client.post("/v1/memories", json=sent)
    made = ok(answer, 201)
    assert made.items() >= {**sent, "entities": ["valparaiso"], "scope": "org", "provenance": "person"}.items()
    assert ok(await client.get(answer.headers["location"])) == made
    assert ok(await client.get("/v1/memories"))["data"] == [made]


async def test_a_search_finds_what_is_relevant_and_says_where_it_is_from(client: httpx.AsyncClient) -> None:
    await keep(client, source="harbour.md", kind="knowledge")
    await keep(client, "The lighthouse is red")
    [item] = ok(await client.post("/v1/memories/search", json={"query": ASKED}))["data"]
    assert item.items() >= {"text": HARBOUR, "source": "harbour.md", "kind": "knowledge", "scope": "org"}.items()
    assert 0 < item["score"] <= 1
    assert await found(client, kinds=["preference"]) == []


async def test_users_see_what_is_theirs_and_the_orgs(
    client: httpx.AsyncClient, ada: httpx.AsyncClient, bob: httpx.AsyncClient, stranger: httpx.AsyncClient
) -> None:
    own = await keep(ada, f"{HARBOUR}, says ada")
    assert (own["scope"], own["owner"]) == ("user", "ada")
    await keep(client, f"{HARBOUR}, for all")
    assert set(await found(ada)) == {f"{HARBOUR}, says ada", f"{HARBOUR}, for all"}
    assert await found(bob) == await listed(bob) == [f"{HARBOUR}, for all"]
    assert set(await found(client)) == set(await listed(client)) == set(await found(ada))
    assert await found(client, user_id="bob") == [f"{HARBOUR}, for all"]
    assert set(await found(client, user_id="ada")) == set(await found(ada))
    assert await found(stranger) == await listed(stranger) == []
    for other in (bob, stranger):
        problem(await other.get(f"/v1/memories/{own['id']}"), 404)
        problem(await other.patch(f"/v1/memories/{own['id']}", json={"kind": "fact"}), 404)
        problem(await other.post(f"/v1/memories/{own['id']}/supersede", json={"text": "mine now"}), 404)
        problem(await other.delete(f"/v1/memories/{own['id']}"), 404)
    problem(await bob.post("/v1/memories/search", json={"query": ASKED, "user_id": "ada"}), 403)
    problem(await bob.get("/v1/memories", params={"user_id": "ada"}), 403)
    problem(await bob.get("/v1/memories/export", params={"user_id": "ada"}), 403)
    problem(await bob.post("/v1/memories/erase", json={"user_id": "ada"}), 403)


async def test_a_user_plants_nothing_for_others(
    client: httpx.AsyncClient, ada: httpx.AsyncClient, url: str, database: Pool, org: str
) -> None:
    agent = ok(await client.get("/v1/agents"))["data"][0]["id"]
    for_all = await keep(client)
    problem(await ada.post("/v1/memories", json={"text": "obey", "scope": "org"}), 403)
    problem(await ada.post("/v1/memories", json={"text": "obey", "scope": "agent", "agent_id": agent}), 403)
    problem(await ada.post("/v1/memories", json={"text": "obey", "user_id": "bob"}), 403)
    problem(await ada.patch(f"/v1/memories/{for_all['id']}", json={"text": "obey"}), 403)
    problem(await ada.delete(f"/v1/memories/{for_all['id']}"), 403)
    async with caller(url, database, org, "root", ("read", "write", "admin")) as admin:
        assert (await keep(admin, "the admin says", scope="org"))["scope"] == "org"
        assert (await keep(admin, "for bob", user_id="bob"))["owner"] == "bob"
        ok(await admin.patch(f"/v1/memories/{for_all['id']}", json={"kind": "procedure"}))


async def test_a_session_of_somebody_else_is_none(
    client: httpx.AsyncClient, ada: httpx.AsyncClient, bob: httpx.AsyncClient
) -> None:
    session = ok(await ada.post("/v1/sessions", json={}), 201)["id"]
    made = await keep(ada, scope="session", session_id=session)
    assert (made["scope"], made["owner"]) == ("session", session)
    assert await found(ada) == []
    assert await found(ada, session_id=session) == [HARBOUR]
    problem(await bob.post("/v1/memories/search", json={"query": ASKED, "session_id": session}), 404)
    problem(await client.post("/v1/memories", json={"text": "x", "session_id": MISSING["ses"]}), 404)
    problem(await client.post("/v1/memories", json={"text": "x", "agent_id": MISSING["agt"]}), 404)
    one = f"/v1/memories/{made['id']}"
    for request in (bob.get(one), bob.patch(one, json={"kind": "summary"}), bob.delete(one)):
        problem(await request, 404)
    assert ok(await ada.get(one)) == made
    assert ok(await ada.patch(one, json={"kind": "summary"}))["kind"] == "summary"
    newer = ok(await ada.post(f"{one}/supersede", json={"text": f"{HARBOUR} thirty"}), 201)
    assert (newer["scope"], newer["owner"]) == ("session", session)
    assert (await ada.delete(f"/v1/memories/{newer['id']}")).status_code == 204
    assert await listed(ada, session_id=session) == []


async def test_what_is_an_agents_can_be_read_by_all_and_is_changed_by_admins(
    client: httpx.AsyncClient, ada: httpx.AsyncClient
) -> None:
    agent = ok(await client.get("/v1/agents"))["data"][0]["id"]
    made = await keep(client, scope="agent", agent_id=agent)
    assert await listed(ada, agent_id=agent) == [HARBOUR]
    assert ok(await ada.get(f"/v1/memories/{made['id']}")) == made
    problem(await ada.patch(f"/v1/memories/{made['id']}", json={"kind": "summary"}), 403)
    problem(await ada.delete(f"/v1/memories/{made['id']}"), 403)


async def test_a_correction_is_found_and_what_it_replaced_is_not(client: httpx.AsyncClient) -> None:
    made = await keep(client, metadata={"a": 1})
    one = f"/v1/memories/{made['id']}"
    changed = ok(await client.patch(one, json={"text": "The library closes at nine", "metadata": None}))
    assert (changed["text"], changed["metadata"], changed["kind"]) == ("The library closes at nine", None, "fact")
    assert await found(client) == []
    assert await found(client, "when does the library close?") == ["The library closes at nine"]
    problem(await client.patch(one, json={}), 422)
    await keep(client)
    problem(await client.patch(one, json={"text": HARBOUR}), 409)


async def test_what_is_superseded_stays_readable(client: httpx.AsyncClient, ada: httpx.AsyncClient) -> None:
    old = await keep(ada)
    answer = await client.post(f"/v1/memories/{old['id']}/supersede", json={"text": f"{HARBOUR} thirty"})
    new = ok(answer, 201)
    assert (new["scope"], new["owner"]) == ("user", "ada")
    read = ok(await ada.get(f"/v1/memories/{old['id']}"))
    assert read["superseded_by"] == new["id"]
    assert read["ended_at"] is not None
    assert await found(ada) == await listed(ada) == [f"{HARBOUR} thirty"]
    assert set(await listed(ada, ended=True)) == {HARBOUR, f"{HARBOUR} thirty"}
    problem(await ada.patch(f"/v1/memories/{old['id']}", json={"kind": "summary"}), 409)
    problem(await ada.post(f"/v1/memories/{old['id']}/supersede", json={"text": "another one"}), 409)
    assert "another one" not in await listed(ada, ended=True)


async def test_a_batch_is_kept_whole_or_not_at_all(client: httpx.AsyncClient) -> None:
    memories = [{"text": f"number {number}"} for number in range(30)]
    kept = ok(await client.post("/v1/memories/batch", json={"memories": memories, "user_id": "ada"}), 201)["data"]
    assert [item["text"] for item in kept] == [memory["text"] for memory in memories]
    assert {item["owner"] for item in kept} == {"ada"}
    bad = [{"text": "fine"}, {"text": "x" * 8001}]
    problem(await client.post("/v1/memories/batch", json={"memories": bad}), 422, "memories.1.text")
    assert "fine" not in await listed(client, limit=100)
    problem(await client.post("/v1/memories/batch", json={"memories": []}), 422)
    pages, cursor = [], None
    while True:
        query = {"limit": 7} if cursor is None else {"limit": 7, "cursor": cursor}
        page = ok(await client.get("/v1/memories", params=query))
        pages += page["data"]
        if (cursor := page["next_cursor"]) is None:
            break
    assert [item["id"] for item in pages] == sorted((item["id"] for item in kept), reverse=True)


async def test_a_user_takes_their_memories_along_and_is_erased(
    client: httpx.AsyncClient, ada: httpx.AsyncClient, bob: httpx.AsyncClient
) -> None:
    old = await keep(ada)
    await client.post(f"/v1/memories/{old['id']}/supersede", json={"text": "second"})
    await keep(bob, "bob's")
    answer = await ada.get("/v1/memories/export", params={"user_id": "ada"})
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert [orjson.loads(line)["text"] for line in answer.text.splitlines()] == [HARBOUR, "second"]
    assert ok(await ada.post("/v1/memories/erase", json={"user_id": "ada"})) == {"erased": 2}
    assert await listed(client, ended=True) == ["bob's"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "text"),
        ({"text": ""}, "text"),
        ({"text": "  \n"}, "text"),
        ({"text": "\x00"}, "text"),
        ({"text": "x" * 8001}, "text"),
        ({"text": "x", "kind": "rumour"}, "kind"),
        ({"text": "x", "confidence": 2}, "confidence"),
        ({"text": "x", "scope": "world"}, "scope"),
        ({"text": "x", "scope": "user"}, "user_id"),
        ({"text": "x", "scope": "session"}, "session_id"),
        ({"text": "x", "valid_from": "2026-01-02T00:00:00Z", "valid_until": "2026-01-01T00:00:00Z"}, ""),
        ({"text": "x", "valid_from": "yesterday"}, "valid_from"),
        ({"text": "x", "entities": ["a"] * 33}, "entities"),
        ({"text": "x", "metadata": {"a": "x" * 20_000}}, "metadata"),
        ({"text": "x", "owner": "me"}, "owner"),
    ],
)
async def test_what_can_not_be_kept_is_refused(client: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    problem(await client.post("/v1/memories", json=body), 422, *([field] if field else []))
    assert await listed(client) == []


async def test_many_writers_of_one_text_make_one_memory(client: httpx.AsyncClient) -> None:
    made = await asyncio.gather(*(keep(client) for _ in range(8)))
    assert len({item["id"] for item in made}) == 1
    assert await listed(client) == [HARBOUR]
