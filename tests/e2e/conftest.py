"""Callers of a running stack, each with an org of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import uuid4

import pytest

from kernel.tenants import create_key, ensure_org
from tests.e2e.caller import Caller, calling
from tests.stack import Stack

MakeKey = Callable[..., Awaitable[str]]


@pytest.fixture
async def caller(stack: Stack) -> AsyncIterator[Caller]:
    """A caller of the shared stack, of an org of the test's own."""
    async with calling(stack.url, await new_key(stack)) as caller:
        yield caller


async def new_key(stack: Stack, *, org_id: str | None = None, user_id: str | None = None) -> str:
    """A key for a new org, or for one that is there."""
    org_id = org_id or await ensure_org(stack.database, f"org {uuid4().hex}")
    return (await create_key(stack.database, org_id, name="tests", user_id=user_id)).secret.get_secret_value()
