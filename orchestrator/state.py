"""The graph's state: counters, names and what is to be done next. It is checkpointed at each step, so it is small:
messages are records in Postgres, written once, and never part of it.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class Call(TypedDict):
    """One call of the model. `id` is unique within its step, `position` is where its result goes in the transcript.

    `arguments` are the model's raw text where that was no JSON object.
    """

    id: str
    name: str
    arguments: dict[str, Any] | str
    position: int


class Operation(TypedDict):
    """A request to the API that lets a run go on. It works as it stands."""

    op: Literal["retry", "raise_budget", "approve"]
    method: Literal["POST"]
    path: str
    body: NotRequired[dict[str, Any]]
    description: str


class Answer(TypedDict):
    """What RESPOND is to say. `message_id` names the message whose chunks were streamed, if any were; `operations` are
    there where a limit was reached. `structured`: the text is the JSON that a `response_schema` asked for."""

    message_id: str
    text: str
    finish_reason: str
    structured: NotRequired[bool]
    operations: NotRequired[list[Operation]]


class Draft(TypedDict):
    """An answer that does not fit the `response_schema`, and what is wrong with it, one line each."""

    text: str
    problems: list[str]


class Failure(TypedDict):
    """Why a run can't go on; shown to the caller as it stands."""

    code: str
    message: str
    retryable: bool
    suggestions: list[str]
    operations: NotRequired[list[Operation]]


Route = Literal["THINK", "ACT", "DELEGATE", "RESPOND"]


class GraphState(TypedDict):
    """One agent's progress. ACT and DELEGATE may run at the same time, so neither writes here.

    `share` is what a sub-agent got of its parent's budget (`Caps` as a dictionary). `drafts` are the answers that the
    model was last told to correct, the oldest first; there are none as soon as it says something that can be used.
    """

    round: int
    position: int
    recalled: list[str] | None
    calls: list[Call]
    delegations: list[Call]
    answer: Answer | None
    failure: Failure | None
    share: NotRequired[dict[str, Any] | None]
    drafts: NotRequired[list[Draft]]


def first_state(position: int, share: dict[str, Any] | None = None) -> GraphState:
    """The state before the first step, with `position` messages of this turn in the transcript already."""
    state = GraphState(
        round=0,
        position=position,
        recalled=None,
        calls=[],
        delegations=[],
        answer=None,
        failure=None,
    )
    if share is not None:
        state["share"] = share
    return state
