"""Instructions are filled in with the run's variables: once, and up to a size."""

from __future__ import annotations

from tests.e2e.caller import Caller
from tests.e2e.test_runs import told
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack


async def test_a_variable_that_names_another_is_not_filled_in_again(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(said("fine"))
    agent = await caller.agent(model=script, instructions="Say {a}, {b} and {c}.")
    run = await caller.run(agent_id=agent, variables={"a": "{b}{b}", "b": "{a}", "{a}": "never"})
    await assert_history(stack.database, run["id"])
    assert told(model.asked(script)[0], "system") == ["Say {b}{b}, {a} and {c}."]


async def test_variables_that_make_the_prompt_too_long_end_the_run_and_the_model_is_not_asked(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(said("never"))
    agent = await caller.agent(model=script, instructions="{a}" * 1000)
    session = await caller.session()
    run = await caller.run(session=session, agent_id=agent, variables={"a": "x" * 1000})
    assert (run["status"], run["error"]["code"]) == ("failed", "prompt_too_long")
    history = await assert_history(stack.database, run["id"])
    assert history.types[-2:] == ["error", "done"]
    assert model.asked(script) == []
    assert (await caller.run("and now?", session=session, workflow="echo"))["answer"] == "and now?"
