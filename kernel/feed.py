"""A feed: one followed session in an API process, and its viewers.

It has a short ring of ready frames, contiguous by seq, and knows how far the session's log reaches. Every viewer is a
cursor on it and costs no more than that: what the ring doesn't have is in the log, which the viewer reads for itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final

from kernel.fanout import channel_of

_RING_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Frames:
    """The ready frames of events `first` to `last`, all of one run; `final` if the run's `done` is the last."""

    first: int
    last: int
    run_id: str
    final: bool
    data: bytes


class Viewer:
    """One follower of a feed: something to wake. `beat` is set when a heartbeat is due, `closed` when it is over."""

    __slots__ = ("_future", "beat", "closed", "feed", "slot")

    def __init__(self, feed: Feed, slot: int = 0) -> None:
        self._future: asyncio.Future[None] | None = None
        self.feed = feed
        self.slot = slot
        self.beat = False
        self.closed = False

    def wake(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def close(self) -> None:
        self.closed = True
        self.wake()

    async def wait(self) -> None:
        """Returns after the next `wake`."""
        self._future = asyncio.get_running_loop().create_future()
        try:
            await self._future
        finally:
            self._future = None


class Feed:
    """What is known of one followed session.

    Attributes:
        reach: how far its log is known to go.
        sure: whether whatever comes after `reach` will be heard of; if not, the log must be asked.
        subscribed: whether Redis has said that it sends us the session's events.
        doubts: how often something may have been missed; an answer that was asked for before the last doubt is void.
    """

    __slots__ = (
        "_bytes",
        "_ring",
        "_sounded",
        "channel",
        "doubts",
        "org_id",
        "reach",
        "session_id",
        "subscribed",
        "sure",
        "viewers",
    )

    def __init__(self, org_id: str, session_id: str) -> None:
        self.org_id = org_id
        self.session_id = session_id
        self.channel = channel_of(org_id, session_id)
        self.viewers: set[Viewer] = set()
        self.reach = 0
        self.sure = False
        self.subscribed = False
        self.doubts = 0
        self._ring: deque[Frames] | None = None  # most sessions that are followed are silent
        self._bytes = 0
        self._sounded: asyncio.Future[None] | None = None

    @property
    def tail(self) -> int:
        """The last seq in the ring, 0 when it is empty."""
        return self._ring[-1].last if self._ring else 0

    @property
    def head(self) -> int:
        """The first seq in the ring, 0 when it is empty."""
        return self._ring[0].first if self._ring else 0

    def add(self, frames: Frames) -> None:
        """Takes in what arrived; a hole empties the ring, so that it stays contiguous."""
        ring = self._ring
        if ring is None:
            ring = self._ring = deque()
        elif frames.first != self.tail + 1:
            if frames.last <= self.tail:
                return
            ring.clear()
            self._bytes = 0
        ring.append(frames)
        self._bytes += len(frames.data)
        while self._bytes > _RING_BYTES and len(ring) > 1:
            self._bytes -= len(ring.popleft().data)
        self.reach = max(self.reach, frames.last)
        self._wake_all()

    def after(self, cursor: int) -> list[Frames] | None:
        """The frames that follow `cursor`, without a gap; [] if there are none yet, None if the log must tell."""
        ring = self._ring
        if not ring or ring[-1].last <= cursor:
            return [] if cursor >= self.reach else None
        found: list[Frames] = []
        for frames in reversed(ring):
            found.append(frames)
            if frames.first <= cursor + 1:
                break
        if found[-1].first != cursor + 1:
            return None
        found.reverse()
        return found

    def doubt(self) -> None:
        """Something may have been missed."""
        self.sure = False
        self.doubts += 1

    def learn(self, reach: int) -> None:
        """The log reaches so far: viewers whom the ring can't bring there read it."""
        self.sure = self.subscribed
        if reach > self.reach:
            self.reach = reach
            self._wake_all()
        self._answer(None)

    def fail(self, error: Exception) -> None:
        """The log could not be asked. Who waits for the answer is told; the others go on."""
        self._answer(error)

    def sounded(self) -> asyncio.Future[None]:
        """Done once the log has been asked; the next `learn` or `fail` does it."""
        if self._sounded is None:
            self._sounded = asyncio.get_running_loop().create_future()
        return self._sounded

    def close(self) -> None:
        """Ends all its streams."""
        for viewer in self.viewers:
            viewer.close()

    def _answer(self, error: Exception | None) -> None:
        sounded, self._sounded = self._sounded, None
        if sounded is None or sounded.done():
            return
        if error is None:
            sounded.set_result(None)
        else:
            sounded.set_exception(error)
            sounded.exception()  # whoever waited may have left

    def _wake_all(self) -> None:
        for viewer in self.viewers:
            viewer.wake()
