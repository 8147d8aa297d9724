"""Clients that have stopped reading: each costs little, and is given up after some seconds by one sweep for all.

What a client does not read stands first in the buffers of the kernel, which are small (`server`), then in that of its
transport. As soon as a byte stays there the connection takes no more until it has got rid of all: so a stalled client
holds one piece of an answer at most, and its buffer can only shrink. Where it does not, nothing was read.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from dataclasses import dataclass
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_NO_LINGER: Final = struct.pack("ii", 1, 0)  # struct linger of socket(7): on, for 0 seconds


@dataclass(slots=True)
class _Unsent:
    """So many bytes have waited to be sent since a time in seconds (monotonic)."""

    size: int
    since: float


class StalledClients:
    """The transports with bytes that their client has not taken yet."""

    def __init__(self) -> None:
        self._unsent: dict[asyncio.WriteTransport, _Unsent] = {}

    def watch(self, transport: asyncio.WriteTransport) -> None:
        """The transport was given bytes and some stay unsent. It had none before: else it would be given none."""
        self._unsent[transport] = _Unsent(transport.get_write_buffer_size(), time.monotonic())
        if not transport.is_closing():
            transport.set_write_buffer_limits(high=0)

    def sweep(self, *, patience: float) -> None:
        """Forgets those that have caught up; gives up those that took nothing for `patience` seconds."""
        now = time.monotonic()
        given_up = 0
        for transport, unsent in list(self._unsent.items()):
            size = transport.get_write_buffer_size()
            if not size:
                del self._unsent[transport]
                if not transport.is_closing():
                    transport.set_write_buffer_limits()  # the usual ones
            elif size < unsent.size:
                unsent.size, unsent.since = size, now
            elif now - unsent.since >= patience:
                del self._unsent[transport]
                _reset(transport)
                given_up += 1
        if given_up:
            log.info("stalled_clients_given_up", connections=given_up, patience=patience)


def _reset(transport: asyncio.WriteTransport) -> None:
    """Drops the connection at once: a mere close would leave the kernel with what it can't send for minutes."""
    socket_ = transport.get_extra_info("socket")
    if socket_ is not None and not transport.is_closing():
        socket_.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
