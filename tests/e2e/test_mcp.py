"""Runs that use MCP servers, from the request to the last event."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import orjson

from cli.rehearsal import Reply, ToolCall
from tests.e2e.caller import Caller, calling
from tests.e2e.conftest import OwnStack, new_key
from tests.history import assert_history
from tests.mcp_servers.running import entries, http_offer, is_alive, notes, offer, pids
from tests.scripts import ScriptedModel, said
from tests.stack import Stack
from tests.waiting import eventually


def call(name: str, /, **arguments: Any) -> Reply:
    return Reply(tool_calls=[ToolCall(name, arguments)])


def results(events: list[Any]) -> list[tuple[str, str]]:
    return [(event.data["status"], event.data["result"]) for event in events if event.type == "tool_result"]


async def test_a_run_uses_a_configured_program_and_no_process_stays_when_the_worker_stops(
    own: OwnStack, model: ScriptedModel, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    program = offer(diary)
    servers = {"offer": {"command": program.command, "env": {k: v.get_secret_value() for k, v in program.env.items()}}}
    stack = await own.stack(LONGHAUL_MCP_SERVERS=orjson.dumps(servers).decode())
    async with calling(stack.url, await new_key(stack)) as caller:
        script = model.script(
            call("offer_add", a=1, b=2),
            call("offer_note_and_die", text="a"),
            call("offer_greet", name="Ada"),
            said("ok"),
        )
        agent = await caller.agent(model=script, tools=[{"type": "mcp", "name": "offer", "server": "offer"}])
        run = await caller.run(agent_id=agent)
        assert (run["status"], run["answer"]) == ("succeeded", "ok")
        events = await caller.events(run["id"])
        (added, died, greeted) = results(events)
        assert added == ("ok", '{"sum":3}')
        assert died[0] == "unknown"
        assert greeted == ("ok", "Hello, Ada!")
        await assert_history(stack.database, run["id"])
        assert notes(diary) == ["a"]
        offered = [tool["function"]["name"] for tool in model.asked(script)[0].body["tools"]]
        assert "offer_add" in offered
    started = pids(diary)
    assert len(started) == 2
    assert is_alive(started[1])
    for worker in stack.workers:
        await worker.stop()
    assert not any(is_alive(pid) for pid in started)


async def test_a_server_killed_mid_call_leaves_the_run_to_go_on(
    own: OwnStack, model: ScriptedModel, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    async with http_offer(diary) as server:
        stack = await own.stack(LONGHAUL_EGRESS_ALLOW=f"127.0.0.1:{server.port}")
        async with calling(stack.url, await new_key(stack)) as caller:
            script = model.script(call("crm_note_and_wait", text="a"), said("it broke"))
            agent = await caller.agent(model=script, tools=[{"type": "mcp", "name": "crm", "url": server.url}])
            run = await caller.start(agent_id=agent)

            async def called() -> bool:
                return "note a" in entries(diary)

            await eventually(called, what="the call has arrived")
            os.kill(server.process.pid, signal.SIGKILL)
            ended = await caller.finished(run["id"])
            assert (ended["status"], ended["answer"]) == ("succeeded", "it broke")
            ((status, text),) = results(await caller.events(run["id"]))
            assert status == "unknown"
            assert "broke off" in text
            await assert_history(stack.database, run["id"])


async def test_a_server_that_can_t_be_reached_does_not_end_the_run(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(call("inside_unavailable"), said("without it then"))
    definition = {"type": "mcp", "name": "inside", "url": "http://127.0.0.1:9/mcp"}
    agent = await caller.agent(model=script)
    run = await caller.run(agent_id=agent, tools=[definition])
    assert (run["status"], run["answer"]) == ("succeeded", "without it then")
    ((status, text),) = results(await caller.events(run["id"]))
    assert status == "error"
    assert "private or special address" in text
    await assert_history(stack.database, run["id"])


async def test_a_server_that_is_not_configured_is_named_in_the_run_s_error(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    agent = await caller.agent(model=model.script(said("never")))
    run = await caller.run(agent_id=agent, tools=[{"type": "mcp", "name": "a", "server": "nope"}])
    assert (run["status"], run["error"]["code"]) == ("failed", "bad_tools")
    assert "'nope'" in run["error"]["message"]
    await assert_history(stack.database, run["id"])


async def test_a_run_s_secret_reaches_the_server_and_stays_out_of_all_else(
    own: OwnStack, model: ScriptedModel, tmp_path: Path
) -> None:
    secret = "hush-this-is-the-secret-of-a-run"
    async with http_offer(tmp_path / "diary") as server:
        stack = await own.stack(LONGHAUL_EGRESS_ALLOW=f"127.0.0.1:{server.port}", LONGHAUL_LOG_LEVEL="debug")
        async with calling(stack.url, await new_key(stack)) as caller:
            script = model.script(call("crm_headers"), call("crm_greet", name="Ada"), said("ok"))
            agent = await caller.agent(model=script)
            auth = {"source": "crm_key", "target": "X-Api-Key"}
            definition = {"type": "mcp", "name": "crm", "url": server.url, "auth_config": auth}
            run = await caller.run(agent_id=agent, tools=[definition], secrets={"crm_key": secret})
            assert run["status"] == "succeeded"
            events = await caller.events(run["id"])
            echoed = orjson.loads(results(events)[0][1])
            assert echoed["x-api-key"] not in ("", secret)  # it was sent, and is struck out of what came back
            everywhere = [
                b"".join(event.frame for event in events),
                stack.logs().encode(),
                orjson.dumps([asked.body for asked in model.asked(script)]),
                orjson.dumps(run),
            ]
            assert secret.encode() not in b"".join(everywhere)
            await assert_history(stack.database, run["id"])
