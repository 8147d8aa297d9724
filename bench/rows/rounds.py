"""What a round of thinking and acting costs beyond the model and the tool, and how checkpoints grow with rounds.

An agent calls an HTTP tool again and again; each result is 50 KB and stays in the conversation. The same model call,
with a conversation of the same size, is made straight for each round, on the same machine.
"""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Any

import asyncpg
import orjson

from bench.http import BenchFailed, Connection
from bench.report import Bound, Line, Section
from bench.script import Act, play
from bench.stats import Spread, latency
from bench.subject import MODEL, Subject

KEY = "rounds"
TITLE = "Rounds of an agent with a tool"

_ROUNDS = 20
_BYTES = 50_000
_RUNS = 6
_WARM_UP = 2


async def measure(subject: Subject) -> list[Section]:
    """Runs of twenty rounds, and of ten, one after the other."""
    to_api, to_model = await subject.api.connect(), await subject.model.connect()
    rounds, overheads, tools, models, kept, kept_by_half = [], [], [], [], [], []
    for number in range(-_WARM_UP, _RUNS):
        run_id, events = await _run(subject, to_api, _ROUNDS)
        alone = [await _model_call(subject, to_model, said) for said in range(1, _ROUNDS)]
        half_id, _ = await _run(subject, to_api, _ROUNDS // 2)
        if number < 0:
            continue
        starts = [_at(event) for event in events if event["type"] == "tool_start"]
        durations = [event["duration_ms"] for event in events if event["type"] == "tool_result"]
        for (earlier, later), tool, model in zip(pairwise(starts), durations, alone, strict=False):
            whole = (later - earlier).total_seconds() * 1e3
            rounds.append(whole)
            tools.append(tool)
            models.append(model)
            overheads.append(whole - tool - model)
        kept.append(await _checkpoints(subject, run_id))
        kept_by_half.append(await _checkpoints(subject, half_id))
    to_api.close()
    to_model.close()
    # How many checkpoints a run writes depends on what the journal found waiting together, their size on the state.
    growth = max(max(sizes) for sizes in kept) / max(max(sizes) for sizes in kept_by_half)
    return [
        Section(
            KEY,
            f"{TITLE}: {_ROUNDS} rounds, a result of {_BYTES // 1000} KB in each ({_RUNS} runs)",
            [
                Line("overhead: the first line below less the others", "ms", latency(overheads), Bound(6)),
                Line("a round, from one call of the tool to the next", "ms", latency(rounds)),
                Line("the tool", "ms", latency(tools)),
                Line("the model, asked with the same conversation", "ms", latency(models)),
                Line(
                    "the largest checkpoint, with twice the rounds",
                    "×",
                    Spread(growth, growth),
                    Bound(1.1),
                    single=True,
                ),
                Line("all checkpoints of a run", "KB", latency(sum(sizes) / 1000 for sizes in kept)),
            ],
        )
    ]


async def _run(subject: Subject, connection: Connection, rounds: int) -> tuple[str, list[dict[str, Any]]]:
    tool = {
        "type": "http",
        "name": "page",
        "description": "a page",
        "execution_config": {"url": f"http://{subject.pages}/{_BYTES}/0"},
    }
    body = {
        "input": play(*[Act(calls=[("page", {})])] * rounds, Act(tokens=1)),
        "tools": [tool],
        "budget": {"max_steps": rounds + 2, "max_tool_calls": rounds},
    }
    run = await connection.call(subject.api.request("POST", "/v1/runs", body, stream=True))
    events = [
        {
            "type": frame.split(b"\n", 2)[1].removeprefix(b"event: ").decode(),
            **orjson.loads(frame.split(b"data: ", 1)[1]),
        }
        for frame in bytes(run.body).split(b"\n\n")
        if b"data: " in frame
    ]
    results = [event for event in events if event["type"] == "tool_result"]
    if len(results) != rounds or any(len(result["result"]) < _BYTES for result in results):
        raise BenchFailed(f"a run made {len(results)} calls of {rounds}; the last came to {str(results[-1:])[:300]}")
    return events[-1]["run_id"], events


async def _model_call(subject: Subject, connection: Connection, said: int) -> float:
    """The model's answer in a conversation with so many results, in ms."""
    script = play(*[Act(calls=[("page", {})])] * _ROUNDS, Act(tokens=1))
    messages: list[dict[str, Any]] = [{"role": "user", "content": script}]
    for number in range(said):
        call = {"id": f"call_{number}", "type": "function", "function": {"name": "page", "arguments": "{}"}}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"call_{number}", "content": "x" * _BYTES})
    body = {"model": MODEL, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    answer = await connection.call(subject.model.request("POST", "/v1/chat/completions", body))
    return (answer.ended - answer.sent) * 1e3


async def _checkpoints(subject: Subject, run_id: str) -> list[int]:
    """The bytes of each, and of the writes that await the next."""
    database = await asyncpg.connect(subject.database_url)
    try:
        rows = await database.fetch(
            "SELECT octet_length(checkpoint) + octet_length(metadata) AS size FROM checkpoints WHERE thread_id = $1 "
            "UNION ALL SELECT octet_length(value) FROM checkpoint_writes WHERE thread_id = $1",
            run_id,
        )
    finally:
        await database.close()
    return [row["size"] for row in rows]


def _at(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["at"])
