"""The layer of docs/guides/middleware.md, and the names that the page gives."""

from __future__ import annotations

import re

import pytest

from orchestrator.middleware.builtin import BUILT_IN
from orchestrator.middleware.calls import RunCall, RunOutcome
from orchestrator.middleware.chain import Chain
from tests.docs.test_documents import ROOT, example

PAGE = "docs/guides/middleware.md"


async def test_the_layer_of_the_guide_answers_greetings_and_passes_on_the_rest() -> None:
    chain = Chain({"office_hours": example(PAGE, "OfficeHours")()})

    async def agent(call: RunCall) -> RunOutcome:
        return RunOutcome("succeeded", f"the agent on {call.input}")

    for input, answer in (("Hello ", "Hello! What can I do for you?"), ("tides", "the agent on tides")):
        call = RunCall("run", "ses", "org", None, "agt", 1, "agent", "agent_chat", 1, input, (), {})
        assert (await chain.around_run(agent)(call)).text == answer


def test_the_guide_lists_every_middleware_and_no_other() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / PAGE).read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_middleware_of_the_table_is_there(name: str) -> None:
    module, _, attribute = BUILT_IN[name].partition(":")
    assert hasattr(__import__(f"orchestrator.middleware.{module}", fromlist=[attribute]), attribute)
