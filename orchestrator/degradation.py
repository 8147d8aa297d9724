"""What is said when an agent can't do all that it was asked: what is known, what failed in plain words, what to do
about it, and the operations of the API that really do it.

A limit ends a run in order (`succeeded`, the limit as its finish reason): its answer is made here, and its `message`
event carries the operations. A model that is lost fails the run: what is known is said before the error, and the error
carries them.
"""

from __future__ import annotations

from typing import Any, Final

from kernel.errors import LonghaulError
from kernel.ids import new_id
from orchestrator.budget import CAP_OF, MOST_WRONG_CALLS, Budget, Reached
from orchestrator.context import RunContext
from orchestrator.state import Answer, Failure, GraphState, Operation

_MOST_RESULTS: Final = 5
_RESULT_CHARACTERS: Final = 500

_NOUNS: Final = {
    "step_limit": "the limit of {limit:.0f} steps",
    "tool_call_limit": "the limit of {limit:.0f} tool calls",
    "token_limit": "the token budget of {limit:.0f} tokens",
    "cost_limit": "the cost limit of {limit:g}",
    "time_limit": "the limit of {limit:g} seconds of work",
}


def limited(context: RunContext, state: GraphState, reached: Reached) -> dict[str, Any]:
    """What THINK leaves when a limit forbids another model call: an answer with what is known."""
    what = reached_in_words(context.budget, reached)
    cap = CAP_OF.get(reached)
    if cap is None:
        remedies = ["check the tools' descriptions and schemas", "use a model that calls tools more reliably"]
    else:
        remedies = [f"raise limits.{cap} of the agent or budget.{cap} of the run"]
    operations = [] if context.path else limit_operations(context.run.id, context.budget, reached)
    text = _told(f"I stopped because I reached {what} before I was done.", known(context, state), remedies, operations)
    answer = Answer(message_id=new_id("msg"), text=text, finish_reason=reached)
    if operations:
        answer["operations"] = operations
    return {"calls": [], "delegations": [], "answer": answer}


def failure(context: RunContext, error: LonghaulError, *, retryable: bool) -> Failure:
    """Why an agent can't go on."""
    failed = Failure(code=error.code, message=error.message, retryable=retryable, suggestions=list(error.suggestions))
    if not context.path:
        failed["operations"] = failure_operations(context.run.id)
    return failed


def failure_answer(context: RunContext, state: GraphState, failed: Failure) -> str:
    """What an agent says whose model is lost."""
    opening = f"I could not finish: {failed['message']}"
    return _told(opening, known(context, state), failed["suggestions"], failed.get("operations", []))


def known(context: RunContext, state: GraphState) -> list[str]:
    """The latest results of tools and sub-agents, and an answer that was to be corrected; abridged."""
    results = [m.text for m in context.transcript.upto(state["position"]) if m.type == "tool"]
    found = [_abridged(text) for text in results[-_MOST_RESULTS:]]
    if drafts := state.get("drafts"):
        wrong = "; ".join(drafts[-1]["problems"])
        found.append(f"an answer that does not fit response_schema yet ({wrong}): {_abridged(drafts[-1]['text'])}")
    return found


def reached_in_words(budget: Budget, reached: Reached) -> str:
    """The limit with its height, such as `the limit of 25 steps`."""
    cap = CAP_OF.get(reached)
    if cap is None:
        return f"the limit of {MOST_WRONG_CALLS} wrong tool calls in a row"
    return _NOUNS[reached].format(limit=budget.limit(cap) or 0)


def limit_operations(run_id: str, budget: Budget, reached: Reached) -> list[Operation]:
    """What lets a run go on that has ended at a limit."""
    more = budget.doubled(reached)
    if not more:
        return failure_operations(run_id)
    operation = Operation(
        op="raise_budget",
        method="POST",
        path=f"/v1/runs/{run_id}/retry",
        description="goes on from the last finished step as a new run, with a budget of its own",
    )
    operation["body"] = {"budget": more}
    return [operation]


def failure_operations(run_id: str) -> list[Operation]:
    """What lets a run go on that has failed."""
    return [
        Operation(
            op="retry",
            method="POST",
            path=f"/v1/runs/{run_id}/retry",
            description="goes on from the last finished step as a new run: finished calls are not made again",
        )
    ]


def _told(opening: str, results: list[str], suggestions: list[str], operations: list[Operation]) -> str:
    lines = [opening, "What I found so far:"]
    lines += [f"- {result}" for result in results] or ["- nothing yet"]
    if suggestions or operations:
        lines.append("To go on:")
        lines += [f"- {suggestion}" for suggestion in suggestions]
        lines += [f"- {one['method']} {one['path']}: {one['description']}" for one in operations]
    return "\n".join(lines)


def _abridged(text: str) -> str:
    return text if len(text) <= _RESULT_CHARACTERS else f"{text[:_RESULT_CHARACTERS]} […]"
