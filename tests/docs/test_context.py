"""The examples of the guide on context."""

from __future__ import annotations

import orjson

from kernel.agent_config import AgentConfig, ContextConfig
from tests.conftest import MakeStack
from tests.docs.test_documents import ROOT, blocks, shell
from tests.e2e.caller import calling
from tests.e2e.conftest import new_key
from tests.history import assert_history
from tests.scripts import ScriptedModel, said


def test_the_agent_of_the_guide_on_context_is_one() -> None:
    [config] = blocks("docs/guides/context.md", "json")
    context = AgentConfig.model_validate_json(config).context
    assert (context.max_tokens, context.keep_recent) == (32_000, 20)


def test_the_table_of_the_guide_on_context_has_all_settings_and_their_defaults() -> None:
    page = (ROOT / "docs/guides/context.md").read_text("utf-8")
    rows = {line.split("`")[1]: line.rsplit("|", 2)[1].strip() for line in page.splitlines() if line.startswith("| `")}
    defaults = ContextConfig()
    assert rows.keys() == ContextConfig.model_fields.keys()
    for name in ("max_tokens", "keep_recent", "result_tokens"):
        assert rows[name] == str(getattr(defaults, name))
    assert rows["summarize"] == "true"


async def test_the_requests_of_the_guide_on_context_do_what_it_says(
    make_stack: MakeStack, model: ScriptedModel
) -> None:
    stack = await make_stack(LLM_MODEL=model.script(said("planned")))
    key = await new_key(stack)
    [block] = blocks("docs/guides/context.md", "bash")
    run = orjson.loads(await shell(block, URL=stack.url, KEY=key))
    async with calling(stack.url, key) as caller:
        assert (await caller.finished(run["id"]))["answer"] == "planned"
    await assert_history(stack.database, run["id"])
    await stack.stop()
