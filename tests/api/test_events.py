"""Event streams over HTTP: from the start, from any point, by token, to the end."""

from __future__ import annotations

import asyncio
import time

import httpx
import jwt
from redis.asyncio import Redis

from kernel.settings import Settings
from tests.api.checks import ok, problem
from tests.api.conftest import Apart
from tests.api.serving import serving
from tests.api.streams import opened
from tests.kernel.writing import FINISHED, worker, writing


async def cancelled(client: httpx.AsyncClient, *, runs: int = 1) -> dict[str, str]:
    """A session of so many cancelled runs: the last of them."""
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    for _ in range(runs - 1):
        run = ok(await client.post(f"/v1/sessions/{run['session_id']}/runs", json={"input": "a"}), 202)
    for listed in ok(await client.get("/v1/runs", params={"session_id": run["session_id"]}))["data"]:
        ok(await client.post(f"/v1/runs/{listed['id']}/cancel"))
    return {"id": run["id"], "session_id": run["session_id"]}


async def test_a_run_is_followed_from_its_first_event_to_its_last(client: httpx.AsyncClient) -> None:
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    async with opened(client, f"/v1/runs/{run['id']}/events") as stream:
        [queued] = await stream.take(1)
        assert (queued.id, queued.event) == (1, "run_queued")
        assert queued.data["agent_version"] == 1
        ok(await client.post(f"/v1/runs/{run['id']}/cancel"))
        [done] = await stream.rest()
    assert (done.id, done.event, done.data["status"]) == (2, "done", "cancelled")
    assert done.data.keys() >= {"seq", "session_id", "run_id", "at", "finish_reason", "usage"}


async def test_a_submitted_run_can_be_answered_with_its_stream(client: httpx.AsyncClient) -> None:
    async with opened(client, "/v1/runs", method="POST", json={"input": "a"}) as stream:
        [queued] = await stream.take(1)
        assert stream.answer.headers["location"] == f"/v1/runs/{queued.data['run_id']}"
        ok(await client.post(f"/v1/runs/{queued.data['run_id']}/cancel"))
        assert [frame.event for frame in await stream.rest()] == ["done"]


async def test_live_and_replayed_streams_are_equal_byte_for_byte(apart: Apart, redis: Redis) -> None:
    run = ok(await apart.client.post("/v1/runs", json={"input": "a"}), 202)
    path = f"/v1/runs/{run['id']}/events"
    async with opened(apart.client, path) as live, writing(apart.database, redis) as writer:
        frames = await live.take(1)
        [claimed] = await worker(apart.database).claim(1)
        pen = writer.pen(claimed)
        pen.say("run_started", {"attempt": 1, "note": "ü\n\u2028"})
        frames += await live.take(1)
        for word in ("one ", "two ", "three"):
            pen.chunk("msg_1", word)
        pen.end(FINISHED)
        frames += await live.rest()
    async with opened(apart.client, path) as replay:
        assert await replay.rest() == frames
    async with opened(apart.client, f"/v1/sessions/{run['session_id']}/events") as whole:
        assert await whole.take(len(frames)) == frames
    assert "".join(frame.data["text"] for frame in frames if frame.event == "message_chunk") == "one two three"
    for seen in range(len(frames)):
        async with opened(apart.client, path, headers={"Last-Event-ID": str(seen)}) as resumed:
            assert await resumed.rest() == frames[seen:]
        async with opened(apart.client, f"{path}?after={seen}") as resumed:
            assert await resumed.rest() == frames[seen:]


async def test_the_header_of_a_reconnecting_browser_counts_more_than_its_url(client: httpx.AsyncClient) -> None:
    run = await cancelled(client)
    async with opened(client, f"/v1/runs/{run['id']}/events?after=0", headers={"Last-Event-ID": "1"}) as stream:
        assert [frame.id for frame in await stream.rest()] == [2]


async def test_who_has_seen_done_is_told_not_to_come_back(client: httpx.AsyncClient) -> None:
    run = await cancelled(client)
    for seen in ("2", "3", str(2**63 - 1)):
        answer = await client.get(f"/v1/runs/{run['id']}/events", headers={"Last-Event-ID": seen})
        assert (answer.status_code, answer.content) == (204, b"")


async def test_a_run_is_followed_without_the_other_runs_of_its_session(client: httpx.AsyncClient) -> None:
    run = await cancelled(client, runs=3)
    async with opened(client, f"/v1/runs/{run['id']}/events") as stream:
        assert [frame.event for frame in await stream.rest()] == ["run_queued", "done"]


async def test_a_session_is_followed_over_all_its_runs(client: httpx.AsyncClient) -> None:
    run = await cancelled(client, runs=2)
    async with opened(client, f"/v1/sessions/{run['session_id']}/events") as stream:
        assert [frame.id for frame in await stream.take(4)] == [1, 2, 3, 4]
        new = ok(await client.post(f"/v1/sessions/{run['session_id']}/runs", json={"input": "b"}), 202)
        [queued] = await stream.take(1)
    assert (queued.id, queued.event, queued.data["run_id"]) == (5, "run_queued", new["id"])


async def test_a_place_that_the_log_has_not_reached_hides_nothing_to_come(client: httpx.AsyncClient) -> None:
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    async with opened(client, f"/v1/runs/{run['id']}/events?after={2**63 - 1}") as stream:
        waiting = asyncio.create_task(stream.rest())
        ok(await client.post(f"/v1/runs/{run['id']}/cancel"))
        assert [frame.event for frame in await waiting] == ["done"]


async def test_a_stream_token_opens_its_own_stream_and_nothing_else(
    client: httpx.AsyncClient, nobody: httpx.AsyncClient
) -> None:
    run, other = await cancelled(client), await cancelled(client)
    of_run = ok(await client.post(f"/v1/runs/{run['id']}/stream-token"), 201)
    of_session = ok(await client.post(f"/v1/sessions/{run['session_id']}/stream-token"), 201)
    async with opened(nobody, of_run["url"]) as stream:
        assert [frame.event for frame in await stream.rest()] == ["run_queued", "done"]
    async with opened(nobody, of_session["url"]) as stream:
        assert len(await stream.take(2)) == 2
    for path in (
        f"/v1/runs/{other['id']}/events?token={of_run['token']}",
        f"/v1/runs/{run['id']}/events?token={of_session['token']}",
        f"/v1/sessions/{run['session_id']}/events?token={of_run['token']}",
        f"/v1/runs/{run['id']}/events?token={of_run['token'][:-2]}",
        f"/v1/runs/{run['id']}/events?token=",
        f"/v1/runs/{run['id']}?token={of_run['token']}",
        f"/v1/runs/{run['id']}/wait?token={of_run['token']}",
    ):
        problem(await nobody.get(path), 401)
    problem(await nobody.get("/v1/runs", headers={"Authorization": f"Bearer {of_run['token']}"}), 401)


async def test_a_stream_token_ends_with_its_time(
    client: httpx.AsyncClient, nobody: httpx.AsyncClient, settings: Settings
) -> None:
    run = await cancelled(client)
    issued = ok(await client.post(f"/v1/runs/{run['id']}/stream-token"), 201)["token"]
    key = settings.secret_key.get_secret_value()
    claims = jwt.decode(issued, key, algorithms=["HS256"], audience="longhaul-stream")
    assert 290 < claims["exp"] - time.time() <= 300
    old = jwt.encode({**claims, "exp": int(time.time()) - 1}, key, algorithm="HS256")
    problem(await nobody.get(f"/v1/runs/{run['id']}/events?token={old}"), 401)
    foreign = jwt.encode(claims, "x" * 40, algorithm="HS256")
    problem(await nobody.get(f"/v1/runs/{run['id']}/events?token={foreign}"), 401)


async def test_unknown_parameters_of_a_stream_are_let_pass(client: httpx.AsyncClient) -> None:
    run = await cancelled(client)
    async with opened(client, f"/v1/runs/{run['id']}/events?_=123&lastEventId=0") as stream:
        assert len(await stream.rest()) == 2


async def test_open_streams_get_heartbeats(settings: Settings, api_key: str) -> None:
    eager = settings.model_copy(update={"heartbeat_interval": 0.1})
    headers = {"Authorization": f"Bearer {api_key}"}
    async with serving(eager) as url, httpx.AsyncClient(base_url=url, headers=headers) as client:
        run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
        async with opened(client, f"/v1/runs/{run['id']}/events") as stream:
            async for line in stream.answer.aiter_lines():
                if line == ":":
                    break


async def test_a_process_that_stops_ends_its_streams_cleanly(settings: Settings, api_key: str) -> None:
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {api_key}"}) as client:
        async with serving(settings) as url:
            run = ok(await client.post(f"{url}/v1/runs", json={"input": "a"}), 202)
            stream = opened(client, f"{url}/v1/runs/{run['id']}/events")
            following = await stream.__aenter__()
            await following.take(1)
            begun = time.monotonic()
        assert time.monotonic() - begun < 5
        assert await following.rest() == []
        await stream.__aexit__(None, None, None)
