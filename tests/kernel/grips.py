"""What an owner says through its pen, and how that reads in the model.

Everything is said in one go, without an `await`, so that it is one batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final

from kernel.approvals import NewApproval
from kernel.checkpoints import CheckpointRow
from kernel.effects import Effect
from kernel.events import RunStatus
from kernel.ids import new_id
from kernel.leases import ClaimedRun
from kernel.runlog import End, NewMessage, NewStep, Rest, RunLog
from tests.kernel.run_model import Run, Said

KINDS: Final = ("thought", "chunk", "usage", "step", "call", "question")

_FAILURE: Final = {"code": "broken", "message": "It broke.", "retryable": False, "suggestions": ["mend it"]}
_numbers = count(1)


@dataclass(slots=True, eq=False)
class Grip:
    """What a worker holds of a run, rightly or not: its epoch and its pen."""

    worker: str
    run: Run
    epoch: int
    given: ClaimedRun
    pen: RunLog
    begun: bool = False
    waits_for: list[str] = field(default_factory=list)

    def begin(self, given: ClaimedRun, unfinished: Mapping[str, str]) -> Said:
        """Goes on from what earlier owners left: the first words of every owner."""
        self.begun = True
        spent = given.spent_in_all
        self.pen.take_over(unfinished, spent.input_tokens, spent.output_tokens, given.effects.values(), spent.cost)
        for made in given.approvals.values():
            if made.status == "pending":
                self.pen.wait_for(made.approval_id)
                self.waits_for.append(made.approval_id)
        beginning = "run_resumed" if given.announced else "run_started"
        self.pen.say("run_resumed" if given.announced else "run_started", {"attempt": given.attempt})
        return Said(["message_discarded"] * len(unfinished) + [beginning], dropped=list(unfinished))

    def write(self, kinds: Sequence[str], said: Said) -> None:
        """Says something of each of `kinds`; of steps and calls at most one."""
        for kind in kinds:
            match kind:
                case "thought":
                    self.pen.say("tool_thinking", {"text": "hm"})
                    said.events.append("tool_thinking")
                case "chunk":
                    said.begun.append(new_id("msg"))
                    self.pen.chunk(said.begun[-1], "text")
                    said.events.append("message_chunk")
                case "usage":
                    self.pen.say("usage", {"input_tokens": 3, "output_tokens": 3, "cost": 0.0})
                    said.tokens += 3
                    said.events.append("usage")
                case "step" if not said.steps:
                    said.steps = 1
                    said.events.append("state_entered")
                    self._step()
                case "call" if said.call is None:
                    said.call = not self.run.open_call
                    said.events.append("tool_start" if said.call else "tool_result")
                    self._call(begins=said.call)

                case "question":
                    asked = NewApproval("0-act", f"question_{next(_numbers)}", "", "question", "ask_user", {})
                    self.pen.ask(asked)
                    self.waits_for.append(asked.id)
                    said.asked.append(asked.id)
                    said.events.append("approval_required")

    def rest(self, said: Said, because: Rest) -> None:
        """Leaves the run as it stands."""
        said.events += ["message_discarded"] * self._drop(said) + ["run_waiting"]
        said.rest = because
        said.waits_for = list(self.waits_for)
        self.pen.rest(because)

    def end(self, said: Said) -> None:
        """Ends the run: as cancelled if that is asked for, else as failed."""
        status: RunStatus = "cancelled" if self.run.cancel_asked else "failed"
        error = _FAILURE if status == "failed" else None
        if error:
            self.pen.say("error", error)
            said.events.append("error")
        said.events += ["message_discarded"] * self._drop(said) + ["tool_result"] * self.run.open_call + ["done"]
        said.end = status
        self.pen.end(End(status, status, self.pen.usage(), error))

    def _drop(self, said: Said) -> int:
        mine = [message_id for message_id in self.run.streaming if self.pen.streams(message_id)]
        said.dropped += mine
        return len(mine)

    def _step(self) -> None:
        number, state = next(_numbers), ("THINK", "ACT")[self.run.steps % 2]
        step = NewStep(f"{number}-{state.lower()}", "", state, 0.0)
        self.pen.say("state_entered", {"state": state, "step_id": step.step_id, "path": ""})
        self.pen.record_step(step)
        self.pen.stage_checkpoint(CheckpointRow(self.run.id, "", f"{number:09}", None, "msgpack", b"", b""))

    def _call(self, *, begins: bool) -> None:
        """Lets a call loose, or writes the outcome of the one that is under way, which nobody knows."""
        number = self.run.calls + begins
        call = Effect("0-act", f"call_{number}", "", number, "idle", "read", "started", starts=1)
        about = {"call_id": call.call_id, "name": call.tool}
        if begins:
            self.pen.say("tool_start", about | {"arguments": {}})
            self.pen.record_effect(call)
        else:
            self.pen.say("tool_result", about | {"status": "unknown", "result": "?", "duration_ms": 0})
            result = NewMessage(new_id("msg"), "", number, "tool", "?", tool_call_id=call.call_id)
            self.pen.record_effect(replace(call, status="unknown", starts=0), result)
