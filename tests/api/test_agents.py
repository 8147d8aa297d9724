"""Agents and their versions."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from kernel.postgres import Pool
from kernel.tenants import ensure_org
from tests.api.checks import ok, problem

LIMITS = {
    "max_steps": 25,
    "max_tool_calls": 50,
    "max_depth": 2,
    "max_parallel_agents": 8,
    "max_tokens": None,
    "max_cost": None,
    "max_seconds": None,
    "timeout_seconds": 3600,
    "on_limit": "stop",
    "max_running": None,
}


def nested(levels: int) -> list[dict[str, Any]]:
    return [] if levels == 0 else [{"name": "below", "sub_agents": nested(levels - 1)}]


async def test_an_org_starts_with_an_assistant(client: httpx.AsyncClient) -> None:
    [agent] = ok(await client.get("/v1/agents"))["data"]
    assert agent["name"] == "assistant"
    assert agent["version"] == 1
    assert agent["tools"] == ["python", "http_fetch", "remember", "recall"]
    assert agent["limits"] == LIMITS
    assert agent["memory"] == {"recall": True, "limit": 5, "extract": None}


async def test_an_org_is_made_once_however_many_ask_for_it(database: Pool, org: str) -> None:
    ids = await asyncio.gather(*(ensure_org(database, f"crowd {org}") for _ in range(8)))
    assert len(set(ids)) == 1
    assert await database.fetchval("SELECT count(*) FROM agents WHERE org_id = $1", ids[0]) == 1


async def test_an_agent_is_given_back_as_it_was_made(client: httpx.AsyncClient) -> None:
    config: dict[str, Any] = {
        "name": "researcher",
        "description": "finds out",
        "instructions": "Find out.",
        "model": {"name": "big", "temperature": 0.5, "max_tokens": 1000},
        "tools": ["http_fetch"],
        "sub_agents": [{"name": "reader", "description": "reads", "instructions": "Read.", "tools": []}],
        "memory": {"recall": False, "limit": 3, "extract": True},
        "limits": {**LIMITS, "max_steps": 5},
    }
    answer = await client.post("/v1/agents", json=config)
    agent = ok(answer, 201)
    assert answer.headers["location"] == f"/v1/agents/{agent['id']}"
    [reader] = config.pop("sub_agents")
    silent: dict[str, Any] = {"model": None, "skills": [], "approvals": {}, "sub_agents": [], "limits": None}
    assert agent["sub_agents"] == [{**reader, **silent}]
    model = config.pop("model")
    assert {name: value for name, value in agent["model"].items() if value is not None} == model
    assert {name: agent[name] for name in config} == config
    assert ok(await client.get(answer.headers["location"])) == agent


async def test_a_change_makes_a_version_and_keeps_the_old_one(client: httpx.AsyncClient) -> None:
    made = ok(await client.post("/v1/agents", json={"name": "a", "instructions": "one"}), 201)
    path = f"/v1/agents/{made['id']}"
    changed = ok(await client.patch(path, json={"instructions": "two", "model": {"name": "m"}}))
    assert (changed["version"], changed["instructions"], changed["name"]) == (2, "two", "a")
    assert ok(await client.get(path)) == changed
    assert ok(await client.get(f"{path}/versions/1"))["instructions"] == "one"
    cleared = ok(await client.patch(path, json={"model": None}))
    assert (cleared["version"], cleared["model"]) == (3, None)
    versions = ok(await client.get(f"{path}/versions", params={"limit": 2}))
    assert [agent["version"] for agent in versions["data"]] == [3, 2]
    rest = ok(await client.get(f"{path}/versions", params={"cursor": versions["next_cursor"]}))
    assert [agent["version"] for agent in rest["data"]] == [1]
    assert rest["next_cursor"] is None
    problem(await client.get(f"{path}/versions/4"), 404)


async def test_a_change_that_changes_nothing_makes_no_version(client: httpx.AsyncClient) -> None:
    made = ok(await client.post("/v1/agents", json={"name": "same"}), 201)
    assert ok(await client.patch(f"/v1/agents/{made['id']}", json={"name": "same"})) == made
    problem(await client.patch(f"/v1/agents/{made['id']}", json={}), 422, "body")


async def test_changes_at_the_same_time_all_count(client: httpx.AsyncClient) -> None:
    made = ok(await client.post("/v1/agents", json={"name": "busy"}), 201)
    path = f"/v1/agents/{made['id']}"
    answers = await asyncio.gather(*(client.patch(path, json={"instructions": str(number)}) for number in range(8)))
    assert sorted(ok(answer)["version"] for answer in answers) == list(range(2, 10))


async def test_a_name_is_given_once_among_the_living(client: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
    first = ok(await client.post("/v1/agents", json={"name": "only"}), 201)
    problem(await client.post("/v1/agents", json={"name": "only"}), 409)
    ok(await stranger.post("/v1/agents", json={"name": "only"}), 201)
    other = ok(await client.post("/v1/agents", json={"name": "other"}), 201)
    problem(await client.patch(f"/v1/agents/{other['id']}", json={"name": "only"}), 409)
    assert (await client.delete(f"/v1/agents/{first['id']}")).status_code == 204
    ok(await client.patch(f"/v1/agents/{other['id']}", json={"name": "only"}))


async def test_a_deleted_agent_is_gone_but_its_versions_stay(client: httpx.AsyncClient) -> None:
    made = ok(await client.post("/v1/agents", json={"name": "brief"}), 201)
    path = f"/v1/agents/{made['id']}"
    answer = await client.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    problem(await client.get(path), 404)
    problem(await client.delete(path), 404)
    problem(await client.patch(path, json={"name": "x"}), 404)
    problem(await client.post("/v1/runs", json={"input": "a", "agent_id": made["id"]}), 422, "agent_id")
    problem(await client.post("/v1/sessions", json={"agent_id": made["id"]}), 422, "agent_id")
    ok(await client.get(f"{path}/versions/1"))
    assert made["id"] not in [agent["id"] for agent in ok(await client.get("/v1/agents"))["data"]]


async def test_the_default_agent_can_not_be_deleted(client: httpx.AsyncClient) -> None:
    [agent] = ok(await client.get("/v1/agents"))["data"]
    assert problem(await client.delete(f"/v1/agents/{agent['id']}"), 409)["suggestions"]


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "n" * 201}, "name"),
        ({"name": "a", "instructions": "x" * 32_001}, "instructions"),
        ({"name": "a", "tools": ["Shell!"]}, "tools.0"),
        ({"name": "a", "tools": ["t" * 65]}, "tools.0"),
        ({"name": "a", "tools": ["t", "t"]}, "tools"),
        ({"name": "a", "memory": {"limit": 0}}, "memory.limit"),
        ({"name": "a", "memory": {"limit": 21}}, "memory.limit"),
        ({"name": "a", "memory": {"recall": "yes"}}, "memory.recall"),
        ({"name": "a", "limits": {"max_steps": 101}}, "limits.max_steps"),
        ({"name": "a", "limits": {"max_depth": 5}}, "limits.max_depth"),
        ({"name": "a", "limits": {"timeout_seconds": 0}}, "limits.timeout_seconds"),
        ({"name": "a", "limits": {"max_tokens": 10**20}}, "limits.max_tokens"),
        ({"name": "a", "response_schema": {"const": 10**20}}, "response_schema"),
        ({"name": "a", "model": "big"}, "model"),
        ({"name": "a", "model": {"temperature": 2.1}}, "model.temperature"),
        ({"name": "a", "sub_agents": [{"name": "Bad Name"}]}, "sub_agents.0.name"),
        ({"name": "a", "sub_agents": [{"name": "b"}, {"name": "b"}]}, "sub_agents"),
        (
            {"name": "a", "sub_agents": [{"name": "b", "sub_agents": [{"name": "c", "x": 1}]}]},
            "sub_agents.0.sub_agents.0.x",
        ),
        ({"name": "a", "sub_agents": nested(4)}, "body"),
        ({"name": "a", "id": "agt_1"}, "id"),
    ],
)
async def test_a_wrong_configuration_is_refused_by_field(
    client: httpx.AsyncClient, config: dict[str, Any], field: str
) -> None:
    problem(await client.post("/v1/agents", json=config), 422, field)


async def test_sub_agents_may_be_three_levels_deep(client: httpx.AsyncClient) -> None:
    made = ok(await client.post("/v1/agents", json={"name": "deep", "sub_agents": nested(3)}), 201)
    problem(await client.patch(f"/v1/agents/{made['id']}", json={"sub_agents": nested(4)}), 422)
    problem(await client.patch(f"/v1/agents/{made['id']}", json={"name": None}), 422, "name")
