"""Claims: fair between orgs, never the same run twice, the dead first, handed back without a charge."""

from __future__ import annotations

import asyncio
from itertools import chain

from kernel.checkpoints import CheckpointRow
from kernel.ids import new_id
from kernel.postgres import Pool
from kernel.runlog import NewMessage, NewStep
from kernel.runs import cancel, pause
from kernel.tenants import ensure_org
from tests.kernel.writing import FINISHED, Writer, ask, expire, log_of, worker


async def test_an_org_with_200_queued_runs_does_not_delay_the_first_of_another(
    own_database: Pool, own_org: str
) -> None:
    for _ in range(200):
        await ask(own_database, own_org)
    patient = await ensure_org(own_database, "patient")
    urgent = [await ask(own_database, patient) for _ in range(3)]
    claimed = await worker(own_database).claim(4)
    assert urgent[0].id in {run.id for run in claimed[:2]}
    claimed += await worker(own_database).claim(4)
    assert {run.id for run in urgent} <= {run.id for run in claimed}


async def test_orgs_that_both_have_much_queued_take_turns_by_their_weight(own_database: Pool, own_org: str) -> None:
    heavy = await ensure_org(own_database, "heavy")
    await own_database.execute("UPDATE orgs SET weight = 3 WHERE id = $1", heavy)
    for _ in range(40):
        await ask(own_database, own_org)
        await ask(own_database, heavy)
    claimed = await worker(own_database).claim(40)
    shares = [run.org_id for run in claimed].count(heavy)
    assert 28 <= shares <= 32


async def test_the_runs_of_one_org_are_claimed_in_the_order_they_came(own_database: Pool, own_org: str) -> None:
    runs = [await ask(own_database, own_org) for _ in range(12)]
    claimed = [await worker(own_database).claim(4) for _ in range(3)]
    assert [run.id for run in chain(*claimed)] == [run.id for run in runs]


async def test_workers_that_claim_at_once_never_get_the_same_run(own_database: Pool, own_org: str) -> None:
    runs = {(await ask(own_database, own_org)).id for _ in range(60)}
    workers = [worker(own_database, f"host:{number}") for number in range(8)]
    claimed: list[str] = []
    while len(claimed) < len(runs):
        found = await asyncio.gather(*(each.claim(3) for each in workers))
        claimed += [run.id for run in chain(*found)]
    assert sorted(claimed) == sorted(runs)


async def test_only_the_first_unfinished_run_of_a_session_can_be_claimed(own_database: Pool, own_org: str) -> None:
    first = await ask(own_database, own_org)
    await ask(own_database, own_org, session_id=first.session_id)
    assert [run.id for run in await worker(own_database).claim(10)] == [first.id]
    assert await worker(own_database).claim(10) == []


async def test_a_run_whose_lease_ran_out_is_claimed_before_the_queue_with_the_next_epoch(
    own_database: Pool, own_org: str
) -> None:
    dead = await ask(own_database, own_org)
    await worker(own_database, "dead:1").claim(1)
    await ask(own_database, own_org)
    assert [run.id for run in await worker(own_database, "new:2").claim(0)] == []
    await expire(own_database, dead.id)
    [claimed] = await worker(own_database, "new:2").claim(1)
    assert (claimed.id, claimed.epoch, claimed.attempt, claimed.left_by) == (dead.id, 2, 2, "died")


async def test_a_renewed_lease_keeps_a_run(own_database: Pool, own_org: str) -> None:
    run = await ask(own_database, own_org)
    mine = worker(own_database, lease=60)
    [claimed] = await mine.claim(1)
    before = await own_database.fetchval("SELECT lease_until FROM runs")
    assert await mine.renew({run.id: claimed.epoch}) == {run.id}
    assert await own_database.fetchval("SELECT lease_until FROM runs") > before


async def test_a_worker_learns_what_callers_ask_of_its_runs(own_database: Pool, own_org: str) -> None:
    cancelled, paused, both, unasked = [await ask(own_database, own_org) for _ in range(4)]
    mine = worker(own_database)
    owned = [run.id for run in await mine.claim(4)]
    for run in (paused, both):
        await pause(own_database, own_org, run.id)
    for run in (cancelled, both):
        await cancel(own_database, own_org, run.id)
    assert unasked.id in owned
    assert await mine.requests(owned) == {cancelled.id: "cancelled", paused.id: "paused", both.id: "cancelled"}


async def test_a_lease_is_not_renewed_under_an_old_epoch(own_database: Pool, own_org: str) -> None:
    run = await ask(own_database, own_org)
    old = worker(own_database, "old:1")
    await old.claim(1)
    await expire(own_database, run.id)
    await worker(own_database, "new:2").claim(1)
    assert await old.renew({run.id: 1}) == set()
    assert await old.hand_back({run.id: 1}, "drained") == []
    assert await own_database.fetchval("SELECT worker FROM runs") == "new:2"


async def test_a_run_that_is_handed_back_is_claimed_again_without_a_charge(own_database: Pool, own_org: str) -> None:
    run = await ask(own_database, own_org)
    leaving = worker(own_database, "leaving:1")
    [claimed] = await leaving.claim(1)
    assert await leaving.hand_back({run.id: claimed.epoch}, "drained") == [run.id]
    [again] = await worker(own_database, "staying:2").claim(1)
    assert (again.id, again.epoch, again.attempt, again.left_by) == (run.id, 2, 1, "drained")


async def test_who_handed_a_run_back_writes_no_more(own_database: Pool, own_org: str, writer: Writer) -> None:
    run = await ask(own_database, own_org)
    leaving = worker(own_database, "leaving:1")
    [claimed] = await leaving.claim(1)
    pen = writer.pen(claimed)
    await leaving.hand_back({run.id: claimed.epoch}, "drained")
    pen.end(FINISHED)
    outcome = (await asyncio.gather(pen.committed(), return_exceptions=True))[0]
    assert isinstance(outcome, Exception)
    assert await own_database.fetchval("SELECT status FROM runs") == "queued"


async def test_a_claim_brings_the_conversation_so_far_and_its_own_input(
    own_database: Pool, own_org: str, writer: Writer
) -> None:
    first = await ask(own_database, own_org, text="one")
    pen = writer.pen((await worker(own_database).claim(1))[0])
    pen.end(FINISHED)
    await pen.committed()
    await ask(own_database, own_org, session_id=first.session_id, text="two")
    [claimed] = await worker(own_database).claim(1)
    assert claimed.history == [{"role": "user", "content": "one"}]
    assert [(message.role, message.content) for message in claimed.messages] == [("user", "two")]
    assert claimed.turn == 2
    assert claimed.agent["name"] == "assistant"


async def test_the_next_owner_is_told_what_the_last_one_left(own_database: Pool, own_org: str, writer: Writer) -> None:
    run = await ask(own_database, own_org)
    pen = writer.pen((await worker(own_database, "dead:1").claim(1))[0])
    pen.say("usage", {"input_tokens": 5, "output_tokens": 6, "cost": 0.0})
    pen.say("usage", {"input_tokens": 10, "output_tokens": 20, "cost": 0.0, "path": "helper:2"})
    for message_id in ("msg_whole", "msg_void", "msg_begun"):
        pen.chunk(message_id, "text")
    pen.chunk("msg_begun_too", "text", "helper:2")
    pen.say("message", {"message_id": "msg_whole", "role": "assistant", "content": "text"})
    pen.discard("msg_void")
    pen.record_message(NewMessage(new_id("msg"), "", 1, "assistant", "kept"))
    pen.record_step(NewStep("0-think", "", "THINK", 0.1))
    pen.stage_checkpoint(CheckpointRow(run.id, "", "c1", None, "msgpack", b"state", b"metadata"))
    await pen.committed()
    await expire(own_database, run.id)

    heir = worker(own_database, "heir:2")
    [claimed] = await heir.claim(1)
    taken, unfinished = await heir.take_over(claimed)
    assert unfinished == {"msg_begun": "", "msg_begun_too": "helper:2"}
    spent = taken.spent_in_all
    assert (spent.input_tokens, spent.output_tokens) == (15, 26)
    assert [(message.position, message.content) for message in taken.messages] == [(0, "hello"), (1, "kept")]

    new_pen = writer.pen(taken)
    new_pen.take_over(unfinished, spent.input_tokens, spent.output_tokens)
    assert new_pen.usage() == {"input_tokens": 15, "output_tokens": 26, "cost": 0.0}
    new_pen.end(FINISHED)
    await new_pen.committed()
    types = [type for _, type, _ in await log_of(own_database, run.session_id)]
    assert types[-3:] == ["message_discarded", "message_discarded", "done"]


async def test_a_run_that_nobody_owned_before_left_nothing(own_database: Pool, own_org: str) -> None:
    await ask(own_database, own_org)
    heir = worker(own_database)
    [claimed] = await heir.claim(1)
    taken, unfinished = await heir.take_over(claimed)
    assert unfinished == {}
    assert taken == claimed
