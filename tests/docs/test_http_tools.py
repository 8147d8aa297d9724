"""The guide on HTTP tools, as a reader would follow it."""

from __future__ import annotations

import orjson
from aiohttp import web

from cli.rehearsal import Reply, ToolCall
from kernel.tenants import create_key, ensure_org
from tests.conftest import MakeStack
from tests.docs.test_documents import blocks, shell
from tests.e2e.caller import calling
from tests.history import assert_history
from tests.orchestrator.defined import serving
from tests.scripts import ScriptedModel, said


async def test_the_agent_of_the_guide_calls_its_service(make_stack: MakeStack, model: ScriptedModel) -> None:
    seen: list[tuple[str, str, object]] = []

    async def orders(request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"] == "Bearer sk-orders-4711"
        seen.append((request.method, request.path, await request.json() if request.body_exists else None))
        return web.json_response({"number": "A/7", "state": "shipped"})

    async with serving(orders) as port:
        stack = await make_stack(LONGHAUL_EGRESS_ALLOW=f"127.0.0.1:{port}")
        org = await ensure_org(stack.database, "readers of the guide on HTTP tools")
        key = (await create_key(stack.database, org, name="reader")).secret.get_secret_value()
        [block] = blocks("docs/guides/http-tools.md", "bash")
        answer = await shell(block, URL=stack.url, KEY=key, ORDERS=f"http://127.0.0.1:{port}")
        agent = orjson.loads(answer[answer.index('{"id":"agt_') :])
        find, cancel = ToolCall("find_order", {"number": "A/7"}), ToolCall("cancel_order", {"number": "A/7"})
        script = model.script(Reply(tool_calls=[find]), Reply(tool_calls=[cancel]), said("It is cancelled."))
        async with calling(stack.url, key) as caller:
            run = await caller.run("Cancel order A/7.", agent_id=agent["id"], model=script)
        history = await assert_history(stack.database, run["id"])
        await stack.stop()
    assert run["answer"] == "It is cancelled."
    assert [(row["effect"], row["status"]) for row in history.effects] == [("read", "ok"), ("once", "ok")]
    assert seen == [("GET", "/orders/A/7", None), ("POST", "/orders/A/7/cancel", {"by": "order desk"})]
