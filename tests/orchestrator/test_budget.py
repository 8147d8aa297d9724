"""The budget's tree: what is spent below is spent above, and nobody has more than is left on the way up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.agent_config import AgentLimits, SubAgentLimits
from kernel.leases import Spent
from orchestrator.budget import HIGHEST, Budget, Caps


def budget(asked: dict[str, Any] | None = None, **limits: Any) -> Budget:
    return Budget.of(AgentLimits(**limits), asked)


def test_a_run_may_lower_its_agents_limits_and_not_raise_them() -> None:
    made = budget({"max_tokens": 50, "max_steps": 90, "max_cost": 1.0}, max_tokens=100, max_steps=10)
    assert made.caps == Caps(10, 50, 50, 1.0, None)


def test_what_a_child_spends_its_parents_spend() -> None:
    root = budget(max_tokens=100)
    child = root.child(root.share(1, None))
    grandchild = child.child(child.share(1, None))
    grandchild.spend(Spent(1, 30, 10, 0.5))
    assert [node.spent for node in (root, child, grandchild)] == [Spent(1, 30, 10, 0.5)] * 3
    assert [node.left("max_tokens") for node in (root, child, grandchild)] == [60, 60, 60]


def test_a_limit_above_stops_a_child_that_has_not_reached_its_own() -> None:
    root = budget(max_tokens=100)
    one, other = (root.child(Caps(max_tokens=90)) for _ in range(2))
    one.spend(Spent(1, 60, 0))
    assert (one.exhausted(), other.left("max_tokens")) == (None, 40)
    other.spend(Spent(1, 40, 0))
    assert (one.exhausted(), other.exhausted(), root.exhausted()) == ("token_limit",) * 3


@given(
    tokens=st.integers(1, 10_000),
    calls=st.integers(1, 500),
    among=st.integers(1, 32),
    spent=st.lists(st.integers(0, 500), max_size=60),
)
def test_shares_are_never_more_than_there_is(tokens: int, calls: int, among: int, spent: list[int]) -> None:
    """Each child calls while it may; the overshoot is at most each one's last call."""
    root = budget(max_tokens=tokens, max_tool_calls=calls, max_steps=100)
    children = [root.child(root.share(among, None)) for _ in range(among)]
    assert sum(child.caps.max_tokens or 0 for child in children) <= tokens
    assert sum(child.caps.max_tool_calls or 0 for child in children) <= calls
    assert sum(child.caps.max_steps or 0 for child in children) <= 99
    for place, used in enumerate(spent):
        child = children[place % among]
        if child.exhausted() is None:
            before = root.left("max_tokens") or 0
            child.spend(Spent(1, used, 0))
            assert root.used("max_tokens") - tokens <= max(used - before, 0)
        child.take_call()
    assert root.tool_calls <= calls


def test_a_share_is_lowered_by_the_sub_agents_own_limits() -> None:
    share = budget(max_tokens=1000, max_steps=11).share(2, SubAgentLimits(max_tokens=100, max_cost=2.0))
    assert (share.max_tokens, share.max_steps, share.max_cost, share.max_tool_calls) == (100, 5, 2.0, 25)


def test_limits_are_raised_and_never_lowered_nor_beyond_what_may_be_configured() -> None:
    made = budget(max_tokens=100, max_steps=10)
    made.raise_to({"max_tokens": 50, "max_steps": 10_000, "max_cost": 5.0})
    assert made.caps == Caps(int(HIGHEST["max_steps"]), 50, 100, None, None)


def test_what_is_proposed_is_above_what_is_used() -> None:
    made = budget(max_tokens=100)
    made.spend(Spent(1, 900, 0))
    assert made.doubled("token_limit") == {"max_tokens": 1800}
    assert made.doubled("tool_errors") == {}


@pytest.mark.parametrize("kept", [True, False])
def test_a_share_survives_the_change_of_owners(kept: bool) -> None:
    root = budget(max_tokens=100)
    child = root.child(root.share(4, None))
    again = root.child(root.share(1, None))
    if kept:
        again.keep(child.kept())
    assert (again.caps == child.caps) is kept


def test_eight_wrong_calls_in_a_row_end_an_agent_and_not_its_parent() -> None:
    root = budget()
    child = root.child(root.share(1, None))
    for _ in range(7):
        child.called(wrongly=True)
    child.called(wrongly=False)
    for _ in range(8):
        assert child.exhausted() is None
        child.called(wrongly=True)
    assert (child.exhausted(), root.exhausted()) == ("tool_errors", None)
