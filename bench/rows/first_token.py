"""The first token, and the pickup on the way to it: runs one after the other, as a single user makes them.

Each run is followed by the same call made directly with langchain-openai, so both see the same machine.
The answer comes at a steady pace, as a model's does: its first token stands alone.
"""

from __future__ import annotations

import gc
import time
from datetime import datetime

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from bench.http import BenchFailed, Connection
from bench.machine import wake_time
from bench.report import Bound, Line, Section
from bench.script import question
from bench.stats import Spread, latency
from bench.subject import API_KEY_OF_THE_MODEL, MODEL, Subject

KEY = "first-token"
PICKUP_KEY = "pickup"
TITLE = "First token, one run at a time"

_SAMPLES = 250
_WARM_UP = 25
_TOKENS = 8
_DELAY = 0.002
_FIRST = b"event: message_chunk\n"


async def measure(subject: Subject) -> list[Section]:
    """First token and pickup."""
    chat = ChatOpenAI(
        model=MODEL,
        base_url=subject.model_url,
        api_key=SecretStr(API_KEY_OF_THE_MODEL),
        max_retries=0,
        stream_usage=True,
    )
    to_api, to_model = await subject.api.connect(), await subject.model.connect()
    ours, opened, direct, alone, runs = [], [], [], [], []
    for number in range(-_WARM_UP, _SAMPLES):
        if number == 0:
            gc.collect()
            gc.freeze()
            cores = subject.processor_time()
        asked = question(number % 100, _TOKENS, _DELAY)
        run = to_api.send(subject.api.request("POST", "/v1/runs", {"input": asked}, stream=True))
        (await run.until("ended")).expect(200)
        from_client = await _direct(chat, asked)
        raw = to_model.send(subject.model.request("POST", "/v1/chat/completions", _completion(asked)))
        (await raw.until("ended")).expect(200)
        if number >= 0:
            ours.append((run.arrival(_FIRST) - run.sent) * 1e3)
            opened.append((run.begun - run.sent) * 1e3)
            direct.append(from_client * 1e3)
            alone.append((raw.arrival(b'"content":"t') - raw.sent) * 1e3)
            runs.append(_run_id(bytes(run.body)))
    notes = cores.notes()
    pickup = await _pickup(subject, to_api, runs)
    gc.unfreeze()
    to_api.close()
    to_model.close()
    here, there = latency(ours), latency(direct)
    overhead = Spread(here.median - there.median, here.edge - there.median)
    return [
        Section(
            KEY,
            f"{TITLE} ({_SAMPLES} runs of the default agent)",
            [
                Line("overhead: the first line less the median of the second", "ms", overhead, Bound(8, 20)),
                Line("POST to the first message_chunk", "ms", here),
                Line("the same call made with langchain-openai", "ms", there),
                Line("the same call read raw: the scripted server alone", "ms", latency(alone)),
                Line("POST to the first byte of the stream", "ms", latency(opened)),
            ],
            notes,
        ),
        Section(
            PICKUP_KEY,
            "Queue pickup of the same runs",
            [
                Line("created to started, by the database's clock", "ms", pickup, Bound(3)),
                Line("a blocked reader woken through Redis", "ms", await wake_time(subject.redis_url)),
            ],
        ),
    ]


async def _direct(chat: ChatOpenAI, asked: str) -> float:
    began, first = time.perf_counter(), 0.0
    async for chunk in chat.astream([HumanMessage(asked)]):
        if chunk.content and not first:
            first = time.perf_counter() - began
    if not first:
        raise BenchFailed("the scripted server answered langchain-openai without a token")
    return first


async def _pickup(subject: Subject, connection: Connection, runs: list[str]) -> Spread:
    times = []
    for run_id in runs:
        run = (await connection.call(subject.api.request("GET", f"/v1/runs/{run_id}"))).json()
        created, started = (datetime.fromisoformat(run[name]) for name in ("created_at", "started_at"))
        times.append((started - created).total_seconds() * 1e3)
    return latency(times)


def _completion(asked: str) -> dict[str, object]:
    messages = [{"role": "user", "content": asked}]
    return {"model": MODEL, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}


def _run_id(body: bytes) -> str:
    if b"event: done\n" not in body or b'"status":"succeeded"' not in body:
        raise BenchFailed(f"a run did not succeed; its stream ends with {body[-500:]!r}")
    place = body.index(b'"run_id":"') + len(b'"run_id":"')
    return body[place : body.index(b'"', place)].decode()
