"""The window of a session: what later turns are told, with Redis and without it, and large results by reference."""

from __future__ import annotations

import re
from typing import Any

from redis.asyncio import Redis

from cli.rehearsal import Reply, ToolCall
from kernel.windows import window_key
from tests.e2e.caller import Caller
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack
from tests.waiting import eventually

BIG = ToolCall("python", {"code": "for n in range(800):\n    print('row %d of the big table' % n)"})
SMALL = ToolCall("python", {"code": "6 * 7"})


def texts(messages: Any) -> list[str]:
    """What a call of the model was told, as texts."""
    return [str(message["content"]) for message in messages]


async def key_of(stack: Stack, session: str) -> str:
    org_id = await stack.database.fetchval("SELECT org_id FROM sessions WHERE id = $1", session)
    return window_key(str(org_id), session)


async def kept(redis: Redis, key: str) -> bytes:
    """The window in Redis, once it is there."""

    async def look() -> Any:
        return await redis.get(key)

    found = await eventually(look, what=f"{key} in Redis")
    assert isinstance(found, bytes)
    return found


async def large_result(caller: Caller, model: ScriptedModel, session: str, **fields: Any) -> tuple[dict[str, Any], str]:
    """A run whose first call brings 21 kB, and whose second brings little; with the name of its script."""
    script = model.script(Reply(tool_calls=[BIG]), Reply(tool_calls=[SMALL]), said("done"))
    agent = await caller.agent(model=script, context={"result_tokens": 2_000})
    return await caller.run("look at the table", session=session, agent_id=agent, **fields), script


async def test_a_short_conversation_is_told_as_it_is_and_leaves_nothing_in_redis(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    session = await caller.session()
    script = model.script(said("one"), said("two"), said("three"))
    for text in ("first", "second", "third"):
        run = await caller.run(text, session=session, model=script)
        await assert_history(stack.database, run["id"])
    told = model.asked(script)[2].messages
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert texts(told)[1:] == ["first", "one", "second", "two", "third"]
    redis: Redis = Redis.from_url(stack.redis_url)
    assert not await redis.exists(await key_of(stack, session))
    await redis.aclose()


async def test_a_large_result_is_told_once_and_then_referred_to(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    run, script = await large_result(caller, model, await caller.session())
    await assert_history(stack.database, run["id"])
    first, second, third = model.asked(script)
    assert "open_result" not in first.tools
    assert "row 799 of the big table" in texts(second.messages)[-1]
    assert "open_result" not in second.tools
    [referred] = [text for text in texts(third.messages) if text.startswith("[result of python, ")]
    assert "kB: call open_result with id" in referred
    assert "row 1 of the big table" in referred
    assert "row 799" not in referred
    assert "open_result" in third.tools


async def test_a_reference_can_be_opened_a_part_at_a_time(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    def opened(request: Any) -> Reply:
        [id] = {found for text in texts(request.messages) for found in re.findall(r'id "(msg_\w+)"', text)}
        return Reply(tool_calls=[ToolCall("open_result", {"id": id, "offset": 10_000, "limit": 2_000})])

    script = model.script(Reply(tool_calls=[BIG]), Reply(tool_calls=[SMALL]), opened, said("done"))
    agent = await caller.agent(model=script, context={"result_tokens": 2_000})
    run = await caller.run("look at the table", agent_id=agent)
    history = await assert_history(stack.database, run["id"])
    result = history.of("tool_result")[-1].data
    assert result["status"] == "ok", result
    assert "of the big table" in result["result"]
    assert result["result"].endswith("go on with offset 12000]")
    assert run["answer"] == "done"


async def test_a_later_turn_is_told_of_large_results_and_can_open_them(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    session = await caller.session()
    await large_result(caller, model, session)

    async def noted() -> Any:
        return await stack.database.fetchval("SELECT results FROM session_windows WHERE session_id = $1", session)

    await eventually(noted)
    script = model.script(
        lambda request: Reply(
            tool_calls=[ToolCall("open_result", {"id": re.findall(r'id "(msg_\w+)"', str(request.messages))[0]})]
        ),
        said("done"),
    )
    run = await caller.run("what was in it?", session=session, model=script)
    history = await assert_history(stack.database, run["id"])
    assert history.of("tool_result")[0].data["status"] == "ok"
    assert "python, 21 kB" in texts(model.asked(script)[0].messages)[1]


async def test_a_result_of_another_session_can_not_be_opened(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    first = await caller.session()
    await large_result(caller, model, first)
    id = await stack.database.fetchval(
        "SELECT id FROM messages WHERE session_id = $1 AND role = 'tool' ORDER BY position LIMIT 1", first
    )
    script = model.script(Reply(tool_calls=[ToolCall("open_result", {"id": id})]), said("no"))
    run = await caller.run("open it", model=script)
    history = await assert_history(stack.database, run["id"])
    [result] = history.of("tool_result")
    assert result.data["status"] == "error"
    assert "There is no result" in result.data["result"]


async def test_opening_a_result_needs_no_approval(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(
        Reply(tool_calls=[ToolCall("open_result", {"id": "msg_none"})]),
        said("done"),
    )
    agent = await caller.agent(model=script, approvals={"*": {}})
    run = await caller.run("go", agent_id=agent)
    assert run["answer"] == "done"
    await assert_history(stack.database, run["id"])


async def test_messages_beyond_the_claim_are_told_where_they_are_to_be(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    session = await caller.session()
    script = model.script(said("so"))
    agent = await caller.agent(model=script, context={"keep_recent": 50, "summarize": False}, memory={"recall": False})
    for number in range(27):
        await caller.run(f"turn {number}", session=session, agent_id=agent)
    told = texts(model.asked(script)[26].messages)
    assert told[1:3] == ["turn 1", "so"]
    assert told[-1] == "turn 26"
    assert len(told) == 52
    redis: Redis = Redis.from_url(stack.redis_url)
    key = await key_of(stack, session)
    window = await kept(redis, key)
    assert b"turn 26" in window
    assert 0 < await redis.ttl(key) <= 3_600
    await redis.aclose()


async def test_what_is_told_is_the_same_without_redis(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    """Two sessions with the same turns: Redis is read in one, and has lost everything in the other."""
    redis: Redis = Redis.from_url(stack.redis_url)
    told = []
    for lost in (False, True):
        session = await caller.session()
        script = model.script(
            Reply(tool_calls=[ToolCall("note", {"key": "plan", "text": "sail on Monday"})]), said("noted"), said("yes")
        )
        agent = await caller.agent(model=script, tools=["note", "notes"], memory={"recall": False})
        await caller.run("keep that we sail on Monday", session=session, agent_id=agent)
        key = await key_of(stack, session)
        assert b"sail on Monday" in await kept(redis, key)
        if lost:
            await redis.delete(key)
        run = await caller.run("when do we sail?", session=session, agent_id=agent)
        await assert_history(stack.database, run["id"])
        told.append(texts(model.asked(script)[2].messages))
    assert told[0] == told[1]
    assert '- "plan": "sail on Monday"' in told[0][1]
    await redis.aclose()


async def test_a_copy_of_an_earlier_moment_is_not_used(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    redis: Redis = Redis.from_url(stack.redis_url)
    session = await caller.session()
    script = model.script(
        Reply(tool_calls=[ToolCall("note", {"key": "port", "text": "Bergen"})]),
        said("noted"),
        Reply(tool_calls=[ToolCall("note", {"key": "port", "text": "Oslo"})]),
        said("changed"),
        said("Oslo"),
    )
    agent = await caller.agent(model=script, tools=["note"], memory={"recall": False})
    await caller.run("the port is Bergen", session=session, agent_id=agent)
    key = await key_of(stack, session)
    stale = await kept(redis, key)
    await caller.run("no, it is Oslo", session=session, agent_id=agent)

    async def renewed() -> bool:
        return b"Oslo" in (await redis.get(key) or b"")

    await eventually(renewed)
    await redis.set(key, stale)
    run = await caller.run("which port?", session=session, agent_id=agent)
    await assert_history(stack.database, run["id"])
    opening = texts(model.asked(script)[4].messages)[1]
    assert '"port": "Oslo"' in opening
    assert "Bergen" not in opening
    await redis.aclose()


async def test_what_is_no_window_in_redis_is_read_over(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    redis: Redis = Redis.from_url(stack.redis_url)
    session = await caller.session()
    script = model.script(Reply(tool_calls=[ToolCall("note", {"key": "a", "text": "b"})]), said("ok"), said("still ok"))
    agent = await caller.agent(model=script, tools=["note"])
    await caller.run("note it", session=session, agent_id=agent)
    key = await key_of(stack, session)
    await kept(redis, key)
    for nonsense in (b"\xff\x00", b"[]", b'{"format":1,"turn":1}'):
        await redis.set(key, nonsense)
        run = await caller.run("and now?", session=session, agent_id=agent)
        assert run["answer"] == "still ok"
    await assert_history(stack.database, run["id"])
    await redis.aclose()


async def test_notes_are_set_read_and_deleted_and_have_a_limit(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    def note(key: str, text: str) -> Reply:
        return Reply(tool_calls=[ToolCall("note", {"key": key, "text": text})])

    script = model.script(
        note("a", "one"),
        note("b", "x" * 32_000),
        note("c", "y" * 1_000),
        note("b", ""),
        Reply(tool_calls=[ToolCall("notes", {})]),
        Reply(tool_calls=[ToolCall("notes", {"key": "none"})]),
        said("done"),
    )
    agent = await caller.agent(model=script, tools=["note", "notes"])
    run = await caller.run("take notes", agent_id=agent)
    history = await assert_history(stack.database, run["id"])
    results = [event.data for event in history.of("tool_result")]
    assert [result["status"] for result in results] == ["ok", "ok", "error", "ok", "ok", "error"]
    assert "32768 bytes" in results[2]["result"]
    assert results[4]["result"] == '{"a":"one"}'
    asked = model.asked(script)
    assert '- "a": "one"' in texts(asked[1].messages)[1]
    assert "Notes of this session" not in texts(asked[0].messages)[1]


async def test_an_agent_without_the_tools_can_not_take_notes(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(Reply(tool_calls=[ToolCall("note", {"key": "a", "text": "b"})]), said("done"))
    run = await caller.run("go", model=script)
    history = await assert_history(stack.database, run["id"])
    assert history.of("tool_result")[0].data["status"] == "denied"
