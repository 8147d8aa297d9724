"""A knowledge base on a running stack, and callers of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest

from kernel.postgres import Pool
from kernel.tenants import create_key, ensure_org
from tests.api.checks import ok
from tests.stack import Stack
from tests.waiting import eventually


@dataclass(slots=True)
class Caller:
    """Somebody who calls the API, and what they do with documents."""

    http: httpx.AsyncClient
    org_id: str

    async def upload(self, name: str, data: bytes, *, status: int = 202, **params: str) -> dict[str, Any]:
        """Uploads; the document as it is answered."""
        kind = params.pop("media_type", "application/octet-stream")
        answer = await self.http.post(
            "/v1/documents", params={"name": name, **params}, content=data, headers={"Content-Type": kind}
        )
        document: dict[str, Any] = ok(answer, status)
        return document

    async def settled(self, document_id: str) -> dict[str, Any]:
        """The document once it is ready or failed."""

        async def look() -> dict[str, Any] | None:
            document: dict[str, Any] = ok(await self.http.get(f"/v1/documents/{document_id}"))
            return document if document["status"] in ("ready", "failed") else None

        return await eventually(look, within=30, every=0.05, what=f"{document_id} is ready or failed") or {}

    async def ready(self, document_id: str) -> dict[str, Any]:
        """The document once it is ready; it must not fail."""
        document = await self.settled(document_id)
        assert document["status"] == "ready", document["error"]
        return document

    async def passages(self, document_id: str) -> list[dict[str, Any]]:
        """All of them, in order."""
        found: list[dict[str, Any]] = []
        cursor = None
        while True:
            params = {"limit": "100", **({"cursor": cursor} if cursor else {})}
            page = ok(await self.http.get(f"/v1/documents/{document_id}/passages", params=params))
            found += page["data"]
            cursor = page["next_cursor"]
            if cursor is None:
                return found

    async def search(self, query: str, **body: Any) -> list[dict[str, Any]]:
        """What is recalled."""
        answer = ok(await self.http.post("/v1/memories/search", json={"query": query, **body}))
        found: list[dict[str, Any]] = answer["data"]
        return found

    async def events(self, document_id: str) -> list[tuple[str, dict[str, Any]]]:
        """The whole stream of a document: names and data."""
        found = []
        async with self.http.stream("GET", f"/v1/documents/{document_id}/events", timeout=30) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            text = (await answer.aread()).decode()
        for frame in text.split("\n\n"):
            fields = dict(
                line.split(": ", 1) for line in frame.split("\n") if ": " in line and not line.startswith(":")
            )
            if "data" in fields:
                found.append((fields["event"], orjson.loads(fields["data"])))
        return found


MakeCaller = Callable[..., Awaitable[Caller]]


@asynccontextmanager
async def callers(stack: Stack) -> AsyncIterator[MakeCaller]:
    """Makes callers of a stack: of a new org, or of `org_id`; other arguments are those of their key."""
    made: list[httpx.AsyncClient] = []

    async def make(org_id: str | None = None, **key: Any) -> Caller:
        org_id = org_id or await ensure_org(stack.database, f"org {uuid4().hex}")
        secret = (await create_key(stack.database, org_id, name="tests", **key)).secret.get_secret_value()
        client = httpx.AsyncClient(base_url=stack.url, headers={"Authorization": f"Bearer {secret}"}, timeout=30)
        made.append(client)
        return Caller(client, org_id)

    yield make
    for client in made:
        await client.aclose()


@pytest.fixture
async def make_caller(stack: Stack) -> AsyncIterator[MakeCaller]:
    async with callers(stack) as make:
        yield make


@pytest.fixture
async def caller(make_caller: MakeCaller) -> Caller:
    """Calls with a key of an org of its own."""
    return await make_caller()


@pytest.fixture
def rows(stack: Stack) -> Pool:
    """The stack's database."""
    return stack.database
