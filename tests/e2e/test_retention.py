"""What callers see of retention: followers notice nothing, who comes late gets what a message came to, and who asks
for what is gone is told so."""

from __future__ import annotations

from itertools import pairwise

import pytest
from redis.asyncio import Redis

from cli.rehearsal import Reply
from kernel.bell import QUEUE_KEY, encode_job
from kernel.postgres import Pool
from tests.e2e.caller import Caller, Event
from tests.e2e.test_streams import eventful, log_of
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Program, Stack
from tests.waiting import eventually
from worker.retention import Policies, Retention

DAY = 86_400.0
POLICIES = Policies(chunks=900.0, events=30 * DAY, sessions=None)  # what a worker does by default
LONG = Reply(tokens=[f"word{number} " for number in range(300)], token_delay=0.001)


@pytest.fixture(scope="module")
async def late(stack: Stack) -> Program:
    """An API process for those who come late: it has followed nothing, so all that it shows is from the log."""
    return await stack.add_api()


async def pruned(database: Pool, *run_ids: str, seconds_ago: float = 1000.0) -> None:
    """Moves the ends of these runs into the past, and lets retention see to them. A session that is being written
    to right then is left to the next pass."""
    await database.execute(
        """UPDATE runs SET created_at = created_at - age, started_at = started_at - age, finished_at = finished_at - age
           FROM make_interval(secs => $2) AS age WHERE id = ANY ($1::text[])""",
        *(run_ids, seconds_ago),
    )
    kept = "record" if seconds_ago > 30 * DAY else "slim"

    async def through() -> bool:
        await Retention(database, POLICIES).run()
        return not await database.fetchval(
            "SELECT count(*) FROM runs WHERE id = ANY ($1::text[]) AND kept <> $2", run_ids, kept
        )

    await eventually(through)


def rises(events: list[Event]) -> bool:
    return all(one.seq < other.seq for one, other in pairwise(events))


async def test_a_replay_without_chunks_rises_and_holds_all_that_was_said(
    stack: Stack, caller: Caller, model: ScriptedModel, late: Program
) -> None:
    run_id = await eventful(caller, model)
    session = (await caller.get(f"/v1/runs/{run_id}"))["session_id"]
    whole = await caller.events(run_id)
    await pruned(stack.database, run_id)
    caller = caller.at(late.url)
    slim = await caller.events(run_id)
    assert [event.frame for event in slim] == [e.frame for e in whole if e.type != "message_chunk"]
    assert len(slim) < len(whole)
    for after in range(whole[-1].seq):
        by_query = await caller.events(run_id, after=after)
        assert [event.frame for event in by_query] == [event.frame for event in slim if event.seq > after]
        async with caller.stream(f"/v1/sessions/{session}/events", Last_Event_ID=str(after)) as stream:
            await stream.until("done")
        assert [event.frame for event in stream.events] == [event.frame for event in by_query]
    answer = await caller.call("GET", f"/v1/runs/{run_id}/events", Last_Event_ID=str(whole[-1].seq))
    assert answer.status == 204
    await assert_history(stack.database, run_id)
    assert (await caller.get(f"/v1/runs/{run_id}"))["answer"] == "the answer of it all"


async def test_who_was_cut_off_within_a_message_gets_it_whole(
    stack: Stack, caller: Caller, model: ScriptedModel, late: Program
) -> None:
    run = await caller.start(model=model.script(LONG))
    async with caller.stream(f"/v1/runs/{run['id']}/events") as stream:
        begun = await stream.until("message_chunk")
    await caller.finished(run["id"])
    await pruned(stack.database, run["id"])
    caller = caller.at(late.url)
    rest = await caller.events(run["id"], after=begun.seq)
    [message] = [event for event in rest if event.type == "message"]
    assert message.data["message_id"] == begun.data["message_id"]
    assert message.data["content"] == "".join(LONG.tokens)
    assert [event.type for event in rest if event.type == "message_chunk"] == []
    assert rest[-1].type == "done"


async def test_followers_see_nothing_of_it(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    session = await caller.session()
    script = model.script(LONG)
    async with caller.stream(f"/v1/sessions/{session}/events") as stream:
        first = await caller.run(session=session, model=script)
        await stream.until("done", run_id=first["id"])
        second = await caller.start(session=session, model=script)
        await stream.until("message_chunk", run_id=second["id"])
        await pruned(stack.database, first["id"])  # while the other one is talking
        await stream.until("done", run_id=second["id"])
        await pruned(stack.database, second["id"])
        third = await caller.start(session=session, model=script)
        await stream.until("message_chunk", run_id=third["id"])
        await pruned(stack.database, first["id"], second["id"], seconds_ago=31 * DAY)
        await stream.until("done", run_id=third["id"])
    assert [event.seq for event in stream.events] == list(range(1, len(stream.events) + 1))
    assert all(event.type != "reset" for event in stream.events)
    for run in (first, second, third):
        text = "".join(
            e.data["text"] for e in stream.events if e.type == "message_chunk" and e.data["run_id"] == run["id"]
        )
        assert text == "".join(LONG.tokens)
        await assert_history(stack.database, run["id"])


async def test_a_session_asked_for_what_is_gone_answers_with_a_reset_and_goes_on(
    stack: Stack, caller: Caller, model: ScriptedModel, late: Program
) -> None:
    session = await caller.session()
    old = [await eventful(caller, model, session) for _ in range(2)]
    young = await caller.run("and now?", session=session, model=model.script(said("now this")))
    await pruned(stack.database, *old, seconds_ago=31 * DAY)
    caller = caller.at(late.url)
    floor = young["first_seq"] - 1
    path = f"/v1/sessions/{session}/events"
    kept = await log_of(stack.database, session)
    frames = set()
    for after in (*range(0, floor, 7), floor - 1):
        async with caller.stream(path, Last_Event_ID=str(after)) as stream:
            await stream.until("done")
        reset = stream.events[0]
        frames.add(reset.frame)
        assert (reset.type, reset.seq) == ("reset", floor)
        assert stream.frames == reset.frame + kept
        assert rises(stream.events)
    async with caller.stream(path) as stream:  # from the start, without an id
        first = await stream.next()
        assert first is not None
        frames.add(first.frame)
    assert len(frames) == 1
    data = first.data
    assert data.keys() == {"seq", "session_id", "run_id", "at", "reason", "snapshot"}
    assert (data["session_id"], data["run_id"], data["reason"]) == (session, None, "retention")
    said_so_far = [(m["run_id"], m["role"], m["content"]) for m in data["snapshot"]["messages"]]
    assert said_so_far == [
        line for run_id in old for line in ((run_id, "user", "hello"), (run_id, "assistant", "the answer of it all"))
    ]
    listed = await caller.get(f"/v1/sessions/{session}/messages?limit=100")
    assert {m["message_id"] for m in data["snapshot"]["messages"]} <= {m["id"] for m in listed["data"]}
    assert (data["snapshot"]["truncated"], data["snapshot"]["active_run"]) == (False, None)
    async with caller.stream(path, Last_Event_ID=str(floor)) as stream:
        await stream.until("done")
    assert stream.frames == kept
    for run_id in (*old, young["id"]):
        await assert_history(stack.database, run_id)


async def test_a_reset_names_the_run_that_is_at_work(
    stack: Stack, caller: Caller, model: ScriptedModel, late: Program
) -> None:
    session = await caller.session()
    old = await caller.run(session=session, workflow="echo")
    await pruned(stack.database, old["id"], seconds_ago=31 * DAY)
    caller = caller.at(late.url)
    slow = await caller.start(session=session, model=model.script(Reply(tokens=["tick "] * 5000, token_delay=0.01)))
    async with caller.stream(f"/v1/runs/{slow['id']}/events") as stream:
        await stream.until("message_chunk")  # its own stream begins above the floor
        assert stream.events[0].type == "run_queued"
    async with caller.stream(f"/v1/sessions/{session}/events") as stream:
        reset = await stream.next()
        assert reset is not None
        assert reset.data["snapshot"]["active_run"] == {"id": slow["id"], "status": "running"}
        assert [message["content"] for message in reset.data["snapshot"]["messages"]] == ["hello", "hello"]
        following = await stream.next()
        assert following is not None
        assert (following.type, following.seq) == ("run_queued", reset.seq + 1)
        await caller.post(f"/v1/runs/{slow['id']}/cancel")
        await stream.until("done", run_id=slow["id"])
    assert rises(stream.events)
    await assert_history(stack.database, slow["id"])


async def test_a_run_asked_for_what_is_gone_answers_with_a_reset_and_ends(
    stack: Stack, caller: Caller, model: ScriptedModel, late: Program
) -> None:
    run_id = await eventful(caller, model)
    last = (await caller.events(run_id))[-1].seq
    await pruned(stack.database, run_id, seconds_ago=31 * DAY)
    caller = caller.at(late.url)
    shown = await caller.get(f"/v1/runs/{run_id}")
    assert shown["answer"] == "the answer of it all"
    path = f"/v1/runs/{run_id}/events"
    for after in (None, 0, 1, last - 1):
        [reset] = await caller.events(run_id, after=after)
        assert (reset.type, reset.seq) == ("reset", last)
        assert reset.data["run_id"] == run_id
        assert reset.data["snapshot"] == shown
    async with caller.stream(path, Last_Event_ID="3") as stream:
        assert [event.frame for event in await stream.rest()] == [reset.frame]
    # An EventSource comes back with the id of the reset, and is told to stay away.
    token = (await caller.post(f"/v1/runs/{run_id}/stream-token")).json()
    async with caller.stream(token["url"], key=False, Last_Event_ID="3") as stream:
        assert [event.frame for event in await stream.rest()] == [reset.frame]
    answer = await caller.call("GET", token["url"], Last_Event_ID=str(reset.seq))
    assert (answer.status, answer.body) == (204, b"")


async def test_a_run_of_which_a_part_is_gone_gets_a_reset_and_the_rest(
    stack: Stack, caller: Caller, model: ScriptedModel, late: Program
) -> None:
    """A run that was taken in while another one was at work stands within the other one's events."""
    session = await caller.session()
    long = await caller.start(session=session, model=model.script(LONG))
    async with caller.stream(f"/v1/runs/{long['id']}/events") as stream:
        await stream.until("message_chunk")
        behind = await caller.start(session=session, workflow="echo")
    await caller.finished(long["id"])
    await caller.finished(behind["id"])
    await pruned(stack.database, long["id"], seconds_ago=31 * DAY)
    caller = caller.at(late.url)
    events = await caller.events(long["id"])
    assert (events[0].type, events[0].seq) == ("reset", behind["first_seq"] - 1)
    assert (events[0].data["snapshot"]["status"], events[-1].type) == ("succeeded", "done")
    assert rises(events)
    assert (await caller.events(behind["id"]))[0].type == "run_queued"
    assert (await caller.call("GET", f"/v1/runs/{long['id']}/events", Last_Event_ID=str(events[-1].seq))).status == 204
    for run in (long, behind):
        await assert_history(stack.database, run["id"])


async def test_a_repeated_request_gets_the_reset_of_its_run(stack: Stack, caller: Caller, late: Program) -> None:
    headers = {"Idempotency-Key": "once"}
    async with caller.following(workflow="echo", headers=headers) as stream:
        run_id = (await stream.rest())[-1].data["run_id"]
    await pruned(stack.database, run_id, seconds_ago=31 * DAY)
    caller = caller.at(late.url)
    async with caller.following(workflow="echo", headers=headers) as stream:
        [reset] = await stream.rest()
    assert (reset.type, reset.data["snapshot"]["id"]) == ("reset", run_id)


async def test_waiting_for_a_run_whose_events_are_gone_answers_at_once(stack: Stack, caller: Caller) -> None:
    run = await caller.run(workflow="echo")
    await pruned(stack.database, run["id"], seconds_ago=31 * DAY)
    assert await caller.finished(run["id"]) == await caller.get(f"/v1/runs/{run['id']}")


async def test_the_agent_remembers_a_conversation_whose_events_are_gone(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    session = await caller.session()
    script = model.script(said("nice to meet you"), said("you are Ada"))
    first = await caller.run("I am Ada", session=session, model=script)
    await pruned(stack.database, first["id"], seconds_ago=31 * DAY)
    second = await caller.run("who am I?", session=session, model=script)
    assert second["answer"] == "you are Ada"
    spoken = [(message["role"], message["content"]) for message in model.asked(script)[-1].messages]
    assert ("user", "I am Ada") in spoken
    assert ("assistant", "nice to meet you") in spoken
    await assert_history(stack.database, second["id"])


async def test_a_session_that_was_idle_for_too_long_is_gone_for_everybody(stack: Stack, caller: Caller) -> None:
    run = await caller.run(workflow="echo")
    session = run["session_id"]
    await stack.database.execute("UPDATE sessions SET updated_at = now() + interval '1 day'")
    await stack.database.execute("UPDATE sessions SET updated_at = now() - interval '1 day' WHERE id = $1", session)
    async with caller.stream(f"/v1/sessions/{session}/events") as stream:
        await stream.until("done")

        async def gone() -> bool:
            return (await Retention(stack.database, Policies(None, None, 0.01)).run()).sessions == 1

        await eventually(gone)
        await stream.rest()  # its stream ends
    for path in (f"/v1/sessions/{session}", f"/v1/runs/{run['id']}", f"/v1/runs/{run['id']}/events"):
        await caller.get(path, expect=404)
    await caller.post(f"/v1/sessions/{session}/runs", {"input": "hello"}, expect=404)


async def test_a_worker_whose_arq_has_lost_redis_tidies_again(stack: Stack, caller: Caller) -> None:
    org_id = await stack.database.fetchval("SELECT org_id FROM sessions LIMIT 1")
    redis = Redis.from_url(stack.redis_url)
    for round in range(2):
        await stack.database.execute(
            "INSERT INTO idempotency_keys SELECT $1, $2, '', '', 200, '{}', now() - interval '2 days'",
            *(org_id, f"round {round}"),
        )
        # What arq's clock does at a certain second of each minute.
        await redis.zadd(QUEUE_KEY, {f"tidy-{round}": 1})
        await redis.set(f"arq:job:tidy-{round}", encode_job({"t": 1, "f": "tidy", "a": (), "k": {}, "et": 0}))

        async def forgotten() -> bool:
            return not await stack.database.fetchval("SELECT EXISTS (SELECT FROM idempotency_keys WHERE key ~ 'round')")

        await eventually(forgotten)
        await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await redis.aclose()
