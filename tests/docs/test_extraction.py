"""The guide on memories from conversations, as a reader would follow it."""

from __future__ import annotations

from typing import Any

import orjson

from cli.rehearsal import Reply
from tests.conftest import MakeStack
from tests.docs.test_documents import blocks, shell
from tests.e2e.conftest import new_key
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.waiting import eventually

TEXT = "Ada wants her reports as short bullet points."


async def test_the_requests_of_the_guide_do_what_it_says(make_stack: MakeStack, model: ScriptedModel) -> None:
    preference = {
        "kind": "preference",
        "text": TEXT,
        "scope": "user",
        "confidence": 0.9,
        "message": 1,
        "quote": "reports as short bullet points",
    }
    reading = Reply(tokens=[orjson.dumps({"memories": [preference], "summary": "Ada told how."}).decode()])
    stack = await make_stack(LLM_MODEL=model.script(said("Gladly."), reading))
    key = await new_key(stack, user_id="ada")
    ask, look = blocks("docs/guides/extraction.md", "bash")
    run = orjson.loads(await shell(ask, URL=stack.url, KEY=key))

    async def found() -> Any:
        return orjson.loads(await shell(look, URL=stack.url, KEY=key))["data"]

    [memory] = await eventually(found, every=0.3, what="the turn is read")
    assert (memory["text"], memory["run_id"], memory["provenance"]) == (TEXT, run["id"], "model")
    assert memory["source"].startswith("conversation of 20")
    await assert_history(stack.database, run["id"])
    await stack.stop()
