"""Workers that die, freeze or are told to go: their runs go on elsewhere, once, from where they were."""

from __future__ import annotations

import asyncio
import os
import signal
from uuid import uuid4

import asyncpg

from cli.rehearsal import Hang, Reply, ToolCall
from tests.e2e.caller import Caller
from tests.faults.crew import crew, holder, staff, writes
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack
from tests.waiting import eventually

WORDS = tuple(f"word{number} " for number in range(300))


def fetching(model: ScriptedModel) -> tuple[str, Reply]:
    """A call that leaves a trace outside: the path that is fetched, and the answer that asks for it."""
    path = f"/v1/once-{uuid4().hex}"
    return path, Reply(tool_calls=[ToolCall("http_fetch", {"url": model.url.removesuffix("/v1") + path})])


def fetched(model: ScriptedModel, path: str) -> int:
    return sum(request.path == path for request in model.server.requests)


async def test_a_run_whose_worker_is_killed_goes_on_after_its_last_finished_step(
    mortal: Stack, caller: Caller, model: ScriptedModel
) -> None:
    await staff(mortal, 2)
    path, fetch = fetching(model)
    script = model.script(fetch, Reply(fault=Hang(None)), said("it is done"))
    agent = await caller.agent(model=script, tools=["http_fetch"])
    async with caller.following("fetch it", agent_id=agent) as stream:
        first = holder(mortal, (await stream.until("run_started")).data)
        await stream.until("tool_result")
        await stream.until("state_entered", state="THINK")
        await first.kill()
        resumed = await stream.until("run_resumed", attempt=2)
        events = await stream.rest()
    assert holder(mortal, resumed.data) in crew(mortal)
    history = await assert_history(mortal.database, events[0].data["run_id"])
    assert (history.run["status"], history.run["attempt"], history.run["epoch"]) == ("succeeded", 2, 2)
    assert [step["state"] for step in history.steps] == ["THINK", "ACT", "THINK", "RESPOND"]
    assert [step["epoch"] for step in history.steps] == [1, 1, 2, 2]
    assert len(history.of("tool_start")) == len(history.of("tool_result")) == 1
    assert fetched(model, path) == 1
    assert history.of("message")[0].data["content"] == "it is done"


async def test_text_of_a_worker_that_was_killed_is_discarded_and_the_answer_streamed_anew(
    mortal: Stack, caller: Caller, model: ScriptedModel
) -> None:
    await staff(mortal, 2)
    script = model.script(Reply(tokens=["never ", "to ", "be ", "finished"], fault=Hang(3)), said("the whole answer"))
    async with caller.following("speak", model=script) as stream:
        first = holder(mortal, (await stream.until("run_started")).data)
        half = await stream.until("message_chunk")
        await first.kill()
        discarded = await stream.until("message_discarded")
        await stream.until("run_resumed", attempt=2)
        events = await stream.rest()
    assert discarded.data["message_id"] == half.data["message_id"]
    history = await assert_history(mortal.database, events[0].data["run_id"])
    assert history.run["status"] == "succeeded"
    assert history.of("message")[0].data["content"] == "the whole answer"
    assert len(model.asked(script)) == 2


async def test_a_worker_that_was_frozen_past_its_lease_writes_nothing_more_and_works_on(
    mortal: Stack, caller: Caller, model: ScriptedModel
) -> None:
    await staff(mortal, 2)
    script = model.script(Reply(tokens=WORDS, token_delay=0.02), Reply(tokens=WORDS[:30], token_delay=0.03))
    async with caller.following("speak", model=script) as stream:
        frozen = holder(mortal, (await stream.until("run_started")).data)
        zombies_text = await stream.until("message_chunk")
        # It freezes with a commit on its way, and the commit is lost: it will have something to say when it thaws.
        await _freeze_in_a_commit(mortal, frozen.pid, zombies_text.data["session_id"])
        resumed = await stream.until("run_resumed", attempt=2)
        new_text = await stream.until("message_chunk")
        frozen.send(signal.SIGCONT)
        await writes(frozen, "epoch_over")
        events = await stream.rest()
    assert holder(mortal, resumed.data) is not frozen
    history = await assert_history(mortal.database, events[0].data["run_id"])
    later = {event.data["message_id"] for event in history.of("message_chunk") if event.seq > resumed.seq}
    assert later == {new_text.data["message_id"]}
    assert history.run["status"] == "succeeded"
    assert {step["epoch"] for step in history.steps} == {2}

    [other] = [worker for worker in crew(mortal) if worker is not frozen]
    await other.stop()
    run = await caller.run("still there?", workflow="echo")
    after = await assert_history(mortal.database, run["id"])
    assert holder(mortal, after.of("run_started")[0].data) is frozen
    assert run["status"] == "succeeded"


async def _freeze_in_a_commit(stack: Stack, pid: int, session_id: str) -> None:
    """Stops the process while Postgres makes its commit wait, then ends the connection on which it came."""
    locker = await asyncpg.connect(stack.database_url)
    try:
        async with locker.transaction():
            await locker.execute("SELECT 1 FROM sessions WHERE id = $1 FOR UPDATE", session_id)

            async def waiting_backend() -> int | None:
                # Not on the locker's connection: within a transaction the view shows what it showed at first.
                found: int | None = await stack.database.fetchval(
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                    " AND query LIKE '%journal_commit%'"
                )
                return found

            backend = await eventually(waiting_backend, what="a commit waits for the session's row")
            await _stopped(stack, pid)
            await locker.execute("SELECT pg_terminate_backend($1, 5000)", backend)
    finally:
        await locker.close()


async def _stopped(stack: Stack, pid: int) -> None:
    """SIGSTOP, and waits until the kernel has obeyed."""
    worker = next(worker for worker in stack.workers if worker.pid == pid)
    worker.send(signal.SIGSTOP)

    async def stopped() -> bool:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None  # noqa: ASYNC222  # WNOHANG

    await eventually(stopped, what=f"{worker.name} is stopped")


async def test_a_worker_that_is_told_to_go_finishes_short_runs_and_hands_back_long_ones(
    mortal: Stack, caller: Caller, model: ScriptedModel
) -> None:
    [leaving] = await staff(mortal, 1)
    path, fetch = fetching(model)
    long = model.script(fetch, Reply(tokens=["not ", "yet"], fault=Hang(1)), said("done elsewhere"))
    short = model.script(Reply(tokens=WORDS[:8], token_delay=0.02))
    agent = await caller.agent(model=long, tools=["http_fetch"])
    async with (
        caller.following("a long one", agent_id=agent) as long_stream,
        caller.following("a short one", model=short) as short_stream,
    ):
        await long_stream.until("tool_result")
        await long_stream.until("message_chunk")
        await short_stream.until("message_chunk")
        leaving.send(signal.SIGTERM)
        await mortal.add_worker()
        resumed = await long_stream.until("run_resumed")
        short_events, long_events = await short_stream.rest(), await long_stream.rest()
    assert await leaving.wait() == 0
    brief = await assert_history(mortal.database, short_events[0].data["run_id"])
    assert (brief.run["status"], brief.run["epoch"]) == ("succeeded", 1)
    history = await assert_history(mortal.database, long_events[0].data["run_id"])
    assert (history.run["status"], history.run["epoch"], history.run["attempt"]) == ("succeeded", 2, 1)
    assert resumed.data["attempt"] == 1
    assert holder(mortal, resumed.data) is not leaving
    assert fetched(model, path) == 1
    assert [step["epoch"] for step in history.steps] == [1, 1, 2, 2]
    assert not await mortal.database.fetchval("SELECT EXISTS (SELECT FROM workers WHERE pid = $1)", leaving.pid)


async def test_a_run_that_kills_three_workers_is_parked_and_its_session_stays_usable(
    mortal: Stack, caller: Caller, model: ScriptedModel
) -> None:
    await staff(mortal, 2)
    poison = model.script(Reply(tokens=["deadly ", "words"], fault=Hang(1)))
    session = await caller.session()
    async with caller.following("kill", session=session, model=poison) as stream:
        next_run = await caller.start("and then?", session=session, workflow="echo")
        for attempt in (1, 2, 3):
            begun = await stream.until("run_started" if attempt == 1 else "run_resumed", attempt=attempt)
            await stream.until("message_chunk")
            _, newcomer = await asyncio.gather(holder(mortal, begun.data).kill(), mortal.add_worker())
            assert newcomer.alive
        events = await stream.rest()
    history = await assert_history(mortal.database, events[0].data["run_id"])
    assert (history.run["status"], history.run["finish_reason"]) == ("failed", "poisoned")
    [error] = history.of("error")
    assert error.data["code"] == "poisoned"
    assert len(history.of("message_discarded")) == 3
    assert len(model.asked(poison)) == 3
    assert (await caller.finished(next_run["id"]))["status"] == "succeeded"
    await assert_history(mortal.database, next_run["id"])
