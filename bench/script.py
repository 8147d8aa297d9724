"""The scripted model of the bench: what it is asked says what it answers.

`python -m bench.script` serves it on loopback, in a process of its own, until its standard input is closed.
"""

from __future__ import annotations

import asyncio
import re
import sys
from functools import lru_cache

import orjson
import uvloop

from cli.rehearsal import ChatRequest, ModelServer, Reply

AT_ONCE = 1e-9
"""A delay that only makes the server write each token by itself, as soon as it can."""

_ASKED = re.compile(r"bench stream=(\d+) tokens=(\d+) delay=([0-9.e-]+)")


def question(stream: int, tokens: int, delay: float = 0.0) -> str:
    """Asks for so many tokens, `delay` seconds apart; `stream` makes them unlike those of other streams."""
    return f"bench stream={stream} tokens={tokens} delay={delay}"


@lru_cache(maxsize=256)
def tokens_of(stream: int, tokens: int) -> tuple[str, ...]:
    """The tokens of the answer: each of them differs from all others."""
    return tuple(f"t{stream:02}-{number:04} " for number in range(tokens))


def brain(request: ChatRequest) -> Reply:
    """Answers `question`."""
    asked = _ASKED.search(str(request.messages[-1].get("content")))
    if asked is None:
        return Reply(tokens=("The bench asks otherwise.",))
    return Reply(tokens=tokens_of(int(asked[1]), int(asked[2])), token_delay=float(asked[3]))


async def _serve() -> None:
    async with ModelServer(brain) as server:
        sys.stdout.write(orjson.dumps({"url": server.url}).decode() + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.buffer.read)


if __name__ == "__main__":
    uvloop.run(_serve())
