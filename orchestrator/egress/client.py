"""The HTTP client for everything that tools fetch or call outside.

What always holds: no request to a private or special address, also not after a redirect or through a name that
changes what it points to; credentials never cross to another origin; no cookie jar, no proxy and no netrc from
the environment; no more memory than the cap; no longer than the timeout.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Final, Literal, TypeAlias

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from orchestrator.egress import body as bodies
from orchestrator.egress import headers as rules
from orchestrator.egress.errors import EgressError, EgressFailed, EgressRefused
from orchestrator.egress.gate import Gate
from orchestrator.egress.resolver import GatedResolver, Resolve, SystemResolver

_CONNECT_SECONDS: Final = 10.0
_CONNECTIONS: Final = 256
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_REPEATABLE: Final = ("GET", "HEAD", "PUT", "DELETE", "OPTIONS")


Follow: TypeAlias = bool | Literal["same origin"]
"""Whether redirects are followed, or only those to the scheme, host and port that were asked. One that is not followed
is the response."""


@dataclass(frozen=True, slots=True)
class EgressResponse:
    """What came back. `url` is where the last redirect led; `truncated`: the body was longer than the cap."""

    status: int
    url: str
    headers: CIMultiDictProxy[str]
    content_type: str
    charset: str | None
    body: bytes
    truncated: bool


@dataclass(slots=True)
class _Hop:
    method: str
    url: URL
    headers: dict[str, str]
    content: bytes | None


@dataclass(slots=True)
class _Sent:
    """Whether a byte of the request, or of one before it that was redirected, can have left this process."""

    begun: bool = False


class EgressClient:
    """Safe for any number of requests at once, on one event loop. Opens nothing before the first of them.

    Args:
        allow: `host:port` pairs that may be reached although they are private.
        resolve: names to addresses; the operating system's resolver if None.
        timeout: seconds for a request with all its redirects and its body.
        max_bytes: cap on a decompressed body.
        max_redirects: more than these fail the request.
    """

    def __init__(
        self,
        *,
        allow: Collection[str] = (),
        resolve: Resolve | None = None,
        timeout: float = 20.0,
        max_bytes: int = 2 * 1024 * 1024,
        max_redirects: int = 5,
        user_agent: str = "Longhaul",
    ) -> None:
        self._gate = Gate(allow)
        self._system = SystemResolver() if resolve is None else None
        self._resolve: Resolve = resolve or self._system  # type: ignore[assignment]  # one of them is there
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._max_redirects = max_redirects
        self._user_agent = user_agent
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        max_bytes: int | None = None,
        timeout: float | None = None,
        follow: Follow = True,
    ) -> EgressResponse:
        """Sends one request and, if it is to `follow` them, its redirects. Any HTTP status is a response, no error.

        `max_bytes` and `timeout` can only lower the client's own.

        Raises:
            EgressRefused: the request, or a redirect, breaks a rule.
            EgressFailed: no complete response.
        """
        seconds = min(timeout or self._timeout, self._timeout)
        limit = self._max_bytes if max_bytes is None else min(max_bytes, self._max_bytes)
        given = rules.checked(headers or {})
        if not any(name.lower() == "user-agent" for name in given):
            given["User-Agent"] = self._user_agent
        hop = _Hop(method, self._gate.url(url), given, content)
        sent = _Sent()
        try:
            async with asyncio.timeout(seconds):
                for _ in range(self._max_redirects + 1):
                    ended = await self._send(hop, limit, sent, follow=follow)
                    if isinstance(ended, EgressResponse):
                        return ended
                    hop = self._redirected(hop, *ended)
        except TimeoutError:
            message = f"no complete answer from {_where(hop.url)} within {seconds:g} s"
            raise EgressFailed(message, reached=sent.begun) from None
        raise EgressFailed(f"more than {self._max_redirects} redirects", retryable=False)

    async def aclose(self) -> None:
        """Closes all connections. The client must not be used afterwards."""
        for session in self._sessions.values():
            await session.close()
        if self._system is not None:
            self._system.close()

    async def _send(self, hop: _Hop, limit: int, sent: _Sent, *, follow: Follow) -> EgressResponse | tuple[int, str]:
        """A response, or the status and target of a redirect."""
        # A server may close a connection that is kept for later just when it is used again. Nobody can tell then
        # whether it has seen the request, so one that must not be repeated gets a connection of its own.
        try:
            async with self._open(keep=hop.method in _REPEATABLE).request(
                hop.method,
                hop.url,
                headers={**hop.headers, "Accept-Encoding": bodies.ACCEPT_ENCODING},
                data=hop.content,
                allow_redirects=False,
                trace_request_ctx=sent,
            ) as response:
                target = response.headers.get("Location")
                if response.status in _REDIRECTS and target is not None and _followed(follow, hop.url, target):
                    response.close()
                    return response.status, target
                content, truncated = await bodies.read(response, limit)
                return EgressResponse(
                    response.status,
                    str(response.url),
                    response.headers,
                    response.content_type,
                    response.charset,
                    content,
                    truncated,
                )
        except EgressError:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _failure(error, hop.url, reached=sent.begun) from None

    def _redirected(self, hop: _Hop, status: int, target: str) -> _Hop:
        try:
            joined = hop.url.join(URL(target))
        except ValueError:
            raise EgressFailed(f"{_where(hop.url)} redirects to something that is no URL", retryable=False) from None
        try:
            url = self._gate.url(joined)
        except EgressRefused as refused:
            raise EgressRefused(f"{_where(hop.url)} redirects to where it may not: {refused.message}") from None
        method, headers, content = hop.method, hop.headers, hop.content
        if (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST"):
            method, headers, content = "GET", rules.for_a_bodyless_request(headers), None
        if url.origin() != hop.url.origin():
            if content is not None:
                raise EgressRefused(f"{_where(hop.url)} redirects a request with a body to {_where(url)}")
            headers = rules.for_another_origin(headers)
        return _Hop(method, url, headers, content)

    def _open(self, *, keep: bool) -> aiohttp.ClientSession:
        if keep not in self._sessions:
            connector = aiohttp.TCPConnector(
                resolver=GatedResolver(self._gate, self._resolve),
                socket_factory=self._gate.socket,
                use_dns_cache=False,
                limit=_CONNECTIONS,
                force_close=not keep,
            )
            self._sessions[keep] = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),  # a shared jar would carry one org's cookies to another
                auto_decompress=False,
                trust_env=False,
                skip_auto_headers=("Content-Type",),
                trace_configs=[_told_when_sent()],
            )
        return self._sessions[keep]


def _followed(follow: Follow, url: URL, target: str) -> bool:
    if follow != "same origin":
        return follow
    try:
        return url.join(URL(target)).origin() == url.origin()
    except ValueError:
        return False


def _where(url: URL) -> str:
    return f"{url.host}:{url.port}"


def _told_when_sent() -> aiohttp.TraceConfig:
    """Marks a request's `_Sent` right before its first byte is written."""

    async def mark(session: aiohttp.ClientSession, context: SimpleNamespace, told: object) -> None:
        context.trace_request_ctx.begun = True

    tracing = aiohttp.TraceConfig()
    tracing.on_request_headers_sent.append(mark)
    return tracing


def _failure(error: Exception, url: URL, *, reached: bool) -> EgressFailed:
    """What went wrong, in words that hold nothing of the request but host and port."""
    where = _where(url)
    if isinstance(error, aiohttp.ClientSSLError):
        return EgressFailed(f"no trusted TLS connection to {where}", retryable=False, reached=reached)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        busy = error.os_error.errno == socket.EAI_AGAIN
        return EgressFailed(f"the host name of {where} does not resolve", retryable=busy, reached=reached)
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return EgressFailed(f"no connection to {where}", reached=reached)
    if isinstance(error, aiohttp.ClientResponseError):
        return EgressFailed(f"{where} did not answer in HTTP", retryable=False, reached=reached)
    return EgressFailed(f"{where} broke off the connection", reached=reached)
