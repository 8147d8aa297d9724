"""The hub's audit: who missed something is told, who missed nothing reads nothing, and a deleted session is over."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from kernel.errors import NotFound
from kernel.hub import Hub
from kernel.journal import SQL
from kernel.postgres import Pool
from kernel.runs import cancel
from kernel.sessions import delete_session
from tests.kernel.test_hub import Viewing, running_hub, whole_log
from tests.kernel.writing import ask, commit, worker
from tests.waiting import eventually


class Counting:
    """A pool that counts what it is asked."""

    def __init__(self, pool: Pool) -> None:
        self.asked: Counter[str] = Counter()
        self._pool = pool

    async def fetch(self, statement: str, *arguments: Any) -> Any:
        self.asked[statement] += 1
        return await self._pool.fetch(statement, *arguments)

    async def audits(self, more: int) -> None:
        """Waits for so many more."""
        wanted = self.asked[SQL.last_seqs] + more

        async def made() -> bool:
            return self.asked[SQL.last_seqs] >= wanted

        await eventually(made, what="the hub audits")


@pytest.fixture
def counting(own_database: Pool) -> Counting:
    return Counting(own_database)


@pytest.fixture
async def hub(counting: Counting, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    """A hub that audits many times a second."""
    monkeypatch.setattr("kernel.hub._AUDIT_EVERY", 0.02)
    async with running_hub(cast(Pool, counting), redis_url, heartbeat=0.02) as hub:
        yield hub


async def test_viewers_who_have_everything_do_not_read_the_log_again(
    own_database: Pool, own_org: str, hub: Hub, counting: Counting
) -> None:
    runs = [await ask(own_database, own_org) for _ in range(5)]
    viewings = [Viewing(hub, cast(Pool, counting), run) for run in runs]
    await asyncio.gather(*(viewing.has(b"run_queued") for viewing in viewings))
    await counting.audits(2)
    before = counting.asked[SQL.read]
    await counting.audits(10)
    assert before >= len(runs)
    assert counting.asked[SQL.read] == before
    for viewing in viewings:
        viewing.leave()


async def test_a_viewer_is_told_what_it_missed_although_another_has_it_already(
    own_database: Pool, own_org: str, hub: Hub
) -> None:
    run = await ask(own_database, own_org)
    [claimed] = await worker(own_database).claim(1)
    first = Viewing(hub, own_database, run)
    await first.has(b"run_queued")
    await commit(own_database, run.id, run.session_id, claimed.epoch, 1, [("done", "{}")])  # and published never
    second = Viewing(hub, own_database, run)
    await asyncio.wait_for(asyncio.gather(first.task, second.task), 10)
    assert first.got == second.got == await whole_log(own_database, run)


async def test_the_streams_of_a_session_end_when_it_is_deleted(own_database: Pool, own_org: str, hub: Hub) -> None:
    run = await ask(own_database, own_org)
    other = await ask(own_database, own_org)
    await cancel(own_database, own_org, run.id)
    gone = Viewing(hub, own_database, run, whole_session=True)
    stays = Viewing(hub, own_database, other, whole_session=True)
    await asyncio.gather(gone.has(b"done"), stays.has(b"run_queued"))
    await delete_session(own_database, own_org, run.session_id)
    await asyncio.wait_for(gone.task, 10)
    assert not stays.task.done()
    stays.leave()


async def test_a_run_that_is_deleted_while_its_cancel_waits_is_not_found(own_database: Pool, own_org: str) -> None:
    run = await ask(own_database, own_org)
    await cancel(own_database, own_org, run.id)
    async with own_database.acquire() as deleting, deleting.transaction():
        await deleting.execute("DELETE FROM sessions WHERE id = $1", run.session_id)
        cancelling = asyncio.create_task(cancel(own_database, own_org, run.id))

        async def waits() -> bool:
            return bool(await own_database.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"))

        await eventually(waits, what="the cancel waits for the session's row")
    with pytest.raises(NotFound):
        await cancelling
