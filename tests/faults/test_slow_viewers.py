"""Viewers that stop reading: they cost little, delay nobody, are given up, and go on where they were."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cli.rehearsal import Hang, Reply
from tests.conftest import MakeStack
from tests.e2e.caller import Caller, calling
from tests.faults.crew import log_bytes, org_with_key
from tests.history import assert_history
from tests.scripts import ScriptedModel
from tests.stack import Program, Stack
from tests.waiting import eventually

MOST_EACH = 300 * 1024
HEARTBEAT = b"3\r\n:\n\n\r\n"
LONG = [f"{number:06} {'x' * 1000} " for number in range(2000)]


class StalledViewer:
    """A follower on a socket of its own with a small buffer, who reads only when told to."""

    def __init__(self, caller: Caller, path: str) -> None:
        self.body = b""
        self._caller = caller
        self._path = path
        self._socket = socket.socket()

    async def open(self) -> None:
        """Asks for the stream and reads its head."""
        loop = asyncio.get_running_loop()
        where = urlsplit(self._caller.url)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)
        await loop.sock_connect(self._socket, (where.hostname, where.port))
        request = f"GET {self._path} HTTP/1.1\r\nhost: tests\r\nauthorization: Bearer {self._caller.key}\r\n\r\n"
        await loop.sock_sendall(self._socket, request.encode())
        head, got = b"", b""
        while not got:
            head += await loop.sock_recv(self._socket, 1024)
            head, got, self.body = head.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head

    @property
    def given_up(self) -> bool:
        """Whether the connection was reset. Says so once."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    async def read(self, most: int) -> bool:
        """Reads so many bytes at most. False at the end."""
        piece = await asyncio.get_running_loop().sock_recv(self._socket, most)
        self.body += piece
        return bool(piece)

    async def rest(self) -> None:
        """Reads what is left in its own buffer."""
        while await self.read(65536):
            pass

    async def until(self, part: bytes, times: int) -> None:
        """Reads until it has got this so many times."""
        while self.body.count(part) < times:
            assert await self.read(4096)

    @property
    def frames(self) -> bytes:
        """All whole events that it has read."""
        text, rest = b"", self.body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            text, rest = text + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        return b"".join(re.findall(rb"id: .*?\n\n", text, re.DOTALL))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
async def impatient(make_stack: MakeStack) -> Stack:
    """An API that gives stalled clients up after two seconds, and a worker."""
    return await make_stack(LONGHAUL_WRITE_TIMEOUT="2", LONGHAUL_HEARTBEAT_INTERVAL="0.5")


@pytest.fixture
async def caller(impatient: Stack) -> AsyncIterator[Caller]:
    async with calling(impatient.url, (await org_with_key(impatient))[1]) as caller:
        yield caller


@asynccontextmanager
async def stalled(caller: Caller, session_id: str, count: int) -> AsyncIterator[list[StalledViewer]]:
    """So many viewers of the session who read nothing."""
    viewers = [StalledViewer(caller, f"/v1/sessions/{session_id}/events") for _ in range(count)]
    try:
        await asyncio.gather(*(viewer.open() for viewer in viewers))
        yield viewers
    finally:
        for viewer in viewers:
            viewer.close()


def resident(program: Program) -> int:
    """Bytes."""
    return int(Path(f"/proc/{program.pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


async def test_viewers_that_stop_reading_cost_little_delay_nobody_and_go_on_where_they_were(
    impatient: Stack, caller: Caller, model: ScriptedModel
) -> None:
    session = await caller.session()
    async with stalled(caller, session, 100) as viewers:
        before = resident(impatient.api)
        async with caller.following(session=session, model=model.script(Reply(tokens=LONG))) as quick:
            events = await quick.rest()
        cost = (resident(impatient.api) - before) / len(viewers)
        assert "".join(event.data["text"] for event in events if event.type == "message_chunk") == "".join(LONG)
        assert cost < MOST_EACH, f"{cost / 1024:.0f} KB each"
        kept = set(viewers)

        async def all_given_up() -> bool:
            kept.difference_update([viewer for viewer in kept if viewer.given_up])
            return not kept

        await eventually(all_given_up, every=0.1, what="all of them are given up")
        log = await log_bytes(impatient, session)
        for viewer in viewers[:3]:
            await viewer.rest()
            assert log.startswith(viewer.frames)
            assert len(viewer.frames) < len(log) / 2
            last = str(max(int(seq) for seq in re.findall(rb"^id: (\d+)$", viewer.frames, re.MULTILINE)))
            async with caller.stream(f"/v1/sessions/{session}/events", Last_Event_ID=last) as again:
                await again.until("done")
            assert viewer.frames + again.frames == log
    await assert_history(impatient.database, events[0].data["run_id"])


async def test_who_reads_slowly_or_has_nothing_to_read_is_not_given_up(
    impatient: Stack, caller: Caller, model: ScriptedModel
) -> None:
    busy, silent = await caller.session(), await caller.session()
    async with stalled(caller, busy, 1) as [slow], stalled(caller, silent, 1) as [idle]:
        run = await caller.run(session=busy, model=model.script(Reply(tokens=LONG[:200])))
        for beat in range(1, 13):  # for three times as long as others may stand still
            await slow.read(8192)
            await idle.until(HEARTBEAT, beat)
        log = await log_bytes(impatient, busy)
        assert slow.frames != log
        while slow.frames != log:
            await slow.read(65536)
        assert not slow.given_up
        assert not idle.given_up
    await assert_history(impatient.database, run["id"])


async def test_viewers_that_do_not_read_hold_up_no_shutdown(
    impatient: Stack, caller: Caller, model: ScriptedModel
) -> None:
    leaving = await impatient.add_api({"LONGHAUL_WRITE_TIMEOUT": "300"})
    there = caller.at(leaving.url)
    session = await caller.session()
    script = model.script(Reply(tokens=LONG, fault=Hang(len(LONG) - 1)))
    async with AsyncExitStack() as streams:
        await streams.enter_async_context(stalled(there, session, 20))
        stream = await streams.enter_async_context(there.following(session=session, model=script))
        while LONG[-2] not in (await stream.until("message_chunk")).data["text"]:
            pass
        told = time.monotonic()
        leaving.send(signal.SIGTERM)
        await stream.rest()
        assert stream.ended
        assert await leaving.wait() == 0
        assert time.monotonic() - told < 8
    run_id = stream.events[0].data["run_id"]
    await caller.post(f"/v1/runs/{run_id}/cancel")
    await caller.finished(run_id)
    await assert_history(impatient.database, run_id)
