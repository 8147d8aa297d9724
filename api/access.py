"""The outermost layer of a request: its id, its security headers, its line in the log, its place in the metrics.

A request id that a caller sends is kept if it is sane, so that a trace can cross systems. The log has the path
but never the query, which may hold a stream token.
"""

from __future__ import annotations

import re
import time
from typing import Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from api.endpoint import RequestInfo
from api.metrics import RequestMetrics
from kernel.ids import new_id

log = structlog.get_logger("api.access")

_SANE_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,100}")
_QUIET: Final = frozenset({"/health", "/ready", "/metrics"})
_HARDENING: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"cross-origin"),
)
_NO_CONTENT: Final = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")


class Access:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        info = RequestInfo(_request_id(scope))
        scope["longhaul.request"] = info
        # A pipelined request runs in the context of the one before it.
        clear_contextvars()
        bind_contextvars(request_id=info.request_id)
        id_header = (b"x-request-id", info.request_id.encode())

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                info.status = message["status"]
                headers = [*message.get("headers", ()), id_header, *_HARDENING]
                if not any(name == b"content-security-policy" for name, _ in headers):
                    headers.append(_NO_CONTENT)
                message["headers"] = headers
            elif not message.get("more_body", False):
                info.ended = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._finish(scope, info, time.perf_counter() - begun)

    def _finish(self, scope: Scope, info: RequestInfo, seconds: float) -> None:
        self._metrics.count(scope["method"], info.route, info.status, None if info.stream else seconds)
        if info.route in _QUIET and info.status < 400:
            return
        principal, client = info.principal, scope.get("client")
        log.info(
            "request",
            method=scope["method"],
            path=scope["path"],
            route=info.route,
            status=info.status,
            ms=round(seconds * 1000, 2),
            stream=info.stream,
            client=client[0] if client else None,
            org_id=principal.org_id if principal else None,
            key_id=principal.key_id if principal else None,
        )


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_ID.fullmatch(value):
            return str(value, "ascii")
    return new_id("req")
