"""Whatever is sent: a 4xx problem that names the field, never a 5xx."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.api.checks import MISSING, ok, problem

NO_RUN = f"/v1/runs/{MISSING['run']}"
NO_SESSION = f"/v1/sessions/{MISSING['ses']}"


async def post(client: httpx.AsyncClient, body: str | bytes, path: str = "/v1/runs") -> httpx.Response:
    return await client.post(path, content=body, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "{'input': 'a'}",
        '{"input": "a"} and more',
        '{"input": "a\nb"}',
        b'{"input": "\xff"}',
        b"\xef\xbb\xbf{}",
        '{"input": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"input": "a", "metadata": {"n": ' + "9" * 5000 + "}}",
    ],
)
async def test_malformed_json_is_a_400(client: httpx.AsyncClient, body: str | bytes) -> None:
    assert problem(await post(client, body), 400)["code"] == "malformed_json"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ("[]", ["body"]),
        ("null", ["body"]),
        ('"text"', ["body"]),
        ("{}", ["input"]),
        ('{"input": null}', ["input"]),
        ('{"input": 5}', ["input"]),
        ('{"input": ""}', ["input"]),
        ('{"input": []}', ["input"]),
        ('{"input": {"role": "user"}}', ["input"]),
        ('{"input": ["a"]}', ["input.0"]),
        ('{"input": [{"role": "robot", "content": "a"}]}', ["input.0.role"]),
        ('{"input": [{"role": "user", "content": "a"}, {"role": "user"}]}', ["input.1.content"]),
        ('{"input": [{"role": "user", "content": 5}]}', ["input.0.content"]),
        ('{"input": [{"role": "user", "content": "a", "x": 1}]}', ["input.0.x"]),
        ('{"input": "a", "inptu": 1}', ["inptu"]),
        ('{"input": "a", "workflow": "nope"}', ["workflow"]),
        ('{"input": "a", "agent_id": "assistant"}', ["agent_id"]),
        ('{"input": "a", "agent_id": 5}', ["agent_id"]),
        ('{"input": "a", "if_busy": "panic"}', ["if_busy"]),
        ('{"input": "a", "model": 5}', ["model"]),
        ('{"input": "a", "model": ""}', ["model"]),
        ('{"input": "a", "model": {"temperature": 3}}', ["model.temperature"]),
        ('{"input": "a", "model": {"temperature": NaN}}', ["model.temperature"]),
        ('{"input": "a", "model": {"max_tokens": 1.5}}', ["model.max_tokens"]),
        ('{"input": "a", "tools": ["Not A Name"]}', ["tools.0"]),
        ('{"input": "a", "tools": ["python", "python"]}', ["tools"]),
        ('{"input": "a", "tools": "python"}', ["tools"]),
        ('{"input": "a", "budget": {"max_steps": 0}}', ["budget.max_steps"]),
        ('{"input": "a", "budget": {"max_steps": "5"}}', ["budget.max_steps"]),
        ('{"input": "a", "budget": {"max_tokens": 99999999999999999999}}', ["budget.max_tokens"]),
        ('{"input": "a", "budget": {"timeout_seconds": -1}}', ["budget.timeout_seconds"]),
        ('{"input": "a", "variables": []}', ["variables"]),
        ('{"input": "a", "metadata": "text"}', ["metadata"]),
        ('{"input": "a", "metadata": {"n": 9223372036854775808}}', ["metadata"]),
        ('{"input": "a", "metadata": {"n": 1e999}}', ["metadata"]),
        ('{"input": "a", "metadata": {"n": NaN}}', ["metadata"]),
        ('{"input": "a", "metadata": {"deep": ' + "[" * 20 + "]" * 20 + "}}", ["metadata"]),
        ('{"input": "a", "metadata": {"long": "' + "x" * 20_000 + '"}}', ["metadata"]),
        ('{"input": "' + "x" * 200_001 + '"}', ["input"]),
    ],
)
async def test_a_wrong_value_is_a_422_that_names_its_field(
    client: httpx.AsyncClient, body: str, fields: list[str]
) -> None:
    problem(await post(client, body), 422, *fields)


async def test_every_wrong_field_is_named_at_once(client: httpx.AsyncClient) -> None:
    body = '{"input": 1, "workflow": 2, "if_busy": 3, "extra": 4}'
    problem(await post(client, body), 422, "input", "workflow", "if_busy", "extra")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/runs", r'{"input": "a\u0000b"}', "input"),
        ("/v1/runs", r'{"input": [{"role": "user", "content": "\u0000"}]}', "input.0.content"),
        ("/v1/runs", r'{"input": "\ud800"}', "input"),
        ("/v1/runs", r'{"input": "\udc00\ud800"}', "input"),
        ("/v1/runs", r'{"input": "a", "metadata": {"k": ["\u0000"]}}', "metadata.k.0"),
        ("/v1/runs", r'{"input": "a", "metadata": {"\u0000": 1}}', "metadata.\ufffd"),
        ("/v1/runs", r'{"input": "a", "variables": {"\ud8ff": 1}}', "variables.\ufffd"),
        ("/v1/runs/batch", r'{"runs": [{"input": "a"}, {"input": "\u0000"}]}', "runs.1.input"),
        ("/v1/sessions", r'{"title": "\u0000"}', "title"),
        ("/v1/agents", r'{"name": "a", "instructions": "\u0000"}', "instructions"),
        (
            "/v1/agents",
            r'{"name": "a", "sub_agents": [{"name": "b", "description": "\ud834"}]}',
            "sub_agents.0.description",
        ),
    ],
)
async def test_nul_and_half_surrogates_are_refused_where_they_stand(
    client: httpx.AsyncClient, path: str, body: str, field: str
) -> None:
    problem(await post(client, body, path), 422, field)


async def test_escapes_that_only_look_like_nul_or_surrogates_are_let_pass(client: httpx.AsyncClient) -> None:
    body = r'{"title": "\\u0000 \ud83d\ude00", "metadata": {"\\ud800": "\\\\u0000"}}'
    session = ok(await post(client, body, "/v1/sessions"), 201)
    assert session["title"] == r"\u0000 😀"
    assert session["metadata"] == {r"\ud800": r"\\u0000"}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/runs/nope",
        "/v1/runs/run_123",
        f"/v1/runs/{MISSING['ses']}",
        f"/v1/runs/{MISSING['run']}0",
        f"/v1/runs/{MISSING['run'].upper()}",
        "/v1/runs/%F0%9F%98%80",
        "/v1/runs/%ED%A0%80",
        "/v1/runs/%0A",
        NO_RUN,
        f"{NO_RUN}/events",
        f"{NO_RUN}/wait",
        f"{NO_RUN}/steps",
        NO_SESSION,
        f"{NO_SESSION}/messages",
        f"{NO_SESSION}/events",
        f"/v1/agents/{MISSING['agt']}",
        f"/v1/agents/{MISSING['agt']}/versions",
        f"/v1/agents/{MISSING['agt']}/versions/1",
        f"/v1/agents/{MISSING['agt']}/versions/0",
        f"/v1/agents/{MISSING['agt']}/versions/99999999999999999999",
        "/v1/nothing",
        "/v1/runs/",
    ],
)
async def test_what_does_not_exist_is_a_404(client: httpx.AsyncClient, path: str) -> None:
    problem(await client.get(path), 404)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", f"{NO_SESSION}/runs", {"input": "a"}),
        ("POST", f"{NO_SESSION}/stream-token", None),
        ("POST", f"{NO_RUN}/stream-token", None),
        ("POST", f"{NO_RUN}/cancel", None),
        ("PATCH", NO_SESSION, {"title": "a"}),
        ("DELETE", NO_SESSION, None),
        ("PATCH", f"/v1/agents/{MISSING['agt']}", {"name": "a"}),
        ("DELETE", f"/v1/agents/{MISSING['agt']}", None),
    ],
)
async def test_what_does_not_exist_can_not_be_changed(
    client: httpx.AsyncClient, method: str, path: str, body: Any
) -> None:
    problem(await client.request(method, path, json=body), 404)


async def test_another_orgs_things_do_not_exist(client: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    agent = ok(await client.post("/v1/agents", json={"name": "mine"}), 201)
    for path in (
        f"/v1/runs/{run['id']}",
        f"/v1/runs/{run['id']}/events",
        f"/v1/runs/{run['id']}/steps",
        f"/v1/runs/{run['id']}/wait",
        f"/v1/sessions/{run['session_id']}",
        f"/v1/sessions/{run['session_id']}/messages",
        f"/v1/sessions/{run['session_id']}/events",
        f"/v1/agents/{agent['id']}",
        f"/v1/agents/{agent['id']}/versions",
        f"/v1/agents/{agent['id']}/versions/1",
    ):
        problem(await stranger.get(path), 404)
    for verb in ("cancel", "pause", "resume"):
        problem(await stranger.post(f"/v1/runs/{run['id']}/{verb}"), 404)
    problem(await stranger.post(f"/v1/runs/{run['id']}/stream-token"), 404)
    problem(await stranger.post(f"/v1/sessions/{run['session_id']}/runs", json={"input": "a"}), 404)
    problem(await stranger.patch(f"/v1/sessions/{run['session_id']}", json={"title": "mine"}), 404)
    problem(await stranger.delete(f"/v1/sessions/{run['session_id']}"), 404)
    problem(await stranger.patch(f"/v1/agents/{agent['id']}", json={"name": "theirs"}), 404)
    problem(await stranger.delete(f"/v1/agents/{agent['id']}"), 404)
    problem(await stranger.post("/v1/runs", json={"input": "a", "agent_id": agent["id"]}), 422, "agent_id")
    problem(await stranger.post("/v1/sessions", json={"agent_id": agent["id"]}), 422, "agent_id")
    assert ok(await stranger.get("/v1/runs"))["data"] == []
    assert ok(await stranger.get("/v1/runs", params={"session_id": run["session_id"]}))["data"] == []


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/runs/a%00b", "run_id"),
        ("/v1/sessions/%00/messages", "session_id"),
        ("/v1/runs?status=%00", "status"),
        ("/v1/runs?cursor=%00", "cursor"),
        ("/v1/runs?cursor=%FF", "cursor"),
        ("/v1/runs?cursor=%ED%A0%80", "cursor"),
        ("/v1/runs?%00=1", "\ufffd"),
        (f"{NO_RUN}/events?after=%00", "after"),
        (f"{NO_RUN}/events?token=%00", "token"),
    ],
)
async def test_nul_and_bad_utf8_in_the_url_are_refused_by_name(
    client: httpx.AsyncClient, path: str, field: str
) -> None:
    problem(await client.get(path), 422, field)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=-1", "limit"),
        ("limit=ten", "limit"),
        ("limit=", "limit"),
        ("limit=99999999999999999999999", "limit"),
        ("limit=1&limit=2", "limit"),
        ("cursor=", "cursor"),
        ("cursor=garbage", "cursor"),
        ("cursor=!!!!", "cursor"),
        ("cursor=WzFd", "cursor"),  # [1]
        ("cursor=WyJhIl0", "cursor"),  # ["a"]
        ("cursor=W10", "cursor"),  # []
        ("cursor=" + "a" * 600, "cursor"),
        ("status=sleeping", "status"),
        ("session_id=5", "session_id"),
        ("agent_id=run_1", "agent_id"),
        ("colour=red", "colour"),
    ],
)
async def test_a_wrong_query_parameter_is_refused_by_name(client: httpx.AsyncClient, query: str, field: str) -> None:
    problem(await client.get(f"/v1/runs?{query}"), 422, field)


@pytest.mark.parametrize("noun", ["agents", "sessions"])
async def test_no_list_takes_the_cursor_of_another(client: httpx.AsyncClient, noun: str) -> None:
    for text in ("a", "b"):
        ok(await client.post("/v1/runs", json={"input": text}), 202)
    cursor = ok(await client.get("/v1/runs", params={"limit": 1}))["next_cursor"]
    problem(await client.get(f"/v1/{noun}", params={"cursor": cursor}), 422, "cursor")


@pytest.mark.parametrize("value", ["-1", "abc", "1.5", "1e3", "", "9223372036854775808", "9" * 400, "+1", "0x1", "١"])
async def test_a_bad_place_in_the_log_is_refused_by_name(client: httpx.AsyncClient, value: str) -> None:
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    for path in (f"/v1/runs/{run['id']}/events", f"/v1/sessions/{run['session_id']}/events"):
        problem(await client.get(path, headers=[(b"Last-Event-ID", value.encode())]), 422, "Last-Event-ID")
        problem(await client.get(path, params={"after": value}), 422, "after")


@pytest.mark.parametrize("timeout", ["-1", "abc", "301", "nan", "inf", ""])
async def test_a_bad_timeout_is_refused_by_name(client: httpx.AsyncClient, timeout: str) -> None:
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    problem(await client.get(f"/v1/runs/{run['id']}/wait", params={"timeout": timeout}), 422, "timeout")


@pytest.mark.parametrize("key", [b"", b"a\tb", b"\xc3\xa9", b"k" * 256])
async def test_a_bad_idempotency_key_is_refused_by_name(client: httpx.AsyncClient, key: bytes) -> None:
    answer = await client.post("/v1/runs", json={"input": "a"}, headers=[(b"Idempotency-Key", key)])
    problem(answer, 422, "Idempotency-Key")


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "json", "a/b/c"]
)
async def test_a_body_that_is_not_json_is_a_415(client: httpx.AsyncClient, kind: str) -> None:
    problem(await client.post("/v1/runs", content="{}", headers={"Content-Type": kind}), 415)


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8", None]
)
async def test_json_by_any_of_its_names_is_taken(client: httpx.AsyncClient, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    ok(await client.post("/v1/runs", content='{"input": "a"}', headers=headers), 202)


async def test_a_body_over_the_limit_is_a_413(client: httpx.AsyncClient) -> None:
    body = b'{"input": "' + b"x" * 1_100_000 + b'"}'
    assert problem(await post(client, body), 413)["code"] == "body_too_large"


async def test_a_body_over_the_limit_that_comes_in_chunks_is_a_413(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 50_000

    answer = await client.post("/v1/runs", content=chunks(), headers={"Content-Type": "application/json"})
    problem(answer, 413)


async def test_a_body_that_announces_too_much_is_refused_before_it_is_sent(url: str, api_key: str) -> None:
    reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
    writer.write(
        f"POST /v1/runs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {api_key}\r\nContent-Type: application/json\r\n"
        "Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n".encode()
    )
    assert await reader.readline() == b"HTTP/1.1 413 Request Entity Too Large\r\n"
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/runs", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("DELETE", NO_RUN, {"GET", "HEAD", "OPTIONS"}),
        ("GET", "/v1/runs/batch", {"POST", "OPTIONS"}),
        ("HEAD", f"{NO_RUN}/events", {"GET", "OPTIONS"}),
        ("POST", "/health", {"GET", "HEAD", "OPTIONS"}),
        ("TRACE", "/v1/agents", {"GET", "HEAD", "POST", "OPTIONS"}),
    ],
)
async def test_a_method_that_a_path_does_not_take_is_a_405_that_names_those_it_does(
    client: httpx.AsyncClient, method: str, path: str, allowed: set[str]
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == allowed


async def test_an_unreadable_request_line_is_refused(url: str) -> None:
    for line in (b"GET /v1/runs/\xff HTTP/1.1", b"NONSENSE", b"GET / HTTP/1.1\r\nX-A: a\x00b"):
        reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
        writer.write(line + b"\r\nHost: a\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 4")
        writer.close()
        await writer.wait_closed()
