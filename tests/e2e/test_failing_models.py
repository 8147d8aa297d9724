"""A model that fails ends the run with an error that says what to do, and the session stays usable."""

from __future__ import annotations

from typing import Any

import pytest

from cli.rehearsal import BreakOff, Hang, HangUp, HttpError, NotHttp, Raw, Reply, ToolCall
from tests.e2e.caller import Caller, calling
from tests.e2e.conftest import OwnStack, new_key
from tests.history import assert_history
from tests.scripts import ScriptedModel, said
from tests.stack import Stack

REFUSED = {
    "error": {"message": "Incorrect API key provided", "type": "invalid_request_error", "code": "invalid_api_key"}
}
BUSY = {"error": {"message": "Rate limit reached", "type": "requests"}}

FAILURES: dict[str, tuple[Reply, str, bool]] = {
    "hangs up": (Reply(fault=HangUp()), "model_broke_off", True),
    "answers no HTTP": (Reply(fault=NotHttp(b"SSH-2.0-OpenSSH_9.6\r\n")), "model_garbled", False),
    "answers a page": (Reply(fault=Raw([b"<html>hello</html>"], content_type="text/html")), "model_garbled", False),
    "answers no JSON": (Reply(fault=Raw([b"data: {nonsense\n\n", b"data: [DONE]\n\n"])), "model_garbled", False),
    "breaks off": (Reply(tokens=["half ", "an ", "answer"], fault=BreakOff(2)), "model_broke_off", True),
    "falls silent": (Reply(tokens=["half ", "an ", "answer"], fault=Hang(2)), "model_timeout", True),
    "refuses the key": (Reply(fault=HttpError(401, REFUSED)), "model_refused", False),
    "knows no such model": (
        Reply(fault=HttpError(404, {"error": {"message": "no such model"}})),
        "model_refused",
        False,
    ),
    "is too busy": (Reply(fault=HttpError(429, BUSY)), "model_rate_limited", True),
    "is too busy for long": (Reply(fault=HttpError(429, BUSY, {"retry-after": "3600"})), "model_rate_limited", True),
    "fails": (Reply(fault=HttpError(500, b"<html>oops</html>")), "model_overloaded", True),
    "is overloaded": (Reply(fault=HttpError(503, {"error": {"message": "overloaded"}})), "model_overloaded", True),
}


async def ends_with_an_error(stack: Stack, caller: Caller, session: str, **fields: Any) -> dict[str, Any]:
    """Runs and checks how it failed; the error."""
    run = await caller.run(session=session, **fields)
    assert (run["status"], run["finish_reason"]) == ("failed", run["error"]["code"]), run
    history = await assert_history(stack.database, run["id"])
    assert history.types[-2:] == ["error", "done"]
    assert "sk-of-the-tests" not in str(run["error"])
    error: dict[str, Any] = run["error"]
    return error


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_model_that_fails_ends_the_run_and_the_next_run_works(
    stack: Stack, caller: Caller, model: ScriptedModel, failure: str
) -> None:
    reply, code, retryable = FAILURES[failure]
    session = await caller.session()
    error = await ends_with_an_error(stack, caller, session, model=model.script(reply))
    assert (error["code"], error["retryable"]) == (code, retryable), error
    run = await caller.run("and now?", session=session, model=model.script(said("all well")))
    assert (run["status"], run["answer"]) == ("succeeded", "all well")
    await assert_history(stack.database, run["id"])


async def test_a_model_that_is_not_there_at_all_is_said_to_be_out_of_reach(own: OwnStack, model: ScriptedModel) -> None:
    stack = await own.stack(OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    async with calling(stack.url, await new_key(stack)) as caller:
        session = await caller.session()
        error = await ends_with_an_error(stack, caller, session)
        assert error["code"] == "model_unreachable"
        assert "127.0.0.1:9" in error["message"]
        run = await caller.run("still there?", session=session, workflow="echo")
        assert run["answer"] == "still there?"


async def test_a_busy_model_is_asked_again_when_it_said(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    script = model.script(Reply(fault=HttpError(429, BUSY, {"retry-after": "1"})), said("now I can"))
    run = await caller.run(model=script)
    assert run["answer"] == "now I can"
    assert len(model.asked(script)) == 2
    await assert_history(stack.database, run["id"])


async def test_a_model_that_broke_off_after_it_began_is_not_asked_again(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(Reply(tokens=["once ", "upon"], fault=BreakOff(1)), said("never said"))
    run = await caller.run(model=script)
    assert run["error"]["code"] == "model_broke_off"
    assert len(model.asked(script)) == 1
    history = await assert_history(stack.database, run["id"])
    assert "message_discarded" in history.types


async def test_a_failure_after_tool_calls_keeps_what_was_done(
    stack: Stack, caller: Caller, model: ScriptedModel
) -> None:
    script = model.script(
        Reply(tool_calls=[ToolCall("python", {"code": "1"})], usage=(5, 7)), Reply(fault=HttpError(400, REFUSED))
    )
    session = await caller.session()
    await ends_with_an_error(stack, caller, session, input="compute", model=script)
    [run] = (await caller.get(f"/v1/runs?session_id={session}"))["data"]
    assert run["usage"] == {"input_tokens": 5, "output_tokens": 7, "cost": 0.0}
    shown = (await caller.get(f"/v1/sessions/{session}/messages"))["data"]
    assert [message["role"] for message in shown] == ["user", "assistant", "tool", "assistant"]
    assert "could not finish" in shown[-1]["content"]
    after = model.script(said("going on"))
    assert (await caller.run("go on", session=session, model=after))["status"] == "succeeded"
    # The calls are no part of the conversation, but what was said of them is.
    assert [message["role"] for message in model.asked(after)[0].messages] == ["system", "user", "assistant", "user"]


async def test_an_answer_of_nothing_at_all_is_an_answer(stack: Stack, caller: Caller, model: ScriptedModel) -> None:
    run = await caller.run(model=model.script(Reply()))
    await assert_history(stack.database, run["id"])
    assert run["finished_at"]
