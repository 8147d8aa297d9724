"""Both backends of Longhaul hold what every backend must."""

from __future__ import annotations

from uuid import uuid4

import pytest

from kernel.postgres import Pool
from kernel.tenants import ensure_org
from memory.conformance import CHECKS, Check, NotConforming
from memory.in_memory import InMemory
from memory.port import Memory
from memory.records import RecalledItem, Scope
from memory.store import PostgresMemory


@pytest.fixture
async def another_org(database: Pool) -> str:
    return await ensure_org(database, f"org {uuid4().hex}")


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
async def test_the_memory_in_postgres_conforms(
    check: Check, memory: PostgresMemory, org: str, another_org: str
) -> None:
    await check(memory, org, another_org)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
async def test_the_memory_in_the_process_conforms(check: Check, org: str, another_org: str) -> None:
    backend: Memory = InMemory()
    await check(backend, org, another_org)


class Leaking(InMemory):
    """Recalls for everybody what is anybody's."""

    async def recall(self, scope: Scope, query: str, **options: object) -> list[RecalledItem]:
        return await super().recall(scope, query, limit=50, everyone=True)


async def test_a_backend_that_leaks_does_not_conform(org: str, another_org: str) -> None:
    with pytest.raises(NotConforming, match="recall for the org gives the org's and its own"):
        await CHECKS["everyone_sees_what_is_theirs"](Leaking(), org, another_org)
