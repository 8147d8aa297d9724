"""Who starts next: shares by weight, charges, caps, priorities, and that a claim costs the same however much waits."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import asyncpg
import orjson
import pytest

from bench.queueing import queue_many
from kernel.agent_config import AgentConfig, AgentLimits
from kernel.agents import create_agent, update_agent
from kernel.errors import InvalidInput, NotFound
from kernel.leases import ClaimedRun, Leases
from kernel.postgres import Pool
from kernel.runs import InputMessage, NewRun, pause, resume, submit
from kernel.shares import Charge, Used, charge, list_shares, set_share
from kernel.tenants import ensure_org
from tests.kernel.writing import FINISHED, Writer, expire, worker

# What claim_runs looks at, at most.
MOST_ORGS = 128
MOST_AGENTS = 64


async def queue(database: Pool, org: str, runs: int = 1, *, agent: str | None = None, priority: int = 0) -> list[str]:
    """Takes so many runs in, one after the other; their ids."""
    new = NewRun([InputMessage("user", "hello")], agent_id=agent, priority=priority)
    return [(await submit(database, org_id=org, user_id=None, session_id=None, new=new)).run.id for _ in range(runs)]


async def finish(writer: Writer, runs: Sequence[ClaimedRun]) -> None:
    """Brings claimed runs to their end."""
    pens = [writer.pen(run) for run in runs]
    for pen in pens:
        pen.end(FINISHED)
    await asyncio.gather(*(pen.committed() for pen in pens))


async def charged(database: Pool, runs: Sequence[ClaimedRun], units: float) -> None:
    """Charges each of the runs so much, as their worker does."""
    for org in {run.org_id for run in runs}:
        tags = [run.vtag for run in runs if run.org_id == org]
        await charge(database, [Charge(org, max(tags), units * len(tags))])


async def orgs_of(leases: Leases, claims: int, each: int = 1) -> list[str]:
    """The orgs whose runs are claimed, in order."""
    return [run.org_id for _ in range(claims) for run in await leases.claim(each)]


@pytest.fixture
async def other_org(own_database: Pool) -> str:
    return await ensure_org(own_database, "other")


# -- shares ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", [1, 4, 20])
async def test_orgs_with_much_to_do_get_starts_in_proportion_to_their_weights(
    own_database: Pool, own_org: str, other_org: str, each: int
) -> None:
    await set_share(own_database, "other", weight=3)
    for org in (own_org, other_org):
        await queue_many(own_database, org, 400)
    claimed = await orgs_of(worker(own_database), 400 // each, each)
    assert abs(claimed.count(other_org) - 300) <= 3
    for part in (claimed[:40], claimed[200:240]):  # at any time, not only in the end
        assert abs(part.count(other_org) - 30) <= 3


async def test_a_new_org_is_served_at_once_though_another_has_been_at_it_for_long(
    own_database: Pool, own_org: str, other_org: str
) -> None:
    await queue_many(own_database, own_org, 300)
    leases = worker(own_database)
    await orgs_of(leases, 10, 20)
    await queue(own_database, other_org, 3)
    claimed = await orgs_of(leases, 8)
    assert other_org in claimed[:2]
    assert claimed.count(other_org) == 3


async def test_an_org_gains_nothing_by_having_been_idle(
    own_database: Pool, own_org: str, other_org: str, writer: Writer
) -> None:
    await queue(own_database, other_org)
    await queue_many(own_database, own_org, 200)
    leases = worker(own_database)
    for _ in range(10):
        runs = await leases.claim(10)
        await charged(own_database, runs, 5)
        await finish(writer, runs)
    await queue(own_database, other_org, 40)
    assert abs((await orgs_of(leases, 40)).count(other_org) - 20) <= 2


async def test_an_idle_moment_does_not_set_time_back(
    own_database: Pool, own_org: str, other_org: str, writer: Writer
) -> None:
    leases = worker(own_database)
    for _ in range(3):
        await queue_many(own_database, own_org, 20)
        runs = await leases.claim(20)
        await finish(writer, runs)
        await charged(own_database, runs, 1)
    for org in (own_org, other_org):
        await queue_many(own_database, org, 40)
    assert abs((await orgs_of(leases, 40)).count(other_org) - 20) <= 2


async def test_an_org_whose_runs_use_much_gets_fewer_starts(own_database: Pool, own_org: str, other_org: str) -> None:
    for org in (own_org, other_org):
        await queue_many(own_database, org, 300)
    leases = worker(own_database)
    shares: Counter[str] = Counter()
    for _ in range(200):
        [run] = await leases.claim(1)
        shares[run.org_id] += 1
        await charged(own_database, [run], 9 if run.org_id == own_org else 0)
    # a start costs one unit: 10 for each run of the one org, 1 for each of the other
    assert 8 <= shares[other_org] / shares[own_org] <= 12


async def test_it_does_not_matter_in_which_order_runs_are_charged(own_database: Pool) -> None:
    places = []
    for name, order in (("forward", 1), ("backward", -1)):
        org = await ensure_org(own_database, name)
        await queue_many(own_database, org, 20)
        before = await own_database.fetchval("SELECT virtual_time()")
        runs = await worker(own_database).claim(20)
        for run in runs[::order]:
            await charge(own_database, [Charge(org, run.vtag, 2.0)])
        places.append(await own_database.fetchval("SELECT vtime FROM lanes WHERE org_id = $1", org) - before)
    assert places == pytest.approx([60, 60], abs=1)


async def test_what_nobody_else_wanted_is_not_held_against_an_org(
    own_database: Pool, own_org: str, other_org: str
) -> None:
    leases = worker(own_database)
    await queue(own_database, own_org)
    await charged(own_database, await leases.claim(1), 3600)  # an hour, and nobody waited
    for org in (own_org, other_org):
        await queue_many(own_database, org, 40)
    assert abs((await orgs_of(leases, 40)).count(other_org) - 20) <= 2


async def test_what_others_waited_for_is_held_against_an_org(own_database: Pool, own_org: str, other_org: str) -> None:
    leases = worker(own_database)
    for org in (own_org, other_org):
        await queue_many(own_database, org, 40)
    runs = await leases.claim(2)
    await charged(own_database, [run for run in runs if run.org_id == own_org], 20)
    assert (await orgs_of(leases, 20)).count(other_org) >= 19


async def test_every_org_is_served_though_there_are_more_than_a_claim_looks_at(own_database: Pool) -> None:
    orgs = [await ensure_org(own_database, f"org {number}") for number in range(MOST_ORGS + 20)]
    for org in orgs:
        await queue(own_database, org)
    leases = worker(own_database)
    assert sorted(await orgs_of(leases, 8, 20)) == sorted(orgs)


async def test_charges_are_kept_by_org_and_those_of_a_deleted_org_are_dropped(
    own_database: Pool, own_org: str, other_org: str
) -> None:
    await own_database.execute("UPDATE orgs SET default_agent_id = NULL WHERE id = $1", other_org)
    await own_database.execute("DELETE FROM orgs WHERE id = $1", other_org)
    for _ in range(2):
        await charge(own_database, [Charge(own_org, 0, 1.5), Charge(other_org, 0, 8)])
    assert [(share.name, share.charged) for share in await list_shares(own_database)] == [("own", 3)]


def test_a_second_and_tokens_have_their_price() -> None:
    used = Used(12.5, 9000, 400) - Used(2.5, 1000, 100)
    assert used == Used(10, 8000, 300)
    assert used.units == pytest.approx(10 + 2 + 3)


# -- a model of it -------------------------------------------------------------------------------------------------


@dataclass
class Lane:
    """What the model knows of an org."""

    weight: float
    cap: int | None
    vtime: float | None = None
    waiting: list[tuple[int, str]] = field(default_factory=list)
    running: list[ClaimedRun] = field(default_factory=list)

    @property
    def room(self) -> int:
        return 1000 if self.cap is None else self.cap - len(self.running)

    @property
    def place(self) -> float | None:
        places = [run.vtag + 1 / self.weight for run in self.running] + ([] if self.vtime is None else [self.vtime])
        return max(places, default=None)


@dataclass
class Model:
    """Start-time fair queuing by the book, for one claimer at a time."""

    lanes: dict[str, Lane]
    clock: float = 0.0

    @property
    def vtime(self) -> float:
        return max([self.clock, *(run.vtag for lane in self.lanes.values() for run in lane.running)])

    def next(self, most: int) -> list[tuple[str, float]]:
        """The runs to be claimed now, with their tags."""
        found = []
        for lane in self.lanes.values():
            start = max(self.vtime, lane.place if lane.place is not None else 0.0)
            for nth, (_, run_id) in enumerate(sorted(lane.waiting)[: max(0, lane.room)]):
                found.append((start + nth / lane.weight, run_id))
        return [(run_id, tag) for tag, run_id in sorted(found)[:most]]

    def charge(self, org: str, tag: float, units: float) -> None:
        now = self.vtime
        lane = self.lanes[org]
        lane.vtime = max(lane.place or 0.0, tag + 1 / lane.weight) + units / lane.weight
        open_lanes = [lane for lane in self.lanes.values() if lane.waiting and lane.room > 0]
        if open_lanes:
            lowest = min(-1.0 if lane.place is None else lane.place for lane in open_lanes)
        else:
            lowest = max(lane.vtime or 0.0 for lane in self.lanes.values())
        self.clock = max(now, tag, lowest)


@pytest.mark.parametrize("seed", range(6))
async def test_claims_are_those_of_the_model(own_database: Pool, writer: Writer, seed: int) -> None:
    chance = random.Random(seed)
    model = Model({})
    for name, weight in (("one", 1.0), ("two", 2.0), ("four", 4.0)):
        cap = chance.choice([None, None, 2, 5])
        org = await ensure_org(own_database, name)
        await set_share(own_database, name, weight=weight, max_running=cap)
        model.lanes[org] = Lane(weight, cap)
    leases = worker(own_database)
    for _ in range(80):
        org, lane = chance.choice(list(model.lanes.items()))
        match chance.choice(["queue", "queue", "claim", "claim", "charge", "finish"]):
            case "queue":
                priority = chance.choice([0, 0, 3, -2])
                for run_id in await queue(own_database, org, chance.randint(1, 4), priority=priority):
                    lane.waiting.append((-priority, run_id))
            case "claim":
                most = chance.randint(1, 4)
                expected = model.next(most)
                claimed = await leases.claim(most)
                assert [run.id for run in claimed] == [run_id for run_id, _ in expected]
                assert [run.vtag for run in claimed] == pytest.approx([tag for _, tag in expected])
                for run in claimed:
                    at = model.lanes[run.org_id]
                    at.waiting = [waiting for waiting in at.waiting if waiting[1] != run.id]
                    at.running.append(run)
            case "charge" if lane.running:
                tag, units = max(run.vtag for run in lane.running), chance.choice([0.1, 1.0, 7.0])
                await charge(own_database, [Charge(org, tag, units)])
                model.charge(org, tag, units)
            case "finish" if lane.running:
                run = lane.running.pop(chance.randrange(len(lane.running)))
                await finish(writer, [run])
                await charge(own_database, [Charge(org, run.vtag, 0.5)])
                model.charge(org, run.vtag, 0.5)


# -- order within an org -------------------------------------------------------------------------------------------


async def test_a_higher_priority_starts_first_and_among_equals_the_older(own_database: Pool, own_org: str) -> None:
    ids: dict[int, list[str]] = {}
    for priority in (0, -10, 5, 10, 5, 0):
        ids.setdefault(priority, []).extend(await queue(own_database, own_org, 2, priority=priority))
    claimed = [run.id for _ in range(4) for run in await worker(own_database).claim(3)]
    assert claimed == [id for priority in sorted(ids, reverse=True) for id in ids[priority]]


async def test_a_priority_counts_for_nothing_against_other_orgs(
    own_database: Pool, own_org: str, other_org: str
) -> None:
    await queue(own_database, own_org, 20, priority=10)
    await queue(own_database, other_org, 20, priority=-10)
    assert (await orgs_of(worker(own_database), 20)).count(other_org) == 10


async def test_priorities_and_ages_count_across_the_agents_of_an_org(own_database: Pool, own_org: str) -> None:
    first, second = [(await create_agent(own_database, own_org, AgentConfig(name=name))).id for name in ("a", "b")]
    queued = [await queue(own_database, own_org, agent=agent) for agent in (second, first, second, first)]
    urgent = await queue(own_database, own_org, agent=second, priority=1)
    claimed = [run.id for _ in range(5) for run in await worker(own_database).claim(1)]
    assert claimed == urgent + [id for [id] in queued]


async def test_every_agent_is_served_though_there_are_more_than_a_claim_looks_at(
    own_database: Pool, own_org: str
) -> None:
    agents = [
        (await create_agent(own_database, own_org, AgentConfig(name=f"agent {number}"))).id
        for number in range(MOST_AGENTS + 6)
    ]
    for agent in agents:
        await queue(own_database, own_org, 3, agent=agent)
    claimed = [run.agent_id for _ in range(len(agents)) for run in await worker(own_database).claim(3)]
    assert Counter(claimed) == dict.fromkeys(agents, 3)


async def test_a_run_that_was_handed_back_goes_on_before_anything_new_though_its_org_owes(
    own_database: Pool, own_org: str, other_org: str
) -> None:
    for org in (own_org, other_org):
        await queue(own_database, org, 5)
    [run] = await worker(own_database, "leaving:1").claim(1)
    await charged(own_database, [run], 1000)
    await worker(own_database, "leaving:1").hand_back({run.id: run.epoch}, "drained")
    [again] = await worker(own_database, "staying:2").claim(1)
    assert (again.id, again.left_by, again.vtag) == (run.id, "drained", run.vtag)


async def test_a_paused_run_is_not_claimed_and_a_resumed_one_keeps_its_place(own_database: Pool, own_org: str) -> None:
    first, second = await queue(own_database, own_org, 2)
    await pause(own_database, own_org, first)
    leases = worker(own_database)
    assert [run.id for run in await leases.claim(1)] == [second]
    assert await leases.claim(1) == []
    third = await queue(own_database, own_org)
    await resume(own_database, own_org, first)
    assert [run.id for run in await leases.claim(2)] == [first, *third]


async def test_runs_of_a_newer_graph_are_left_alone_and_stand_in_nobodys_way(own_database: Pool, own_org: str) -> None:
    newer = await queue(own_database, own_org, 30)
    await own_database.execute("UPDATE runs SET graph_version = 2")
    older = await queue(own_database, own_org, 3)
    assert [run.id for run in await worker(own_database).claim(40)] == older
    new_worker = Leases(own_database, worker="new:2", lease_seconds=10, graph_version=2)
    assert [run.id for run in await new_worker.claim(40)] == newer


# -- caps ------------------------------------------------------------------------------------------------------------


async def capped_agent(database: Pool, org: str, name: str, most: int) -> str:
    config = AgentConfig(name=name, limits=AgentLimits(max_running=most))
    return (await create_agent(database, org, config)).id


@pytest.mark.parametrize("seed", range(3))
async def test_caps_hold_exactly_while_workers_claim_and_finish_at_once(
    own_database: Pool, own_org: str, other_org: str, writer: Writer, seed: int
) -> None:
    chance = random.Random(seed)
    await set_share(own_database, "own", max_running=5)
    narrow = await capped_agent(own_database, own_org, "narrow", 2)
    single = await capped_agent(own_database, other_org, "single", 1)
    for _ in range(12):
        await queue(own_database, own_org, 2)
        await queue(own_database, own_org, 1, agent=narrow)
        await queue(own_database, other_org, 1, agent=single)
    seen: list[tuple[int, int, int]] = []

    async def look() -> None:
        row = await own_database.fetchrow(
            """SELECT count(*) FILTER (WHERE org_id = $1), count(*) FILTER (WHERE agent_id = $2),
                      count(*) FILTER (WHERE agent_id = $3) FROM runs WHERE status = 'running'""",
            *(own_org, narrow, single),
        )
        assert row is not None
        seen.append(tuple(row))

    async def work(number: int) -> None:
        leases = worker(own_database, f"host:{number}")
        while await own_database.fetchval("SELECT EXISTS (SELECT FROM runs WHERE status = 'queued')"):
            runs = await leases.claim(chance.randint(1, 6))
            await look()
            await finish(writer, runs)

    await asyncio.gather(*(work(number) for number in range(4)))
    highest = [max(column) for column in zip(*seen, strict=True)]
    assert highest[0] <= 5
    assert highest[1] <= 2
    assert highest[2] <= 1
    assert highest[0] == 5, "the cap was never reached: the test shows nothing"


async def test_workers_that_claim_at_once_fill_a_cap_and_go_no_further(own_database: Pool, own_org: str) -> None:
    await set_share(own_database, "own", max_running=7)
    await queue(own_database, own_org, 40)
    leases = [worker(own_database, f"host:{number}") for number in range(4)]
    claimed = await asyncio.gather(*(each.claim(3) for each in leases))
    claimed += await asyncio.gather(*(each.claim(3) for each in leases))
    assert sum(map(len, claimed)) == 7
    assert all(run.capped for runs in claimed for run in runs)


async def test_an_org_at_its_cap_leaves_its_slots_to_others_and_a_freed_place_is_its_own_again(
    own_database: Pool, own_org: str, other_org: str, writer: Writer
) -> None:
    await set_share(own_database, "own", max_running=2)
    for org in (own_org, other_org):
        await queue(own_database, org, 10)
    leases = worker(own_database)
    runs = await leases.claim(8)
    assert Counter(run.org_id for run in runs) == {own_org: 2, other_org: 6}
    await finish(writer, [run for run in runs if run.org_id == own_org][:1])
    assert Counter(await orgs_of(leases, 1, 3)) == {own_org: 1, other_org: 2}


async def test_a_cap_of_zero_holds_an_org_and_none_lets_it_go(own_database: Pool, own_org: str) -> None:
    await set_share(own_database, "own", max_running=0)
    await queue(own_database, own_org, 3)
    assert await worker(own_database).claim(5) == []
    share = await set_share(own_database, "own", no_cap=True)
    assert (share.max_running, share.waiting) == (None, 3)
    runs = await worker(own_database).claim(5)
    assert [run.capped for run in runs] == [False] * 3


async def test_a_long_queue_of_an_agent_at_its_cap_hides_no_other_agents_runs(own_database: Pool, own_org: str) -> None:
    narrow = await capped_agent(own_database, own_org, "narrow", 1)
    await queue(own_database, own_org, 300, agent=narrow)
    others = await queue(own_database, own_org, 5)
    claimed = await worker(own_database).claim(10)
    assert Counter(run.agent_id == narrow for run in claimed) == {True: 1, False: 5}
    assert {run.id for run in claimed if run.agent_id != narrow} == set(others)


async def test_the_cap_of_an_agent_is_that_of_its_newest_version(own_database: Pool, own_org: str) -> None:
    agent = await capped_agent(own_database, own_org, "narrow", 1)
    await queue(own_database, own_org, 5, agent=agent)
    leases = worker(own_database)
    assert len(await leases.claim(5)) == 1
    await update_agent(own_database, own_org, agent, {"limits": {"max_running": 3}})
    assert len(await leases.claim(5)) == 2
    await update_agent(own_database, own_org, agent, {"limits": {}})
    assert len(await leases.claim(5)) == 2


async def test_a_configuration_without_a_cap_can_be_read_by_releases_that_know_of_none(
    own_database: Pool, own_org: str
) -> None:
    [config] = await own_database.fetch("SELECT config FROM agent_versions")
    assert "max_running" not in orjson.loads(config["config"])["limits"]


async def test_a_dead_run_is_taken_over_under_the_cap_that_it_fills(own_database: Pool, own_org: str) -> None:
    await set_share(own_database, "own", max_running=1)
    await queue(own_database, own_org, 2)
    [run] = await worker(own_database, "dead:1").claim(2)
    await expire(own_database, run.id)
    claimed = await worker(own_database, "heir:2").claim(5)
    assert [(heir.id, heir.left_by) for heir in claimed] == [(run.id, "died")]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"weight": 0.0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"weight": float("inf")}, "weight"),
        ({"weight": 1001.0}, "weight"),
        ({"max_running": -1}, "max_running"),
        ({"max_running": 3, "no_cap": True}, "max_running"),
    ],
)
async def test_a_share_out_of_range_is_refused(
    own_database: Pool, own_org: str, changes: dict[str, float], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await set_share(own_database, "own", **changes)  # type: ignore[arg-type]
    assert refused.value.field == field
    assert [(share.weight, share.max_running) for share in await list_shares(own_database)] == [(1, None)]


async def test_the_share_of_an_org_that_is_not_there_cannot_be_set(own_database: Pool) -> None:
    with pytest.raises(NotFound):
        await set_share(own_database, "nobody", weight=2)


# -- what it costs ---------------------------------------------------------------------------------------------------


async def pages_of_a_claim(database: Pool) -> int:
    """How many pages a claim of one run reads, once its plans are made. The claims are undone."""
    async with database.acquire() as connection:
        return min([await _explained(connection) for _ in range(5)])  # new statistics make it plan again


async def _explained(connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record]) -> int:
    transaction = connection.transaction()
    await transaction.start()
    try:
        text = await connection.fetchval(
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM claim_runs('host:1', 1, 10, 40, '{}', 1)"
        )
    finally:
        await transaction.rollback()
    plan = orjson.loads(text)[0]["Plan"]
    assert plan["Actual Rows"] == 1
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def test_a_claim_reads_as_much_with_6000_runs_queued_and_300_running_as_with_few(
    own_database: Pool, own_org: str, other_org: str
) -> None:
    await queue_many(own_database, own_org, 300)
    await queue_many(own_database, other_org, 1)
    leases = worker(own_database, lease=3600)
    await leases.claim(1)
    few = await pages_of_a_claim(own_database)
    await queue_many(own_database, own_org, 6000)
    for _ in range(15):
        await leases.claim(20)
    await own_database.execute("VACUUM ANALYZE runs")
    assert await pages_of_a_claim(own_database) <= 1.3 * few  # for indexes may be a level deeper


async def test_claiming_thousands_one_after_the_other_leaves_nothing_to_be_read_by_those_that_follow(
    own_database: Pool, own_org: str
) -> None:
    await own_database.execute("ALTER TABLE runs SET (autovacuum_enabled = off)")
    await queue_many(own_database, own_org, 2100)
    before = await pages_of_a_claim(own_database)
    leases = worker(own_database, lease=3600)
    for _ in range(100):
        await leases.claim(20)
    # their index entries stay until the next vacuum, some 60 to a page, and are read over twice
    assert await pages_of_a_claim(own_database) <= before + 2000 / 20
