"""Crash points: the places at which a test lets a worker die, by name.

They live here alone, so production pays nothing for them: `python -m tests.faults.crashing_worker` wraps the one
place that it is told of. A place counts how often it is passed, a commit once for each event in it: `after_commit:7`
dies when the commit is made that holds the seventh event of its worker.
"""

from __future__ import annotations

import functools
import os
import pkgutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Passings = Callable[[Sequence[Any], Any], int]
"""How often a call passes the point, by its arguments (self is the first) and, after it, its result."""


def _once(arguments: Sequence[Any], result: Any) -> int:
    return 1


def _claimed_runs(arguments: Sequence[Any], result: Any) -> int:
    return len(result)


def _events(arguments: Sequence[Any], result: Any) -> int:
    return sum(len(piece.batch.events) for piece in arguments[1])


def _poison(arguments: Sequence[Any], result: Any) -> int:
    return "poison" in str(arguments)


def _ends(arguments: Sequence[Any], result: Any) -> int:
    return sum(piece.batch.end is not None for piece in arguments[1])


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """Before or after a call of `target`, a coroutine function of ours written as `module:attribute`."""

    when: Literal["before", "after"]
    target: str
    passings: Passings = _once


CRASH_POINTS = {
    "before_claim": CrashPoint("before", "kernel.leases:Leases.claim"),
    "after_claim": CrashPoint("after", "kernel.leases:Leases.claim", _claimed_runs),
    "during_take_over": CrashPoint("after", "kernel.leases:Leases.take_over"),
    "before_commit": CrashPoint("before", "kernel.journal:Journal._commit", _events),
    "after_commit": CrashPoint("after", "kernel.journal:Journal._commit", _events),
    "after_publish": CrashPoint("after", "kernel.fanout:Publisher._send"),
    "before_tool": CrashPoint("before", "orchestrator.tools.toolbox:Toolbox._attempt"),
    # The outside has seen the call, and its outcome is not recorded yet.
    "after_tool": CrashPoint("after", "orchestrator.tools.toolbox:Toolbox._attempt"),
    "before_poison": CrashPoint("before", "orchestrator.tools.toolbox:Toolbox._attempt", _poison),
    "before_end_commit": CrashPoint("before", "kernel.journal:Journal._commit", _ends),
    "after_end_commit": CrashPoint("after", "kernel.journal:Journal._commit", _ends),
    "before_hand_back": CrashPoint("before", "kernel.leases:Leases.hand_back"),
    "after_hand_back": CrashPoint("after", "kernel.leases:Leases.hand_back"),
}


def arm(crash_at: str) -> None:
    """Lets this process kill itself at a point, written as `name:n`, when it is passed for the n-th time. With
    `name:n:SIGSTOP` it freezes there, and goes on when it is told to."""
    name, number, signal_name = [*crash_at.split(":"), "SIGKILL"][:3]
    point, left, end = CRASH_POINTS[name], int(number), signal.Signals[signal_name]
    owner_name, _, attribute = point.target.rpartition(".")
    owner = pkgutil.resolve_name(owner_name)
    call = getattr(owner, attribute)

    def passed(arguments: Sequence[Any], result: Any) -> None:
        nonlocal left
        before = left
        left -= point.passings(arguments, result)
        if before > 0 >= left:
            os.kill(os.getpid(), end)

    @functools.wraps(call)
    async def mined(*arguments: Any, **named: Any) -> Any:
        if point.when == "before":
            passed(arguments, None)
        result = await call(*arguments, **named)
        if point.when == "after":
            passed(arguments, result)
        return result

    setattr(owner, attribute, mined)
