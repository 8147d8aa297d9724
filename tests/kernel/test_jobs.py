"""Background jobs: who comes when, and what becomes of what is taken."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from kernel.errors import LonghaulError
from kernel.jobs import Job, add_job, finish_job, forget_old_jobs, get_job, requeue_job, take_job
from kernel.postgres import Pool
from kernel.tasks import end
from kernel.tenants import ensure_org
from worker.jobs import Jobs

KINDS = ("sweep",)


async def add_many(db: Pool, org_id: str | None, amount: int) -> None:
    await db.execute(
        """INSERT INTO jobs (id, org_id, kind, key, attempts)
           SELECT 'job_' || md5($1 || n), nullif($1, ''), 'sweep', $1 || n, 3
           FROM generate_series(1, $2::integer) AS n""",
        org_id or "",
        amount,
    )


async def taken(db: Pool, amount: int, *, finished: bool = True) -> list[str | None]:
    """The orgs of the next jobs."""
    orgs = []
    for _ in range(amount):
        job = await take_job(db, KINDS, worker="one", lease_seconds=60.0)
        if job is None:
            break
        orgs.append(job.org_id)
        if finished:
            await finish_job(db, job)
    return orgs


async def test_an_org_with_ten_thousand_jobs_keeps_no_other_waiting(own_database: Pool) -> None:
    large, small, other = [await ensure_org(own_database, name) for name in ("large", "small", "other")]
    await add_many(own_database, large, 10_000)
    assert await taken(own_database, 3) == [large] * 3
    await add_job(own_database, "sweep", "small", org_id=small)
    await add_job(own_database, "sweep", "other", org_id=other)
    await add_job(own_database, "sweep", "nobody's")
    first = await taken(own_database, 4)
    assert Counter(first) == {large: 1, small: 1, other: 1, None: 1}
    assert await taken(own_database, 3) == [large] * 3


async def test_orgs_take_turns_whatever_their_number_of_jobs(own_database: Pool) -> None:
    orgs = [await ensure_org(own_database, f"turns-{number}") for number in range(4)]
    for org_id, amount in zip(orgs, (50, 5, 50, 5), strict=True):
        await add_many(own_database, org_id, amount)
    await add_many(own_database, None, 5)
    assert set(Counter(await taken(own_database, 25)).values()) == {5}
    assert Counter(await taken(own_database, 200)) == {orgs[0]: 45, orgs[2]: 45}


async def test_an_org_whose_jobs_take_long_does_not_hold_all_slots(own_database: Pool) -> None:
    large, small = [await ensure_org(own_database, name) for name in ("large", "small")]
    await add_many(own_database, large, 20)
    await taken(own_database, 4, finished=False)
    await add_many(own_database, small, 4)
    assert await taken(own_database, 4, finished=False) == [small] * 4


async def test_many_takers_take_each_job_once(own_database: Pool) -> None:
    orgs = [await ensure_org(own_database, f"takers-{number}") for number in range(3)]
    for org_id in orgs:
        await add_many(own_database, org_id, 40)
    await asyncio.gather(*(taken(own_database, 100) for _ in range(8)))
    rows = await own_database.fetch("SELECT status, attempt, count(*) FROM jobs GROUP BY 1, 2")
    assert [tuple(row) for row in rows] == [("succeeded", 1, 120)]


async def test_jobs_that_are_not_due_or_of_other_kinds_keep_nobody_waiting(own_database: Pool) -> None:
    early, late = sorted([await ensure_org(own_database, name) for name in ("early", "late")])
    await add_many(own_database, early, 30)
    await own_database.execute("UPDATE jobs SET not_before = now() + interval '1 hour'")
    for number in range(30):
        await add_job(own_database, "dust", str(number), org_id=early)
    assert await taken(own_database, 1) == []
    await add_job(own_database, "sweep", "due", org_id=late)
    assert await taken(own_database, 2) == [late]


async def test_of_one_org_the_job_that_is_due_first_is_first(own_database: Pool) -> None:
    org_id = await ensure_org(own_database, "order")
    for key in ("first", "second", "third"):
        await add_job(own_database, "sweep", key, org_id=org_id)
    job = await take_job(own_database, KINDS, worker="one", lease_seconds=60.0)
    assert job is not None
    assert job.key == "first"
    await requeue_job(own_database, job, None, delay=0.0)
    keys = []
    while job := await take_job(own_database, KINDS, worker="one", lease_seconds=60.0):
        keys.append(job.key)
    assert keys == ["second", "third", "first"]


async def test_a_job_whose_worker_has_died_is_taken_again_until_its_last_attempt(own_database: Pool) -> None:
    await add_job(own_database, "sweep", "poison", attempts=2)
    for attempt in (1, 2):
        job = await take_job(own_database, KINDS, worker="one", lease_seconds=0.0)
        assert job is not None
        assert job.attempt == attempt
    assert await take_job(own_database, KINDS, worker="one", lease_seconds=0.0) is None
    state = await get_job(own_database, "sweep", "poison")
    assert state is not None
    assert state.status == "running"


async def run_until(jobs: Jobs, done: asyncio.Event) -> None:
    task = asyncio.create_task(jobs.run())
    try:
        await asyncio.wait_for(done.wait(), 30.0)
    finally:
        await end(task)


@pytest.mark.parametrize("how", ["cancels itself", "names what can't be kept", "hangs"])
async def test_a_job_that_goes_wrong_does_not_stop_the_others(own_database: Pool, how: str) -> None:
    done = asyncio.Event()

    async def handler(job: Job) -> None:
        if job.key != "bad":
            done.set()
        elif how == "cancels itself":
            raise asyncio.CancelledError
        elif how == "hangs":
            await asyncio.Event().wait()
        else:
            raise LonghaulError("NUL \x00 and half a pair \ud800")

    await add_job(own_database, "sweep", "bad", attempts=1)
    await add_job(own_database, "sweep", "good", delay=0.2)
    jobs = Jobs(own_database, {"sweep": handler}, worker="one", slots=1, poll_seconds=0.02, seconds=0.5)
    await run_until(jobs, done)
    state = await get_job(own_database, "sweep", "bad")
    assert state is not None
    assert state.status == "failed"
    assert state.error is not None
    assert state.error["code"] == ("job_overdue" if how == "hangs" else "internal")
    assert "\x00" not in state.error["message"]


async def test_kinds_that_take_hours_have_slots_of_their_own(own_database: Pool) -> None:
    done, started = asyncio.Event(), asyncio.Event()

    async def long(_: Job) -> None:
        started.set()
        await asyncio.Event().wait()

    async def short(_: Job) -> None:
        await started.wait()
        done.set()

    for number in range(5):
        await add_job(own_database, "fill", str(number))
    await add_job(own_database, "sweep", "good")
    handlers = {"fill": long, "sweep": short}
    jobs = Jobs(own_database, handlers, worker="one", slots=1, poll_seconds=0.02, seconds=0.1, apart=("fill",))
    await run_until(jobs, done)
    rows = await own_database.fetch("SELECT status, attempt FROM jobs WHERE kind = 'fill' GROUP BY 1, 2")
    assert [tuple(row) for row in rows] == [("queued", 0)], "put back, at no cost"


async def test_however_many_ended_a_week_ago_all_are_forgotten(own_database: Pool) -> None:
    await add_many(own_database, None, 2_600)
    await own_database.execute("UPDATE jobs SET status = 'cancelled', finished_at = now() - interval '8 days'")
    await add_job(own_database, "sweep", "open")
    assert await forget_old_jobs(own_database) == 2_600
    assert await own_database.fetchval("SELECT count(*) FROM jobs") == 1
