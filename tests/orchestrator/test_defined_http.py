"""HTTP tools that callers define: how a call becomes a request, and its answer a result."""

from __future__ import annotations

import asyncio
import base64
import gzip
import time
from typing import Any

import orjson
import pytest
from aiohttp import web
from pydantic import ValidationError

from tests.orchestrator.defined import Listener, Pocket, calling, definition, sent, serving

SECRET = "sk-hunter2/hunter2+hunter2"
AUTH = {"source": "token", "prefix": "Bearer "}


def report(result: str) -> dict[str, Any]:
    told: dict[str, Any] = orjson.loads(result)
    return told


# arguments in URLs


async def test_arguments_fill_the_places_they_are_named_in_and_the_rest_is_the_query() -> None:
    seen = await sent(lambda url: definition(f"{url}/v1/{{a}}/x?q={{b}}&fixed=1"), a="7", b="tea", c=[1, "two", True])
    assert seen["path"] == "/v1/7/x"
    assert seen["pairs"] == [("q", "tea"), ("fixed", "1"), ("c", "1"), ("c", "two"), ("c", "true")]


@pytest.mark.parametrize(
    "value", ["a/b", "a?b=c#d", "a b", "é\u4f60", "%2F", "a\\b", "@host:80", "http://x", "a\tb", "+&="]
)
async def test_whatever_an_argument_holds_it_stays_in_its_place(value: str) -> None:
    seen = await sent(lambda url: definition(f"{url}/items/{{a}}/show?q={{b}}&z=1"), a=value, b=value)
    assert seen["path"].count("/") == 3
    assert seen["path"].endswith("/show")
    assert seen["pairs"] == [("q", value), ("z", "1")]


@pytest.mark.parametrize("value", ["", ".", "..", "../admin", "a/../b", "..\\x", "/..", None, "a/."])
async def test_an_argument_can_not_lead_out_of_its_path_segment(value: str | None) -> None:
    listener = Listener()
    async with serving(listener.answer) as port:
        tool = definition(f"http://127.0.0.1:{port}/items/{{a}}", "DELETE")
        async with calling(tool, port) as call:
            outcome = await call(a=value)
    assert outcome.status == "error"
    assert "- a: " in outcome.result
    assert "call again" in outcome.result
    assert listener.seen == []


async def test_two_arguments_can_not_make_dots_together() -> None:
    async with calling(definition("http://127.0.0.1:1/x/{a}{b}/y"), 1) as call:
        assert "must not be or hold a path of dots" in (await call(a=".", b=".")).result
        assert "must not be empty or dots" in (await call(a="", b="")).result


async def test_a_query_parameter_whose_argument_is_missing_is_left_out() -> None:
    assert (await sent(lambda url: definition(f"{url}/?a={{a}}&b={{b}}"), b=2))["query"] == "b=2"
    assert (await sent(lambda url: definition(f"{url}/?a={{a}}")))["query"] == ""


async def test_defaults_of_the_schema_fill_places() -> None:
    seen = await sent(lambda url: definition(f"{url}/{{a}}?b={{b}}", parameters={"a": {"default": 3}, "b": {}}))
    assert (seen["path"], seen["query"]) == ("/3", "")


@pytest.mark.parametrize(
    "url", ["http://{a}/", "http://host{a}/", "http://u:{a}@host/", "{a}://host/", "http://host:{a}/", "ftp://host/{a}"]
)
def test_the_host_of_a_definition_is_fixed(url: str) -> None:
    with pytest.raises(ValidationError, match="absolute http or https URL"):
        definition(url)


@pytest.mark.parametrize("more", [{"url": "http://h/{nope}"}, {"url": "http://h/", "headers": {"X": "{nope}"}}])
def test_a_place_that_no_parameter_fills_is_refused_with_the_definition(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"names \{nope\}, which the properties of parameter_schema lack"):
        definition(**more)


# headers


async def test_headers_are_filled_and_one_without_its_argument_is_left_out() -> None:
    headers = {"X-One": "{a}", "X-Two": "v{b}", "X-Three": "{c}", "Accept": "text/plain"}
    seen = await sent(lambda url: definition(url, headers=headers), a=1, b="2")
    assert (seen["headers"]["X-One"], seen["headers"]["X-Two"], seen["headers"]["Accept"]) == ("1", "v2", "text/plain")
    assert "X-Three" not in seen["headers"]
    assert seen["query"] == ""


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\x00b", "\u4f60", "x" * 5_000])
async def test_a_header_stays_one_line_of_latin_1(value: str) -> None:
    async with calling(definition("http://127.0.0.1:1/", headers={"X-One": "{a}"}), 1) as call:
        outcome = await call(a=value)
    assert outcome.status == "error"
    assert "a: goes into the header X-One" in outcome.result


# bodies


async def test_what_the_url_does_not_name_is_the_json_body() -> None:
    seen = await sent(lambda url: definition(f"{url}/{{a}}", "POST"), a=1, b={"deep": [None, 2**70]}, c="é")
    assert orjson.loads(seen["body"].replace(b"1180591620717411303424", b"70")) == {"b": {"deep": [None, 70]}, "c": "é"}
    assert seen["headers"]["Content-Type"] == "application/json"


async def test_a_body_template_takes_values_and_texts() -> None:
    body = {
        "value": "{a}",
        "text": "<{a}> and {b}",
        "list": ["{b}", "{c}", 5],
        "left out": "{c}",
        "query": "{viewer{id}}",
    }
    seen = await sent(lambda url: definition(url, "POST", body=body), a={"n": 1}, b='"q"')
    assert orjson.loads(seen["body"]) == {
        "value": {"n": 1},
        "text": '<{"n":1}> and "q"',
        "list": ['"q"', 5],
        "query": "{viewer{id}}",
    }


async def test_null_is_a_value_too() -> None:
    seen = await sent(lambda url: definition(url, "PUT", body={"value": "{a}"}), a=None)
    assert orjson.loads(seen["body"]) == {"value": None}


async def test_a_form_is_sent_as_a_form() -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    seen = await sent(
        lambda url: definition(url, "POST", headers=form, body={"to": "{a}", "n": "{b}"}), a="x&y=z", b=[1, 2]
    )
    assert seen["body"] == b"to=x%26y%3Dz&n=1&n=2"


async def test_a_text_is_sent_as_it_is_under_a_type_of_its_own() -> None:
    headers = {"Content-Type": "text/csv; charset=utf-8"}
    assert (await sent(lambda url: definition(url, "POST", headers=headers, body="a,{a}\n"), a=1))["body"] == b"a,1\n"
    assert (await sent(lambda url: definition(url, "POST", body="say {a}"), a='"'))["body"] == b'"say \\""'


async def test_a_tool_without_parameters_sends_no_body() -> None:
    seen = await sent(lambda url: definition(url, "POST", parameters={}))
    assert seen["body"] == b""
    assert "Content-Type" not in seen["headers"]


async def test_a_body_over_the_limit_is_not_sent() -> None:
    async with calling(definition("http://127.0.0.1:1/", "POST"), 1) as call:
        assert "longer than 1048576 bytes" in (await call(a="x" * 1_100_000)).result


# what a call says of itself


@pytest.mark.parametrize(
    ("method", "key"), [("GET", False), ("HEAD", False), ("POST", True), ("PUT", True), ("DELETE", True)]
)
async def test_calls_that_change_something_carry_their_key(method: str, key: bool) -> None:
    headers = (await sent(lambda url: definition(url, method)))["headers"]
    assert headers.get("Idempotency-Key") == ("run_1:2-act:call_1" if key else None)


async def test_a_key_of_the_definitions_own_is_kept() -> None:
    headers = {"idempotency-key": "order-{a}"}
    seen = await sent(lambda url: definition(url, "POST", headers=headers), a=7)
    assert seen["headers"].getall("Idempotency-Key") == ["order-7"]


def test_what_a_tool_does_to_the_world_follows_from_its_method_unless_it_is_said() -> None:
    methods = {
        "GET": "read",
        "HEAD": "read",
        "PUT": "idempotent",
        "DELETE": "idempotent",
        "POST": "once",
        "PATCH": "once",
    }
    assert {method: definition("http://h/", method).effect_class for method in methods} == methods
    assert definition("http://h/", "POST", effect="read").effect_class == "read"


async def test_wrong_arguments_are_explained_and_nothing_is_sent() -> None:
    async with calling(definition("http://127.0.0.1:1/", parameters={"a": {"type": "integer"}}), 1) as call:
        outcome = await call(a="many")
    assert outcome.status == "error"
    assert "- a: " in outcome.result
    assert "call again" in outcome.result


# secrets


async def test_a_secret_goes_into_its_header_and_nowhere_else() -> None:
    listener, vault = Listener(), Pocket(token=SECRET)
    async with serving(listener.answer) as port:
        tool = definition(f"http://127.0.0.1:{port}/", headers={"authorization": "none"}, auth_config=AUTH)
        async with calling(tool, port, vault=vault) as call:
            outcome = await call()
    assert listener.seen[0]["headers"].getall("Authorization") == [f"Bearer {SECRET}"]
    assert outcome.status == "ok"
    assert vault.expected == {"token"}


@pytest.mark.parametrize(("value", "words"), [(None, "no secret named 'token'"), ("a\nb", "can't be sent in a header")])
async def test_a_secret_that_can_not_be_sent_is_named_and_not_shown(value: str | None, words: str) -> None:
    vault = Pocket() if value is None else Pocket(token=value)
    async with calling(definition("http://127.0.0.1:1/", auth_config=AUTH), 1, vault=vault) as call:
        outcome = await call()
    assert outcome.status == "error"
    assert words in outcome.result
    assert "a\nb" not in outcome.result


async def test_a_secret_that_comes_back_is_struck_out_wherever_it_is() -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        told = request.headers["Authorization"]
        basic = base64.b64encode(f"user:{SECRET}".encode()).decode()
        return web.json_response(
            {
                "plain": told,
                "nested": orjson.dumps({"again": told}).decode(),
                "basic": basic,
                "hex": SECRET.encode().hex(),
            },
            headers={"Location": f"/next?key={SECRET}"},
        )

    async with serving(echo) as port:
        tool = definition(f"http://127.0.0.1:{port}/", auth_config=AUTH)
        async with calling(tool, port, vault=Pocket(token=SECRET)) as call:
            outcome = await call()
    assert outcome.status == "ok"
    assert "hunter2" not in outcome.result
    assert base64.b64encode(SECRET.encode()).decode()[4:20] not in outcome.result
    assert SECRET.encode().hex() not in outcome.result
    assert outcome.result.count("[redacted]") >= 4


async def test_no_part_of_a_secret_is_left_where_an_answer_is_cut() -> None:
    async def flood(request: web.Request) -> web.StreamResponse:
        shift = int(request.query["a"])
        return web.Response(text="x" * shift + f"{SECRET} " * 40_000)

    async with serving(flood) as port:
        tool = definition(f"http://127.0.0.1:{port}/", auth_config=AUTH, max_result_bytes=1_000)
        async with calling(tool, port, vault=Pocket(token=SECRET)) as call:
            results = [(await call(a=shift)).result for shift in range(len(SECRET))]
    assert not any(SECRET[:6] in result for result in results)
    assert max(len(result.encode()) for result in results) <= 1_000


# redirects


async def test_a_secret_is_redirected_within_its_origin_and_no_further() -> None:
    listener = Listener()

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": request.query["a"]})

    async with serving(listener.answer) as other, serving(elsewhere) as port:
        tool = definition(f"http://127.0.0.1:{port}/", auth_config=AUTH)
        async with calling(tool, port, other, vault=Pocket(token=SECRET)) as call:
            outcome = await call(a=f"http://127.0.0.1:{other}/take?key={SECRET}")
            broken = await call(a="http://[")
        assert report(outcome.result)["status"] == 302
        assert report(outcome.result)["location"] == f"http://127.0.0.1:{other}/take?key=[redacted]"
        assert report(broken.result)["status"] == 302
        async with calling(definition(f"http://127.0.0.1:{port}/"), port, other) as call:
            assert report((await call(a=f"http://127.0.0.1:{other}/open")).result)["status"] == 200
    assert [seen["path"] for seen in listener.seen] == ["/open"]


async def test_a_redirect_within_the_origin_keeps_the_secret() -> None:
    async def moved(request: web.Request) -> web.StreamResponse:
        if request.path == "/":
            raise web.HTTPFound("/there")
        return web.Response(text=str(request.headers.get("Authorization") == f"Bearer {SECRET}"))

    async with serving(moved) as port:
        tool = definition(f"http://127.0.0.1:{port}/", auth_config=AUTH)
        async with calling(tool, port, vault=Pocket(token=SECRET)) as call:
            assert report((await call()).result)["text"] == "True"


async def test_what_changes_something_is_not_redirected_at_all() -> None:
    async def moved(request: web.Request) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect("/there")

    async with serving(moved) as port, calling(definition(f"http://127.0.0.1:{port}/", "POST"), port) as call:
        told = report((await call()).result)
    assert (told["status"], told["location"]) == (307, "/there")


# answers


@pytest.mark.parametrize("status", [400, 401, 404, 422, 500])
async def test_a_refusal_is_told_with_its_words(status: int) -> None:
    async def refusing(request: web.Request) -> web.StreamResponse:
        return web.json_response({"why": "no such order"}, status=status)

    async with serving(refusing) as port, calling(definition(f"http://127.0.0.1:{port}/"), port) as call:
        outcome = await call()
    assert outcome.status == "ok"
    assert (report(outcome.result)["status"], report(outcome.result)["text"]) == (status, '{"why": "no such order"}')


@pytest.mark.parametrize(
    ("status", "method", "outcome", "times"),
    [
        *((status, method, "error", 3) for status in (429, 502, 503, 504) for method in ("GET", "PUT")),
        *((status, "POST", "ok", 1) for status in (429, 503)),
        *((status, "POST", "unknown", 1) for status in (502, 504)),
    ],
)
async def test_a_server_that_says_not_now_is_asked_again_where_that_does_no_harm(
    status: int, method: str, outcome: str, times: int
) -> None:
    asked = 0

    async def busy(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return web.Response(text="come back later", status=status, headers={"Retry-After": "7"})

    async with serving(busy) as port:
        tool = definition(f"http://127.0.0.1:{port}/", method, retries=2)
        async with calling(tool, port) as call:
            ended = await call()
    assert (ended.status, asked) == (outcome, times)
    assert str(status) in ended.result
    assert "come back later" in ended.result


async def test_what_passes_in_a_moment_is_not_told() -> None:
    answers = iter([503, 200])

    async def recovering(request: web.Request) -> web.StreamResponse:
        return web.Response(text="fine", status=next(answers))

    async with serving(recovering) as port, calling(definition(f"http://127.0.0.1:{port}/"), port) as call:
        assert report((await call()).result)["status"] == 200


# bad servers


async def test_a_server_that_hangs_runs_into_the_timeout_of_the_definition() -> None:
    released = asyncio.Event()

    async def hanging(request: web.Request) -> web.StreamResponse:
        await released.wait()
        return web.Response()

    async with serving(hanging) as port:
        for method, status in (("GET", "error"), ("POST", "unknown")):
            async with calling(definition(f"http://127.0.0.1:{port}/", method, timeout=0.05, retries=0), port) as call:
                outcome = await call()
            assert outcome.status == status
            assert "within 0.05 s" in outcome.result
        released.set()


async def test_a_hundred_megabytes_are_cut_and_most_of_them_never_read() -> None:
    written = 0

    async def flooding(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        for _ in range(1_600):
            await response.write(b"x" * 65_536)
            written += 65_536
        return response

    async with serving(flooding) as port, calling(definition(f"http://127.0.0.1:{port}/"), port) as call:
        outcome = await call()
    assert outcome.status == "ok"
    assert "cut: the body is longer" in report(outcome.result)["note"]
    assert len(outcome.result) <= 65_536
    assert written < 50_000_000


async def test_a_compressed_bomb_stays_small() -> None:
    bomb = gzip.compress(b"\0" * 20_000_000)

    async def exploding(request: web.Request) -> web.StreamResponse:
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip", "Content-Type": "text/plain"})

    async with serving(exploding) as port, calling(definition(f"http://127.0.0.1:{port}/"), port) as call:
        outcome = await call()
    assert outcome.status == "ok"
    assert len(outcome.result) <= 65_536


async def test_binary_content_is_named_and_not_shown() -> None:
    async def image(request: web.Request) -> web.StreamResponse:
        return web.Response(body=bytes(range(256)) * 10, content_type="image/png")

    async with serving(image) as port, calling(definition(f"http://127.0.0.1:{port}/"), port) as call:
        told = report((await call()).result)
    assert (told["text"], told["note"]) == ("", "binary content of 2560 bytes, not shown")


@pytest.mark.parametrize("answer", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"])
@pytest.mark.parametrize(("method", "status"), [("GET", "error"), ("POST", "unknown")])
async def test_a_server_that_breaks_off_is_an_error_or_an_unknown_outcome(
    answer: bytes, method: str, status: str
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with calling(definition(f"http://127.0.0.1:{port}/", method), port) as call:
            assert (await call()).status == status


async def test_nobody_home_is_an_error_and_not_unknown() -> None:
    async with serving(Listener().answer) as port:
        pass
    async with calling(definition(f"http://127.0.0.1:{port}/", "POST"), port) as call:
        outcome = await call()
    assert outcome.status == "error"
    assert "(tried 2 times)" in outcome.result


async def test_a_private_address_is_not_reached() -> None:
    async with calling(definition("http://169.254.169.254/{a}")) as call:
        outcome = await call(a="latest")
    assert outcome.status == "error"
    assert "private or special" in outcome.result


async def test_fifty_calls_go_side_by_side() -> None:
    together = asyncio.Barrier(50)

    async def meeting(request: web.Request) -> web.StreamResponse:
        await together.wait()  # answers only when all fifty are here
        return web.json_response({})

    async with serving(meeting) as port:
        for method in ("GET", "POST"):
            async with calling(definition(f"http://127.0.0.1:{port}/", method), port) as call:
                began = time.perf_counter()
                outcomes = await asyncio.gather(*(call(a=number) for number in range(50)))
                took = time.perf_counter() - began
            assert {outcome.status for outcome in outcomes} == {"ok"}
            assert took < 10
