"""Runs that work on files: what callers upload they read, what they write callers download."""

from __future__ import annotations

import orjson

from cli.rehearsal import Reply, ToolCall
from tests.e2e.caller import Caller
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack

CSV = b"name,amount\nAda,10\nBob,20\nAda,12\n"


async def upload(caller: Caller, session: str, path: str, data: bytes) -> None:
    url = f"{caller.url}/v1/sessions/{session}/files/{path}"
    headers = {"Authorization": f"Bearer {caller.key}"}
    async with caller._session.put(url, data=data, headers=headers) as answer:
        assert answer.status == 201, await answer.read()


async def test_an_agent_reads_asks_and_writes_files_that_its_user_sees(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    session = await caller.session()
    await upload(caller, session, "data/sales.csv", CSV)
    script = model.script(
        Reply(
            tool_calls=[
                ToolCall("list_files", {}),
                ToolCall("read_file", {"path": "data/sales.csv", "limit": 1}),
                ToolCall("query_files", {"sql": "SELECT name, sum(amount) FROM sales GROUP BY name ORDER BY 1"}),
            ]
        ),
        Reply(tool_calls=[ToolCall("write_file", {"path": "report.md", "content": "# Totals\nAda: 21\n"})]),
        Reply(tool_calls=[ToolCall("edit_file", {"path": "report.md", "old_text": "21", "new_text": "22"})]),
        Reply(tool_calls=[ToolCall("read_file", {"path": "../../etc/passwd"})]),
        said("see report.md"),
    )
    agent = await caller.agent(model=script, tools=[], skills=["file_manager", "data_query"])
    run = await caller.run("sum it up", session=session, agent_id=agent)
    assert run["answer"] == "see report.md"
    history = await assert_history(stack.database, run["id"])
    results = [(event.data["name"], event.data["status"], event.data["result"]) for event in history.of("tool_result")]
    by_name = {name: result for name, _, result in results[:3]}
    assert orjson.loads(by_name["list_files"])["files"][0]["path"] == "data/sales.csv"
    assert by_name["read_file"].startswith("name,amount\n")
    assert orjson.loads(by_name["query_files"])["rows"] == [["Ada", 22], ["Bob", 20]]
    assert [status for _, status, _ in results] == ["ok", "ok", "ok", "ok", "ok", "error"]
    answer = await caller.call("GET", f"/v1/sessions/{session}/files/report.md", expect=200)
    assert answer.body == b"# Totals\nAda: 22\n"
    listed = (await caller.get(f"/v1/sessions/{session}/files"))["data"]
    assert [(file["path"], file["run_id"]) for file in listed] == [("data/sales.csv", None), ("report.md", run["id"])]
    effects = {row["tool"]: row["effect"] for row in history.effects}
    assert (effects["write_file"], effects["edit_file"]) == ("idempotent", "idempotent")


async def test_a_run_sees_no_files_of_other_sessions(caller: Caller, model: ScriptedModel, stack: Stack) -> None:
    other = await caller.session()
    await upload(caller, other, "secret.csv", CSV)
    script = model.script(
        Reply(
            tool_calls=[
                ToolCall("list_files", {}),
                ToolCall("read_file", {"path": "secret.csv"}),
                ToolCall("query_files", {"sql": "SELECT * FROM secret"}),
            ]
        ),
        said("nothing"),
    )
    agent = await caller.agent(model=script, tools=["list_files", "read_file", "query_files"])
    run = await caller.run("look", agent_id=agent)
    history = await assert_history(stack.database, run["id"])
    results = {event.data["name"]: event.data for event in history.of("tool_result")}
    listed, read, asked = (results[name] for name in ("list_files", "read_file", "query_files"))
    assert orjson.loads(listed["result"])["files"] == []
    assert {read["status"], asked["status"]} == {"error"}
