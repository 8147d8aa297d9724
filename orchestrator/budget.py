"""What an agent may still use, and what it has used: one node for each agent of a run, in the tree of who asked whom.

What an agent spends, all those above it spend too, and a limit is reached when it is reached anywhere on the way up:
so a sub-agent never uses more than its parent has left. Agents that are asked at the same time get equal shares of
that, carved out of it when their tasks are handed over. Seconds are those of work and pass for all agents at once, so
they are not divided.

Whoever is about to call a model or a tool asks first; a limit is overshot by what was under way at most.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeAlias

from kernel.agent_config import AgentLimits, SubAgentLimits
from kernel.leases import Spent

Cap: TypeAlias = Literal["max_steps", "max_tool_calls", "max_tokens", "max_cost", "max_seconds"]
Reached: TypeAlias = Literal["step_limit", "tool_call_limit", "token_limit", "cost_limit", "time_limit", "tool_errors"]
"""Why an agent stops, as a finish reason."""

OnLimit: TypeAlias = Literal["stop", "ask"]

CAP_OF: Final[Mapping[Reached, Cap]] = {
    "step_limit": "max_steps",
    "tool_call_limit": "max_tool_calls",
    "token_limit": "max_tokens",
    "cost_limit": "max_cost",
    "time_limit": "max_seconds",
}
"""Which limit to raise. One who calls tools wrongly again and again is helped by none."""

HIGHEST: Final[Mapping[Cap, float]] = {
    "max_steps": 100,
    "max_tool_calls": 500,
    "max_tokens": 1_000_000_000,
    "max_cost": 1_000_000.0,
    "max_seconds": 86_400.0,
}
"""No limit is ever raised beyond these: they are what a configuration may say at most."""

MOST_WRONG_CALLS: Final = 8
"""Calls in a row that a model may make wrongly: of tools that are not there, or with arguments that are not valid."""


@dataclass(frozen=True, slots=True)
class Caps:
    """Limits of one agent. None: no limit of its own."""

    max_steps: int | None = None
    max_tool_calls: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    max_seconds: float | None = None

    def lowered(self, by: Mapping[str, Any]) -> Caps:
        """These, each lowered to what `by` says of it."""
        return Caps(**{name: _lower(value, by.get(name)) for name, value in asdict(self).items()})

    def raised(self, to: Mapping[str, Any]) -> Caps:
        """These, each raised to what `to` says of it, never beyond `HIGHEST`. What has no limit keeps none."""
        values = asdict(self)
        for name, highest in HIGHEST.items():
            wanted, present = to.get(name), values[name]
            if wanted is not None and present is not None:
                values[name] = type(present)(max(present, min(wanted, highest)))
        return Caps(**values)


class WorkClock:
    """Seconds of work on a run: `before` are those of its earlier owners. It stands still while nobody owns it."""

    def __init__(self, before: float = 0.0) -> None:
        self._from = time.monotonic() - before

    def seconds(self) -> float:
        return time.monotonic() - self._from


@dataclass(slots=True)
class Budget:
    """One agent's node. `began` is the work clock's time when the agent was asked."""

    caps: Caps
    clock: WorkClock
    parent: Budget | None = None
    on_limit: OnLimit = "stop"
    began: float = 0.0
    spent: Spent = field(default_factory=Spent)
    tool_calls: int = 0
    _denied: bool = False
    _warned: bool = False
    _wrong_calls: int = 0

    @classmethod
    def of(cls, limits: AgentLimits, asked: Mapping[str, Any] | None, clock: WorkClock | None = None) -> Budget:
        """A run's: the lower of the agent's limits and what the caller asked for."""
        asked = asked or {}
        caps = Caps(
            limits.max_steps, limits.max_tool_calls, limits.max_tokens, limits.max_cost, limits.max_seconds
        ).lowered(asked)
        return cls(caps, clock or WorkClock(), on_limit=asked.get("on_limit") or limits.on_limit)

    def child(self, share: Caps) -> Budget:
        """The node of an agent that this one asks, with its share. It asks nobody for more: its parent may."""
        return Budget(share, self.clock, self, began=self.clock.seconds())

    def share(self, among: int, limits: SubAgentLimits | AgentLimits | None) -> Caps:
        """What each of `among` agents gets that are asked at the same time: its part of what is left, and not more
        than its own `limits`. One step is kept back, for what is to be made of their answers."""
        among = max(among, 1)
        steps, calls = self.left("max_steps"), self.left("max_tool_calls")
        tokens, cost = self.left("max_tokens"), self.left("max_cost")
        carved = Caps(
            max_steps=None if steps is None else max(0, int(steps) - 1) // among,
            max_tool_calls=None if calls is None else int(calls) // among,
            max_tokens=None if tokens is None else int(tokens) // among,
            max_cost=None if cost is None else cost / among,
            max_seconds=self.left("max_seconds"),
        )
        return carved if limits is None else carved.lowered(limits.model_dump())

    def kept(self) -> dict[str, Any]:
        """What is to be known of this node when its agent goes on under another owner of the run."""
        return {**asdict(self.caps), "began": self.began}

    def keep(self, kept: Mapping[str, Any]) -> None:
        """Takes back what `kept` gave: the share that was carved out when the agent was asked."""
        self.caps = Caps(**{name: kept.get(name) for name in asdict(self.caps)})
        self.began = kept["began"]

    # -- what is spent -------------------------------------------------------------------------------------

    def take_call(self) -> bool:
        """Counts one more call of a tool or sub-agent; False, and not counted, if there is none left."""
        left = self.left("max_tool_calls")
        if left is not None and left < 1:
            self._denied = True
            return False
        self.count_calls(1)
        return True

    def count_calls(self, calls: int) -> None:
        """Counts calls that were made, here and above."""
        node: Budget | None = self
        while node is not None:
            node.tool_calls += calls
            node = node.parent

    def spend(self, spent: Spent) -> None:
        """Counts model calls, here and above."""
        node: Budget | None = self
        while node is not None:
            node.spent += spent
            node = node.parent

    def called(self, *, wrongly: bool) -> None:
        """Notes whether a call was one that could be made at all."""
        self._wrong_calls = self._wrong_calls + 1 if wrongly else 0

    # -- what is left --------------------------------------------------------------------------------------

    def left(self, cap: Cap) -> float | None:
        """What is left of a limit, here or above, whichever is less; not below 0. None: nobody limits it."""
        least: float | None = None
        node: Budget | None = self
        while node is not None:
            limit = getattr(node.caps, cap)
            if limit is not None:
                left = max(0, limit - node.used(cap))
                least = left if least is None else min(least, left)
            node = node.parent
        return least

    def used(self, cap: Cap) -> float:
        """What this agent and those below it have used of a limit."""
        match cap:
            case "max_steps":
                return self.spent.steps
            case "max_tool_calls":
                return self.tool_calls
            case "max_tokens":
                return self.spent.input_tokens + self.spent.output_tokens
            case "max_cost":
                return self.spent.cost
            case "max_seconds":
                return self.clock.seconds() - self.began

    def exhausted(self) -> Reached | None:
        """Which limit forbids another model call; None if none does.

        A model that asked for more tool calls than there were is told so and may answer; it stops when it asks again.
        """
        if self._wrong_calls >= MOST_WRONG_CALLS:
            return "tool_errors"
        for reached, cap in CAP_OF.items():
            if cap != "max_tool_calls" and self.left(cap) == 0:
                return reached
        if self._denied:
            if self._warned or self.on_limit == "ask":
                return "tool_call_limit"
            self._denied, self._warned = False, True
        return None

    def limit(self, cap: Cap) -> float | None:
        """The limit of which least is left, here or above: the one to speak of when it is reached."""
        node: Budget | None = self
        found: tuple[float, float] | None = None
        while node is not None:
            limit = getattr(node.caps, cap)
            if limit is not None and (found is None or limit - node.used(cap) < found[0]):
                found = limit - node.used(cap), limit
            node = node.parent
        return None if found is None else found[1]

    def raise_to(self, caps: Mapping[str, Any]) -> None:
        """Raises limits, as somebody who may has decided."""
        self.caps = self.caps.raised(caps)
        self._denied = self._warned = False

    def doubled(self, reached: Reached) -> dict[str, float]:
        """The limit that was reached, twice as high, and in any case above what is used already."""
        cap = CAP_OF.get(reached)
        limit = None if cap is None else getattr(self.caps, cap)
        if cap is None or limit is None:
            return {}
        wanted = min(HIGHEST[cap], max(2 * limit, 2 * self.used(cap), 1))
        return {cap: wanted if isinstance(limit, float) else int(wanted)}


def _lower(value: Any, by: Any) -> Any:
    if by is None:
        return value
    return by if value is None else min(value, by)
