"""The examples of the guides on data and on code."""

from __future__ import annotations

import orjson

from cli.rehearsal import Reply, ToolCall
from orchestrator.tools.python import PythonTool
from orchestrator.tools.tool import ToolContext
from orchestrator.tools.toolbox import Toolbox
from tests.conftest import MakeDatabase, MakeStack
from tests.docs.test_documents import blocks, shell
from tests.e2e.caller import calling
from tests.e2e.conftest import new_key
from tests.outside_postgres import outside_postgres
from tests.scripts import ScriptedModel, said


async def test_the_guide_on_data_registers_a_source_that_an_agent_then_asks(
    make_database: MakeDatabase, make_stack: MakeStack, model: ScriptedModel
) -> None:
    async with outside_postgres(await make_database()) as shop:
        [roles] = blocks("docs/guides/data.md", "sql")
        await shop.admin.execute(f"DROP ROLE IF EXISTS agents; {roles}")
        stack = await make_stack(LONGHAUL_EGRESS_ALLOW=shop.address)
        key = await new_key(stack)
        dsn = shop.dsn().replace("reader:", "agents:")
        said_back = [
            await shell(block, URL=stack.url, KEY=key, DSN=dsn) for block in blocks("docs/guides/data.md", "bash")
        ]
        agent = orjson.loads(said_back[-1])
        async with calling(stack.url, key) as caller:
            ask = ToolCall("query_source", {"source": "shop", "sql": "SELECT count(*) FROM shop.orders"})
            script = model.script(Reply(tool_calls=[ask]), said("There are 1000."))
            run = await caller.run(agent_id=agent["id"], model=script)
            results = [event.data["result"] for event in await caller.events(run["id"]) if event.type == "tool_result"]
        assert results == ['{"rows":[{"count":1000}],"count":1}']
        await stack.stop()
        await shop.admin.execute("DROP OWNED BY agents; DROP ROLE agents")


async def test_the_code_of_the_guide_runs_in_the_sandbox() -> None:
    [code] = blocks("docs/guides/code.md", "python")
    toolbox = Toolbox([PythonTool()])
    context = ToolContext("org", None, None, "ses", "run", "call", "run:step:call")
    given = 'class _File:\n    def read(self): return "id,amount\\n1,2.5\\n2,4\\n"\ndef open(path): return _File()\n'
    ran = await toolbox.call("python", {"code": given + code}, context, allowed=["python"])
    await toolbox.aclose()
    assert ran.status == "ok"
    assert "6.5" in ran.result


def test_the_agent_of_the_guide_on_code_is_valid() -> None:
    from kernel.agent_config import AgentConfig

    [config] = blocks("docs/guides/code.md", "json")
    assert AgentConfig.model_validate_json(config).skills == ["code_executor"]
