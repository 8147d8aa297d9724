"""What a state of the graph asks for: once, however often it is entered, and in words that a person can decide on."""

from __future__ import annotations

from typing import Any

import pytest

from kernel.approvals import Decision
from kernel.runlog import Owner, RunLog
from orchestrator.approvals import ApprovalExpired, Approvals, Ask
from orchestrator.brake import Braked, Waits
from orchestrator.ledger import side_by_side


@pytest.fixture
def pen() -> RunLog:
    """A pen that nobody reads but the test."""
    owner = Owner("org", "ses", "run", 2, 1)
    return RunLog(owner, wake=_ignored, wake_soon=_ignored, on_lost=_nothing, on_first_chunk=_nothing)


def decision(**fields: Any) -> Decision:
    known: dict[str, Any] = dict.fromkeys(("arguments", "answer", "error", "comment", "by"))
    given = {"step_id": "1-think", "call_id": "max_tokens", "kind": "limit", "status": "pending", "on_expiry": "deny"}
    return Decision(**{"approval_id": "apr_1", **known, **given, **fields})


LIMIT = Ask("1-think", "max_tokens", "", "limit", "max_tokens", {"max_tokens": 2_000})


def test_asking_twice_is_asking_once(pen: RunLog) -> None:
    approvals = Approvals(pen, {})
    for _ in range(2):
        assert approvals.decision(*LIMIT.key) is None
        approvals.ask(LIMIT)
    batch, _ = pen.take()
    assert [type for type, _ in batch.events] == ["approval_required"]
    assert [place for place, _ in batch.approvals] == [1]
    pen.rest("approval")
    assert pen.take()[0].waits_for == [LIMIT.id]


def test_what_an_earlier_owner_asked_for_is_not_asked_again_and_waited_for(pen: RunLog) -> None:
    approvals = Approvals(pen, {LIMIT.key: decision()})
    assert approvals.decision(*LIMIT.key) is None
    assert approvals.asked(*LIMIT.key)
    approvals.ask(LIMIT)
    pen.rest("approval")
    batch, _ = pen.take()
    assert batch.approvals == []
    assert batch.waits_for == ["apr_1"]


@pytest.mark.parametrize("status", ["approved", "denied", "expired"])
def test_what_it_came_to_is_known_to_the_next_owner(pen: RunLog, status: Any) -> None:
    made = decision(status=status)
    assert Approvals(pen, {made.key: made}).decision(*LIMIT.key) is made


def test_a_run_that_is_to_fail_when_nobody_decides_does(pen: RunLog) -> None:
    made = decision(status="expired", on_expiry="fail")
    with pytest.raises(ApprovalExpired) as failed:
        Approvals(pen, {made.key: made}).decision(*LIMIT.key)
    assert failed.value.code == "approval_expired"
    assert failed.value.suggestions


async def test_a_call_that_waits_lets_the_others_end_and_stops_the_step_then() -> None:
    ended: list[str] = []

    async def wait() -> None:
        raise Waits

    async def work() -> None:
        ended.append("work")

    with pytest.raises(Waits):
        await side_by_side([wait(), work(), wait()])
    assert ended == ["work"]


async def test_what_is_braked_or_fails_comes_before_what_waits() -> None:
    async def stop(error: Exception) -> None:
        raise error

    for error in (Braked(), OSError("gone")):
        with pytest.raises(type(error)):
            await side_by_side([stop(Waits()), stop(error)])


def _ignored(pen: RunLog) -> None:
    return


def _nothing() -> None:
    return
