"""The guide on approvals, followed step by step."""

from __future__ import annotations

import orjson

from cli.rehearsal import Reply, ToolCall
from tests.docs.test_documents import blocks, shell
from tests.e2e.caller import calling
from tests.e2e.conftest import new_key
from tests.e2e.deciders import asked, ended, person, results
from tests.scripts import ScriptedModel, said
from tests.stack import Stack

GUIDE = "docs/guides/approvals.md"


async def test_the_guide_on_approvals_can_be_followed(stack: Stack, model: ScriptedModel) -> None:
    bookkeeper, assistant = (orjson.loads(block) for block in blocks(GUIDE, "json"))
    approve, answer, post = blocks(GUIDE, "bash")
    async with calling(stack.url, await new_key(stack)) as caller:
        mia = await person(stack, caller, "mia", roles=["manager"], scopes=["read", "write"])
        script = model.script(
            Reply(tool_calls=[ToolCall("python", {"code": "'pay'"}), ToolCall("python", {"code": "1"})]),
            Reply(tool_calls=[ToolCall("ask_user", {"question": "Which colour?"})]),
            said("paid"),
        )
        async with caller.following(agent_id=await caller.agent(**bookkeeper, model=script)) as stream:
            request = await asked(stream)
            shown = await shell(approve, URL=stack.url, KEY=mia.key, APPROVAL=request["approval_id"])
            assert '"status":"approved"' in shown
            question = await asked(stream, kind="question")
            await shell(answer, URL=stack.url, KEY=caller.key, QUESTION=question["approval_id"])
            await ended(stack, stream)
        assert results(model.asked(script)[-1])[-1] == "blue"

        script = model.script(Reply(tool_calls=[ToolCall("stock", {"sku": "a-1"})]), said("three"))
        async with caller.following(agent_id=await caller.agent(**assistant, model=script)) as stream:
            start = (await stream.until("tool_start")).data
            await asked(stream)
            await shell(post, URL=stack.url, KEY=caller.key, RUN=start["run_id"], CALL=start["call_id"])
            await ended(stack, stream)
        assert results(model.asked(script)[-1]) == ['{"count":3}']
