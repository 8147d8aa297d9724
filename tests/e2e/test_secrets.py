"""Secrets that tools use, and servers that give them back in every way they can: nothing that is kept, logged, streamed
or told to a model holds one."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
import pytest
from aiohttp import web

from cli.rehearsal import HttpError, Reply, ToolCall
from kernel.postgres import Pool
from orchestrator.tools.redaction import forms
from tests.conftest import MakeStack
from tests.e2e.caller import Caller, calling
from tests.e2e.conftest import new_key
from tests.e2e.deciders import asked, decide
from tests.history import assert_history
from tests.orchestrator.defined import serving
from tests.scripts import ScriptedModel, said
from tests.stack import Stack

OF_ORG = 'sentinel-of-org/"4711+&=%'
OF_RUN = "sentinel-of-run.0815"
REPLACED = "sentinel-replaced-4321"


class Echoing:
    """A server that gives back what it is told, at once and later."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.redirected = 0
        self.address = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        key = request.headers.get("Authorization", "") + request.headers.get("X-Key", "")
        if key:
            self.told.append(key)
        all_told = " ".join(self.told)
        match request.path:
            case "/body":
                basic = base64.b64encode(f"user:{all_told}".encode()).decode()
                deep = orjson.dumps({"text": orjson.dumps({"key": all_told}).decode()}).decode()
                return web.json_response(
                    {"plain": all_told, "basic": basic, "deep": deep, "hex": all_told.encode().hex()}
                )
            case "/header":
                return web.Response(headers={"X-Told": key, "Content-Type": "text/html", "Location": f"/x?{key}"})
            case "/refusal":
                return web.json_response({"error": f"bad credentials: {key}"}, status=401)
            case "/not-now":
                return web.Response(text=f"{key} is over its limit", status=503)
            case "/moved":
                return web.Response(status=302, headers={"Location": f"http://{request.host}/landed?key={key}"})
            case "/away":
                return web.Response(status=302, headers={"Location": f"http://localhost:1/{key}"})
            case "/broken":
                assert request.transport is not None
                request.transport.write(f"HTTP/1.1 200 OK\r\nX: {key}\r\nContent-Length: 9\r\n\r\n{key[:8]}".encode())
                request.transport.close()
                return web.Response()
            case "/landed":
                self.redirected += 1
                return web.Response(text=f"<p>{all_told}</p><a href='/{key}'>again</a>", content_type="text/html")
            case "/binary":
                return web.Response(body=b"\x00" + key.encode(), content_type="application/octet-stream")
        return web.Response(text=f"what I know: {all_told}" * 2_000)


PATHS = ("body", "header", "refusal", "not-now", "moved", "away", "broken", "binary")


@pytest.fixture(scope="module")
async def echoing() -> AsyncIterator[Echoing]:
    echoing = Echoing()
    async with serving(echoing.answer) as port:
        echoing.address = f"127.0.0.1:{port}"
        yield echoing


@pytest.fixture(scope="module")
async def reaching(make_stack: MakeStack, echoing: Echoing) -> AsyncIterator[Stack]:
    stack = await make_stack(LONGHAUL_EGRESS_ALLOW=echoing.address, LONGHAUL_LOG_LEVEL="debug")
    yield stack
    await stack.stop()


@pytest.fixture
async def caller(reaching: Stack) -> AsyncIterator[Caller]:
    async with calling(reaching.url, await new_key(reaching)) as caller:
        yield caller


def tool(address: str, path: str, source: str, **more: Any) -> dict[str, Any]:
    """The HTTP tool of a path, with a secret."""
    auth = {"source": source, "prefix": "Bearer "} if source == "of_org" else {"source": source, "target": "X-Key"}
    execution = {"url": f"http://{address}/{path}", "timeout": 5, "auth_config": auth}
    name = f"{path.replace('-', '_')}_{source}"
    return {"type": "http", "name": name, "description": path, "execution_config": execution, "retries": 1, **more}


async def everything(database: Pool, *, only: Sequence[str] = ()) -> str:
    """All rows of all tables, or `only` of some, as text, what is binary also as what its bytes say."""
    tables = await database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert len(tables) > 12
    tables = [table for table in tables if not only or table["tablename"] in only]
    assert len(tables) >= len(only)
    texts = []
    for table in tables:
        rows = await database.fetch(f"SELECT * FROM {table['tablename']} t")
        texts += [str(value) for row in rows for value in row.values()]
        texts += [value.decode("latin-1") for row in rows for value in row.values() if isinstance(value, bytes)]
        whole = await database.fetch(f"SELECT t::text FROM {table['tablename']} t")
        texts += [row["t"] for row in whole]
    return "\n".join(texts)


def assert_nowhere(secret: str, **places: str) -> None:
    for place, text in places.items():
        assert text, place
        for form in forms(secret):
            assert form not in text, f"{place} holds {form}: …{text[max(0, text.find(form) - 300) :][:600]}…"
        assert secret[:12] not in text, place


async def test_no_secret_is_kept_logged_streamed_or_told_to_a_model(
    reaching: Stack, caller: Caller, model: ScriptedModel, echoing: Echoing
) -> None:
    await caller.call("PUT", "/v1/secrets/of_org", {"value": REPLACED}, expect=201)
    await caller.call("PUT", "/v1/secrets/of_org", {"value": OF_ORG}, expect=200)
    await caller.call("PUT", "/v1/secrets/of_run", {"value": "the org's own, which the run's comes before"}, expect=201)
    tools = [tool(echoing.address, path, source) for path in PATHS for source in ("of_org", "of_run")]
    names = [each["name"] for each in tools]
    # A page that knows what other requests said is read before and after they are made, by the agent and by another.
    reading = ToolCall("http_fetch", {"url": f"http://{echoing.address}/known"})
    echoing.told += [OF_ORG, OF_RUN]
    child = model.script(Reply(tool_calls=[reading, ToolCall("body_of_run", {})]), said("the page was read"))
    script = model.script(
        Reply(tool_calls=[reading]),
        Reply(tool_calls=[ToolCall(name, {}) for name in names]),
        Reply(tool_calls=[reading, ToolCall("delegate", {"agent": "reader", "task": "read the page"})]),
        said("all done"),
    )
    agent = await caller.agent(
        model=script,
        tools=["http_fetch", *tools],
        sub_agents=[
            {
                "name": "reader",
                "description": "reads",
                "instructions": "Read.",
                "model": {"name": child},
                "tools": ["http_fetch", tool(echoing.address, "body", "of_run")],
            }
        ],
    )
    headers = {"Idempotency-Key": "the one"}
    async with caller.following(agent_id=agent, secrets={"of_run": OF_RUN}, headers=headers) as stream:
        await stream.rest()
    history = await assert_history(reaching.database, stream.events[0].data["run_id"])
    assert history.run["status"] == "succeeded"
    results = {event.data["name"]: event.data for event in history.of("tool_result")}
    assert {name: results[name]["status"] for name in names} == {
        name: "error" if "not_now" in name or "broken" in name else "ok" for name in names
    }
    assert any(OF_ORG in told for told in echoing.told)
    assert any(OF_RUN in told for told in echoing.told)
    assert echoing.redirected == 2  # within the origin with the secret, elsewhere not at all
    assert results["away_of_run"]["result"].count("[redacted]") == 1
    requests = [str(request) for name in (script, child) for request in model.asked(name)]
    assert sum("[redacted]" in request for request in requests) >= 4
    for secret in (OF_ORG, OF_RUN):
        assert_nowhere(
            secret,
            database=await everything(reaching.database),
            logs="\n".join(program.log for program in reaching.programs),
            stream=stream.frames.decode(),
            model="\n".join(requests),
            api=str(await caller.get(f"/v1/runs/{history.run['id']}")) + str(await caller.get("/v1/secrets")),
        )
    assert_nowhere(REPLACED, database=await everything(reaching.database))
    assert await reaching.database.fetchval("SELECT count(*) FROM run_secrets") == 0


async def test_what_people_and_callers_send_is_struck_of_secrets(
    reaching: Stack, caller: Caller, model: ScriptedModel, echoing: Echoing
) -> None:
    await caller.call("PUT", "/v1/secrets/of_org", {"value": OF_ORG}, expect=201)
    names = [tool(echoing.address, "landed", source) for source in ("of_org", "of_run")]  # named, and never called
    device = {
        "type": "client",
        "name": "device",
        "description": "of the caller",
        "parameter_schema": {"type": "object"},
    }
    echo = ToolCall("python", {"code": "'allowed'"})
    script = model.script(
        Reply(tool_calls=[ToolCall("device", {})] * 2),
        Reply(tool_calls=[ToolCall("ask_user", {"question": "Which key?"})]),
        Reply(tool_calls=[echo]),
        Reply(tool_calls=[echo]),
        Reply(tool_calls=[echo]),
        said("all done"),
    )
    agent = await caller.agent(model=script, tools=["python", "ask_user", device, *names], approvals={"python": {}})
    both = f"{OF_ORG} and {OF_RUN}"
    async with caller.following(agent_id=agent, secrets={"of_run": OF_RUN}) as stream:
        first, second = await asked(stream, kind="client_tool"), await asked(stream, kind="client_tool")
        path = f"/v1/runs/{first['run_id']}/tool-results"
        await caller.post(path, {"call_id": first["call_id"], "result": {"said": both, both: 1}})
        await caller.post(path, {"call_id": second["call_id"], "error": f"401: {both}"})
        await decide(caller, await asked(stream, kind="question"), "answer", answer=both)
        await decide(caller, await asked(stream, kind="tool"), "approve", comment=both)
        await decide(caller, await asked(stream, kind="tool"), "deny", comment=both)
        changed = {"code": f"# {OF_RUN}\n'changed'"}
        await decide(caller, await asked(stream, kind="tool"), "approve", arguments=changed)
        await stream.rest()
    history = await assert_history(reaching.database, stream.events[0].data["run_id"])
    assert history.run["status"] == "succeeded"
    told = [event.data["result"] for event in history.of("tool_result")]
    assert len(told) == 6
    assert all("[redacted]" in result for result in told), told
    assert "'changed'" in told[-1]
    # The record of a decision says what the person said; nothing that is made of it does.
    others = [str(event.data) for event in history.events if event.type != "approval_resolved"]
    tables = ("messages", "checkpoints", "checkpoint_writes", "effects")
    for secret in (OF_ORG, OF_RUN):
        assert_nowhere(
            secret,
            database=await everything(reaching.database, only=tables),
            logs="\n".join(program.log for program in reaching.programs),
            stream="\n".join(others),
            model="\n".join(str(request) for request in model.asked(script)),
        )


async def test_the_secrets_of_a_run_come_before_those_of_the_org(
    reaching: Stack, caller: Caller, model: ScriptedModel, echoing: Echoing
) -> None:
    await caller.call("PUT", "/v1/secrets/of_run", {"value": "the orgs"}, expect=201)
    script = model.script(Reply(tool_calls=[ToolCall("refusal_of_run", {})]), said("done"))
    agent = await caller.agent(model=script, tools=[tool(echoing.address, "refusal", "of_run")])
    own = await caller.run(agent_id=agent, secrets={"of_run": "the runs"})
    assert echoing.told[-1] == "the runs"
    again = model.script(Reply(tool_calls=[ToolCall("refusal_of_run", {})]), said("done"))
    other = await caller.run(agent_id=agent, model=again)
    assert echoing.told[-1] == "the orgs"
    for run in (own, other):
        await assert_history(reaching.database, run["id"])


async def test_a_retry_brings_secrets_of_its_own(
    reaching: Stack, caller: Caller, model: ScriptedModel, echoing: Echoing
) -> None:
    lost = Reply(fault=HttpError(401))
    script = model.script(lost, Reply(tool_calls=[ToolCall("refusal_of_run", {})]), said("done"))
    agent = await caller.agent(model=script, tools=[tool(echoing.address, "refusal", "of_run")])
    failed = await caller.run(agent_id=agent, secrets={"of_run": "the first runs"})
    assert failed["status"] == "failed"
    taken = await caller.post(f"/v1/runs/{failed['id']}/retry", {"secrets": {"of_run": "the second runs"}}, expect=202)
    run = await caller.finished(taken.json()["id"])
    assert (run["status"], echoing.told[-1]) == ("succeeded", "the second runs")
    assert await reaching.database.fetchval("SELECT count(*) FROM run_secrets") == 0
    for ended in (failed, run):
        await assert_history(reaching.database, ended["id"])


async def test_a_secret_that_is_missing_is_a_clear_error_and_the_run_goes_on(
    reaching: Stack, caller: Caller, model: ScriptedModel, echoing: Echoing
) -> None:
    script = model.script(Reply(tool_calls=[ToolCall("body_of_nobody", {})]), said("it needs a secret"))
    agent = await caller.agent(model=script, tools=[tool(echoing.address, "body", "of_nobody")])
    run = await caller.run(agent_id=agent)
    history = await assert_history(reaching.database, run["id"])
    [result] = history.of("tool_result")
    assert (result.data["status"], run["answer"]) == ("error", "it needs a secret")
    assert "There is no secret named 'of_nobody'" in result.data["result"]


async def test_another_orgs_secret_is_out_of_reach(
    reaching: Stack, caller: Caller, model: ScriptedModel, echoing: Echoing
) -> None:
    async with calling(reaching.url, await new_key(reaching)) as other:
        await other.call("PUT", "/v1/secrets/of_others", {"value": "not for you"}, expect=201)
    script = model.script(Reply(tool_calls=[ToolCall("body_of_others", {})]), said("done"))
    agent = await caller.agent(model=script, tools=[tool(echoing.address, "body", "of_others")])
    run = await caller.run(agent_id=agent)
    [result] = (await assert_history(reaching.database, run["id"])).of("tool_result")
    assert "There is no secret named 'of_others'" in result.data["result"]
