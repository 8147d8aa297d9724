"""The pen of one running run: what it says, and what it must remember, on its way into the journal.

Nothing here waits. Entries gather in the run's pending batch until the journal's writer takes it; `committed`
is there for whoever must know that all said so far is safe. Consecutive chunks of one message that wait
together become one event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from kernel.approvals import NewApproval
from kernel.checkpoints import CheckpointRow, CheckpointWriteRow
from kernel.effects import DELEGATE, Effect
from kernel.errors import LeaseLost
from kernel.events import EventType, RunStatus, encode_json
from kernel.ids import new_id


@dataclass(frozen=True, slots=True)
class Owner:
    """The run that a pen writes for, and the epoch under which it may."""

    org_id: str
    session_id: str
    run_id: str
    epoch: int
    turn: int


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message record of this turn. `position` counts from 0 within `path`."""

    id: str
    path: str
    position: int
    role: str
    content: Any
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class NewStep:
    """A finished step and how many seconds it took."""

    step_id: str
    path: str
    state: str
    seconds: float


_CUT_SHORT: Final = "The run ended while this call was under way: nobody can tell whether it was done."

_COST_DIGITS: Final = 9

Rest: TypeAlias = Literal["paused", "approval"]
"""Why a run that has not ended is left without an owner."""


@dataclass(frozen=True, slots=True)
class End:
    """How a run ends."""

    status: RunStatus
    finish_reason: str
    usage: dict[str, Any]
    error: dict[str, Any] | None


@dataclass(slots=True)
class Batch:
    """What one run has pending. `events` are (type, encoded fields), `messages` encoded `NewMessage`s, `approvals` the
    place of the event that asks for one, from 1, and the encoded `NewApproval`.

    They are encoded when they are said: what can't be is then the sayer's trouble, and not the journal's.
    """

    events: list[tuple[str, str]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    steps: list[NewStep] = field(default_factory=list)
    checkpoints: dict[tuple[str, str], CheckpointRow] = field(default_factory=dict)
    writes: list[CheckpointWriteRow] = field(default_factory=list)
    effects: dict[tuple[str, str], Effect] = field(default_factory=dict)
    approvals: list[tuple[int, str]] = field(default_factory=list)
    rest: Rest | None = None
    waits_for: list[str] = field(default_factory=list)
    end: End | None = None

    @property
    def empty(self) -> bool:
        return not (
            self.events
            or self.messages
            or self.steps
            or self.checkpoints
            or self.writes
            or self.effects
            or self.approvals
            or self.rest
            or self.end
        )


class RunLog:
    """Writes for one run under one epoch. Made by `Journal.open`.

    After the epoch is over, or the run has ended, everything said is dropped and `committed` raises LeaseLost.
    """

    def __init__(
        self,
        owner: Owner,
        *,
        wake: Callable[[RunLog], None],
        wake_soon: Callable[[RunLog], None],
        on_lost: Callable[[], None],
        on_first_chunk: Callable[[], None],
    ) -> None:
        self.owner = owner
        self.lost = False
        self.spoken = False
        self.ended = False
        self.stepped = False  # whether a step was finished under this epoch
        self.batches = 0
        self._on_lost = on_lost
        self._on_first_chunk = on_first_chunk
        self._wake = wake
        self._wake_soon = wake_soon
        self._pending = Batch()
        self._parked: dict[str, Batch] = {}
        self._finished: dict[tuple[str, str], NewStep] = {}
        self._chunk_id: str | None = None
        self._chunk_path = ""
        self._chunk_text: list[str] = []
        self._open_messages: dict[str, str] = {}
        self._calls: dict[tuple[str, str], Effect] = {}
        self._waits_for: dict[str, None] = {}
        self._input_tokens = 0
        self._output_tokens = 0
        self._cost = 0.0
        self._waiters: list[asyncio.Future[None]] = []

    def say(self, type: EventType, fields: dict[str, Any], *, urgent: bool = True) -> None:
        """Adds an event. One that is not urgent waits a little for company: the next that is."""
        if self.ended:
            return
        self._close_chunk()
        self._count(type, fields)
        self._pending.events.append((type, encode_json(fields)))
        (self._wake if urgent else self._wake_soon)(self)

    def chunk(self, message_id: str, text: str, path: str = "") -> None:
        """Adds text to a message that is being streamed."""
        if self.ended:
            return
        if not self.spoken:
            self.spoken = True
            self._on_first_chunk()
        if self._chunk_id != message_id:
            self._close_chunk()
            self._chunk_id = message_id
            self._chunk_path = path
            self._open_messages[message_id] = path
        self._chunk_text.append(text)
        self._wake(self)

    def take_over(
        self,
        unfinished: Mapping[str, str],
        input_tokens: int,
        output_tokens: int,
        effects: Iterable[Effect] = (),
        cost: float = 0.0,
    ) -> None:
        """Goes on from what earlier owners left: discards messages they never completed (ids to paths), counts what
        they used, and knows of the calls that they began."""
        self._open_messages.update(unfinished)
        for message_id in unfinished:
            self.discard(message_id)
        self._input_tokens += input_tokens
        self._output_tokens += output_tokens
        self._cost += cost
        self._calls.update((effect.key, effect) for effect in effects if not effect.finished)

    def usage(self) -> dict[str, Any]:
        """What the run's `usage` events said so far, added up."""
        cost = round(self._cost, _COST_DIGITS)
        return {"input_tokens": self._input_tokens, "output_tokens": self._output_tokens, "cost": cost}

    def discard(self, message_id: str) -> None:
        """Tells followers to drop the chunks of a message that will never be complete."""
        path = self._open_messages.get(message_id, "")
        fields = {"message_id": message_id} | ({"path": path} if path else {})
        self.say("message_discarded", fields, urgent=False)

    def streams(self, message_id: str) -> bool:
        """Whether chunks of this message went through this pen, and nothing yet that completes or discards it."""
        return message_id in self._open_messages

    def discard_open(self, path: str) -> None:
        """Discards the messages of agent `path` that were begun and are not complete."""
        for message_id in [id for id, its_path in self._open_messages.items() if its_path == path]:
            self.discard(message_id)

    def record_effect(self, effect: Effect, result: NewMessage | None = None) -> None:
        """Adds a row to the effect ledger, with the message that holds the call's result. Of a call's rows that wait
        together the last is written."""
        if self.ended:
            return
        earlier = self._pending.effects.get(effect.key)
        if earlier is not None:
            effect = replace(effect, starts=earlier.starts + effect.starts)
        self._pending.effects[effect.key] = effect
        if effect.finished:
            self._calls.pop(effect.key, None)
        else:
            self._calls[effect.key] = effect
        if result is not None:
            self._pending.messages.append(encode_json(asdict(result)))
        self._wake_soon(self)

    def ask(self, approval: NewApproval) -> None:
        """Asks for an approval: its row and its event `approval_required` commit together."""
        if self.ended:
            return
        row = encode_json(asdict(approval))
        self.say("approval_required", approval.shown())
        self._pending.approvals.append((len(self._pending.events), row))
        self._waits_for[approval.id] = None

    def wait_for(self, approval_id: str) -> None:
        """Notes that the run goes on waiting for what an earlier owner asked for."""
        self._waits_for[approval_id] = None

    # What a step concludes is parked until the graph hands over what this very step has written: then all of it
    # commits together. A step that is cut short leaves none of it behind, and is done again. ACT and DELEGATE may
    # stand side by side at a path and park their steps alone; the others have the path to themselves.

    def conclude(self, path: str, type: EventType, fields: dict[str, Any]) -> None:
        """Adds an event that belongs to the end of a step."""
        self._park(path).events.append((type, encode_json(fields)))
        self._count(type, fields)

    def record_message(self, message: NewMessage) -> None:
        """Keeps a message record."""
        self._park(message.path).messages.append(encode_json(asdict(message)))

    def record_step(self, step: NewStep) -> None:
        """Keeps a finished step."""
        self._finished[step.path, step.state] = step

    def stage_checkpoint(self, row: CheckpointRow) -> None:
        """Adds a checkpoint. Of those that wait together only a thread's newest is written: it holds the rest."""
        if self.ended:
            return
        path = self._path_of(row.thread_id)
        for at, state in list(self._finished):
            if at == path:
                self._release(path, state)
        key = (row.thread_id, row.checkpoint_ns)
        self._pending.writes = [w for w in self._pending.writes if (w.thread_id, w.checkpoint_ns) != key]
        replaced = self._pending.checkpoints.get(key)
        if replaced is not None and replaced.checkpoint_id == row.parent_id:
            row = replace(row, parent_id=replaced.parent_id)
        self._pending.checkpoints[key] = row
        self._wake_soon(self)

    def stage_writes(self, rows: Sequence[CheckpointWriteRow], finished: str | None) -> None:
        """Adds what a task of the graph has written: the output of a `finished` state, or what stopped it."""
        if self.ended or not rows:
            return
        if finished is not None:
            self._release(self._path_of(rows[0].thread_id), finished)
        self._pending.writes.extend(rows)
        self._wake_soon(self)

    def rest(self, because: Rest) -> None:
        """Leaves the run as it stands after its last finished step: it waits without an owner until somebody resumes
        it, or decides one of the approvals that it waits for. Like an end, it lets nothing follow."""
        if self.ended:
            return
        for message_id in list(self._open_messages):
            self.discard(message_id)
        self._parked.clear()  # a step that was cut short is done again
        self._finished.clear()
        about: dict[str, Any] = {"reason": because}
        if because == "approval":
            about["approval_ids"] = self._pending.waits_for = list(self._waits_for)
        self.say("run_waiting", about, urgent=False)
        self._pending.rest = because
        self.ended = True
        self._wake(self)

    def end(self, end: End) -> None:
        """Ends the run: its `done` event, its status and what is pending commit together; nothing may follow.

        Messages that were begun and never completed are discarded first, and calls that are under way have an
        unknown outcome. Of two ends the first counts.
        """
        if self.ended:
            return
        for message_id in list(self._open_messages):
            self.discard(message_id)
        for path, state in list(self._finished):
            self._release(path, state)
        for path in list(self._parked):
            self._unpark(path)
        for effect in list(self._calls.values()):
            self._give_up(effect)
        fields = {"status": end.status, "finish_reason": end.finish_reason, "usage": end.usage}
        self.say("done", fields, urgent=False)
        self._pending.end = end
        self.ended = True
        # A finished run is never resumed, so checkpoints that were not written yet never need to be.
        self._pending.checkpoints.clear()
        self._pending.writes.clear()
        self._wake(self)

    async def committed(self) -> None:
        """Waits until all that was added so far is in Postgres.

        Raises:
            LeaseLost: it never will be, for the run belongs to another worker by now.
        """
        if self.lost:
            raise LeaseLost(f"run {self.owner.run_id} is no longer ours under epoch {self.owner.epoch}")
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wake(self)
        await waiter

    # -- the writer's side ---------------------------------------------------------------------------------

    def take(self) -> tuple[Batch, list[asyncio.Future[None]]]:
        """All that is pending, and who waits for it."""
        self._close_chunk()
        batch, self._pending = self._pending, Batch()
        waiters, self._waiters = self._waiters, []
        return batch, waiters

    def lose(self, taken: Sequence[asyncio.Future[None]] = ()) -> None:
        """The epoch is over: drops what is pending and tells all who wait, `taken` or not."""
        self.lost = True
        waiters = [*taken, *self.take()[1]]
        error = LeaseLost(f"run {self.owner.run_id} is no longer ours under epoch {self.owner.epoch}")
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self._on_lost()

    def _give_up(self, call: Effect) -> None:
        path = {"path": call.path} if call.path else {}
        if call.tool != DELEGATE:
            about = {"call_id": call.call_id, "name": call.tool, "status": "unknown", "result": _CUT_SHORT}
            self.say("tool_result", about | {"duration_ms": 0} | path, urgent=False)
        result = NewMessage(new_id("msg"), call.path, call.position, "tool", _CUT_SHORT, tool_call_id=call.call_id)
        self.record_effect(replace(call, status="unknown", starts=0), result)

    def _count(self, type: EventType, fields: dict[str, Any]) -> None:
        if type == "message" or type == "message_discarded":
            self._open_messages.pop(fields["message_id"], None)
        elif type == "usage":
            self._input_tokens += fields["input_tokens"]
            self._output_tokens += fields["output_tokens"]
            self._cost += fields["cost"]

    def _path_of(self, thread_id: str) -> str:
        return thread_id[len(self.owner.run_id) + 1 :]

    def _park(self, path: str) -> Batch:
        return self._parked.setdefault(path, Batch())

    def _release(self, path: str, state: str) -> None:
        step = self._finished.pop((path, state), None)
        if step is not None:
            self.stepped = True
            self._unpark(path)
            self._pending.steps.append(step)

    def _unpark(self, path: str) -> None:
        parked = self._parked.pop(path, None)
        if parked is not None:
            self._close_chunk()
            self._pending.events.extend(parked.events)
            self._pending.messages.extend(parked.messages)

    def _close_chunk(self) -> None:
        if self._chunk_id is not None:
            fields: dict[str, Any] = {"message_id": self._chunk_id, "text": "".join(self._chunk_text)}
            if self._chunk_path:
                fields["path"] = self._chunk_path
            self._pending.events.append(("message_chunk", encode_json(fields)))
            self._chunk_id = None
            self._chunk_text = []
