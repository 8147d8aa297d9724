"""Callers of a running stack, each with an org of its own; a failure shows what the processes logged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from typing import Any
from uuid import uuid4

import pytest

from kernel.tenants import create_key, ensure_org
from tests.conftest import MakeStack
from tests.e2e.caller import Caller, calling
from tests.stack import Stack


@pytest.fixture
async def caller(stack: Stack) -> AsyncIterator[Caller]:
    """A caller of the shared stack, of an org of the test's own."""
    async with calling(stack.url, await new_key(stack)) as caller:
        yield caller


@pytest.fixture
async def own(make_stack: MakeStack) -> AsyncIterator[OwnStack]:
    """Starts stacks of this test's own and stops them after it."""
    own = OwnStack(make_stack)
    yield own
    await own.stop()


class OwnStack:
    """Makes stacks; remembers them."""

    def __init__(self, make_stack: MakeStack) -> None:
        self._make = make_stack
        self.stacks: list[Stack] = []

    async def stack(self, **options: Any) -> Stack:
        """A stack of the test's own; options as for `make_stack`."""
        stack = await self._make(**options)
        self.stacks.append(stack)
        return stack

    async def stop(self) -> None:
        for stack in self.stacks:
            await stack.stop()


async def new_key(stack: Stack, *, org_id: str | None = None, user_id: str | None = None) -> str:
    """A key for a new org, or for one that is there."""
    org_id = org_id or await ensure_org(stack.database, f"org {uuid4().hex}")
    return (await create_key(stack.database, org_id, name="tests", user_id=user_id)).secret.get_secret_value()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        own = item.funcargs.get("own")
        stacks = [item.funcargs.get("stack"), *(own.stacks if isinstance(own, OwnStack) else ())]
        report.sections += [("logs of the stack", stack.logs()) for stack in stacks if isinstance(stack, Stack)]
    return report
