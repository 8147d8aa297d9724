"""Endpoints: what each route takes, gives and may answer, said once.

From one declaration come the route with all its checks and the entry in the OpenAPI document, so the document
can't differ from the code. Checks run in a fixed order: method, credential, scope, path, query, content type,
body, idempotency key; the first that fails is the answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

import orjson
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive
from starlette.types import Scope as AsgiScope

from api.auth import Authenticator, require_scope
from api.intake import (
    Headers,
    check_content_type,
    check_path,
    idempotency_key,
    is_json,
    parse_body,
    parse_query,
    read_body,
)
from api.values import Query
from kernel.errors import NotFound
from kernel.idempotency import KeyedRequest, StoredAnswer, answer_once
from kernel.postgres import Connection, Pool
from kernel.sealing import Sealer
from kernel.tenants import Principal, Scope

B = TypeVar("B")
Q = TypeVar("Q")

Method: TypeAlias = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]

# What a path parameter must look like; anything else names nothing that exists.
PATH_SHAPES: Final[Mapping[str, str]] = {
    "agent_id": "agt_[0-9a-f]{32}",
    "session_id": "ses_[0-9a-f]{32}",
    "run_id": "run_[0-9a-f]{32}",
    "source_id": "src_[0-9a-f]{32}",
    "skill_id": "skl_[0-9a-f]{32}",
    "approval_id": "apr_[0-9a-f]{32}",
    "memory_id": "mem_[0-9a-f]{32}",
    "document_id": "doc_[0-9a-f]{32}",
    "version": "[1-9][0-9]{0,8}",
    # Every depth of folders. What is wrong with a path is said by `kernel.file_paths`.
    "file_path": r"[^/\x00]+(/[^/\x00]+)*",
    "secret_name": "[A-Za-z][A-Za-z0-9_.-]{0,99}",
}
DEEP: Final = frozenset({"file_path"})
"""Path parameters that may hold slashes."""
_SHAPES: Final = {name: re.compile(shape) for name, shape in PATH_SHAPES.items() if name not in DEEP}
_PATH_NAMES: Final = re.compile(r"{(\w+)}")

_SECONDS: Final = 8.0
_NOBODY: Final = Principal("", None, frozenset())


class NoQuery(Query):
    """No parameters."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler answers with.

    `body` is written as JSON unless it is bytes already. `after` runs once the write is committed, beside the
    sending. `app` takes the whole answering over: it is how a stream is opened.
    """

    body: Any = None
    status: int | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = b"application/json"
    after: Callable[[], Awaitable[None]] | None = None
    app: ASGIApp | None = None


@dataclass(slots=True)
class Call(Generic[B, Q]):
    """A request that has passed all checks. `db` is a transaction where an Idempotency-Key asks for one."""

    principal: Principal
    path: Mapping[str, str]
    query: Q
    body: B
    headers: Headers
    db: Pool | Connection
    scope: AsgiScope
    receive: Receive

    @property
    def org_id(self) -> str:
        return self.principal.org_id


Handler: TypeAlias = Callable[[Call[B, Q]], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint(Generic[B, Q]):
    """One method of one path.

    `scope` None is open to all. `body` None takes none; one without required fields may be left out. `also` are
    further statuses with the models of their bodies, `problems` statuses beyond those that follow from the rest.
    `location` is the path of what was made, filled from the answer's body. `replayed` makes the answer of a
    repeated request from the stored body where that alone won't do. `stream` opens a stream, at once or if asked
    for, and is what a stream token is good for; `seconds` limits everything else.
    `raw`: the handler takes the body as it comes in, of any type and length, and sees to its limits; where there is a
    `body` too, JSON is read as that. `request_headers` are named in the document.
    """

    method: Method
    path: str
    handler: Handler[B, Q]
    tag: str
    summary: str
    scope: Scope | None
    description: str = ""
    body: type[BaseModel] | None = None
    query: type[BaseModel] = NoQuery
    response: type[BaseModel] | None = None
    media_type: str = "application/json"
    status: int = 200
    also: Mapping[int, type[BaseModel] | None] | None = None
    problems: Sequence[int] = ()
    location: str | None = None
    idempotent: bool = False
    replayed: Callable[[Call[B, Q], bytes], Answer] | None = None
    stream: bool = False
    own_auth: Callable[[AsgiScope, Headers, Mapping[str, str]], Principal | None] | None = None
    seconds: float | None = _SECONDS
    raw: bool = False
    request_headers: Sequence[str] = ()

    @property
    def path_names(self) -> list[str]:
        """The names of the path's parameters."""
        return _PATH_NAMES.findall(self.path)

    @property
    def body_required(self) -> bool:
        """Whether a request without a body is refused."""
        return self.body is not None and any(field.is_required() for field in self.body.model_fields.values())


@dataclass(slots=True)
class RequestInfo:
    """What becomes known of a request along the way. `status` is 0 until the answer has begun."""

    request_id: str
    route: str = "unknown"
    principal: Principal | None = None
    stream: bool = False
    status: int = 0
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Edge:
    """What every endpoint needs to check and answer a request."""

    db: Pool
    authenticator: Authenticator
    max_body_bytes: int
    sealer: Sealer

    async def answer(
        self, endpoint: Endpoint[Any, Any], scope: AsgiScope, receive: Receive, info: RequestInfo
    ) -> Answer:
        """Checks the request and lets the endpoint's handler answer it."""
        headers: Headers = dict(scope["headers"])
        path: Mapping[str, str] = scope.get("path_params", {})
        principal = _NOBODY
        if endpoint.scope is not None:
            given = endpoint.own_auth(scope, headers, path) if endpoint.own_auth is not None else None
            async with asyncio.timeout(endpoint.seconds or _SECONDS):
                principal = given or await self.authenticator.principal(headers.get(b"authorization"))
            info.principal = principal
            require_scope(principal, endpoint.scope)
        if path:
            check_path(path)
            for name, value in path.items():
                if name not in DEEP and _SHAPES[name].fullmatch(value) is None:
                    kind = name.removesuffix("_id").removesuffix("_name")
                    raise NotFound(f"There is no {kind} {value[:100]!r}.", field=name)
        query = parse_query(endpoint.query, scope["query_string"]) if scope["query_string"] else endpoint.query()
        raw, body = b"", None
        if endpoint.body is not None and (not endpoint.raw or is_json(headers)):
            check_content_type(headers)
            raw = await read_body(receive, headers, self.max_body_bytes)
            body = parse_body(endpoint.body, raw if raw or endpoint.body_required else b"{}")
        call = Call(principal, path, query, body, headers, self.db, scope, receive)
        key = idempotency_key(headers) if endpoint.method == "POST" else None
        async with asyncio.timeout(endpoint.seconds):
            if key is None or not endpoint.idempotent:
                answer = await endpoint.handler(call)
            else:
                answer = await self._answer_once(endpoint, call, key, raw)
        if endpoint.location is not None and answer.app is None:
            answer = _with_location(endpoint.location, answer, scope)
        return answer

    async def _answer_once(self, endpoint: Endpoint[Any, Any], call: Call[Any, Any], key: str, raw: bytes) -> Answer:
        fresh: Answer | None = None

        async def write(connection: Connection) -> StoredAnswer:
            nonlocal fresh
            call.db = connection
            fresh = await endpoint.handler(call)
            return StoredAnswer(fresh.status or endpoint.status, encode(fresh.body))

        route = f"{endpoint.method} {call.scope['path']}"
        request = KeyedRequest(call.org_id, key, route, self.sealer.fingerprint(raw, call.org_id, route))
        stored, replay = await answer_once(self.db, request, write)
        call.db = self.db
        if not replay:
            assert fresh is not None
            return fresh
        if endpoint.replayed is not None:
            answer = endpoint.replayed(call, stored.body)
        else:
            answer = Answer(stored.body, stored.status)
        return Answer(
            answer.body,
            answer.status or stored.status,
            (*answer.headers, (b"idempotency-replayed", b"true")),
            app=answer.app,
        )


def encode(body: Any) -> bytes:
    """An answer's body as JSON; times end with Z."""
    return body if isinstance(body, bytes) else orjson.dumps(body, option=orjson.OPT_UTC_Z)


def _with_location(template: str, answer: Answer, scope: AsgiScope) -> Answer:
    body = orjson.loads(answer.body) if isinstance(answer.body, bytes) else answer.body
    location = scope.get("root_path", "") + template.format(**body)
    return Answer(
        answer.body,
        answer.status,
        (*answer.headers, (b"location", location.encode())),
        answer.content_type,
        answer.after,
    )
