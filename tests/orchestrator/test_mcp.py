"""MCP servers as tools: real ones of the mcp package, as programs and over HTTP, of both generations."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from kernel.mcp_servers import McpProgram
from kernel.tool_definitions import McpServer
from orchestrator.kit import KitScope, Outfitter
from orchestrator.mcp.connections import McpConnections
from orchestrator.mcp.names import names
from orchestrator.skills.registry import SkillRegistry
from orchestrator.tools.errors import BadKit
from orchestrator.tools.tool import NoSecrets, ToolContext
from orchestrator.tools.toolbox import Toolbox, ToolOutcome
from tests.mcp_servers.running import ROOT, HttpServer, entries, http_offer, is_alive, notes, offer, pids, rude
from tests.waiting import eventually

GENERATIONS = ["stdio", "stdio older", "http", "http older"]


class Client:
    """Calls the tools of one definition, as runs of an org do."""

    def __init__(self, connections: McpConnections, definition: McpServer, org: str = "org_a") -> None:
        self.connections = connections
        self.definition = definition
        self.org = org

    async def toolbox(self) -> Toolbox:
        scope = KitScope(self.org, "ses", "run", NoSecrets())
        return Toolbox(await self.connections.make(self.definition, scope), sleep=lambda _: asyncio.sleep(0))

    async def names(self) -> list[str]:
        return list((await self.toolbox()).names)

    async def call(self, tool: str, /, **arguments: Any) -> ToolOutcome:
        box = await self.toolbox()
        context = ToolContext(self.org, None, None, "ses", "run", "call", "run:step:call")
        return await box.call(f"{self.definition.name}_{tool}", arguments, context, allowed=box.names)


Connect = Callable[..., Awaitable[Client]]


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    return tmp_path / "diary"


@asynccontextmanager
async def connections(
    servers: dict[str, McpProgram] | None = None, allow: Sequence[str] = (), **options: Any
) -> AsyncIterator[McpConnections]:
    made = McpConnections(servers or {}, allow=allow, **options)
    try:
        yield made
    finally:
        await made.aclose()
        assert made.open == 0


@pytest.fixture
async def connect(diary: Path) -> AsyncIterator[Connect]:
    """Makes a client of a server of one of the `GENERATIONS`."""
    async with AsyncExitStack() as stack:

        async def make(kind: str, options: dict[str, Any] | None = None, **fields: Any) -> Client:
            older = "older" in kind
            if kind.startswith("http"):
                server: HttpServer = await stack.enter_async_context(http_offer(diary, older=older))
                held = await stack.enter_async_context(
                    connections(allow=[f"127.0.0.1:{server.port}"], **(options or {}))
                )
                return Client(held, McpServer(type="mcp", name="offer", url=server.url, **fields))
            held = await stack.enter_async_context(connections({"offer": offer(diary, older=older)}, **(options or {})))
            return Client(held, McpServer(type="mcp", name="offer", server="offer", **fields))

        yield make


@asynccontextmanager
async def rude_client(*arguments: str, env: dict[str, str] | None = None, **fields: Any) -> AsyncIterator[Client]:
    async with connections({"rude": rude(*arguments, **(env or {}))}) as held:
        yield Client(held, McpServer(type="mcp", name="rude", server="rude", **fields))


@pytest.mark.parametrize("kind", GENERATIONS)
async def test_tools_are_listed_and_called(connect: Connect, kind: str) -> None:
    client = await connect(kind)
    box = await client.toolbox()
    assert {name: box.tool(f"offer_{name}").effect for name in ("add", "die_once", "note")} == {
        "add": "read",
        "die_once": "idempotent",
        "note": "once",
    }
    assert box.tool("offer_add").description == "Adds two numbers."
    assert (await client.call("add", a=1, b=2)).result == '{"sum":3}'
    assert (await client.call("greet", name="Ada")).result == "Hello, Ada!"
    assert client.connections.open == 1


@pytest.mark.parametrize("kind", GENERATIONS)
async def test_results_of_every_sort_become_text(connect: Connect, kind: str) -> None:
    client = await connect(kind)
    assert (await client.call("picture")).result == "[image, image/png, 1000 bytes: not shown]"
    resources = (await client.call("resources")).result
    assert resources == "[file:///a.txt]\nwhat stands in it\n[file:///b.bin, binary, 4 bytes: not shown]"
    failed = await client.call("fail")
    assert failed.status == "error"
    assert failed.result.startswith("The tool of the MCP server 'offer' failed:")
    cut = await client.call("big", bytes=200_000)
    assert cut.status == "ok"
    assert len(cut.result) <= 65_536


@pytest.mark.parametrize("kind", GENERATIONS)
async def test_a_result_of_100_mb_is_an_error_and_the_session_lives_on(connect: Connect, kind: str) -> None:
    client = await connect(kind)
    flooded = await client.call("big", bytes=100_000_000)
    assert flooded.status == "error"
    assert "more than 8 MiB" in flooded.result
    assert (await client.call("greet", name="Ada")).status == "ok"


@pytest.mark.parametrize("kind", GENERATIONS)
async def test_what_a_server_asks_of_a_person_is_declined(connect: Connect, kind: str) -> None:
    client = await connect(kind)
    asked = await client.call("ask")
    assert asked.status == "error"
    assert "licitation" in asked.result


@pytest.mark.parametrize("kind", GENERATIONS)
@pytest.mark.parametrize("tool", ["hang", "progress"])
async def test_a_call_without_an_end_times_out_and_the_next_one_works(connect: Connect, kind: str, tool: str) -> None:
    client = await connect(kind, timeout=0.5)
    hung = await client.call(tool)
    assert hung.status == "error"
    assert "did not finish the call within 0.5 s" in hung.result
    assert (await client.call("greet", name="Ada")).status == "ok"


@pytest.mark.parametrize("kind", GENERATIONS)
async def test_a_cancelled_call_ends_at_once_and_leaves_the_session_to_others(
    connect: Connect, kind: str, diary: Path
) -> None:
    client = await connect(kind)
    await client.names()
    call = asyncio.create_task(client.call("hang"))
    await eventually(lambda: _written(diary, "hang"), what="the call has arrived")
    call.cancel()
    async with asyncio.timeout(0.5):
        with pytest.raises(asyncio.CancelledError):
            await call
    assert (await client.call("greet", name="Ada")).status == "ok"
    assert len(pids(diary)) == 1
    assert client.connections.open == 1


@pytest.mark.parametrize("kind", ["stdio", "stdio older"])
async def test_a_server_that_dies_mid_call_leaves_a_once_call_unknown_and_starts_again(
    connect: Connect, kind: str, diary: Path
) -> None:
    client = await connect(kind)
    died = await client.call("note_and_die", text="a")
    assert died.status == "unknown"
    assert "broke off during the call" in died.result
    assert notes(diary) == ["a"]
    assert (await client.call("greet", name="Ada")).status == "ok"
    assert len(pids(diary)) == 2


@pytest.mark.parametrize("kind", ["stdio", "stdio older"])
async def test_an_idempotent_call_is_made_again_after_a_death(connect: Connect, kind: str, diary: Path) -> None:
    client = await connect(kind)
    assert (await client.call("die_once")).result == "alive"
    assert len(pids(diary)) == 2


@pytest.mark.parametrize("kind", ["http", "http older"])
async def test_a_server_killed_mid_call_fails_the_call_and_not_the_run(
    connect: Connect, kind: str, diary: Path
) -> None:
    client = await connect(kind)
    await client.names()
    call = asyncio.create_task(client.call("note_and_wait", text="a"))
    await eventually(lambda: _written(diary, "note a"), what="the call has arrived")
    os.kill(pids(diary)[0], signal.SIGKILL)
    died = await call
    assert died.status == "unknown"
    assert "offer" in died.result

    async def gone_for_good() -> bool:
        return not is_alive(pids(diary)[0])

    await eventually(gone_for_good, what="its port is closed")
    gone = await client.call("note", text="b")
    assert gone.status == "error", gone.result
    assert "can't be reached" in gone.result
    assert notes(diary) == ["a"]
    # The tools are still known, and say what is wrong; a worker that never reached it says it in one tool.
    assert "offer_add" in await client.names()


@pytest.mark.parametrize("kind", GENERATIONS)
async def test_a_list_that_the_server_says_has_changed_is_read_again(connect: Connect, kind: str) -> None:
    client = await connect(kind)
    assert "offer_learned" not in await client.names()
    await asyncio.sleep(0)

    async def learned() -> bool:
        return "offer_learned" in await client.names()

    await client.call("learn")
    await eventually(learned, what="the new tool is listed")
    assert (await client.call("learned")).result == "new"


async def test_only_the_tools_that_were_asked_for_are_there(connect: Connect) -> None:
    client = await connect("stdio", tools=["add", "nothing_like_it"], effects={"add": "idempotent"})
    box = await client.toolbox()
    assert box.names == ("offer_add",)
    assert box.tool("offer_add").effect == "idempotent"


async def test_names_fit_models_and_a_tool_without_a_usable_schema_is_left_out(connect: Connect) -> None:
    client = await connect("stdio")
    found = await client.names()
    assert "offer_unusable" not in found
    assert "offer_odd_name" in found
    (dotted,) = [name for name in found if name.startswith("offer_odd_name_")]
    (long,) = [name for name in found if name.startswith("offer_looo")]
    assert len(long) == 64
    assert (await client.call("odd_name")).result == "underscore"
    assert (await client.call(dotted.removeprefix("offer_"))).result == "dot"
    assert (await client.call(long.removeprefix("offer_"))).result == "long"


def test_a_name_depends_on_the_tool_alone() -> None:
    assert names("s", ["a.b", "a_b"]) == list(reversed(names("s", ["a_b", "a.b"])))
    assert names("s", ["größe"]) == ["s_gr__e"]
    assert len(set(names("s", ["x" * 80, "x" * 81]))) == 2


async def test_a_tool_with_the_name_of_one_of_the_deployment_is_left_out(connect: Connect) -> None:
    client = await connect("stdio")
    taken = "offer_add"
    of_deployment = Toolbox([(await client.toolbox()).tool(taken)])
    outfitter = Outfitter(of_deployment, SkillRegistry(), {"mcp": client.connections.make})
    kit = await outfitter.kit([client.definition], [], KitScope("org_a", "ses", "run", NoSecrets()))
    assert "offer_greet" in kit.names
    assert taken not in kit.names


async def test_arguments_are_checked_before_the_server_sees_them(connect: Connect, diary: Path) -> None:
    client = await connect("stdio")
    wrong = await client.call("note", text=1)
    assert wrong.status == "error"
    assert "text" in wrong.result
    assert notes(diary) == []


async def test_runs_share_a_session_and_orgs_do_not(connect: Connect, diary: Path) -> None:
    client = await connect("stdio")
    others = Client(client.connections, client.definition, "org_b")
    await asyncio.gather(*(client.call("greet", name=str(number)) for number in range(20)))
    assert len(pids(diary)) == 1
    await others.call("greet", name="Ada")
    assert len(pids(diary)) == 2
    assert client.connections.open == 2


async def test_a_list_is_read_once_for_many_runs(connect: Connect) -> None:
    client = await connect("stdio")
    first, second = await client.toolbox(), await client.toolbox()
    assert first.tool("offer_add") is second.tool("offer_add")


async def test_an_idle_session_closes_its_program_and_the_next_call_opens_another(
    connect: Connect, diary: Path
) -> None:
    client = await connect("stdio", options={"idle_seconds": 0.05})
    await client.names()

    async def closed() -> bool:
        return client.connections.open == 0

    await eventually(closed, what="the session has closed")
    assert not is_alive(pids(diary)[0])
    assert (await client.call("greet", name="Ada")).status == "ok"


async def test_room_is_made_by_closing_the_session_that_was_idle_longest(connect: Connect, diary: Path) -> None:
    client = await connect("stdio", options={"most": 2, "most_per_org": 1})
    for org in ("org_a", "org_b", "org_c"):
        assert (await Client(client.connections, client.definition, org).call("greet", name="Ada")).status == "ok"
    assert client.connections.open == 2
    assert [is_alive(pid) for pid in pids(diary)] == [False, True, True]


async def test_an_org_leaves_as_many_sessions_free_as_it_has(diary: Path) -> None:
    servers = {name: offer(diary) for name in ("one", "two", "three")}
    async with connections(servers, most=4, most_per_org=4) as held:

        async def call(server: str, org: str) -> None:
            client = Client(held, McpServer(type="mcp", name="offer", server=server), org)
            assert (await client.call("greet", name="Ada")).status == "ok"

        for server in servers:
            await call(server, "org_a")
        assert [is_alive(pid) for pid in pids(diary)] == [False, True, True]
        await call("one", "org_b")
        await call("one", "org_c")
        await call("two", "org_a")
        assert held.open == 4
        await call("one", "org_d")  # the org that has most gives one up, though it was the last to use one
        assert [is_alive(pid) for pid in pids(diary)] == [False, True, False, True, True, True]


async def test_a_worker_whose_sessions_are_all_busy_says_so(connect: Connect, diary: Path) -> None:
    client = await connect("stdio", options={"most": 1})
    await client.names()
    call = asyncio.create_task(client.call("hang"))
    await eventually(lambda: _written(diary, "hang"), what="the call has arrived")
    others = Client(client.connections, client.definition, "org_b")
    assert await others.names() == ["offer_unavailable"]
    assert "too many MCP servers in use" in (await others.call("unavailable")).result
    call.cancel()


async def test_a_program_sees_nothing_of_the_worker_s_environment(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    client = await connect("stdio")
    seen = (await client.call("environment")).result
    assert "PATH" in seen
    assert "MCP_DIARY" in seen
    assert "OPENAI_API_KEY" not in seen


async def test_no_process_is_left_when_the_connections_are_closed(diary: Path) -> None:
    async with (
        connections({"offer": offer(diary), "rude": rude()}) as held,
        asyncio.timeout(20),
    ):
        await Client(held, McpServer(type="mcp", name="offer", server="offer")).names()
        of_rude = Client(held, McpServer(type="mcp", name="rude", server="rude"))
        grandchild = int((await of_rude.call("child")).result)
        assert is_alive(grandchild)
        assert is_alive(pids(diary)[0])
    assert not is_alive(pids(diary)[0])

    async def gone() -> bool:
        return not is_alive(grandchild)

    await eventually(gone, within=1, what="what the program had started has ended")


async def test_a_program_dies_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    parent = (
        "import asyncio, os, sys\n"
        "from orchestrator.mcp.connections import McpConnections\n"
        "from tests.mcp_servers.running import rude\n"
        "from tests.orchestrator.test_mcp import Client, McpServer\n"
        "async def main():\n"
        f"    held = McpConnections({{'rude': rude(PID_FILE={str(pid_file)!r})}})\n"
        "    await Client(held, McpServer(type='mcp', name='rude', server='rude')).call('deaf')\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", parent, cwd=ROOT)

    async def started() -> bool:
        return pid_file.exists() and pid_file.read_text() != ""

    await eventually(started, what="the program has started")
    child = int(pid_file.read_text())
    process.kill()
    await process.wait()

    async def gone() -> bool:
        return not is_alive(child)

    await eventually(gone, what="the program has ended")


async def test_a_program_that_writes_anything_but_answers_is_survived() -> None:
    async with rude_client(timeout=5.0) as client:
        assert (await client.call("garbage")).result == "after some garbage"
        broken = await client.call("broken")
        assert broken.status == "unknown"
        assert "no message in JSON-RPC" in broken.result
        shapeless = await client.call("wrong_shape")
        assert "no result of a tool" in shapeless.result
        assert "more than 8 MiB" in (await client.call("flood")).result
        assert (await client.call("chatty")).result == "said a lot"
        assert "broke off" in (await client.call("endless")).result
        assert (await client.call("garbage")).status == "ok"


async def test_a_program_that_is_stuck_is_ended_and_started_again(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    async with rude_client(env={"PID_FILE": str(pid_file)}, timeout=0.3) as client:
        await client.names()
        stuck = int(pid_file.read_text())
        assert (await client.call("deaf")).status == "unknown"
        assert (await client.call("garbage")).status == "ok"

        async def ended() -> bool:
            return not is_alive(stuck)

        await eventually(ended, what="the stuck program has ended")


async def test_a_program_that_can_t_be_started_leaves_a_tool_that_says_so() -> None:
    program = McpProgram.model_validate({"command": ["/nowhere/at-all"]})
    async with connections({"gone": program}) as held:
        client = Client(held, McpServer(type="mcp", name="gone", server="gone"))
        assert await client.names() == ["gone_unavailable"]
        said = await client.call("unavailable")
        assert said.status == "error"
        assert "its program has ended" in said.result


async def test_a_server_that_never_answers_costs_a_run_no_more_than_the_time_to_open() -> None:
    program = McpProgram.model_validate({"command": ["sleep", "600"]})
    async with connections({"mute": program}, open_seconds=0.3) as held:
        client = Client(held, McpServer(type="mcp", name="mute", server="mute"))
        async with asyncio.timeout(5):
            assert await client.names() == ["mute_unavailable"]
        async with asyncio.timeout(0.2):  # it is left alone for a while
            assert "tried again in" in (await client.call("unavailable")).result


async def test_a_server_that_is_not_configured_ends_the_agent() -> None:
    async with connections() as held:
        with pytest.raises(BadKit, match="no MCP server named 'nope'"):
            await Client(held, McpServer(type="mcp", name="a", server="nope")).names()


async def test_a_program_takes_no_credential(diary: Path) -> None:
    definition = McpServer.model_validate(
        {"type": "mcp", "name": "a", "server": "offer", "auth_config": {"source": "key"}}
    )
    async with connections({"offer": offer(diary)}) as held:
        with pytest.raises(BadKit, match="takes no request header"):
            await Client(held, definition).names()


async def test_the_mcp_package_is_imported_by_its_first_use_only() -> None:
    code = (
        "import sys, worker.equipment, api.app\n"
        "found = [name for name in ('mcp', 'mcp_types', 'orchestrator.mcp.session') if name in sys.modules]\n"
        "assert not found, found\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=ROOT)
    assert await process.wait() == 0


async def _written(diary: Path, line: str) -> bool:
    return line in entries(diary)


def parsed(outcome: ToolOutcome) -> Any:
    assert outcome.status == "ok", outcome
    return orjson.loads(outcome.result)
