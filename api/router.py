"""The routes: every endpoint of the table behind its path, and problems for whatever matches none.

Here every exception becomes an answer, so nothing above ever sees one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import structlog
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from api.endpoint import DEEP, Answer, Edge, Endpoint, RequestInfo, encode
from api.problems import PROBLEM_TYPE, Problem, problem_of

log = structlog.get_logger(__name__)


def build_router(edge: Edge, endpoints: Iterable[Endpoint[Any, Any]]) -> ASGIApp:
    """One route per path, tried in the order of the endpoints, but streams first: they come by the thousand."""
    by_path: dict[str, list[Endpoint[Any, Any]]] = {}
    for endpoint in sorted(endpoints, key=lambda endpoint: not endpoint.stream):
        by_path.setdefault(endpoint.path, []).append(endpoint)
    routes: list[BaseRoute] = [Route(_pattern(path), Resource(edge, path, group)) for path, group in by_path.items()]
    return Router(routes, redirect_slashes=False, default=_no_such_route)


def _pattern(path: str) -> str:
    """The path as Starlette reads it."""
    for name in DEEP:
        path = path.replace(f"{{{name}}}", f"{{{name}:path}}")
    return path


class Resource:
    """All methods of one path."""

    def __init__(self, edge: Edge, path: str, endpoints: Sequence[Endpoint[Any, Any]]) -> None:
        self._edge = edge
        self._path = path
        self._by_method: dict[str, Endpoint[Any, Any]] = {}
        for endpoint in endpoints:
            if endpoint.method in self._by_method:
                raise ValueError(f"{endpoint.method} {path} is there twice")
            self._by_method[endpoint.method] = endpoint
            if endpoint.method == "GET" and not endpoint.stream:
                self._by_method["HEAD"] = endpoint
        self._allow = ", ".join([*self._by_method, "OPTIONS"]).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        info: RequestInfo = scope["longhaul.request"]
        info.route = self._path
        endpoint = self._by_method.get(scope["method"])
        if endpoint is None:
            await self._no_such_method(scope, send, info)
            return
        try:
            answer = await self._edge.answer(endpoint, scope, receive, info)
        except Exception as error:  # the last place that can make an answer of it
            await send_problem(send, problem_of(error), info.request_id)
            return
        if answer.after is None:
            await self._send(endpoint, answer, scope, receive, send, info)
            return
        # The caller need not wait for what follows the commit, nor that for the caller.
        after = asyncio.create_task(_log_failure(answer), name="after-commit")
        await asyncio.sleep(0)  # lets it begin: the bell goes out before the answer's headers
        try:
            await self._send(endpoint, answer, scope, receive, send, info)
        finally:
            await after

    async def _send(
        self,
        endpoint: Endpoint[Any, Any],
        answer: Answer,
        scope: Scope,
        receive: Receive,
        send: Send,
        info: RequestInfo,
    ) -> None:
        if answer.app is not None:
            info.stream = True
            await _stream(answer.app, scope, receive, send, info)
            return
        status = answer.status or endpoint.status
        if status == 204:
            await send_bytes(send, status, b"", None, answer.headers)
        else:
            await send_bytes(send, status, encode(answer.body), answer.content_type, answer.headers)

    async def _no_such_method(self, scope: Scope, send: Send, info: RequestInfo) -> None:
        if scope["method"] == "OPTIONS":
            await send_bytes(send, 204, b"", None, ((b"allow", self._allow),))
            return
        problem = Problem(
            405,
            "method_not_allowed",
            f"{self._path} does not take {scope['method']}.",
            suggestions=(f"use one of {self._allow.decode()}",),
            headers=((b"allow", self._allow),),
        )
        await send_problem(send, problem, info.request_id)


async def send_bytes(
    send: Send, status: int, body: bytes, content_type: bytes | None, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """Sends a whole answer."""
    length = [] if status == 204 else [(b"content-length", b"%d" % len(body))]
    kind = [] if content_type is None else [(b"content-type", content_type)]
    await send({"type": "http.response.start", "status": status, "headers": [*kind, *length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def send_problem(send: Send, problem: Problem, request_id: str) -> None:
    """Sends a problem."""
    await send_bytes(send, problem.status, problem.render(request_id), PROBLEM_TYPE, problem.headers)


async def _no_such_route(scope: Scope, receive: Receive, send: Send) -> None:
    info: RequestInfo = scope["longhaul.request"]
    problem = Problem(404, "not_found", "There is nothing at this path.", suggestions=("see /docs for what there is",))
    await send_problem(send, problem, info.request_id)


async def _log_failure(answer: Answer) -> None:
    assert answer.after is not None
    try:
        await answer.after()
    except Exception as error:  # the write is committed: the caller must not be told that it failed
        log.error("after_commit_failed", exc_info=error, effect="workers and followers notice by themselves")


async def _stream(app: ASGIApp, scope: Scope, receive: Receive, send: Send, info: RequestInfo) -> None:
    """Lets a stream run; one that fails midway is ended, so that its client comes back and resumes."""
    try:
        await app(scope, receive, send)
    except Exception as error:  # the last place that can make an answer of it
        problem = problem_of(error)
        if not info.status:
            await send_problem(send, problem, info.request_id)
        elif not info.ended:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
