"""Streamable HTTP, through the rules of our egress. Needs the mcp package.

What always holds: a name is resolved once per connection, every address is judged and the connection goes to exactly
these; no proxy from the environment; nothing compressed is taken; a response has a cap and an end. A request that fails
never tears down the session that other runs share: its failure comes back as the answer to it alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import httpcore2
import httpx2
import orjson
from mcp.client.streamable_http import streamable_http_client

from orchestrator.egress import EgressRefused, Resolve
from orchestrator.egress import headers as header_rules
from orchestrator.egress.addresses import literal
from orchestrator.egress.gate import Gate
from orchestrator.mcp.faults import Faults
from orchestrator.mcp.listing import EFFECT, KEY
from orchestrator.tools.errors import ToolFailure

MAX_BYTES: Final = 8 * 1024 * 1024
"""Of one response; a tool's result is cut much shorter, but structured content may say everything twice."""

_MAX_NEWS: Final = 1024 * 1024  # bytes of one stream of notifications, which servers may open without end
_NEWS_EVERY: Final = 1.0
_LONGEST_CALL: Final = 630.0
_LONGEST_NOTE: Final = 5.0
_LONGEST_FAREWELL: Final = 2.0
_CONNECT: Final = 5.0
_CONNECTIONS: Final = 64
_ADDRESSES_TRIED: Final = 4
_ERROR_BYTES: Final = 65_536
_AT_ONCE: Final = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)  # head and body of a request are two writes


@asynccontextmanager
async def http_streams(
    name: str,
    url: str,
    headers: Mapping[str, str],
    *,
    gate: Gate,
    resolve: Resolve,
    tls: ssl.SSLContext,
    faults: Faults,
    on_lost: Callable[[str], None],
) -> AsyncIterator[tuple[Any, Any]]:
    """The two message streams of a session with the server at `url`.

    Raises:
        EgressRefused: the URL or a header breaks a rule.
    """
    address = str(gate.url(url))
    transport = _GatedTransport(name, gate, resolve, tls, faults, on_lost)
    async with (
        httpx2.AsyncClient(
            transport=transport,
            headers={**header_rules.checked(headers), "Accept-Encoding": "identity", "User-Agent": "Longhaul"},
            timeout=httpx2.Timeout(None, connect=_CONNECT, pool=_CONNECT),
            trust_env=False,
        ) as client,
        streamable_http_client(address, http_client=client, max_sse_event_size=MAX_BYTES) as streams,
    ):
        yield streams


class _GatedBackend(httpcore2.AsyncNetworkBackend):
    """Opens connections to addresses that the gate let through."""

    def __init__(self, gate: Gate, resolve: Resolve) -> None:
        self._gate = gate
        self._resolve = resolve
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        failure: Exception = httpcore2.ConnectError("no address")
        address = literal(host)
        try:
            found = [str(address)] if address is not None else await self._resolve(host, port)
        except OSError:
            raise httpcore2.ConnectError("the name does not resolve") from None
        for pinned in self._gate.addresses(host, port, found[:_ADDRESSES_TRIED]):
            try:
                return await self._network.connect_tcp(pinned, port, timeout, local_address, _AT_ONCE)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _GatedTransport(httpx2.AsyncBaseTransport):
    """Sends the requests of one session. Never raises but for cancellation: failures become error responses."""

    def __init__(
        self,
        name: str,
        gate: Gate,
        resolve: Resolve,
        tls: ssl.SSLContext,
        faults: Faults,
        on_lost: Callable[[str], None],
    ) -> None:
        self._server = f"The MCP server {name!r}"
        self._gate = gate
        self._faults = faults
        self._on_lost = on_lost
        backend = _GatedBackend(gate, resolve)

        def pool(keep: int) -> httpcore2.AsyncConnectionPool:
            return httpcore2.AsyncConnectionPool(
                ssl_context=tls,
                max_connections=_CONNECTIONS,
                max_keepalive_connections=keep,
                keepalive_expiry=30.0,
                network_backend=backend,
            )

        # A server may close a connection that is kept just when it is used again, and nobody can tell then whether it
        # has seen the request. One that must not be repeated gets a connection of its own.
        self._kept, self._single = pool(4), pool(0)
        self._news_from = 0.0

    async def aclose(self) -> None:
        await self._kept.aclose()
        await self._single.aclose()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        asked, pool = _asked(request), self._kept
        now = asyncio.get_running_loop().time()
        if asked is not None:
            seconds, cap = (None if asked["method"] == "subscriptions/listen" else _LONGEST_CALL), MAX_BYTES
            meta = _meta(asked)
            if isinstance(key := meta.get(KEY), str):
                request.headers["Idempotency-Key"] = key
            pool = self._single if meta.get(EFFECT) == "once" else self._kept
        elif request.method == "GET":
            # The package opens it again whenever the server closes it, at once if the server likes.
            await asyncio.sleep(max(0.0, self._news_from - now))
            self._news_from = asyncio.get_running_loop().time() + _NEWS_EVERY
            seconds, cap = None, _MAX_NEWS
        else:
            seconds, cap = (_LONGEST_FAREWELL if request.method == "DELETE" else _LONGEST_NOTE), _ERROR_BYTES
        until = None if seconds is None else now + seconds
        try:
            async with asyncio.timeout_at(until):
                response = await self._send(request, pool)
                return await self._taken(request, response, asked, cap, until)
        except ToolFailure as failure:
            return self._failed(asked, failure)
        except EgressRefused as refused:
            return self._failed(asked, ToolFailure(f"{self._server} is not used: {refused.message}.", reached=False))
        except (httpcore2.ConnectError, httpcore2.ConnectTimeout, httpcore2.PoolTimeout) as error:
            untrusted = isinstance(error.__cause__, ssl.SSLError)
            text = "has no TLS certificate that is trusted" if untrusted else "can't be reached"
            return self._failed(asked, ToolFailure(f"{self._server} {text}.", retryable=not untrusted, reached=False))
        except TimeoutError:
            return self._failed(asked, ToolFailure(f"{self._server} did not answer in time.", retryable=True))
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError):
            return self._failed(asked, ToolFailure(f"{self._server} broke off the connection.", retryable=True))

    async def _send(self, request: httpx2.Request, pool: httpcore2.AsyncConnectionPool) -> httpcore2.Response:
        self._gate.url(str(request.url))
        return await pool.handle_async_request(
            httpcore2.Request(
                method=request.method,
                url=httpcore2.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions={"timeout": request.extensions.get("timeout", {})},
            )
        )

    async def _taken(
        self,
        request: httpx2.Request,
        response: httpcore2.Response,
        asked: dict[str, Any] | None,
        cap: int,
        until: float | None,
    ) -> httpx2.Response:
        """The response as the package may see it: an event stream as it comes, everything else read whole."""
        body = _Body(response, cap, until, lambda: self._faults.leave(self._too_much()))
        headers = httpx2.Headers(response.headers)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        streamed = False
        try:
            if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
                raise ToolFailure(f"{self._server} sent something compressed, which was not asked for.", retryable=True)
            if response.status < 300 and kind == "text/event-stream":
                streamed = True
                return httpx2.Response(response.status, headers=response.headers, stream=body)
            content = await body.whole()
            if asked is not None and not 300 <= response.status < 400:
                self._check(request, response.status, kind, content, asked)
            return httpx2.Response(response.status, headers=response.headers, content=content)
        finally:
            if not streamed:
                await body.aclose()

    def _check(
        self, request: httpx2.Request, status: int, kind: str, content: bytes | None, asked: dict[str, Any]
    ) -> None:
        """Raises ToolFailure for an answer to a request that is no JSON-RPC message."""
        if status == 404 and "mcp-session-id" in request.headers:
            self._on_lost("it has forgotten the session")
            raise ToolFailure(f"{self._server} has forgotten the session.", retryable=True, reached=False)
        answer: dict[str, Any] = {}
        if kind == "application/json" and content is not None:
            with contextlib.suppress(ValueError):
                read = orjson.loads(content)
                answer = read if isinstance(read, dict) and read.get("jsonrpc") == "2.0" else {}
        if status >= 400:
            if "error" in answer:
                return
            # Nothing is known to have been done where the server turned the request away.
            turned_away = status < 500 and status != 408
            again = status in (408, 429) or status >= 500
            raise ToolFailure(f"{self._server} answered {_status(status)}.", retryable=again, reached=not turned_away)
        if status == 202:
            return
        if content is None:
            raise self._too_much()
        if answer.get("id") != asked["id"]:
            what = (
                "something that is no answer in JSON-RPC" if kind == "application/json" else f"{kind[:80] or 'bytes'}"
            )
            raise ToolFailure(f"{self._server} sent {what}, not an answer to the call.", retryable=True)

    def _too_much(self) -> ToolFailure:
        return ToolFailure(f"{self._server} sent more than {MAX_BYTES // 1_048_576} MiB.", retryable=True)

    def _failed(self, asked: dict[str, Any] | None, failure: ToolFailure) -> httpx2.Response:
        if asked is None:
            return httpx2.Response(502)
        error = {"code": -32000, "message": self._faults.leave(failure)}
        body = orjson.dumps({"jsonrpc": "2.0", "id": asked["id"], "error": error})
        return httpx2.Response(502, content=body, headers={"Content-Type": "application/json"})


class _Body(httpx2.AsyncByteStream):
    """A response's body up to its cap and its end."""

    def __init__(
        self, response: httpcore2.Response, cap: int, until: float | None, too_much: Callable[[], str]
    ) -> None:
        self._response = response
        self._cap = cap
        self._until = until
        self._too_much = too_much

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        chunks = aiter(self._response.stream)  # type: ignore[arg-type]  # of an async pool
        while True:
            try:
                async with asyncio.timeout_at(self._until):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except (TimeoutError, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException) as error:
                raise httpx2.ReadError(type(error).__name__) from None
            read += len(chunk)
            if read > self._cap:
                raise httpx2.SSEError(self._too_much())
            yield chunk

    async def whole(self) -> bytes | None:
        """All of it; None if there is more than the cap."""
        parts, read = [], 0
        async for chunk in self._response.stream:  # type: ignore[union-attr]
            read += len(chunk)
            if read > self._cap:
                return None
            parts.append(chunk)
        return b"".join(parts)

    async def aclose(self) -> None:
        await self._response.aclose()


def _asked(request: httpx2.Request) -> dict[str, Any] | None:
    """The JSON-RPC request that this carries; None for notifications, answers and what has no body."""
    if request.method != "POST":
        return None
    message = orjson.loads(request.content)
    return message if isinstance(message, dict) and "id" in message and "method" in message else None


def _meta(asked: dict[str, Any]) -> dict[str, Any]:
    return (asked.get("params") or {}).get("_meta") or {}


def _status(status: int) -> str:
    if status in (401, 403):
        return f"HTTP {status}: it does not accept the credentials of this server's definition"
    return f"HTTP {status}"
