"""The floor under the API: uvicorn with an application that does nothing.

`python -m bench.bare` serves it on loopback until its standard input is closed. `GET /hold` opens a stream and keeps
it open, everything else is answered at once.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import orjson
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    hold = scope["path"] == "/hold"
    length = [] if hold else [(b"content-length", b"3")]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": b"ok\n", "more_body": hold})
    while hold and (await receive())["type"] != "http.disconnect":
        pass


async def _serve() -> None:
    config = uvicorn.Config(_app, lifespan="off", log_level="critical", access_log=False, backlog=4096)
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:  # noqa: ASYNC110  # uvicorn tells nobody
            await asyncio.sleep(0.01)
        sys.stdout.write(orjson.dumps({"port": listening.getsockname()[1]}).decode() + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.buffer.read)
        server.should_exit = server.force_exit = True
        await serving


if __name__ == "__main__":
    uvloop.run(_serve())
