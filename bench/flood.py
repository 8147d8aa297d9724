"""Made-up events, published as workers publish theirs, at a set rate. `python -m bench.flood` waits for commands.

They are in no log: whoever follows their session gets them from Redis or not at all.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from redis.asyncio import Redis

from bench.commands import serve
from kernel.events import render_frame
from kernel.fanout import channel_of

_EVERY = 0.002
_MESSAGE = f"msg_{'0' * 32}"
_AT = "2026-01-31T12:00:00.000001Z"


class Source:
    """A session that events are made up for. Each tells when it was made (monotonic), as `sent`."""

    def __init__(self, org_id: str, session_id: str, run_id: str, seq: int) -> None:
        self._channel = channel_of(org_id, session_id)
        self._session_id = session_id
        self._run_id = run_id
        self._seq = seq

    def event(self) -> tuple[str, bytes]:
        """Channel and message of its next event."""
        self._seq += 1
        text = f'{{"message_id":"{_MESSAGE}","text":"some words ","path":"","sent":{time.monotonic():.6f}}}'
        frame = render_frame(self._seq, "message_chunk", self._session_id, self._run_id, _AT, text)
        return self._channel, b"%d %d %s 0\n%s" % (self._seq, self._seq, self._run_id.encode(), frame)


class Flood:
    """All sources."""

    def __init__(self) -> None:
        self._sources: list[Source] = []

    async def sources(self, command: dict[str, Any]) -> dict[str, Any]:
        """Takes `sources` in place of those before: org, session, run and last seq of each."""
        self._sources = [Source(*source) for source in command["sources"]]
        return {}

    async def publish(self, command: dict[str, Any]) -> dict[str, Any]:
        """Publishes `rate` events a second for `seconds`, to the sources in turn."""
        rate, seconds = command["rate"], command["seconds"]
        sent, began = 0, time.monotonic()
        async with Redis.from_url(command["redis_url"]) as redis:
            while (elapsed := time.monotonic() - began) < seconds:
                pipe = redis.pipeline(transaction=False)
                for number in range(sent, int(rate * elapsed)):
                    pipe.publish(*self._sources[number % len(self._sources)].event())
                sent += len(pipe)
                await pipe.execute()
                await asyncio.sleep(_EVERY)
        return {"events": sent, "seconds": elapsed}


if __name__ == "__main__":
    flood = Flood()
    serve(sources=flood.sources, publish=flood.publish)
