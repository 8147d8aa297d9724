"""Settles the protocol with a server. Needs the mcp package.

A server is asked what it speaks. One that does not know the question is greeted as the older protocols want it.
"""

from __future__ import annotations

import asyncio
from typing import Final

import mcp_types as types
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from orchestrator.mcp.faults import Faults
from orchestrator.tools.errors import ToolFailure

_PATIENCE: Final = 3.0  # seconds for a server of an older protocol to say that it does not know the question


async def greet(client: ClientSession, faults: Faults, *, handshake: bool) -> None:
    """Opens the protocol. `handshake`: the server is known to want a handshake, so it is not asked first.

    Raises:
        ToolFailure: it can't be talked to.
        MCPError: it refuses.
    """
    if not handshake:
        try:
            async with asyncio.timeout(_PATIENCE):
                await client.discover()
                return
        except MCPError as error:
            if (failure := faults.take(error.message)) is not None and not _answered(failure):
                raise failure from None
        except (TimeoutError, ValidationError, RuntimeError):
            pass  # it knows something else by this name, or it is slow, or it speaks no newer version
    try:
        await client.initialize()
    except MCPError as error:
        if error.code != types.UNSUPPORTED_PROTOCOL_VERSION:
            raise
        # It has heard the question in the end, or it has learned the newer protocol since.
        await client.discover()


def _answered(failure: ToolFailure) -> bool:
    """Whether a server of an older protocol may have meant "what?" by this, and might answer a greeting."""
    return "HTTP 4" in failure.message or "not an answer" in failure.message
