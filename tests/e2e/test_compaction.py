"""What falls out of the window is summed up: after the run where that will do, within it where nothing else would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from cli.rehearsal import HttpError, Reply, ToolCall
from kernel.agent_config import ContextConfig
from kernel.windows import window_key
from orchestrator.window import records
from orchestrator.window.record import Asked, Summary
from orchestrator.window.tokens import estimate
from tests.e2e.caller import Caller
from tests.e2e.deciders import asked, decide, ended, waiting
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack
from tests.waiting import eventually

ROWS = "for n in range(90):\n    print('row %d of table {number}' % n)"


def texts(messages: Any) -> list[str]:
    return [str(message["content"]) for message in messages]


def tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    return sum(
        4
        + estimate(str(message.get("content") or ""))
        + sum(
            8 + estimate(call["function"]["name"]) + estimate(call["function"]["arguments"])
            for call in message.get("tool_calls") or ()
        )
        for message in messages
    )


def assert_paired(messages: Sequence[Mapping[str, Any]]) -> None:
    """Every call stands right before its results, and no result is without its call."""
    wanted: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            assert message["tool_call_id"] in wanted, "a result without its call"
            wanted.remove(message["tool_call_id"])
        else:
            assert not wanted, "a call without its result"
            wanted = [call["id"] for call in message.get("tool_calls") or ()]
    assert not wanted


async def summaries(stack: Stack, session: str) -> list[Any]:
    return list(
        await stack.database.fetch("SELECT * FROM session_summaries WHERE session_id = $1 ORDER BY upto_turn", session)
    )


async def summed_up(stack: Stack, session: str, count: int = 1) -> list[Any]:
    """The summaries of a session once there are so many and the job is done."""

    async def look() -> Any:
        found = await summaries(stack, session)
        busy = await stack.database.fetchval(
            "SELECT count(*) FROM jobs WHERE kind = 'compact' AND key = $1 AND finished_at IS NULL", session
        )
        return found if len(found) >= count and not busy else None

    found: list[Any] = await eventually(look, what="a summary")
    return found


def long_run(rounds: int) -> list[Reply]:
    """Calls that bring some 600 tokens each, and an answer."""
    calls = [ToolCall("python", {"code": ROWS.format(number=number)}) for number in range(rounds)]
    return [*(Reply(tool_calls=[call]) for call in calls), said("all done")]


async def test_what_falls_out_is_summed_up_after_the_run(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    session = await caller.session()
    script, sums = model.script(said("fine")), model.script(said("They plan a voyage to Bergen."))
    agent = await caller.agent(model=script, context={"keep_recent": 4, "summary_model": sums})
    for text in ("Always answer in French.", "We sail to Bergen.", "On Monday.", "With the red boat."):
        run = await caller.run(text, session=session, agent_id=agent)
        assert (await assert_history(stack.database, run["id"])).of("context_compacted") == []
    [row] = await summed_up(stack, session)
    assert (row["upto_turn"], row["text"]) == (2, "They plan a voyage to Bergen.")
    assert row["input_tokens"] > 0

    run = await caller.run("What was the language?", session=session, agent_id=agent)
    history = await assert_history(stack.database, run["id"])
    [compacted] = history.of("context_compacted")
    assert {name: compacted.data[name] for name in ("messages", "by")} == {"messages": 4, "by": "summary"}
    told = texts(model.asked(script)[-1].messages)
    assert "> They plan a voyage to Bergen." in told[1]
    assert '- "Always answer in French."' in told[1]
    assert told[2:] == ["On Monday.", "fine", "With the red boat.", "fine", "What was the language?"]
    [asked] = model.asked(sums)
    assert asked.tools == {}
    assert '{"role":"user","text":"Always answer in French."}' in texts(asked.messages)[1]

    later = await caller.run("And now?", session=session, agent_id=agent)
    assert (await assert_history(stack.database, later["id"])).of("context_compacted") == []


async def test_of_more_messages_than_a_window_holds_none_is_left_out(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    session = await caller.session()
    script, sums = model.script(said("fine")), model.script(said("all of it"))
    silent = await caller.agent(name="silent", model=script, context={"summarize": False})
    run = await caller.run("Always answer in French.", session=session, agent_id=silent)
    await stack.database.execute(
        "INSERT INTO messages (session_id, turn, position, id, org_id, run_id, role, content)"
        " SELECT session_id, turn, 100 + n, 'msg_' || md5(id || n), org_id, run_id, 'user', to_json('say ' || n)"
        " FROM messages, generate_series(1, 1200) AS n WHERE run_id = $1 AND role = 'user'",
        run["id"],
    )
    agent = await caller.agent(model=script, context={"keep_recent": 4, "summary_model": sums})
    await caller.run("go on", session=session, agent_id=agent)
    rows = await summed_up(stack, session)
    first, *_ = model.asked(sums)
    assert '"text":"Always answer in French."' in texts(first.messages)[1]
    assert sum(row["messages"] for row in rows) == 1200


async def test_a_summary_goes_on_from_the_one_before(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    session = await caller.session()
    script, sums = model.script(said("fine")), model.script(said("first part"), said("both parts"))
    agent = await caller.agent(model=script, context={"keep_recent": 2, "summary_model": sums})
    for number in range(2):
        await caller.run(f"say {number}", session=session, agent_id=agent)
    await summed_up(stack, session)
    for number in range(2, 4):
        await caller.run(f"say {number}", session=session, agent_id=agent)
        rows = await summed_up(stack, session, number)
    assert [row["text"] for row in rows][:2] == ["first part", "both parts"]
    assert '"first part"' in texts(model.asked(sums)[1].messages)[1]
    await caller.run("last", session=session, agent_id=agent)
    opening = texts(model.asked(script)[-1].messages)[1]
    for number in range(3):
        assert f'- "say {number}"' in opening


async def test_a_summary_model_that_fails_leaves_the_runs_unhurt(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    session = await caller.session()
    script, sums = model.script(said("fine")), model.script(Reply(fault=HttpError(400, {"error": {"message": "no"}})))
    agent = await caller.agent(model=script, context={"keep_recent": 2, "summary_model": sums})
    for number in range(4):
        run = await caller.run(f"say {number}", session=session, agent_id=agent)
        assert run["status"] == "succeeded"
        await assert_history(stack.database, run["id"])
    assert await summaries(stack, session) == []
    told = texts(model.asked(script)[-1].messages)
    assert told[1:3] == ["say 0", "fine"]  # nothing is lost that was not summed up


async def test_a_long_run_is_summed_up_on_its_way_and_stays_within_its_budget(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script, sums = model.script(*long_run(24)), model.script(said("Tables were listed; none is missing."))
    agent = await caller.agent(
        model=script,
        tools=["python"],
        limits={"max_steps": 50},
        context={"max_tokens": 4_000, "summary_model": sums},
    )
    run = await caller.run("List all tables, and never use abbreviations.", agent_id=agent)
    assert run["answer"] == "all done"
    history = await assert_history(stack.database, run["id"])
    asked = model.asked(script)
    assert len(asked) == 25
    for request in asked:
        assert tokens(request.messages) <= 4_000
        assert_paired(request.messages)
        assert "List all tables, and never use abbreviations." in texts(request.messages)
    assert "> Tables were listed; none is missing." in str(texts(asked[-1].messages))
    compacted = history.of("context_compacted")
    assert compacted
    assert all(event.data["by"] == "summary" for event in compacted)
    assert all(event.data["tokens_after"] < event.data["tokens_before"] for event in compacted)
    summing = [event for event in history.of("usage") if event.data.get("purpose") == "summary"]
    assert len(summing) == len(model.asked(sums))
    assert all(tokens(request.messages) <= 4_000 for request in model.asked(sums))


async def test_a_long_run_goes_on_where_nothing_can_be_summed_up(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(*long_run(16))
    sums = model.script(Reply(fault=HttpError(400, {"error": {"message": "no"}})))
    agent = await caller.agent(
        model=script, tools=["python"], context={"max_tokens": 4_000, "summary_model": sums}, limits={"max_steps": 50}
    )
    run = await caller.run("List all tables.", agent_id=agent)
    assert run["answer"] == "all done"
    history = await assert_history(stack.database, run["id"])
    for request in model.asked(script):
        assert tokens(request.messages) <= 4_000
        assert_paired(request.messages)
        assert "List all tables." in texts(request.messages)
    [cut] = history.of("context_compacted")
    assert cut.data["by"] == "cut"
    assert "call open_result" in str(texts(model.asked(script)[-1].messages))


async def test_an_agent_that_is_not_to_sum_up_asks_no_model(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(*long_run(10))
    context = {"max_tokens": 4_000, "summarize": False}
    agent = await caller.agent(model=script, tools=["python"], context=context)
    run = await caller.run("List all tables.", agent_id=agent)
    assert run["answer"] == "all done"
    await assert_history(stack.database, run["id"])
    assert len(model.asked(script)) == 11
    assert all(tokens(request.messages) <= 4_000 for request in model.asked(script))


async def test_a_conversation_that_does_not_fit_is_summed_up_before_the_answer(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    session = await caller.session()
    plain = model.script(said("I see"))
    tome = "The chronicle of the harbour goes on and on. " * 60
    for number in range(6):
        run = await caller.run(f"{number}: {tome}", session=session, model=plain)
    script, sums = model.script(said("short")), model.script(said("A chronicle of the harbour."))
    agent = await caller.agent(model=script, context={"max_tokens": 4_000, "summary_model": sums}, tools=[])
    run = await caller.run("Make it short.", session=session, agent_id=agent)
    assert run["answer"] == "short"
    history = await assert_history(stack.database, run["id"])
    [request] = model.asked(script)
    assert tokens(request.messages) <= 4_000
    opening, last = texts(request.messages)[1], texts(request.messages)[-1]
    assert "> A chronicle of the harbour." in opening
    assert '- "0: The chronicle' in opening
    assert last == "Make it short."
    assert history.of("context_compacted")[0].data["messages"] >= 6
    assert await summaries(stack, session)


async def test_a_question_that_is_longer_than_the_budget_is_clipped(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(said("long"))
    agent = await caller.agent(model=script, context={"max_tokens": 1_000}, tools=[])
    run = await caller.run(f"Read this. {'港口早上七点开门。' * 2_000} What does it say?", agent_id=agent)
    assert run["answer"] == "long"
    await assert_history(stack.database, run["id"])
    [request] = model.asked(script)
    question = texts(request.messages)[-1]
    assert tokens(request.messages) <= 1_000
    assert question.startswith("Read this.")
    assert question.endswith("What does it say?")
    assert "characters left out" in question


async def test_a_sub_agent_sums_up_its_own_steps_and_sees_nothing_of_the_session(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    session = await caller.session()
    sums = model.script(said("Half of the tables are listed."))
    helper = model.script(*long_run(12))
    task = {"agent": "lister", "task": "list the tables"}
    script = model.script(said("hello"), Reply(tool_calls=[ToolCall("delegate", task)]), said("thanks"))
    agent = await caller.agent(
        model=script,
        context={"max_tokens": 4_000, "summary_model": sums},
        limits={"max_steps": 60},
        sub_agents=[{"name": "lister", "tools": ["python"], "model": {"name": helper}}],
    )
    await caller.run("A word of the session.", session=session, agent_id=agent)
    run = await caller.run("Have the tables listed.", session=session, agent_id=agent)
    assert run["answer"] == "thanks"
    history = await assert_history(stack.database, run["id"])
    assert {event.path for event in history.of("context_compacted")} == {"lister:2"}
    for request in model.asked(helper):
        assert tokens(request.messages) <= 4_000
        assert "A word of the session." not in str(request.messages)
        assert_paired(request.messages)


async def test_a_run_that_goes_on_under_another_owner_needs_no_second_summary(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    *rounds, answer = long_run(8)
    ask = Reply(tool_calls=[ToolCall("ask_user", {"question": "Go on?"})])
    script, sums = model.script(*rounds, ask, answer), model.script(said("Eight tables."))
    agent = await caller.agent(
        model=script, tools=["python", "ask_user"], context={"max_tokens": 4_000, "summary_model": sums}
    )
    async with caller.following("List all tables.", agent_id=agent) as stream:
        request = await asked(stream)
        await waiting(stream)
        before = len(model.asked(sums))
        assert before
        await decide(caller, request, "answer", answer="yes")
        await ended(stack, stream)
    last = model.asked(script)[-1].messages
    assert "> Eight tables." in str(texts(last))
    assert tokens(last) <= 4_000
    assert_paired(last)
    assert len(model.asked(sums)) == before


async def test_a_retry_is_told_what_was_known_before_the_run_it_goes_on_from(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    session = await caller.session()
    script, sums = model.script(said("fine")), model.script(said("up to one"), said("up to two"), said("up to three"))
    agent = await caller.agent(model=script, context={"keep_recent": 2, "summary_model": sums})
    runs = []
    for number in range(5):
        runs.append(await caller.run(f"say {number}", session=session, agent_id=agent))
        if number >= 1:
            await summed_up(stack, session, number)
    retried = (await caller.post(f"/v1/runs/{runs[2]['id']}/retry", {}, expect=202)).json()
    run = await caller.finished(retried["id"])
    await assert_history(stack.database, run["id"])
    told = texts(model.asked(script)[-1].messages)
    assert "> up to two" in told[1]
    assert told[2:] == ["say 2"]


async def test_of_two_summaries_from_the_same_place_the_first_is_kept(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    session = await caller.session()
    run = await caller.run("hello", session=session, model=model.script(said("hi")))
    org_id = (await assert_history(stack.database, run["id"])).run["org_id"]

    async def keep(base: tuple[int, int], upto: tuple[int, int], text: str) -> bool:
        made = Summary(upto, text, [Asked(1, "hello")], 1, 100, 10)
        return await records.keep_summary(
            stack.database, org_id, session, base, made, model="m", used=(1, 1), tell=True
        )

    assert await keep((0, -1), (1, 0), "first")
    assert not await keep((0, -1), (1, 1), "second")
    assert not await keep((1, 0), (1, 0), "third")
    assert await keep((1, 0), (1, 1), "fourth")
    window = await records.load(stack.database, org_id, session)
    assert window.summary is not None
    assert (window.summary.text, window.version, list(window.dialogue)) == ("fourth", 2, [])
    assert (await records.load(stack.database, "org_of_others", session)).summary is None


async def test_a_deleted_session_takes_its_window_along(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    redis: Redis = Redis.from_url(stack.redis_url)
    session = await caller.session()
    script = model.script(Reply(tool_calls=[ToolCall("note", {"key": "a", "text": "b"})]), said("ok"))
    run = await caller.run("note", session=session, agent_id=await caller.agent(model=script, tools=["note"]))
    org_id = (await assert_history(stack.database, run["id"])).run["org_id"]
    key = window_key(org_id, session)
    await eventually(lambda: redis.exists(key))
    await caller.call("DELETE", f"/v1/sessions/{session}", expect=204)
    assert not await redis.exists(key)
    await redis.aclose()
    made = Summary((1, 1), "late", [], 1, 1, 1)
    base = (0, -1)
    assert not await records.keep_summary(
        stack.database, org_id, session, base, made, model="m", used=(0, 0), tell=True
    )
    assert await stack.database.fetchval("SELECT count(*) FROM session_windows WHERE session_id = $1", session) == 0


def test_what_a_context_may_be_has_bounds() -> None:
    for wrong in ({"max_tokens": 10}, {"keep_recent": 0}, {"result_tokens": 1}, {"unknown": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ContextConfig.model_validate(wrong)
