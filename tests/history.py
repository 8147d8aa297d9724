"""The one check of what a run has left behind: whatever happened to it, its history is whole and makes sense.

`assert_history` reads the run, its session's log and its records from Postgres, and holds them against each other.
Every test that brings a run to its end calls it, so a rule that is written here is tested everywhere.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import asyncpg
import orjson
import pytest

from kernel.effects import DELEGATE
from kernel.events import EVENT_TYPES, render_time
from kernel.postgres import Pool

# What may follow a state within one attempt. ACT and DELEGATE run side by side when the model asks for both; THINK
# follows itself where a structured answer is corrected.
_NEXT_STATES: Mapping[str, frozenset[str]] = {
    "THINK": frozenset({"THINK", "ACT", "DELEGATE", "RESPOND"}),
    "ACT": frozenset({"THINK", "DELEGATE"}),
    "DELEGATE": frozenset({"THINK", "ACT"}),
    "RESPOND": frozenset(),
}
# What comes to a call of these kinds is posted, perhaps under another owner of the run.
_ANSWERED_OUTSIDE = frozenset({"question", "client_tool"})
_BEGINNINGS = frozenset({"run_started", "run_resumed"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of the log; `data` holds its own fields."""

    seq: int
    run_id: str
    type: str
    data: Mapping[str, Any]

    @property
    def path(self) -> str:
        return str(self.data.get("path", ""))


@dataclass(frozen=True, slots=True)
class History:
    """A run and all that belongs to it."""

    run: asyncpg.Record
    events: list[Entry]
    messages: list[asyncpg.Record]
    steps: list[asyncpg.Record]
    effects: list[asyncpg.Record]
    approvals: list[asyncpg.Record]

    @property
    def types(self) -> list[str]:
        """The types of its events, in order."""
        return [event.type for event in self.events]

    def of(self, *types: str) -> list[Entry]:
        """Its events of these types."""
        return [event for event in self.events if event.type in types]

    def attempts(self) -> list[list[Entry]]:
        """Its events from each start or resume up to the next."""
        found: list[list[Entry]] = []
        for event in self.events:
            if event.type in _BEGINNINGS:
                found.append([])
            if found:
                found[-1].append(event)
        return found


async def assert_history(database: Pool, run_id: str) -> History:
    """Checks a run that has ended, and its session's log; returns what it read."""
    async with database.acquire() as connection, connection.transaction(isolation="repeatable_read"):
        run = await connection.fetchrow("SELECT * FROM runs WHERE id = $1", run_id)
        assert run is not None, f"there is no run {run_id}"
        session = await connection.fetchrow("SELECT * FROM sessions WHERE id = $1", run["session_id"])
        assert session is not None
        rows = await connection.fetch(
            "SELECT seq, run_id, type, data FROM events WHERE session_id = $1 ORDER BY seq", run["session_id"]
        )
        messages = await connection.fetch("SELECT * FROM messages WHERE run_id = $1 ORDER BY path, position", run_id)
        steps = await connection.fetch("SELECT * FROM steps WHERE run_id = $1 ORDER BY finished_at, step_id", run_id)
        effects = await connection.fetch("SELECT * FROM effects WHERE run_id = $1 ORDER BY step_id, position", run_id)
        approvals = await connection.fetch("SELECT * FROM approvals WHERE run_id = $1 ORDER BY id", run_id)
        slim = await connection.fetch(
            "SELECT id, first_seq FROM runs WHERE session_id = $1 AND kept <> 'whole'", run["session_id"]
        )
    log = [Entry(row["seq"], row["run_id"], row["type"], orjson.loads(row["data"])) for row in rows]
    history = History(run, [entry for entry in log if entry.run_id == run_id], messages, steps, effects, approvals)
    _check_log(session, log, {row["id"]: row["first_seq"] for row in slim})
    if run["first_seq"] <= session["floor_seq"]:
        assert run["finished_at"], "an unfinished run has lost events"
        return history  # nothing but its records is kept, or is on its way out
    _check_course(history)
    _check_end(history)
    _check_messages(history)
    _check_states(history)
    _check_tools(history)
    _check_delegations(history)
    _check_ledger(history)
    _check_approvals(history)
    return history


def _check_log(session: asyncpg.Record, log: list[Entry], slim: Mapping[str, int]) -> None:
    """No hole but for chunks that retention has removed. `slim`: the first seqs of runs that it has dealt with."""
    seqs = [entry.seq for entry in log if entry.seq > session["floor_seq"]]
    ends = {entry.run_id: entry.seq for entry in log if entry.type == "done"}
    missing = set(range(session["floor_seq"] + 1, session["last_seq"] + 1)) - set(seqs)
    assert len(seqs) + len(missing) == session["last_seq"] - session["floor_seq"]
    for run_id, first_seq in slim.items():
        missing -= set(range(first_seq + 1, ends.get(run_id, first_seq)))
    assert not missing, f"the log has a hole: {sorted(missing)}"
    assert {entry.type for entry in log} <= set(EVENT_TYPES)


def _check_course(history: History) -> None:
    """queued → running ⇄ waiting → an end; attempts and epochs rise."""
    run, events, types = history.run, history.events, history.types
    assert types[0] == "run_queued", types
    assert events[0].seq == run["first_seq"]
    assert types.count("run_queued") == 1
    assert types.count("done") == 1, types
    assert types[-1] == "done", types
    beginnings = history.of(*_BEGINNINGS)
    if not beginnings:
        # It was ended from outside before its first owner, if it had one, could say anything.
        begun = {"cancelled": ["run_queued", "done"], "expired": ["run_queued", "error", "done"]}
        assert types == begun[run["status"]], "something happened before the run started"
    else:
        assert types[1] in (*_BEGINNINGS, "message_discarded"), types
        assert types.count("run_started") <= 1
        attempts = [event.data["attempt"] for event in beginnings]
        assert attempts == sorted(attempts), attempts
        assert attempts[0] >= 1
        assert attempts[-1] <= run["attempt"] <= run["epoch"]
        assert len(beginnings) <= run["epoch"]
    epochs = [step["epoch"] for step in history.steps]
    assert epochs == sorted(epochs), "a step was recorded under an epoch that was over"
    assert all(1 <= epoch <= run["epoch"] for epoch in epochs)
    assert not run["head"]
    assert run["worker"] is None
    assert run["lease_until"] is None
    if run["started_at"] is not None:
        assert run["created_at"] <= run["started_at"] <= run["finished_at"]


def _check_end(history: History) -> None:
    """The run's row is what its events add up to."""
    run, done = history.run, history.events[-1].data
    assert done["status"] == run["status"]
    assert done["finish_reason"] == run["finish_reason"]
    assert done["usage"] == orjson.loads(run["usage"])
    for count in ("input_tokens", "output_tokens"):
        spent = sum(event.data[count] for event in history.of("usage"))
        assert done["usage"][count] == spent, f"{count}: done says {done['usage'][count]}, the events add up to {spent}"
    assert done["usage"]["cost"] == pytest.approx(sum(event.data["cost"] for event in history.of("usage")))
    errors = [event.data for event in history.of("error") if not event.path]
    if run["status"] in ("failed", "expired"):
        assert len(errors) == 1, history.types
        assert errors[0] == orjson.loads(run["error"])
        assert errors[0]["message"]
        assert errors[0]["suggestions"], f"the error says not what to do: {errors[0]}"
        assert isinstance(errors[0]["retryable"], bool)
    else:
        assert errors == []
        assert run["error"] is None


def _check_messages(history: History) -> None:
    """Every message that was begun is complete or discarded, and complete ones are their chunks and their record."""
    chunks: dict[str, list[Entry]] = defaultdict(list)
    closed: dict[str, Entry] = {}
    records = {message["id"]: message for message in history.messages}
    for event in history.of("message_chunk", "message", "message_discarded"):
        message_id = event.data["message_id"]
        assert message_id not in closed, f"{event.type} of {message_id} after {closed[message_id].type}"
        if event.type == "message_chunk":
            assert event.data["text"]
            chunks[message_id].append(event)
            continue
        closed[message_id] = event
        assert {chunk.path for chunk in chunks.get(message_id, ())} <= {event.path}
        if event.type == "message":
            if message_id in chunks:
                assert "".join(chunk.data["text"] for chunk in chunks[message_id]) == event.data["content"]
            assert orjson.loads(records[message_id]["content"]) == event.data["content"]
            assert (records[message_id]["role"], records[message_id]["path"]) == (event.data["role"], event.path)
        else:
            slim = history.run["kept"] != "whole"
            assert message_id in chunks or slim, f"{message_id} was discarded and never begun"
            assert message_id not in records
    assert chunks.keys() <= closed.keys(), "a message was begun and neither completed nor discarded"
    answers = [event for event in history.of("message") if not event.path]
    assert len(answers) == (1 if history.run["status"] == "succeeded" else len(answers))
    asked = {message["path"]: message["position"] for message in history.messages if message["tool_calls"]}
    for path, positions in _grouped((message["path"], message["position"]) for message in history.messages).items():
        missing = set(range(len(positions))) - set(positions)
        # A run that was cut short may have results of its last calls, and not of all of them.
        unanswered = history.run["status"] != "succeeded" and min(missing, default=0) > asked.get(path, positions[-1])
        assert not missing or unanswered, f"the transcript of {path!r} has a hole: {positions}"


def _check_states(history: History) -> None:
    """The graph's way: each step was entered, none is finished twice, and states follow as the edges allow."""
    entered = {event.data["step_id"]: event.data for event in history.of("state_entered")}
    for step in history.steps:
        begun = entered[step["step_id"]]
        assert (begun["state"], begun["path"]) == (step["state"], step["path"])
        assert step["started_at"] <= step["finished_at"]
    # A run that RESPOND brought to its end has finished all that it began; others were cut short.
    if any(step["state"] == "RESPOND" and not step["path"] for step in history.steps):
        unfinished = entered.keys() - {step["step_id"] for step in history.steps}
        assert not unfinished, f"entered and never finished: {unfinished}"
    else:
        assert history.run["status"] != "succeeded"
    for number, attempt in enumerate(history.attempts()):
        states: dict[str, list[str]] = defaultdict(list)
        for event in attempt:
            if event.type == "state_entered":
                states[event.path].append(event.data["state"])
        repeated = [id for id, times in Counter(_step_ids(attempt)).items() if times > 1]
        assert repeated == [], f"entered twice in one attempt: {repeated}"
        for path, visited in states.items():
            if number == 0 and history.run["retry_of"] is None:
                # A layer of middleware may answer a run that has not begun to think.
                assert visited[0] == "THINK" or visited == ["RESPOND"], f"{path!r} began with {visited[0]}"
            for one, other in pairwise(visited):
                assert other in _NEXT_STATES[one], f"{path!r} went from {one} to {other}"


def _check_tools(history: History) -> None:
    """Within an attempt each call is started once and answered once. Answered without having been started in it are
    calls that were denied, those whose outcome was lost with an earlier attempt, and those that were answered from
    outside."""
    outside = {(row["path"], row["call_id"]) for row in history.approvals if row["kind"] in _ANSWERED_OUTSIDE}
    complete = history.run["status"] == "succeeded"
    attempts = history.attempts()
    for number, attempt in enumerate(attempts):
        started: Counter[tuple[str, str, str]] = Counter()
        answered: Counter[tuple[str, str, str]] = Counter()
        not_made = set()
        rounds: dict[str, str] = {}  # of each agent: a model may use a call id in more than one
        for event in attempt:
            if event.type == "state_entered":
                rounds[event.path] = event.data["step_id"].rpartition("/")[2].partition("-")[0]
            elif event.type in ("tool_start", "tool_result"):
                call = event.path, rounds.get(event.path, ""), event.data["call_id"]
                (started if event.type == "tool_start" else answered)[call] += 1
                status = event.data.get("status")
                if event.data["name"] == DELEGATE or status in ("denied", "unknown") or (call[0], call[2]) in outside:
                    not_made.add(call)
        assert set(started.values()) <= {1}, started
        assert set(answered.values()) <= {1}, answered
        assert answered.keys() - started.keys() <= not_made
        if complete and number == len(attempts) - 1:
            started -= Counter({call: 1 for call in started if (call[0], call[2]) in outside})
            assert started.keys() <= answered.keys(), "a call was started and never answered"
    for event in history.of("tool_result"):
        assert event.data["status"] in ("ok", "error", "unknown", "denied")
        assert event.data["duration_ms"] >= 0


def _check_delegations(history: History) -> None:
    """A sub-agent is started once, however many owners the run has, and what it says stands between its start and
    its result."""
    running: set[str] = set()
    ended: set[str] = set()
    for event in history.events:
        if event.type == "delegate_start":
            assert event.path not in running | ended, f"{event.path} was started twice"
            running.add(event.path)
        elif event.type == "delegate_result":
            running.remove(event.path)
            ended.add(event.path)
        elif event.path and event.type != "message_discarded":
            assert event.path in running, f"{event.type} of {event.path}, which is not at work"
    if history.run["status"] == "succeeded":
        assert not running


def _check_ledger(history: History) -> None:
    """Every call has one row, what must not be repeated was not, and row, event and message tell the same outcome."""
    results = {(message["path"], message["position"]): message for message in history.messages}
    answered = defaultdict(list)
    for event in history.of("tool_result"):
        answered[event.path, event.data["call_id"], event.data["name"], event.data["status"]].append(event)
    handed_back = {event.path: event for event in history.of("delegate_result")}
    started = Counter((event.path, event.data["call_id"]) for event in history.of("tool_start"))
    for row in history.effects:
        call = f"call {row['call_id']} of step {row['step_id']}"
        assert row["status"] != "started", f"{call} has no outcome"
        assert row["executions"] <= 1 or row["effect"] != "once", f"{call} was made {row['executions']} times"
        assert 1 <= row["epoch"] <= history.run["epoch"]
        assert row["started_at"] <= row["finished_at"]
        result = results.pop((row["path"], row["position"]), None)
        assert result is not None, f"{call} has no result"
        assert (result["role"], result["tool_call_id"]) == ("tool", row["call_id"])
        text = orjson.loads(result["content"])
        if row["inherited"]:  # what it came to is in the log of the run that this one goes on from
            assert history.run["retry_of"] is not None
        elif row["tool"] == DELEGATE and row["executions"]:
            said = [e for path, e in handed_back.items() if _is_of(path, row["path"], row["position"])]
            assert len(said) == (row["status"] != "unknown"), f"{call} was handed back {len(said)} times"
            assert all(e.data["result"] == text for e in said)
        else:
            told = answered[row["path"], row["call_id"], row["tool"], row["status"]]
            assert told, f"{call} is {row['status']}, and the log does not say so"
            assert told.pop(0).data["result"] == text
            started[row["path"], row["call_id"]] -= row["executions"]
    assert not [message for message in results.values() if message["role"] == "tool"], "a result without a call"
    assert not [event for events in answered.values() for event in events], "an outcome that the ledger does not know"
    assert min(started.values(), default=0) >= 0, "a call was made and the log does not say so"


def _check_approvals(history: History) -> None:
    """Nothing is open after the end; each approval was asked for once, resolved once and said so; what was not approved
    was not made."""
    asked: dict[str, list[Entry]] = defaultdict(list)
    resolved: dict[str, list[Entry]] = defaultdict(list)
    for event in history.of("approval_required", "approval_resolved"):
        (asked if event.type == "approval_required" else resolved)[event.data["approval_id"]].append(event)
    rows = {row["id"]: row for row in history.approvals}
    assert asked.keys() == rows.keys()
    assert resolved.keys() <= rows.keys()
    for id, row in rows.items():
        assert row["status"] != "pending", f"{id} is open, and the run has ended"
        first, *again = asked[id]
        assert all(event.data["escalated"] for event in again)
        assert len(again) == (row["escalated_at"] is not None)
        assert {event.data["expires_at"] for event in asked[id]} == {render_time(row["expires_at"])}
        assert (first.path, first.data["call_id"], first.data["kind"]) == (row["path"], row["call_id"], row["kind"])
        if row["status"] == "cancelled":
            assert id not in resolved
            assert row["decided_at"] == history.run["finished_at"]
        else:
            [event] = resolved[id]
            assert event.seq > asked[id][-1].seq
            assert (event.data["decision"], event.data["by"]) == (row["status"], row["decided_by"])
    made = {(row["step_id"], row["call_id"]): row["executions"] for row in history.effects}
    for row in rows.values():
        if row["kind"] == "tool" and row["status"] != "approved":
            assert not made.get((row["step_id"], row["call_id"])), f"{row['id']} is {row['status']}, and was made"
    for event in history.of("run_waiting"):
        if event.data["reason"] == "approval":
            assert event.data["approval_ids"]
            assert set(event.data["approval_ids"]) <= rows.keys()


def _is_of(path: str, parent: str, position: int) -> bool:
    """Whether `path` is that of the sub-agent that was called at `position` by the agent at `parent`."""
    head, _, last = path.rpartition("/")
    return head == parent and last.endswith(f":{position}")


def _step_ids(events: Iterable[Entry]) -> Iterable[str]:
    return (event.data["step_id"] for event in events if event.type == "state_entered")


def _grouped(pairs: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for key, value in pairs:
        found[key].append(value)
    return found
