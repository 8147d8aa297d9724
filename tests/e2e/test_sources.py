"""Agents that ask their org's database, from the secret to the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
import pytest

from cli.rehearsal import Reply, ToolCall
from tests.conftest import MakeDatabase, MakeStack
from tests.e2e.caller import Caller, Event, calling
from tests.e2e.conftest import new_key
from tests.history import assert_history
from tests.outside_postgres import OutsidePostgres, outside_postgres
from tests.scripts import ScriptedModel, said
from tests.stack import Stack


@pytest.fixture(scope="module")
async def shop(make_database: MakeDatabase) -> AsyncIterator[OutsidePostgres]:
    async with outside_postgres(await make_database()) as outside:
        yield outside


@pytest.fixture(scope="module")
async def asking(make_stack: MakeStack, shop: OutsidePostgres) -> AsyncIterator[Stack]:
    stack = await make_stack(LONGHAUL_EGRESS_ALLOW=shop.address)
    yield stack
    await stack.stop()


@pytest.fixture
async def caller(asking: Stack) -> AsyncIterator[Caller]:
    async with calling(asking.url, await new_key(asking)) as caller:
        yield caller


async def registered(caller: Caller, shop: OutsidePostgres, **fields: object) -> str:
    """A source of the caller's org; its id."""
    await caller.call("PUT", "/v1/secrets/shop_dsn", {"value": shop.dsn()}, expect=201)
    source = {"name": "shop", "description": "orders since 2020", "secret": "shop_dsn", **fields}
    return str((await caller.post("/v1/sources", source, expect=201)).json()["id"])


def results(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.data["status"], event.data["result"]) for event in events if event.type == "tool_result"]


async def test_an_agent_looks_what_there_is_and_asks_for_it(
    caller: Caller, asking: Stack, shop: OutsidePostgres, model: ScriptedModel
) -> None:
    await registered(caller, shop)
    script = model.script(
        Reply(tool_calls=[ToolCall("list_sources", {}), ToolCall("list_sources", {"source": "shop"})]),
        Reply(tool_calls=[ToolCall("query_source", {"source": "shop", "sql": "SELECT count(*) FROM shop.orders"})]),
        said("A thousand."),
    )
    agent = await caller.agent(model=script, tools=[], skills=["data_query"])
    run = await caller.run("How many orders?", agent_id=agent)
    assert run["answer"] == "A thousand."
    events = await caller.events(run["id"])
    sources, tables, answer = (orjson.loads(text) for _, text in results(events))
    assert sources == [{"source": "shop", "about": "orders since 2020"}]
    assert "shop.orders" in [table["table"] for table in tables["tables"]]
    assert answer == {"rows": [{"count": 1000}], "count": 1}
    assert b"secret-of-reader" not in b"".join(event.frame for event in events)
    assert "secret-of-reader" not in asking.logs()
    await assert_history(asking.database, run["id"])


async def test_what_may_not_be_asked_is_an_error_and_the_run_goes_on(
    caller: Caller, asking: Stack, shop: OutsidePostgres, model: ScriptedModel
) -> None:
    await registered(caller, shop)
    asked = ["DELETE FROM shop.orders", "SELECT * FROM shop.salaries", "SELECT pg_read_file('/etc/passwd')"]
    calls = [ToolCall("query_source", {"source": "shop", "sql": sql}) for sql in asked]
    calls.append(ToolCall("query_source", {"source": "other", "sql": "SELECT 1"}))
    script = model.script(Reply(tool_calls=calls), said("I can't."))
    run = await caller.run(agent_id=await caller.agent(model=script, tools=["query_source"]))
    assert (run["status"], run["answer"]) == ("succeeded", "I can't.")
    found = results(await caller.events(run["id"]))
    assert sorted(found) == [
        ("error", "Only SELECT can be asked, not DELETE."),
        ("error", "The database says: permission denied for table salaries"),
        ("error", "The function 'pg_read_file' can't be used here."),
        ("error", "There is no source 'other'. There are: shop."),
    ]
    assert await shop.admin.fetchval("SELECT count(*) FROM shop.orders") == 1000
    await assert_history(asking.database, run["id"])


async def test_a_source_is_there_for_the_agents_that_it_names_and_for_no_other_org(
    caller: Caller, asking: Stack, shop: OutsidePostgres, model: ScriptedModel
) -> None:
    listing = Reply(tool_calls=[ToolCall("list_sources", {})])
    trusted = await caller.agent(name="trusted", model=model.script(listing, said("ok")), tools=["list_sources"])
    another = await caller.agent(name="another", model=model.script(listing, said("ok")), tools=["list_sources"])
    source = await registered(caller, shop, agent_ids=[trusted])
    seen = {}
    for agent in (trusted, another):
        run = await caller.run(agent_id=agent)
        [(_, seen[agent])] = results(await caller.events(run["id"]))
        await assert_history(asking.database, run["id"])
    assert "shop" in seen[trusted]
    assert seen[another] == "[]"
    stranger = caller.as_holder_of(await new_key(asking))
    assert (await stranger.get("/v1/sources"))["data"] == []
    for method in ("GET", "PATCH", "DELETE"):
        body = {"name": "mine"} if method == "PATCH" else None
        await stranger.call(method, f"/v1/sources/{source}", body, expect=404)


async def test_a_source_is_changed_and_forgotten(caller: Caller, shop: OutsidePostgres) -> None:
    source = await registered(caller, shop)
    await caller.post("/v1/sources", {"name": "shop", "secret": "shop_dsn"}, expect=409)
    second = (await caller.post("/v1/sources", {"name": "second", "secret": "x"}, expect=201)).json()
    await caller.call("PATCH", f"/v1/sources/{second['id']}", {"name": "shop"}, expect=409)
    changed = (await caller.call("PATCH", f"/v1/sources/{source}", {"max_rows": 5}, expect=200)).json()
    assert (changed["name"], changed["max_rows"], changed["secret"]) == ("shop", 5, "shop_dsn")
    await caller.call("DELETE", f"/v1/sources/{source}", expect=204)
    await caller.get(f"/v1/sources/{source}", expect=404)
    for wrong in ({"name": "Shop!"}, {"secret": ""}, {"max_rows": 0}, {"timeout_seconds": 1e9}, {"agent_ids": ["x"]}):
        await caller.post("/v1/sources", {"name": "a", "secret": "s", **wrong}, expect=422)
