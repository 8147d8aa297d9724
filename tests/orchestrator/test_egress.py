"""The egress client: real servers on loopback, reached through the allow list; names resolve as each test says."""

from __future__ import annotations

import asyncio
import gzip
import socket
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest
from aiohttp import web

from orchestrator.egress import EgressClient, EgressFailed, EgressRefused, Resolve
from orchestrator.egress.addresses import is_public
from orchestrator.egress.gate import Gate

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """A web server on loopback; yields its port."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def answering(raw: bytes) -> AsyncIterator[int]:
    """A server that sends exactly these bytes to whoever connects, then closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def client(
    *ports: int,
    resolve: Resolve | None = None,
    allow: Sequence[str] = (),
    timeout: float = 5.0,
    max_bytes: int = 100_000,
) -> AsyncIterator[EgressClient]:
    egress = EgressClient(
        allow=[f"127.0.0.1:{port}" for port in ports] + list(allow),
        resolve=resolve,
        timeout=timeout,
        max_bytes=max_bytes,
    )
    try:
        yield egress
    finally:
        await egress.aclose()


def names(**addresses: list[str]) -> Resolve:
    async def resolve(host: str, port: int) -> Sequence[str]:
        try:
            return addresses[host.replace(".", "_")]
        except KeyError:
            raise socket.gaierror(socket.EAI_NONAME, "no such name") from None

    return resolve


async def echo(request: web.Request) -> web.Response:
    return web.json_response(
        {
            "method": request.method,
            "path": request.path_qs,
            "headers": dict(request.headers),
            "body": await request.text(),
        }
    )


# which addresses


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254",
        "168.63.129.16", "169.254.169.254", "172.16.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1",
        "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:808:808::",
        "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1",
        "2606:4700::1%eth0",
    ],
)  # fmt: skip
def test_a_private_or_special_address_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "169.253.0.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_an_ordinary_address_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0x7f.1", "017700000001",
        "0177.0.0.1", "0177.0x0.1", "127.0.0.1.", "１２７.0.0.1", "①②⑦.⓪.⓪.①", "127。0。0。1", "0", "0x0",
        "0.0.0.0", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
        "[fe80::1%25eth0]", "[64:ff9b::127.0.0.1]", "169.254.169.254", "2852039166", "[fd00:ec2::254]",
        "100.100.100.200",
    ],
)  # fmt: skip
async def test_a_private_address_is_refused_in_every_notation(host: str) -> None:
    async with client() as egress:
        with pytest.raises(EgressRefused, match="private or special"):
            await egress.request("GET", f"http://{host}/")


@pytest.mark.parametrize(
    "host",
    [
        "256.1.1.1", "1.2.3.4.5", "09.1.1.1", "4294967296", "%31%32%37.0.0.1", "a b", "a_%00", "-", "a..b", "x" * 64,
        "h\x00st",
    ],
)  # fmt: skip
async def test_a_host_that_is_neither_address_nor_name_is_refused(host: str) -> None:
    async with client(resolve=names()) as egress:
        with pytest.raises(EgressRefused):
            await egress.request("GET", f"http://{host}/")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://example.com/", "only http"),
        ("file:///etc/passwd", "only http"),
        ("gopher://example.com/", "only http"),
        ("javascript:alert(1)", "only http"),
        ("//example.com/", "only http"),
        ("example.com", "only http"),
        ("", "only http"),
        ("http://user:secret@example.com/", "user names"),
        ("http://user@example.com/", "user names"),
        ("http://:secret@example.com/", "user names"),
        ("http:///path", "names no host"),
        ("http://example.com:0/", "names no host or no port"),
        ("http://example.com:99999/", "not a valid URL"),
        ("http://127.0.0.1\\@example.com/", "not a valid URL"),
        ("http://[::1/", "not a valid URL"),
        ("http://example.com/" + "x" * 9_000, "longer than"),
    ],
)
async def test_a_url_that_breaks_a_rule_is_refused_without_showing_secrets(url: str, words: str) -> None:
    async with client(resolve=names()) as egress:
        with pytest.raises(EgressRefused, match=words) as raised:
            await egress.request("GET", url)
    assert "secret" not in str(raised.value)


# names


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:10.0.0.1", "fd00::1"])
async def test_a_name_that_leads_to_a_private_address_is_refused(address: str) -> None:
    async with serving(echo) as port, client(resolve=names(evil_example=[address])) as egress:
        with pytest.raises(EgressRefused, match=f"evil.example:{port} leads to a private"):
            await egress.request("GET", f"http://evil.example:{port}/")


async def test_a_name_that_leads_both_outside_and_inside_is_refused() -> None:
    async with client(resolve=names(evil_example=["93.184.215.14", "127.0.0.1"])) as egress:
        with pytest.raises(EgressRefused, match="leads to a private"):
            await egress.request("GET", "http://evil.example/")


async def test_a_name_is_resolved_once_per_connection_and_the_answer_is_what_is_connected_to() -> None:
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    async with serving(echo) as port, client(resolve=rebinding, allow=[f"inside.example:{port}"]) as egress:
        response = await egress.request("GET", f"http://inside.example:{port}/")
        assert response.status == 200
        assert asked == ["inside.example"]


async def test_the_name_localhost_is_refused_by_the_systems_own_resolver() -> None:
    async with serving(echo) as port, client() as egress:
        with pytest.raises(EgressRefused, match="leads to a private"):
            await egress.request("GET", f"http://localhost:{port}/")


async def test_an_allowed_name_may_lead_to_a_private_address() -> None:
    async with serving(echo) as port, client(allow=[f"LocalHost:{port}"]) as egress:
        assert (await egress.request("GET", f"http://localhost:{port}/")).status == 200


async def test_an_allowed_name_opens_neither_its_address_nor_other_ports() -> None:
    async with serving(echo) as port, serving(echo) as other, client(allow=[f"localhost:{port}"]) as egress:
        await egress.request("GET", f"http://localhost:{port}/")
        for url in (f"http://127.0.0.1:{port}/", f"http://localhost:{other}/"):
            with pytest.raises(EgressRefused):
                await egress.request("GET", url)


async def test_an_allowed_address_may_be_written_in_any_notation() -> None:
    async with serving(echo) as port, client(port) as egress:
        assert (await egress.request("GET", f"http://2130706433:{port}/")).url == f"http://127.0.0.1:{port}/"


@pytest.mark.parametrize(
    "entry", ["localhost", "localhost:", ":80", "localhost:http", "localhost:0", "a b:80", "1.2.3.4.5:80"]
)
def test_a_malformed_allow_list_is_refused_at_the_start(entry: str) -> None:
    with pytest.raises(ValueError, match="egress allow list"):
        EgressClient(allow=[entry])


async def test_a_name_without_an_address_fails_and_nothing_was_sent() -> None:
    async with client(resolve=names()) as egress:
        with pytest.raises(EgressFailed, match=r"nowhere.example:80 does not resolve") as raised:
            await egress.request("GET", "http://nowhere.example/")
    assert (raised.value.reached, raised.value.retryable) == (False, False)


def test_no_socket_is_opened_to_an_address_that_was_not_let_through() -> None:
    gate = Gate(["127.0.0.1:8080"])
    info = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 8080))
    with pytest.raises(PermissionError):
        gate.socket(info)
    gate.url("http://127.0.0.1:8080/")
    gate.socket(info).close()


async def test_proxies_and_credentials_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(echo) as port, client(port) as egress:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        assert (await egress.request("GET", f"http://127.0.0.1:{port}/")).status == 200


# redirects


def redirecting(target: Callable[[web.Request], str], status: int = 302) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/start":
            return web.Response(status=status, headers={"Location": target(request)})
        return await echo(request)

    return handler


async def test_a_redirect_is_followed_and_the_final_url_is_told() -> None:
    async with serving(redirecting(lambda _: "end?x=1#part")) as port, client(port) as egress:
        response = await egress.request("GET", f"http://127.0.0.1:{port}/start#top")
    assert (response.status, response.url) == (200, f"http://127.0.0.1:{port}/end?x=1")


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "//10.0.0.1/",
        "http://[::1]/",
        "http://2130706433/",
        "http://evil.example/",
        "file:///etc/passwd",
        "http://user:pass@example.com/",
    ],
)
async def test_a_redirect_to_where_requests_may_not_go_is_refused(target: str) -> None:
    resolve = names(evil_example=["192.168.0.1"])
    async with serving(redirecting(lambda _: target)) as port, client(port, resolve=resolve) as egress:
        with pytest.raises(EgressRefused):
            await egress.request("GET", f"http://127.0.0.1:{port}/start")


async def test_a_redirect_to_no_url_fails() -> None:
    async with serving(redirecting(lambda _: "http://[oops/")) as port, client(port) as egress:
        with pytest.raises(EgressFailed, match="no URL"):
            await egress.request("GET", f"http://127.0.0.1:{port}/start")


async def test_five_redirects_are_followed_and_a_sixth_is_not() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        left = int(request.path[1:])
        return web.Response(status=302, headers={"Location": f"/{left - 1}"}) if left else web.Response(text="end")

    async with serving(handler) as port, client(port) as egress:
        assert (await egress.request("GET", f"http://127.0.0.1:{port}/5")).body == b"end"
        with pytest.raises(EgressFailed, match="more than 5 redirects"):
            await egress.request("GET", f"http://127.0.0.1:{port}/6")


SECRETS = {"Authorization": "Bearer x", "Cookie": "a=b", "X-Api-Key": "k", "Accept": "text/plain"}


async def test_credentials_stay_on_a_redirect_within_the_origin() -> None:
    async with serving(redirecting(lambda _: "/end")) as port, client(port) as egress:
        response = await egress.request("GET", f"http://127.0.0.1:{port}/start", headers=SECRETS)
    for name, value in SECRETS.items():
        assert f'"{name}": "{value}"'.encode() in response.body


async def test_credentials_do_not_cross_to_another_origin_nor_come_back() -> None:
    async with serving(echo) as home:

        async def away(request: web.Request) -> web.StreamResponse:
            assert not {"Authorization", "Cookie", "X-Api-Key"} & set(request.headers)
            assert request.headers["Accept"] == "text/plain"
            return web.Response(status=302, headers={"Location": f"http://127.0.0.1:{home}/end"})

        async with (
            serving(away) as middle,
            serving(redirecting(lambda _: f"http://127.0.0.1:{middle}/")) as first,
            client(home, middle, first) as egress,
        ):
            response = await egress.request("GET", f"http://127.0.0.1:{first}/start", headers=SECRETS)
    assert response.status == 200
    assert b"Bearer" not in response.body
    assert b"X-Api-Key" not in response.body


async def test_cookies_are_not_kept_from_one_request_to_the_next() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await echo(request)
        response.headers["Set-Cookie"] = "session=1; Path=/"
        return response

    async with serving(handler) as port, client(port) as egress:
        for _ in range(2):
            response = await egress.request("GET", f"http://127.0.0.1:{port}/")
            assert b"session=1" not in response.body


@pytest.mark.parametrize(("status", "method"), [(301, "GET"), (302, "GET"), (303, "GET"), (307, "POST"), (308, "POST")])
async def test_a_redirected_post_becomes_what_http_says(status: int, method: str) -> None:
    async with serving(redirecting(lambda _: "/end", status)) as port, client(port) as egress:
        response = await egress.request(
            "POST", f"http://127.0.0.1:{port}/start", content=b"payload", headers={"Content-Type": "text/plain"}
        )
    assert f'"method": "{method}"'.encode() in response.body
    assert (b"payload" in response.body) == (b"text/plain" in response.body) == (method == "POST")


async def test_a_body_is_not_carried_to_another_origin() -> None:
    async with (
        serving(echo) as other,
        serving(redirecting(lambda _: f"http://127.0.0.1:{other}/", 307)) as port,
        client(port, other) as egress,
    ):
        with pytest.raises(EgressRefused, match="a request with a body"):
            await egress.request("POST", f"http://127.0.0.1:{port}/start", content=b"payload")


# headers


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "other.example"},
        {"host": "other.example"},
        {"Transfer-Encoding": "chunked"},
        {"Content-Length": "5"},
        {"Connection": "upgrade"},
        {"Proxy-Authorization": "x"},
        {"Bad Name": "x"},
        {"": "x"},
        {"X": "a\r\nHost: b"},
        {"X": "a\x00"},
        {"X": "λ"},
        {"X": "a" * 8_401},
        {f"X-{n}": "a" for n in range(65)},
    ],
)
async def test_a_header_that_could_change_the_message_is_refused(headers: dict[str, str]) -> None:
    async with client() as egress:
        with pytest.raises(EgressRefused):
            await egress.request("GET", "http://example.com/", headers=headers)


# bodies


async def test_a_body_over_the_cap_is_cut_and_the_rest_is_not_read() -> None:
    stopped = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65_536)
        finally:
            stopped.set()

    async with serving(endless) as port, client(port) as egress:
        response = await egress.request("GET", f"http://127.0.0.1:{port}/", max_bytes=1_000)
        assert (response.body, response.truncated) == (b"x" * 1_000, True)
        await asyncio.wait_for(stopped.wait(), 5)


async def test_a_body_of_just_the_cap_is_not_called_cut() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x" * 1_000)

    async with serving(handler) as port, client(port) as egress:
        response = await egress.request("GET", f"http://127.0.0.1:{port}/", max_bytes=1_000)
    assert (len(response.body), response.truncated) == (1_000, False)


async def test_a_request_cannot_raise_the_clients_cap() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x" * 2_000)

    async with serving(handler) as port, client(port, max_bytes=500) as egress:
        response = await egress.request("GET", f"http://127.0.0.1:{port}/", max_bytes=10_000)
    assert (len(response.body), response.truncated) == (500, True)


def compressed(encoding: str, data: bytes) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=data, headers={"Content-Encoding": encoding})

    return handler


RAW_DEFLATE = zlib.compressobj(wbits=-zlib.MAX_WBITS)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("gzip", gzip.compress(b"hello " * 100, mtime=0)),
        ("X-GZIP", gzip.compress(b"hello " * 100, mtime=0)),
        ("deflate", zlib.compress(b"hello " * 100)),
        ("deflate", RAW_DEFLATE.compress(b"hello " * 100) + RAW_DEFLATE.flush()),
        ("identity", b"hello " * 100),
    ],
)
async def test_a_compressed_body_is_decompressed(encoding: str, data: bytes) -> None:
    async with serving(compressed(encoding, data)) as port, client(port) as egress:
        response = await egress.request("GET", f"http://127.0.0.1:{port}/")
    assert (response.body, response.truncated) == (b"hello " * 100, False)


async def test_a_decompression_bomb_stops_at_the_cap() -> None:
    bomb = gzip.compress(b"\0" * 200_000_000, compresslevel=1)
    async with serving(compressed("gzip", bomb)) as port, client(port) as egress:
        began = time.perf_counter()
        response = await egress.request("GET", f"http://127.0.0.1:{port}/")
    assert (len(response.body), response.truncated) == (100_000, True)
    assert time.perf_counter() - began < 1


async def test_what_follows_a_compressed_body_is_not_read() -> None:
    body = gzip.compress(b"hello") + b"x" * 1_000_000
    async with serving(compressed("gzip", body)) as port, client(port) as egress:
        assert (await egress.request("GET", f"http://127.0.0.1:{port}/")).body == b"hello"


@pytest.mark.parametrize(("encoding", "data"), [("gzip", b"not gzip at all"), ("br", b"x"), ("gzip, br", b"x")])
async def test_a_body_that_cannot_be_decompressed_fails(encoding: str, data: bytes) -> None:
    async with serving(compressed(encoding, data)) as port, client(port) as egress:
        with pytest.raises(EgressFailed, match="compressed") as raised:
            await egress.request("GET", f"http://127.0.0.1:{port}/")
    assert not raised.value.retryable


# failures


async def test_a_server_that_never_answers_runs_into_the_timeout() -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(silent) as port, client(port, timeout=0.1) as egress:
        with pytest.raises(EgressFailed, match=r"within 0\.1 s"):
            await egress.request("GET", f"http://127.0.0.1:{port}/", timeout=60)


async def test_the_timeout_covers_a_body_that_drips() -> None:
    async def dripping(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"drip")
        await asyncio.Event().wait()
        return response

    async with serving(dripping) as port, client(port, timeout=0.1) as egress:
        with pytest.raises(EgressFailed, match=r"within 0\.1 s"):
            await egress.request("GET", f"http://127.0.0.1:{port}/")


async def test_the_timeout_covers_a_resolver_that_hangs() -> None:
    async def hanging(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    async with client(resolve=hanging, timeout=0.05) as egress:
        with pytest.raises(EgressFailed, match="within"):
            await egress.request("GET", "http://slow.example/")


async def test_a_refused_connection_fails_and_nothing_was_sent() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: nobody else gets the port, and it refuses
        port = taken.getsockname()[1]
        async with client(port) as egress:
            with pytest.raises(EgressFailed, match=f"no connection to 127.0.0.1:{port}") as raised:
                await egress.request("GET", f"http://127.0.0.1:{port}/?token=secret")
    assert (raised.value.reached, raised.value.retryable) == (False, True)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\x01\x02 garbage\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 10_000 + b"\r\n",
    ],
)
async def test_an_answer_that_is_not_http_or_breaks_off_fails(raw: bytes) -> None:
    async with answering(raw) as port, client(port) as egress:
        with pytest.raises(EgressFailed) as raised:
            await egress.request("GET", f"http://127.0.0.1:{port}/")
    assert raised.value.reached


async def test_a_server_without_trusted_tls_fails_and_is_not_retried() -> None:
    async with serving(echo) as port, client(port) as egress:
        with pytest.raises(EgressFailed, match="TLS") as raised:
            await egress.request("GET", f"https://127.0.0.1:{port}/")
    assert not raised.value.retryable


async def test_any_status_is_a_response() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=int(request.path[1:]), text="x")

    async with serving(handler) as port, client(port) as egress:
        for status in (201, 302, 404, 429, 503):
            assert (await egress.request("GET", f"http://127.0.0.1:{port}/{status}")).status == status


async def test_fifty_requests_run_side_by_side() -> None:
    arrived, everyone = 0, asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal arrived
        arrived += 1
        if arrived == 50:
            everyone.set()
        await everyone.wait()
        return web.Response(text="x")

    async with serving(handler) as port, client(port) as egress:
        responses = await asyncio.gather(*(egress.request("GET", f"http://127.0.0.1:{port}/{n}") for n in range(50)))
    assert [response.status for response in responses] == [200] * 50
