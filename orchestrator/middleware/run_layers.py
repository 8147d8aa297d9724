"""A run as its layers see it, and how a run ends whose answer one of them gave."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Final

import orjson
from langchain_core.messages import AIMessage

from kernel.agent_config import AgentConfig
from kernel.content import text_of
from kernel.events import FINAL_STATUSES
from kernel.ids import new_id
from kernel.leases import ClaimedRun
from kernel.runlog import End, NewStep, RunLog
from orchestrator.middleware.calls import RunCall, RunOutcome
from orchestrator.models.turn import Usage
from orchestrator.state import GraphState
from orchestrator.transcript import Transcript

AFTERWARDS: Final = 5.0
"""Seconds that layers have for what they do when the run has ended."""


def run_call(run: ClaimedRun, agent: AgentConfig) -> RunCall:
    """The run for its outermost layer."""
    turn = [message for message in run.messages if not message.path and message.role in ("user", "assistant", "system")]
    said = [{"role": message.role, "content": message.content} for message in turn if message.tool_calls is None]
    place = _input_at(run)
    return RunCall(
        run_id=run.id,
        session_id=run.session_id,
        org_id=run.org_id,
        user_id=run.user_id,
        agent_id=run.agent_id,
        agent_version=run.agent_version,
        agent=agent.name,
        workflow=run.workflow,
        attempt=run.attempt,
        input="" if place is None else text_of(run.messages[place].content),
        conversation=(*run.history, *said),
        request=run.request,
    )


def with_input(run: ClaimedRun, text: str) -> ClaimedRun:
    """The run with another text to answer. Images of the input stay."""
    place = _input_at(run)
    if place is None or text_of(run.messages[place].content) == text:
        return run
    content = run.messages[place].content
    if isinstance(content, list):
        content = [{"type": "text", "text": text}, *(part for part in content if part.get("type") != "text")]
    else:
        content = text
    messages = list(run.messages)
    messages[place] = replace(messages[place], content=content)
    return replace(run, messages=messages)


def outcome_of(state: GraphState, pen: RunLog) -> RunOutcome:
    """How the graph has ended the run."""
    used = pen.usage()
    usage = Usage(used["input_tokens"], used["output_tokens"])
    if (failure := state["failure"]) is not None:
        return RunOutcome("failed", failure["message"], failure["code"], usage)
    answer = state["answer"]
    return RunOutcome(
        "succeeded", answer["text"] if answer else "", answer["finish_reason"] if answer else "stop", usage
    )


def conclude(run: ClaimedRun, agent: AgentConfig, pen: RunLog, outcome: RunOutcome) -> None:
    """Ends a run that did not come to its end by itself with the outcome that a layer gave. Its only step of this
    attempt is RESPOND."""
    status = outcome.status if outcome.status in FINAL_STATUSES else "failed"
    if status != "succeeded":
        error = {"code": outcome.finish_reason, "message": outcome.text, "retryable": False, "suggestions": []}
        pen.say("error", error, urgent=False)
        pen.end(End(status, outcome.finish_reason, pen.usage(), error))
        return
    step_id = f"{run.attempt}-respond-instead"
    pen.say("state_entered", {"state": "RESPOND", "step_id": step_id, "path": ""}, urgent=False)
    message_id = new_id("msg")
    position = 1 + max((message.position for message in run.messages if not message.path), default=-1)
    Transcript(pen, "").add_assistant(position, AIMessage(outcome.text), message_id)
    message = {"message_id": message_id, "role": "assistant", "content": outcome.text}
    if run.request.get("response_schema") or agent.response_schema:
        with suppress(ValueError):  # what it has to be is for the layer to know
            message["parsed"] = orjson.loads(outcome.text)
    pen.conclude("", "message", message)
    pen.record_step(NewStep(step_id, "", "RESPOND", 0.0))
    pen.end(End("succeeded", outcome.finish_reason, pen.usage(), None))


def _input_at(run: ClaimedRun) -> int | None:
    """Where the message is that the run answers: the last of its user, who speaks before anybody else does."""
    places = [at for at, message in enumerate(run.messages) if not message.path and message.role == "user"]
    return places[-1] if places else None
