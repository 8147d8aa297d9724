"""Workers that were paused past their leases while nobody else was there: what they have, they keep."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack

from cli.rehearsal import Hang, Reply
from tests.e2e.caller import Caller
from tests.faults.crew import holder, log_bytes, staff
from tests.history import assert_history
from tests.scripts import ScriptedModel
from tests.stack import Stack
from tests.waiting import eventually

WORDS = [f"word{number} " for number in range(120)]


async def test_a_worker_that_was_paused_past_its_leases_finishes_its_runs_as_their_first_attempt(
    mortal: Stack, caller: Caller, model: ScriptedModel
) -> None:
    [worker] = await staff(mortal, 1)
    async with AsyncExitStack() as open_streams:
        streams = []
        for _ in range(4):
            following = caller.following(model=model.script(Reply(tokens=WORDS, token_delay=0.02)))
            streams.append(await open_streams.enter_async_context(following))
        await asyncio.gather(*(stream.until("message_chunk") for stream in streams))
        worker.send(signal.SIGSTOP)

        async def all_expired() -> bool:
            return bool(
                await mortal.database.fetchval(
                    "SELECT bool_and(lease_until < clock_timestamp()) FROM runs WHERE status = 'running'"
                )
            )

        await eventually(all_expired, what="all leases have run out")
        worker.send(signal.SIGCONT)
        await asyncio.gather(*(stream.rest() for stream in streams))
    for stream in streams:
        history = await assert_history(mortal.database, stream.events[0].data["run_id"])
        assert (history.run["status"], history.run["attempt"], history.run["epoch"]) == ("succeeded", 1, 1)
        assert history.of("message")[0].data["content"] == "".join(WORDS)
        assert stream.frames == await log_bytes(mortal, history.run["session_id"])
    assert (await caller.run("still there?", workflow="echo"))["answer"] == "still there?"


async def test_a_run_that_is_cancelled_before_its_next_owner_comes_has_its_begun_text_discarded(
    mortal: Stack, caller: Caller, model: ScriptedModel
) -> None:
    [dying] = await staff(mortal, 1)
    script = model.script(Reply(tokens=["half ", "an ", "answer"], fault=Hang(2)))
    async with caller.following(model=script) as stream:
        started = (await stream.until("run_started")).data
        half = await stream.until("message_chunk")
        assert holder(mortal, started) is dying
        await dying.kill()
        await caller.post(f"/v1/runs/{started['run_id']}/cancel", expect=202)
        await staff(mortal, 1)
        discarded = await stream.until("message_discarded")
        await stream.rest()
    assert discarded.data["message_id"] == half.data["message_id"]
    history = await assert_history(mortal.database, started["run_id"])
    # By the next owner, or by its heartbeat, which looks for runs that should have ended: whichever comes first.
    assert (history.run["status"], history.run["epoch"]) in {("cancelled", 1), ("cancelled", 2)}
    assert len(model.asked(script)) == 1
