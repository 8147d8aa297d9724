"""Event streams: whoever comes, whenever, wherever, gets the bytes of the log, in order, each once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import jwt
import pytest

from cli.rehearsal import Reply, ToolCall
from kernel.postgres import Pool
from kernel.replay import read_frames
from tests.e2e.caller import Caller, Stream, calling
from tests.e2e.conftest import OwnStack, new_key
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import SECRET_KEY, Program, Stack

SLOW = Reply(tokens=["tick "] * 2000, token_delay=0.01)
BRISK = Reply(tokens=[f"word{number} " for number in range(60)], token_delay=0.005)


async def log_of(database: Pool, session_id: str, *, run_id: str | None = None, after: int = 0) -> bytes:
    """The session's log as the bytes of its frames, or one run's part of it."""
    org_id = await database.fetchval("SELECT org_id FROM sessions WHERE id = $1", session_id)
    entries = await read_frames(database, org_id, session_id, after=after, limit=100_000)
    return b"".join(entry.data for entry in entries if run_id is None or entry.run_id == run_id)


async def eventful(caller: Caller, model: ScriptedModel, session: str | None = None) -> str:
    """A finished run with events of many types; its id."""
    helper = model.script(said("a helping answer"))
    script = model.script(
        Reply(
            tokens=["let ", "me ", "see"],
            tool_calls=[
                ToolCall("python", {"code": "print('x')"}),
                ToolCall("delegate", {"agent": "helper", "task": "help"}),
            ],
        ),
        said("the answer of it all"),
    )
    agent = await caller.agent(model=script, sub_agents=[{"name": "helper", "model": {"name": helper}, "tools": []}])
    return str((await caller.run(session=session, agent_id=agent))["id"])


@pytest.fixture(scope="module")
async def other_api(stack: Stack) -> Program:
    """A second API process of the shared stack."""
    return await stack.add_api()


async def test_a_replay_from_any_seq_is_the_log_from_there(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    session = await caller.session()
    await caller.run(session=session, workflow="echo")
    run_id = await eventful(caller, model, session)
    history = await assert_history(stack.database, run_id)
    assert len(history.events) > 20
    for event in history.events[:-1]:
        wanted = await log_of(stack.database, session, run_id=run_id, after=event.seq)
        by_query = await caller.events(run_id, after=event.seq)
        assert b"".join(one.frame for one in by_query) == wanted
        async with caller.stream(f"/v1/runs/{run_id}/events", Last_Event_ID=str(event.seq)) as stream:
            await stream.rest()
        assert stream.frames == wanted


async def test_a_viewer_that_is_cut_off_after_every_event_and_comes_back_misses_nothing(
    stack: Stack, caller: Caller, model: ScriptedModel, other_api: Program
) -> None:
    run = await caller.start(model=model.script(BRISK))
    got, last, places = b"", 0, [caller, caller.at(other_api.url)]
    while True:
        place = places[last % 2]
        async with place.stream(f"/v1/runs/{run['id']}/events", Last_Event_ID=str(last)) as stream:
            event = await stream.next()
        assert event is not None
        got, last = got + event.frame, event.seq
        if event.type == "done":
            break
    assert got == await log_of(stack.database, run["session_id"])
    assert last > 20


async def test_who_has_seen_the_last_event_is_told_to_stay_away(caller: Caller) -> None:
    run = await caller.run(workflow="echo")
    last = (await caller.events(run["id"]))[-1].seq
    for seq in (last, last + 1, 10**15):
        await caller.call("GET", f"/v1/runs/{run['id']}/events?after={seq}", expect=204)
        await caller.call("GET", f"/v1/runs/{run['id']}/events", expect=204, Last_Event_ID=str(seq))


@pytest.mark.parametrize("place", ["-1", "1.5", "x", "1e3", "9" * 19, "9" * 40, " ", "%00"])
async def test_a_place_that_is_no_seq_is_refused_by_name(caller: Caller, place: str) -> None:
    run = await caller.run(workflow="echo")
    problem = (await caller.call("GET", f"/v1/runs/{run['id']}/events?after={place}", expect=422)).json()
    assert problem["errors"][0]["field"] == "after"
    if place not in (" ", "%00"):
        answer = await caller.call("GET", f"/v1/runs/{run['id']}/events", expect=422, Last_Event_ID=place)
        assert answer.json()["errors"][0]["field"] == "Last-Event-ID"


async def test_a_session_is_followed_over_several_runs(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    session = await caller.session()
    async with caller.stream(f"/v1/sessions/{session}/events") as stream:
        for number in range(3):
            run = await caller.start(f"{number}", session=session, workflow="echo")
            done = await stream.until("done")
            assert done.data["run_id"] == run["id"]
        await caller.start(session=session, model=model.script(BRISK))
        await stream.until("done")
    assert stream.frames == await log_of(stack.database, session)
    async with caller.stream(f"/v1/sessions/{session}/events?after=7") as later:
        while later.frames != await log_of(stack.database, session, after=7):
            await later.next()


async def test_viewers_on_two_api_processes_see_the_same_bytes(
    stack: Stack, caller: Caller, model: ScriptedModel, other_api: Program
) -> None:
    elsewhere = caller.at(other_api.url)
    async with caller.following(model=model.script(BRISK)) as first:
        run = (await first.until("run_started")).data
        path, session_path = f"/v1/runs/{run['run_id']}/events", f"/v1/sessions/{run['session_id']}/events"
        async with elsewhere.stream(path) as second, elsewhere.stream(session_path) as third:
            await asyncio.gather(first.rest(), second.rest(), third.until("done"))
    assert first.frames == second.frames == third.frames == await log_of(stack.database, run["session_id"])


async def test_a_run_that_is_taken_in_by_one_process_is_seen_at_another(
    stack: Stack, caller: Caller, other_api: Program
) -> None:
    session = await caller.session()
    elsewhere = caller.at(other_api.url)
    async with elsewhere.stream(f"/v1/sessions/{session}/events") as stream:
        run = await caller.run("seen", session=session, workflow="echo")
        await stream.until("done")
    assert (await elsewhere.get(f"/v1/runs/{run['id']}"))["answer"] == "seen"
    assert stream.frames == await log_of(stack.database, session)


async def test_a_cancel_at_one_process_ends_the_stream_at_another(
    stack: Stack, caller: Caller, model: ScriptedModel, other_api: Program
) -> None:
    async with caller.following(model=model.script(SLOW)) as stream:
        await stream.until("message_chunk")
        await caller.at(other_api.url).post(f"/v1/runs/{stream.events[0].data['run_id']}/cancel", expect=202)
        events = await stream.rest()
    assert events[-1].data["status"] == "cancelled"


async def test_a_viewer_that_leaves_cancels_nothing(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    async with caller.following(model=model.script(BRISK)) as stream:
        run_id = (await stream.until("message_chunk")).data["run_id"]
    assert (await caller.finished(run_id))["status"] == "succeeded"
    await assert_history(stack.database, run_id)


async def test_many_viewers_of_one_run_all_get_everything(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    async with caller.following(model=model.script(BRISK)) as first:
        run_id = (await first.until("run_started")).data["run_id"]

        async def view() -> bytes:
            async with caller.stream(f"/v1/runs/{run_id}/events") as stream:
                await stream.rest()
            return stream.frames

        seen = await asyncio.gather(*(view() for _ in range(50)))
        await first.rest()
    assert set(seen) == {first.frames}


async def test_a_long_answer_arrives_whole(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    words = [f"{number} " for number in range(20_000)]
    async with caller.following(model=model.script(Reply(tokens=words))) as stream:
        events = await stream.rest()
    assert "".join(event.data["text"] for event in events if event.type == "message_chunk") == "".join(words)
    assert stream.frames == await log_of(stack.database, events[0].data["session_id"])
    await assert_history(stack.database, events[0].data["run_id"])


async def test_a_browser_follows_with_a_token_in_the_url(stack: Stack, caller: Caller) -> None:
    run = await caller.run(workflow="echo")
    other = await caller.run(workflow="echo")
    for kind, id in (("runs", run["id"]), ("sessions", run["session_id"])):
        token = (await caller.post(f"/v1/{kind}/{id}/stream-token", expect=201)).json()
        async with caller.stream(token["url"], key=False) as stream:
            await stream.until("done")
        assert stream.frames == await log_of(stack.database, run["session_id"])
        query = f"?token={token['token']}"
        for path in (
            f"/v1/runs/{other['id']}/events",
            f"/v1/sessions/{other['session_id']}/events",
            f"/v1/runs/{run['id']}",
            f"/v1/sessions/{run['session_id']}",
            f"/v1/{'sessions' if kind == 'runs' else 'runs'}/{run['session_id' if kind == 'runs' else 'id']}/events",
        ):
            await caller.as_holder_of("none").call("GET", path + query, expect=401)
        await caller.as_holder_of(token["token"]).call("GET", f"/v1/{kind}/{id}/events", expect=401)


async def test_a_token_of_another_deployment_or_of_yesterday_opens_nothing(caller: Caller) -> None:
    run = await caller.run(workflow="echo")
    real = (await caller.post(f"/v1/runs/{run['id']}/stream-token", expect=201)).json()["token"]
    claims = jwt.decode(real, options={"verify_signature": False})
    old = claims | {"exp": datetime.now(UTC) - timedelta(seconds=1)}
    for token in (
        jwt.encode(old, SECRET_KEY, "HS256"),
        jwt.encode(claims, "another key of at least 32 characters", "HS256"),
        jwt.encode(claims | {"aud": "longhaul"}, SECRET_KEY, "HS256"),
        jwt.encode(claims, "", "none"),
        real[:-2],
    ):
        await caller.as_holder_of("none").call("GET", f"/v1/runs/{run['id']}/events?token={token}", expect=401)


async def test_another_org_sees_neither_run_nor_session(stack: Stack, caller: Caller) -> None:
    run = await caller.run(workflow="echo")
    stranger = caller.as_holder_of(await new_key(stack))
    for path in (f"/v1/runs/{run['id']}", f"/v1/sessions/{run['session_id']}"):
        await stranger.get(path, expect=404)
        await stranger.get(f"{path}/events", expect=404)
        await stranger.post(f"{path}/stream-token", expect=404)
    for path in (f"/v1/runs/{run['id']}/wait", f"/v1/runs/{run['id']}/steps"):
        await stranger.get(path, expect=404)
    await stranger.get(f"/v1/sessions/{run['session_id']}/messages", expect=404)
    await stranger.post(f"/v1/sessions/{run['session_id']}/runs", {"input": "let me in"}, expect=404)
    assert (await stranger.get("/v1/runs"))["data"] == (await stranger.get("/v1/sessions"))["data"] == []


async def test_an_api_process_that_stops_ends_its_streams_and_another_goes_on(
    own: OwnStack, model: ScriptedModel
) -> None:
    stack = await own.stack(apis=2)
    leaving, staying = [program for program in stack.programs if program.url]
    async with calling(leaving.url, await new_key(stack)) as caller:
        async with caller.following(model=model.script(BRISK)) as stream:
            run_id = (await stream.until("message_chunk")).data["run_id"]
            stopping = asyncio.create_task(leaving.stop())
            await stream.rest()
            assert await stopping == 0
        got: Stream = stream
        last = got.events[-1].seq
        async with caller.at(staying.url).stream(f"/v1/runs/{run_id}/events", Last_Event_ID=str(last)) as rest:
            await rest.rest()
    assert got.frames + rest.frames == await log_of(stack.database, got.events[0].data["session_id"])
    await assert_history(stack.database, run_id)
