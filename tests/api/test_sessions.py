"""Sessions and their messages."""

from __future__ import annotations

import httpx
from redis.asyncio import Redis

from kernel.ids import new_id
from kernel.runlog import NewMessage, NewStep
from tests.api.checks import ok, problem
from tests.api.conftest import Apart
from tests.kernel.writing import FINISHED, checkpoint, worker, writing


async def test_a_session_is_made_changed_and_found_again(client: httpx.AsyncClient) -> None:
    [agent] = ok(await client.get("/v1/agents"))["data"]
    answer = await client.post("/v1/sessions", json={"title": "Trip", "metadata": {"a": [1, 2.5, None, "é"]}})
    session = ok(answer, 201)
    path = answer.headers["location"]
    assert path == f"/v1/sessions/{session['id']}"
    assert session["metadata"] == {"a": [1, 2.5, None, "é"]}
    assert (session["last_seq"], session["active_run_id"], session["agent_id"]) == (0, None, None)
    changed = ok(await client.patch(path, json={"title": "Journey", "agent_id": agent["id"]}))
    assert (changed["title"], changed["agent_id"], changed["metadata"]) == ("Journey", agent["id"], session["metadata"])
    cleared = ok(await client.patch(path, json={"title": None, "agent_id": None, "metadata": {}}))
    assert (cleared["title"], cleared["agent_id"], cleared["metadata"]) == (None, None, {})
    assert ok(await client.get(path)) == cleared


async def test_a_session_needs_no_body(client: httpx.AsyncClient) -> None:
    assert ok(await client.post("/v1/sessions"), 201)["title"] is None


async def test_a_session_takes_no_unknown_agent(client: httpx.AsyncClient) -> None:
    session = ok(await client.post("/v1/sessions"), 201)
    unknown = {"agent_id": "agt_" + "0" * 32}
    problem(await client.post("/v1/sessions", json=unknown), 422, "agent_id")
    problem(await client.patch(f"/v1/sessions/{session['id']}", json=unknown), 422, "agent_id")
    problem(await client.patch(f"/v1/sessions/{session['id']}", json={}), 422, "body")
    problem(await client.patch(f"/v1/sessions/{session['id']}", json={"title": "x" * 501}), 422, "title")


async def test_sessions_are_listed_newest_first_and_page_by_page(client: httpx.AsyncClient) -> None:
    made = [ok(await client.post("/v1/sessions", json={"title": str(number)}), 201)["id"] for number in range(5)]
    first = ok(await client.get("/v1/sessions", params={"limit": 2}))
    ok(await client.post("/v1/sessions"), 201)  # moves nothing
    second = ok(await client.get("/v1/sessions", params={"limit": 2, "cursor": first["next_cursor"]}))
    third = ok(await client.get("/v1/sessions", params={"limit": 2, "cursor": second["next_cursor"]}))
    assert [session["id"] for page in (first, second, third) for session in page["data"]] == made[::-1]
    assert third["next_cursor"] is None


async def test_a_session_is_deleted_with_its_runs_but_not_while_one_is_unfinished(client: httpx.AsyncClient) -> None:
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    path = f"/v1/sessions/{run['session_id']}"
    assert ok(await client.get(path))["active_run_id"] == run["id"]
    assert run["id"] in problem(await client.delete(path), 409)["detail"]
    ok(await client.post(f"/v1/runs/{run['id']}/cancel"))
    assert (await client.delete(path)).status_code == 204
    problem(await client.get(path), 404)
    problem(await client.get(f"/v1/runs/{run['id']}"), 404)
    problem(await client.delete(path), 404)


async def test_the_messages_of_a_session_are_its_conversation_in_order(client: httpx.AsyncClient) -> None:
    run = ok(
        await client.post(
            "/v1/runs",
            json={"input": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi 😀"}]},
        ),
        202,
    )
    path = f"/v1/sessions/{run['session_id']}"
    ok(await client.post(f"{path}/runs", json={"input": "and more"}), 202)
    first = ok(await client.get(f"{path}/messages", params={"limit": 2}))
    rest = ok(await client.get(f"{path}/messages", params={"cursor": first["next_cursor"]}))
    assert [(message["role"], message["content"]) for message in first["data"] + rest["data"]] == [
        ("system", "be brief"),
        ("user", "hi 😀"),
        ("user", "and more"),
    ]
    assert rest["next_cursor"] is None
    assert first["data"][0]["run_id"] == run["id"]


async def test_an_empty_session_has_no_messages(client: httpx.AsyncClient) -> None:
    session = ok(await client.post("/v1/sessions"), 201)
    assert ok(await client.get(f"/v1/sessions/{session['id']}/messages")) == {"data": [], "next_cursor": None}


async def test_tool_messages_and_steps_are_listed_but_not_what_sub_agents_say(apart: Apart, redis: Redis) -> None:
    client = apart.client
    calls = [{"id": "call_1", "name": "python", "arguments": {"code": "1"}}]
    said = (
        ("", "assistant", "", calls, None),
        ("reader", "assistant", "inner", None, None),
        ("", "tool", {"value": 1}, None, "call_1"),
        ("", "assistant", "It is 1.", None, None),
    )
    run = ok(await client.post("/v1/runs", json={"input": "sum"}), 202)
    async with writing(apart.database, redis) as writer:
        [claimed] = await worker(apart.database).claim(1)
        pen = writer.pen(claimed)
        for position, (path, role, content, tool_calls, call_id) in enumerate(said, start=1):
            pen.record_message(NewMessage(new_id("msg"), path, position, role, content, tool_calls, call_id))
        for number, state in enumerate(("THINK", "ACT", "THINK", "RESPOND")):
            pen.record_step(NewStep(f"{number}", "", state, 1.0 - number / 10))
            pen.stage_checkpoint(checkpoint(claimed.id, number))
        pen.end(FINISHED)
    listed = ok(await client.get(f"/v1/sessions/{run['session_id']}/messages"))["data"]
    assert [message["role"] for message in listed] == ["user", "assistant", "tool", "assistant"]
    assert listed[1]["tool_calls"] == calls
    assert (listed[2]["content"], listed[2]["tool_call_id"]) == ({"value": 1}, "call_1")
    first = ok(await client.get(f"/v1/runs/{run['id']}/steps", params={"limit": 3}))
    rest = ok(await client.get(f"/v1/runs/{run['id']}/steps", params={"cursor": first["next_cursor"]}))
    steps = first["data"] + rest["data"]
    assert [step["state"] for step in steps] == ["THINK", "ACT", "THINK", "RESPOND"]
    assert [step["step_id"] for step in steps] == ["0", "1", "2", "3"]
    finished = ok(await client.get(f"/v1/runs/{run['id']}"))
    assert (finished["status"], finished["answer"]) == ("succeeded", "It is 1.")
    assert ok(await client.get(f"/v1/runs/{run['id']}/wait", params={"timeout": 0}))["answer"] == "It is 1."
    problem(await client.get(f"/v1/runs/{run['id']}/steps", params={"cursor": "WyJhIiwiYiJd"}), 422, "cursor")
