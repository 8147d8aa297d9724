"""Whatever callers, two workers, time and the dead do to a few sessions, in any order: Postgres agrees with the model.

Hypothesis chooses what happens. After each step all runs, fences and logs are compared; at the end every run's history
is checked. A failure prints how to play it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis.asyncio import Redis

from kernel.approvals import decide
from kernel.errors import Conflict, LeaseLost
from kernel.leases import HandBack
from kernel.postgres import Pool, open_pool
from kernel.runlog import Rest
from kernel.runs import IfBusy, InputMessage, NewRun, cancel, pause, resume, submit
from kernel.tenants import Principal, ensure_org
from tests.conftest import MakeDatabase
from tests.history import assert_history
from tests.kernel.grips import KINDS, Grip
from tests.kernel.run_model import Model, Run, Said
from tests.kernel.writing import Writer, commit, expire, worker, writing

T = TypeVar("T")

WORKERS = ("one:1", "two:2")

workers = st.sampled_from(WORKERS)
some = st.integers(0, 30)
"""Which of those that there are; the number is taken modulo how many there are."""


class RunMachine(RuleBasedStateMachine):
    """Does the same to the model and to the database."""

    loop: ClassVar[asyncio.AbstractEventLoop]
    database: ClassVar[Pool]
    writer: ClassVar[Writer]
    org: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.grips: list[Grip] = []
        self.sent: list[tuple[Run, int, int]] = []
        self.agreed = True
        self.do(self.database.execute("DELETE FROM sessions"))

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        self.agreed = False
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        if not self.agreed:
            return  # that says it all
        for run in self.model.runs:
            if not run.finished:
                self.lease_runs_out(run)
                self.cancelled(run)
        for run in self.model.runs:
            self.do(assert_history(self.database, run.id))

    # -- callers -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.unfinished < 6)
    @rule(which=some, if_busy=st.sampled_from([*["enqueue"] * 6, "reject", "interrupt"]), new=st.integers(0, 3))
    def a_run_is_submitted(self, which: int, if_busy: IfBusy, new: int) -> None:
        sessions = list(self.model.sessions.values())
        session = None if not sessions or (not new and len(sessions) < 4) else sessions[which % len(sessions)]
        request = NewRun([InputMessage("user", "hi")], if_busy=if_busy)
        asking = submit(
            self.database, org_id=self.org, user_id=None, session_id=session.id if session else None, new=request
        )
        if session and session.head and if_busy == "reject":
            with pytest.raises(Conflict):
                self.do(asking)
            return
        asked = self.model.interrupt(session) if session and if_busy == "interrupt" else []
        submitted = self.do(asking)
        run = self.model.submit(submitted.run.id, submitted.run.session_id)
        assert submitted.head == run.head
        assert list(submitted.interrupted) == [one.id for one in asked]

    @property
    def unfinished(self) -> int:
        return sum(not run.finished for run in self.model.runs)

    def pick(self, which: int) -> Run:
        runs = list(self.model.runs)
        unfinished = [run for run in runs if not run.finished]
        # finished ones now and then, to see that they stay as they are
        return unfinished[which % len(unfinished)] if unfinished and which > 3 else runs[which % len(runs)]

    @precondition(lambda self: self.unfinished > 3)
    @rule(which=some)
    def a_run_is_cancelled(self, which: int) -> None:
        self.cancelled(self.pick(which))

    def cancelled(self, run: Run) -> None:
        assert self.do(cancel(self.database, self.org, run.id)).outcome == self.model.cancel(run)

    @precondition(lambda self: self.model.sessions)
    @rule(which=some, again=st.booleans())
    def a_run_is_paused_or_resumed(self, which: int, again: bool) -> None:
        run = self.pick(which)
        expected = self.model.resume(run) if again else self.model.pause(run)
        asking = (resume if again else pause)(self.database, self.org, run.id)
        if expected == "finished":
            with pytest.raises(Conflict):
                self.do(asking)
        else:
            assert self.do(asking) == expected

    @precondition(lambda self: any(run.open_approvals for run in self.model.runs))
    @rule(which=some, verdict=st.sampled_from(["answer", "deny"]))
    def somebody_decides(self, which: int, verdict: Literal["answer", "deny"]) -> None:
        """Whatever the run is doing; once more is too late."""
        asked = [(run, approval_id) for run in self.model.runs for approval_id in run.open_approvals]
        run, approval_id = asked[which % len(asked)]
        who = Principal(self.org, "mia", frozenset({"write"}))
        decided = self.do(decide(self.database, who, approval_id, verdict, answer="blue"))
        assert decided.claimable == self.model.decide(run, approval_id)
        with pytest.raises(Conflict):
            self.do(decide(self.database, who, approval_id, verdict, answer="red"))

    # -- workers -------------------------------------------------------------------------------------------

    @precondition(lambda self: any(run.claimable for run in self.model.runs))
    @rule(name=workers, limit=st.integers(1, 3), speechless=st.booleans())
    def a_worker_claims(self, name: str, limit: int, speechless: bool) -> None:
        """What it gets is what may be had, the dead first. It says so at once, or is slow, or dies before that."""
        self.claim(name, limit, speechless)

    def claim(self, name: str, limit: int, speechless: bool) -> None:
        mine = {grip.run.id for grip in self.grips if grip.worker == name}
        dead, queued = self.model.claimable(mine)
        held_back = [run for run in dead if run.suspect]
        claimed = self.do(worker(self.database, name, lease=600).claim(limit, running=list(mine)))
        available = len(dead) + len(queued)
        assert min(limit, available - len(held_back)) <= len(claimed) <= min(limit, available)
        taken = [self.model.run(given.id) for given in claimed]
        assert set(taken) <= {*dead, *queued}
        assert taken == sorted(taken, key=lambda run: run in queued), "the dead go first"
        for given in claimed:
            run = self.model.run(given.id)
            left_by = self.model.claim(run, name)
            expected = (run.epoch, run.attempt, run.deaths, left_by, run.cancel_asked, run.pause_asked)
            assert (given.epoch, given.attempt, given.deaths, given.left_by, given.cancelled, given.paused) == expected
            grip = Grip(name, run, run.epoch, given, self.writer.pen(given))
            self.grips.append(grip)
            if not speechless:
                self.do(self._write(grip, []))

    async def _begin(self, grip: Grip) -> Said:
        run, given, unfinished = grip.run, grip.given, dict[str, str]()
        if given.epoch > 1:
            given, unfinished = await worker(self.database).take_over(given)
            if self.model.owned(run, grip.epoch):
                assert sorted(unfinished) == sorted(run.streaming)
                assert given.announced == run.announced
                spent = given.spent_in_all
                assert spent.input_tokens + spent.output_tokens == 2 * run.tokens
                assert [effect.finished for effect in given.effects.values()].count(False) == run.open_call
                pending = [made.approval_id for made in given.approvals.values() if made.status == "pending"]
                assert sorted(pending) == sorted(run.open_approvals)
        return grip.begin(given, unfinished)

    async def _commit(self, grip: Grip, said: Said) -> None:
        """What was said is committed, or refused as a whole; then the pen is of no more use."""
        batch = grip.pen.batches + 1
        outcome = self.model.commit(grip.run, grip.epoch, batch, said)
        self.sent.append((grip.run, grip.epoch, batch))
        if outcome == "committed":
            await grip.pen.committed()
        else:
            with pytest.raises(LeaseLost):
                await grip.pen.committed()
        if outcome != "committed" or grip.pen.ended:
            self.grips.remove(grip)

    def grip(self, which: int) -> Grip:
        """Somebody who holds a run; if nobody does, somebody claims one."""
        if not self.grips:
            self.claim(WORKERS[which % 2], 1, speechless=True)
        return self.grips[which % len(self.grips)]

    @property
    def work(self) -> bool:
        """Whether `grip` finds somebody."""
        return bool(self.grips) or any(run.claimable and not run.suspect for run in self.model.runs)

    @precondition(lambda self: self.work)
    @rule(which=some, kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
    def an_owner_writes(self, which: int, kinds: list[str]) -> None:
        """Rightful or not: one that has lost its run to another does not know it yet."""
        self.do(self._write(self.grip(which), kinds))

    async def _write(self, grip: Grip, kinds: list[str]) -> None:
        said = Said() if grip.begun else await self._begin(grip)
        grip.write(kinds, said)
        await self._commit(grip, said)

    @precondition(lambda self: self.work)
    @rule(which=some, rests=st.sampled_from(["paused", "approval", None]))
    def an_owner_ends_its_run_or_leaves_it_at_rest(self, which: int, rests: Rest | None) -> None:
        self.do(self._leave(self.grip(which), rests))

    async def _leave(self, grip: Grip, rests: Rest | None) -> None:
        said = Said() if grip.begun else await self._begin(grip)
        if rests is not None:
            grip.rest(said, rests if grip.waits_for else "paused")
        else:
            grip.end(said)
        await self._commit(grip, said)

    @precondition(lambda self: self.grips)
    @rule(name=workers, back=st.booleans(), because=st.sampled_from(["drained", "store_away"]))
    def a_worker_renews_or_hands_back_all_it_holds(self, name: str, back: bool, because: HandBack) -> None:
        held = {grip.run.id: grip for grip in self.grips if grip.worker == name}
        owned = {id: grip.epoch for id, grip in held.items()}
        leases = worker(self.database, name, lease=600)
        if back:
            expected = {id for id, grip in held.items() if self.model.hand_back(grip.run, grip.epoch, because)}
            assert set(self.do(leases.hand_back(owned, because))) == expected
        else:
            expected = {id for id, grip in held.items() if self.model.renew(grip.run, grip.epoch)}
            assert self.do(leases.renew(owned)) == expected

    @precondition(lambda self: self.grips)
    @rule(name=workers)
    def a_worker_dies(self, name: str) -> None:
        self.grips = [grip for grip in self.grips if grip.worker != name]

    @precondition(lambda self: self.sent)
    @rule(which=some, by_the_last=st.booleans())
    def a_batch_comes_late(self, which: int, by_the_last: bool) -> None:
        """From an owner that is gone or never heard the answer; or one of its number from the run's last owner."""
        run, epoch, batch = self.sent[-1 - which % len(self.sent)]
        epoch = run.epoch if by_the_last else epoch
        expected = self.model.judge(run, epoch, batch)
        if expected != "committed":
            sent = commit(self.database, run.id, run.session.id, epoch, batch, [("tool_thinking", '{"text":"late"}')])
            assert self.do(sent)["outcome"] == expected

    # -- time ----------------------------------------------------------------------------------------------

    @precondition(lambda self: any(run.status == "running" for run in self.model.runs))
    @rule(which=some)
    def a_lease_runs_out(self, which: int) -> None:
        running = [run for run in self.model.runs if run.status == "running"]
        self.lease_runs_out(running[which % len(running)])

    def lease_runs_out(self, run: Run) -> None:
        if run.status == "running":
            run.lapsed = True
            self.do(expire(self.database, run.id))

    @precondition(lambda self: self.unfinished > 3)
    @rule(which=some)
    def a_deadline_passes(self, which: int) -> None:
        run = self.pick(which)
        if not run.finished:
            run.overdue = True
            past = "UPDATE runs SET deadline_at = clock_timestamp() - interval '1 s' WHERE id = $1"
            self.do(self.database.execute(past, run.id))

    @precondition(lambda self: self.model.overdue())
    @rule()
    def what_is_overdue_is_ended(self) -> None:
        expected = self.model.overdue()
        ended = self.do(worker(self.database).end_overdue(patience=0))
        assert {one.run_id: one.status for one in ended} == expected
        for one in ended:
            self.model.end_from_outside(self.model.run(one.run_id), one.status)

    # -- what always holds ---------------------------------------------------------------------------------

    @invariant()
    def postgres_agrees(self) -> None:
        found, fences, log = self.do(self._found())
        runs = {run.id: run for run in self.model.runs}
        assert found.keys() == runs.keys()
        for id, row in found.items():
            run = runs[id]
            expected: dict[str, Any] = {"status": run.status, "head": run.head, "epoch": run.epoch}
            expected |= {"attempt": run.attempt, "deaths": run.deaths, "worker": run.owner, "lapsed": run.lapsed}
            expected |= {"steps": run.steps, "checkpoints": run.steps, "calls": run.calls}
            expected |= {"open_approvals": len(run.open_approvals)}
            if not run.finished:
                expected |= {"cancel": run.cancel_asked, "pause": run.pause_asked, "left_because": run.left}
            assert {name: row[name] for name in expected} == expected, id
        for session in self.model.sessions.values():
            head = session.head.id if session.head else None
            assert fences[session.id] == (head, session.epoch, session.batch, len(session.log))
            assert log.get(session.id, []) == [(at, *event) for at, event in enumerate(session.log, start=1)]
        self.agreed = True

    async def _found(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, list[tuple[int, str, str]]]]:
        async with self.database.acquire() as connection:
            runs = await connection.fetch(
                """SELECT id, status, head, epoch, attempt, deaths, worker, left_because,
                          coalesce(lease_until < clock_timestamp(), false) AS lapsed,
                          cancel_requested_at IS NOT NULL AS cancel, pause_requested_at IS NOT NULL AS pause,
                          (SELECT count(*) FROM approvals
                           WHERE run_id = runs.id AND status = 'pending') AS open_approvals,
                          (SELECT count(*) FROM steps WHERE run_id = runs.id) AS steps,
                          (SELECT count(*) FROM checkpoints WHERE run_id = runs.id) AS checkpoints,
                          (SELECT count(*) FROM effects WHERE run_id = runs.id) AS calls
                   FROM runs"""
            )
            sessions = await connection.fetch("SELECT id, head_run_id, head_epoch, head_batch, last_seq FROM sessions")
            events = await connection.fetch("SELECT session_id, seq, run_id, type FROM events ORDER BY session_id, seq")
        log: dict[str, list[tuple[int, str, str]]] = {}
        for event in events:
            log.setdefault(event["session_id"], []).append((event["seq"], event["run_id"], event["type"]))
        return {row["id"]: row for row in runs}, {row["id"]: tuple(row)[1:] for row in sessions}, log


@pytest.fixture(scope="module")
async def machine_url(make_database: MakeDatabase) -> str:
    return await make_database()


@contextmanager
def machine_on(database_url: str, redis_url: str) -> Iterator[type[RunMachine]]:
    """The machine with an event loop, a database and a journal."""
    with asyncio.Runner() as runner:
        RunMachine.loop = runner.get_loop()
        database = RunMachine.database = runner.run(open_pool(database_url, size=4, name="machine"))
        redis = Redis.from_url(redis_url)
        journal = writing(database, redis)
        RunMachine.writer = runner.run(journal.__aenter__())
        RunMachine.org = runner.run(ensure_org(database, "machine"))
        try:
            yield RunMachine
        finally:
            runner.run(journal.__aexit__(None, None, None))
            runner.run(database.close())
            runner.run(redis.aclose())


def test_runs_sessions_and_leases_are_what_the_model_says(machine_url: str, redis_url: str) -> None:
    with machine_on(machine_url, redis_url) as machine:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=80,
                stateful_step_count=40,
                deadline=None,
                print_blob=True,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )
