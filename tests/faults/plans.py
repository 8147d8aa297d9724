"""What the runs do. A run's input is its plan, and the model plays the plan by what the conversation shows.

So the model needs no memory of its own: whichever worker asks it, and however often, it gives the same answer at the
same place. Every call of a tool goes to a path of its own at the outside server, where it is counted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, TypedDict

import orjson

from cli.rehearsal import ChatRequest, Reply, ToolCall

READ, IDEMPOTENT, ONCE = "read", "idempotent", "once"
TOOLS = {READ: "http_fetch", IDEMPOTENT: "http_put", ONCE: "http_post"}
"""The tool for each class of effect."""

SUB_AGENTS = ("scout", "clerk")


class Plan(TypedDict):
    """`steps` are lists of [effect, path] or [sub-agent, plan]; then come so many words, `pause` seconds apart."""

    name: str
    steps: list[list[tuple[str, Any]]]
    words: int
    pause: float


def make_plan(rng: random.Random, name: str, *, seconds: float) -> Plan:
    """A plan that takes about so many seconds when nothing goes wrong, in several steps."""
    pause = seconds / 30
    steps = []
    for number in range(rng.randint(2, 6)):
        calls: list[tuple[str, Any]] = [
            (effect, f"/{effect}/{name}/{number}-{place}")
            for place, effect in enumerate(rng.choices((READ, IDEMPOTENT, ONCE), (1, 1, 2), k=rng.randint(1, 3)))
        ]
        steps.append(calls)
    for agent in SUB_AGENTS[: rng.choice((0, 1, 1, 2))]:
        path = f"{name}-{agent}"
        effect = rng.choice((READ, IDEMPOTENT, ONCE))
        errand = [[(effect, f"/{effect}/{path}")]] if rng.random() < 0.7 else []
        steps[rng.randrange(len(steps))].append((agent, Plan(name=path, steps=errand, words=4, pause=pause)))
    return Plan(name=name, steps=steps, words=rng.randint(4, 10), pause=pause)


def calls(plan: Plan) -> Iterator[tuple[str, str]]:
    """(effect, path) of every call of a tool, those of sub-agents too."""
    for step in plan["steps"]:
        for kind, what in step:
            if kind in TOOLS:
                yield kind, what
            else:
                yield from calls(what)


class Player:
    """Plays plans: a brain of the model server. `outside` is the URL before the paths."""

    def __init__(self, outside: str) -> None:
        self._outside = outside

    def __call__(self, request: ChatRequest) -> Reply:
        asked = max(place for place, message in enumerate(request.messages) if message["role"] == "user")
        plan: Plan = orjson.loads(request.messages[asked]["content"])
        played = sum(message["role"] == "assistant" for message in request.messages[asked:])
        pause = plan["pause"]
        if played == len(plan["steps"]):
            words = [f"{plan['name']}:{number} " for number in range(plan["words"])]
            return Reply(tokens=words, first_delay=pause, token_delay=pause)
        tool_calls = [self._call(kind, what) for kind, what in plan["steps"][played]]
        return Reply(tokens=["let ", "me ", "see"], tool_calls=tool_calls, first_delay=pause, token_delay=pause / 2)

    def _call(self, kind: str, what: Any) -> ToolCall:
        if kind not in TOOLS:
            return ToolCall("delegate", {"agent": kind, "task": orjson.dumps(what).decode()})
        arguments = {"url": f"{self._outside}{what}"}
        return ToolCall(TOOLS[kind], arguments if kind == READ else {**arguments, "body": "x"})
