"""The examples of the guides on budgets and on sub-agents."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from kernel.agent_config import AgentConfig
from kernel.prices import Prices
from tests.conftest import MakeStack
from tests.docs.test_documents import blocks, shell
from tests.e2e.caller import calling
from tests.e2e.conftest import new_key
from tests.history import assert_history
from tests.scripts import ScriptedModel, said


async def test_the_requests_of_the_guide_on_budgets_do_what_it_says(
    make_stack: MakeStack, model: ScriptedModel
) -> None:
    stack = await make_stack(LLM_MODEL=model.script(said("well")))
    key = await new_key(stack)
    limited, retried = [
        orjson.loads(await shell(block, URL=stack.url, KEY=key)) for block in blocks("docs/guides/budgets.md", "bash")
    ]
    assert retried["from"] == "start"
    async with calling(stack.url, key) as caller:
        for run in (limited, retried):
            assert (await caller.finished(run["id"]))["answer"] == "well"
            await assert_history(stack.database, run["id"])
    await stack.stop()


def test_the_configurations_of_the_guide_on_budgets_are_valid(tmp_path: Path) -> None:
    agent, prices = blocks("docs/guides/budgets.md", "json")
    assert AgentConfig.model_validate_json(agent).limits.on_limit == "ask"
    table = Prices.read(prices)
    assert table.cost("gpt-4o-mini", 1_000_000, 1_000_000, 500_000) == pytest.approx(0.075 + 0.0375 + 0.6)
    file = tmp_path / "prices.json"
    file.write_text(prices)
    assert Prices.read(str(file)) == table


async def test_the_guide_on_sub_agents_makes_a_team(make_stack: MakeStack) -> None:
    [config] = blocks("docs/guides/sub-agents.md", "json")
    assert AgentConfig.model_validate_json(config).sub_agents[0].name == "researcher"
    stack = await make_stack(workers=0)
    [block] = blocks("docs/guides/sub-agents.md", "bash")
    buyer = orjson.loads(await shell(block, URL=stack.url, KEY=await new_key(stack)))
    [expert] = buyer["sub_agents"]
    assert (expert["version"], expert["description"]) == (1, "knows prices")
    await stack.stop()
