"""The scripted model of the bench: what it is asked says what it answers.

`python -m bench.script` serves it on loopback, in a process of its own, until its standard input is closed. Beside it
listen a server that never answers, for tools that hang, and one that answers `/<bytes>/<milliseconds>` with a text of
that size after that time, for tools that don't.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, cast

import orjson
import uvloop

from cli.rehearsal import ChatRequest, Hang, ModelServer, Reply, ToolCall

AT_ONCE = 1e-9
"""A delay that only makes the server write each token by itself, as soon as it can."""

_ASKED = re.compile(r"bench stream=(\d+) tokens=(\d+) delay=([0-9.e-]+)")
_PLAY = "bench play "


@dataclass(frozen=True, slots=True)
class Act:
    """One answer of a play: so many tokens `delay` seconds apart, then calls of tools as (name, arguments). `silent`:
    it stops before its first frame, and never ends."""

    tokens: int = 0
    delay: float = 0.0
    calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
    silent: bool = False

    def reply(self) -> Reply:
        calls = [ToolCall(name, arguments) for name, arguments in self.calls]
        fault = Hang(None) if self.silent else None
        return Reply(tokens_of(0, self.tokens), tool_calls=calls, token_delay=self.delay, fault=fault)


def question(stream: int, tokens: int, delay: float = 0.0) -> str:
    """Asks for so many tokens, `delay` seconds apart; `stream` makes them unlike those of other streams."""
    return f"bench stream={stream} tokens={tokens} delay={delay}"


def play(*acts: Act) -> str:
    """Asks for one answer after the other, and for the last of them again and again."""
    return _PLAY + orjson.dumps([asdict(act) for act in acts]).decode()


@lru_cache(maxsize=256)
def tokens_of(stream: int, tokens: int) -> tuple[str, ...]:
    """The tokens of the answer: each of them differs from all others."""
    return tuple(f"t{stream:02}-{number:04} " for number in range(tokens))


def brain(request: ChatRequest) -> Reply:
    """Answers `question` and `play`."""
    place = max(place for place, message in enumerate(request.messages) if message["role"] == "user")
    text = str(request.messages[place].get("content"))
    if text.startswith(_PLAY):
        acts = orjson.loads(text.removeprefix(_PLAY))
        played = sum(message["role"] == "assistant" for message in request.messages[place:])
        return Act(**acts[min(played, len(acts) - 1)]).reply()
    asked = _ASKED.search(text)
    if asked is None:
        return Reply(tokens=("The bench asks otherwise.",))
    return Reply(tokens=tokens_of(int(asked[1]), int(asked[2])), token_delay=float(asked[3]))


class _Pages(asyncio.Protocol):
    """One connection to the server of pages."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are so in behaviour only

    def data_received(self, data: bytes) -> None:
        asked = re.match(rb"(?:GET|POST) /(\d+)/(\d+)", data)
        size, delay = (int(asked[1]), int(asked[2])) if asked else (0, 0)
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {size}\r\n\r\n".encode()
        page = head + (b"A page of so many bytes. " * (size // 25 + 1))[:size]
        asyncio.get_running_loop().call_later(delay / 1000, self._transport.write, page)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    silent = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    pages = await loop.create_server(_Pages, "127.0.0.1", 0, backlog=512)
    async with ModelServer(brain) as server:
        addresses = {
            name: "{}:{}".format(*listening.sockets[0].getsockname())
            for name, listening in (("silent", silent), ("pages", pages))
        }
        sys.stdout.write(orjson.dumps({"url": server.url} | addresses).decode() + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.buffer.read)


if __name__ == "__main__":
    uvloop.run(_serve())
