"""Taking runs in, looking at them, waiting for them, cancelling them."""

from __future__ import annotations

import asyncio
import json

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from kernel.bell import BELL_KEY
from kernel.ids import new_id
from kernel.postgres import Pool
from kernel.runlog import NewMessage
from tests.api.checks import MISSING, ok, problem
from tests.api.conftest import Apart
from tests.kernel.writing import FINISHED, worker, writing
from tests.waiting import eventually


async def test_a_run_is_acknowledged_with_its_place(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/runs", json={"input": "hello", "metadata": {"ticket": 7}})
    run = ok(answer, 202)
    assert answer.headers["location"] == f"/v1/runs/{run['id']}"
    assert (run["status"], run["turn"], run["attempt"], run["first_seq"]) == ("queued", 1, 0, 1)
    assert (run["workflow"], run["agent_version"], run["metadata"]) == ("agent_chat", 1, {"ticket": 7})
    assert ok(await client.get(answer.headers["location"])) == {**run, "answer": None, "output": None}


async def test_a_run_is_kept_as_it_was_asked_for(client: httpx.AsyncClient, database: Pool) -> None:
    request = {
        "input": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
        "workflow": "echo",
        "variables": {"place": "Rome", "days": [1, 2]},
        "model": {"name": "m", "temperature": 0, "max_tokens": 10},
        "tools": ["python"],
        "budget": {"max_tokens": 100, "max_tool_calls": 0, "max_steps": 3, "timeout_seconds": 60},
    }
    run = ok(await client.post("/v1/runs", json=request), 202)
    kept = orjson.loads(await database.fetchval("SELECT request FROM runs WHERE id = $1", run["id"]))
    assert kept == {name: request[name] for name in ("variables", "model", "tools", "budget")}
    messages = ok(await client.get(f"/v1/sessions/{run['session_id']}/messages"))["data"]
    assert [{"role": message["role"], "content": message["content"]} for message in messages] == request["input"]


async def test_a_models_name_alone_is_a_choice_too(client: httpx.AsyncClient, database: Pool) -> None:
    run = ok(await client.post("/v1/runs", json={"input": "a", "model": "small"}), 202)
    kept = await database.fetchval("SELECT request FROM runs WHERE id = $1", run["id"])
    assert orjson.loads(kept) == {"model": {"name": "small"}}


async def test_the_longest_input_is_taken(client: httpx.AsyncClient) -> None:
    ok(await client.post("/v1/runs", json={"input": "é" * 200_000}), 202)


async def test_a_run_uses_the_sessions_agent(client: httpx.AsyncClient) -> None:
    agent = ok(await client.post("/v1/agents", json={"name": "mine"}), 201)
    session = ok(await client.post("/v1/sessions", json={"agent_id": agent["id"]}), 201)
    run = ok(await client.post(f"/v1/sessions/{session['id']}/runs", json={"input": "a"}), 202)
    assert (run["agent_id"], run["session_id"]) == (agent["id"], session["id"])


async def test_a_busy_session_takes_runs_in_line_refuses_them_or_is_interrupted(client: httpx.AsyncClient) -> None:
    first = ok(await client.post("/v1/runs", json={"input": "1"}), 202)
    path = f"/v1/sessions/{first['session_id']}/runs"
    second = ok(await client.post(path, json={"input": "2"}), 202)
    assert second["turn"] == 2
    refused = problem(await client.post(path, json={"input": "3", "if_busy": "reject"}), 409)
    assert first["id"] in refused["detail"]
    third = ok(await client.post(path, json={"input": "4", "if_busy": "interrupt"}), 202)
    listed = ok(await client.get("/v1/runs", params={"session_id": first["session_id"]}))["data"]
    assert [(run["id"], run["status"]) for run in listed] == [
        (third["id"], "queued"),
        (second["id"], "cancelled"),
        (first["id"], "cancelled"),
    ]


async def test_runs_are_listed_by_status_session_and_agent_page_by_page(client: httpx.AsyncClient) -> None:
    agent = ok(await client.post("/v1/agents", json={"name": "mine"}), 201)
    one = ok(await client.post("/v1/runs", json={"input": "1"}), 202)
    two = ok(await client.post("/v1/runs", json={"input": "2", "agent_id": agent["id"]}), 202)
    three = ok(await client.post(f"/v1/sessions/{one['session_id']}/runs", json={"input": "3"}), 202)
    ok(await client.post(f"/v1/runs/{two['id']}/cancel"))

    async def found(**filters: str | int) -> list[str]:
        return [run["id"] for run in ok(await client.get("/v1/runs", params=filters))["data"]]

    assert await found() == [three["id"], two["id"], one["id"]]
    assert await found(status="cancelled") == [two["id"]]
    assert await found(status="queued") == [three["id"], one["id"]]
    assert await found(session_id=one["session_id"]) == [three["id"], one["id"]]
    assert await found(agent_id=agent["id"], status="queued") == []
    page = ok(await client.get("/v1/runs", params={"limit": 2}))
    assert await found(limit=2, cursor=page["next_cursor"]) == [one["id"]]


async def test_a_batch_gives_each_run_a_result_of_its_own(client: httpx.AsyncClient) -> None:
    runs = [{"input": "1"}, {"input": "2", "agent_id": MISSING["agt"]}, {"input": "3", "workflow": "echo"}]
    results = ok(await client.post("/v1/runs/batch", json={"runs": runs}), 202)["results"]
    assert results[0]["run"]["status"] == "queued"
    assert results[0]["problem"] is None
    assert (results[1]["run"], results[1]["problem"]["status"]) == (None, 422)
    assert results[1]["problem"]["errors"][0]["field"] == "agent_id"
    assert results[2]["run"]["workflow"] == "echo"
    assert results[0]["run"]["session_id"] != results[2]["run"]["session_id"]
    assert len(ok(await client.get("/v1/runs"))["data"]) == 2


async def test_a_batch_takes_1_to_100_runs(client: httpx.AsyncClient) -> None:
    problem(await client.post("/v1/runs/batch", json={"runs": []}), 422, "runs")
    problem(await client.post("/v1/runs/batch", json={"runs": [{"input": "a"}] * 101}), 422, "runs")
    problem(await client.post("/v1/runs/batch", json={"runs": [{"input": "a"}, {}]}), 422, "runs.1.input")
    results = ok(await client.post("/v1/runs/batch", json={"runs": [{"input": "a"}] * 100}), 202)["results"]
    assert all(result["problem"] is None for result in results)


async def test_cancelling_a_queued_run_ends_it_at_once(client: httpx.AsyncClient) -> None:
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    cancelled = ok(await client.post(f"/v1/runs/{run['id']}/cancel"))
    assert (cancelled["status"], cancelled["finish_reason"]) == ("cancelled", "cancelled")
    assert cancelled["finished_at"] is not None
    assert ok(await client.post(f"/v1/runs/{run['id']}/cancel")) == cancelled


async def test_cancelling_a_running_run_asks_its_worker(apart: Apart) -> None:
    run = ok(await apart.client.post("/v1/runs", json={"input": "a"}), 202)
    await worker(apart.database).claim(1)
    asked = ok(await apart.client.post(f"/v1/runs/{run['id']}/cancel"), 202)
    assert asked["status"] == "running"
    assert asked["cancel_requested_at"] is not None


async def test_waiting_ends_when_the_time_is_over(client: httpx.AsyncClient) -> None:
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    for timeout in ("0", "0.05"):
        waited = ok(await client.get(f"/v1/runs/{run['id']}/wait", params={"timeout": timeout}))
        assert (waited["status"], waited["answer"]) == ("queued", None)


async def test_waiting_ends_as_soon_as_the_run_does(client: httpx.AsyncClient) -> None:
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    waiters = [asyncio.create_task(client.get(f"/v1/runs/{run['id']}/wait?timeout=60")) for _ in range(5)]
    done, _ = await asyncio.wait(waiters, timeout=0.1)
    assert not done
    ok(await client.post(f"/v1/runs/{run['id']}/cancel"))
    async with asyncio.timeout(2):
        assert [ok(await waiter)["status"] for waiter in waiters] == ["cancelled"] * 5


async def test_who_waits_gets_the_answer(apart: Apart, redis: Redis) -> None:
    run = ok(await apart.client.post("/v1/runs", json={"input": "a"}), 202)
    waiter = asyncio.create_task(apart.client.get(f"/v1/runs/{run['id']}/wait?timeout=60"))
    async with writing(apart.database, redis) as writer:
        [claimed] = await worker(apart.database).claim(1)
        pen = writer.pen(claimed)
        pen.say("run_started", {"attempt": 1})
        pen.record_message(NewMessage(new_id("msg"), "", 1, "assistant", "Forty-two."))
        pen.end(FINISHED)
    async with asyncio.timeout(2):
        waited = ok(await waiter)
    assert (waited["status"], waited["answer"]) == ("succeeded", "Forty-two.")


async def test_a_waiter_that_leaves_leaves_nothing_behind(url: str, client: httpx.AsyncClient) -> None:
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    with pytest.raises(httpx.ReadTimeout):
        await client.get(f"/v1/runs/{run['id']}/wait?timeout=60", timeout=0.1)
    ok(await client.post(f"/v1/runs/{run['id']}/cancel"))


async def test_taking_a_run_in_rings_the_bell(apart: Apart, redis: Redis) -> None:
    await redis.delete(BELL_KEY)
    ok(await apart.client.post("/v1/runs", json={"input": "a"}), 202)
    assert await eventually(lambda: redis.exists(BELL_KEY), what="the bell was rung")


async def test_numbers_and_texts_in_metadata_come_back_as_they_were(client: httpx.AsyncClient) -> None:
    metadata = {
        "big": 2**63 - 1,
        "small": -(2**63),
        "float": 0.1,
        "emoji": "🧵",
        "esc": '\u2028"\\',
        "n": None,
        "t": True,
    }
    run = ok(await client.post("/v1/runs", content=json.dumps({"input": "a", "metadata": metadata})), 202)
    assert run["metadata"] == metadata
    assert ok(await client.get(f"/v1/runs/{run['id']}"))["metadata"] == metadata
