"""`python -m cli.rehearsal`: serve the rehearsal model on loopback until SIGTERM, or until the parent is gone.

Prints one line of JSON once it listens, `{"url": "http://127.0.0.1:<port>/v1"}`, and exits with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys

import uvloop

from cli.rehearsal.brain import RehearsalBrain
from cli.rehearsal.server import ModelServer

_PARENT_CHECK = 1.0  # seconds


def main() -> int:
    """The exit code: 0, or 1 if the port is taken."""
    parser = argparse.ArgumentParser(prog="python -m cli.rehearsal", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--token-delay", type=float, default=0.0, help="seconds between tokens")
    options = parser.parse_args()
    try:
        uvloop.run(_serve(options.port, options.token_delay))
    except OSError as error:
        sys.stderr.write(f"The rehearsal model can't listen on port {options.port}: {error.strerror}\n")
        return 1
    return 0


async def _serve(port: int, token_delay: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    parent = os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def look_after_parent() -> None:
        """An orphan gets another parent; a poll is portable, and stdin may be anything."""
        if os.getppid() != parent:
            stop.set()
        else:
            loop.call_later(_PARENT_CHECK, look_after_parent)

    async with ModelServer(RehearsalBrain(token_delay=token_delay), port=port) as server:
        sys.stdout.write(json.dumps({"url": server.url}) + "\n")
        sys.stdout.flush()
        look_after_parent()
        await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
