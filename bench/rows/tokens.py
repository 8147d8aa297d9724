"""Tokens per second end to end: runs at once on a model without delay, each followed by a subscriber of its own.

Measured twice: with each token in a write of its own, as model endpoints send them, and with as many tokens in
one write as the scripted server can put there, which lets every part after it batch. Every subscriber must have got
its own tokens, all of them, in order.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import orjson
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from bench.http import BenchFailed, Connection, Exchange, Server
from bench.report import Bound, Line, Section
from bench.script import AT_ONCE, question, tokens_of
from bench.stats import Spread, rate
from bench.subject import API_KEY_OF_THE_MODEL, MODEL, Subject
from cli.sse import FrameParser

KEY = "tokens"
TITLE = "Tokens end to end"

_ROUNDS = 7
_STOCK_ROUNDS = 2
_RUNS = 20
_TOKENS = 500
_CHUNK = b"event: message_chunk\n"
_DONE = b"event: done\n"
_MUST = Bound(15_000, at_least=True)


@dataclass(frozen=True, slots=True)
class _EndToEnd:
    """`whole` counts from the first POST to the last done, `inner` from the first chunk to the last."""

    whole: Spread
    inner: Spread
    frames: float
    notes: list[str]


async def measure(subject: Subject) -> list[Section]:
    """Both ways, each beside the scripted server alone."""
    sections = []
    for way, delay in (("each token written by itself", AT_ONCE), ("written in bursts", 0.0)):
        ours = await _end_to_end(subject, delay)
        lines = [
            Line("first POST to last done", "/s", ours.whole, _MUST),
            Line("first chunk to last chunk", "/s", ours.inner),
            Line("the scripted server read raw", "/s", rate(await _raw(subject, delay))),
            Line("the scripted server read by langchain-openai", "/s", rate(await _stock(subject, delay))),
        ]
        notes = [
            f"all {_ROUNDS * _RUNS * _TOKENS:,} tokens came in order, in {ours.frames:.0f} message_chunk events a run",
            *ours.notes,
        ]
        title = f"{TITLE}, {way} ({_ROUNDS} × {_RUNS} runs at once of {_TOKENS} tokens)"
        sections.append(Section(KEY, title, lines, notes))
    return sections


async def _end_to_end(subject: Subject, delay: float) -> _EndToEnd:
    bodies = [{"input": question(stream, _TOKENS, delay)} for stream in range(_RUNS)]
    requests = [subject.api.request("POST", "/v1/runs", body, stream=True) for body in bodies]
    connections = await _connect(subject.api)
    await _together(connections, requests)
    cores = subject.processor_time()
    rounds = [await _together(connections, requests) for _ in range(_ROUNDS)]
    notes = cores.notes()
    _close(connections)
    frames = [_check(stream, exchange) for exchanges in rounds for stream, exchange in enumerate(exchanges)]
    whole, inner = [], []
    for exchanges in rounds:
        began, ended = min(e.sent for e in exchanges), max(e.arrival(_DONE) for e in exchanges)
        first, last = min(e.arrival(_CHUNK) for e in exchanges), max(e.arrival(_CHUNK, last=True) for e in exchanges)
        whole.append(_RUNS * _TOKENS / (ended - began))
        inner.append(_RUNS * _TOKENS / max(last - first, 1e-3))
    return _EndToEnd(rate(whole), rate(inner), sum(frames) / len(frames), notes)


async def _connect(server: Server) -> list[Connection]:
    return [await server.connect() for _ in range(_RUNS)]


def _close(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()


async def _together(connections: list[Connection], requests: list[bytes]) -> list[Exchange]:
    exchanges = [connection.send(request) for connection, request in zip(connections, requests, strict=True)]
    for exchange in exchanges:
        (await exchange.until("ended")).expect(200)
    return exchanges


def _check(stream: int, exchange: Exchange) -> int:
    """Raises BenchFailed unless the stream brought its own text, whole and in order. How many chunks that took."""
    wanted = "".join(tokens_of(stream, _TOKENS))
    frames = list(FrameParser().feed(bytes(exchange.body)))
    seqs = [int(frame.id) for frame in frames]
    chunks = [orjson.loads(frame.data)["text"] for frame in frames if frame.event == "message_chunk"]
    if "".join(chunks) != wanted:
        raise BenchFailed(f"the tokens of stream {stream} did not arrive whole and in order")
    if seqs != list(range(seqs[0], seqs[0] + len(seqs))) or frames[-1].event != "done":
        raise BenchFailed(f"stream {stream} has a hole or no end")
    return len(chunks)


async def _raw(subject: Subject, delay: float) -> list[float]:
    requests = []
    for stream in range(_RUNS):
        messages = [{"role": "user", "content": question(stream, _TOKENS, delay)}]
        body = {"model": MODEL, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        requests.append(subject.model.request("POST", "/v1/chat/completions", body))
    connections = await _connect(subject.model)
    await _together(connections, requests)
    rates = []
    for _ in range(_ROUNDS):
        exchanges = await _together(connections, requests)
        if any(exchange.body.count(b'"content":"t') != _TOKENS for exchange in exchanges):
            raise BenchFailed("the scripted server left out tokens")
        began, ended = min(e.sent for e in exchanges), max(e.ended for e in exchanges)
        rates.append(_RUNS * _TOKENS / (ended - began))
    _close(connections)
    return rates


async def _stock(subject: Subject, delay: float) -> list[float]:
    chat = ChatOpenAI(
        model=MODEL,
        base_url=subject.model_url,
        api_key=SecretStr(API_KEY_OF_THE_MODEL),
        max_retries=0,
        stream_usage=True,
    )

    async def read(stream: int) -> None:
        asked = HumanMessage(question(stream, _TOKENS, delay))
        chunks = [str(chunk.content) async for chunk in chat.astream([asked])]
        if "".join(chunks) != "".join(tokens_of(stream, _TOKENS)):
            raise BenchFailed("langchain-openai did not read all tokens")

    await read(0)
    rates = []
    for _ in range(_STOCK_ROUNDS):
        began = time.perf_counter()
        await asyncio.gather(*(read(stream) for stream in range(_RUNS)))
        rates.append(_RUNS * _TOKENS / (time.perf_counter() - began))
    return rates
