"""How far an agent had come in the run that this one goes on from, told from its messages and its ledger alone.

Both outlive the checkpoints of a run that has ended. What is found is the state after the last THINK that asked for
calls: those of them that have a result are not made again, the others are, and then the model is asked.
"""

from __future__ import annotations

from typing import Any

from kernel.effects import DELEGATE
from kernel.leases import ClaimedRun, StoredMessage
from orchestrator.state import Call, GraphState, first_state


def retraced(run: ClaimedRun, path: str, given: int, share: dict[str, Any] | None) -> GraphState | None:
    """The state of the agent at `path`, whose first `given` messages are its task; None if it has to begin."""
    said = [message for message in run.messages if message.path == path and message.position >= given]
    said.sort(key=lambda message: message.position)
    if said and said[-1].role == "assistant" and not said[-1].tool_calls:
        said.pop()  # an answer: it is what is to be done again
    asked = [message for message in said if message.tool_calls]
    if not asked:
        return None
    calls = _calls(asked[-1])
    state = first_state(max(asked[-1].position + 1 + len(calls), said[-1].position + 1), share)
    state["round"] = _round(run, path, {call["position"] for call in calls})
    state["calls"] = [call for call in calls if call["name"] != DELEGATE]
    state["delegations"] = [call for call in calls if call["name"] == DELEGATE]
    return state


def _calls(message: StoredMessage) -> list[Call]:
    return [
        Call(id=call["id"], name=call["name"] or "", arguments=call["args"], position=message.position + 1 + place)
        for place, call in enumerate(message.tool_calls or ())
    ]


def _round(run: ClaimedRun, path: str, positions: set[int]) -> int:
    """The round that the calls at `positions` belong to: that of their rows in the ledger, or one after all others."""
    rounds = {effect.position: _round_of(effect.step_id) for effect in run.effects.values() if effect.path == path}
    own = [round for position, round in rounds.items() if position in positions]
    return own[0] if own else max(rounds.values(), default=0) + 1


def _round_of(step_id: str) -> int:
    return int(step_id.rpartition("/")[2].partition("-")[0])
