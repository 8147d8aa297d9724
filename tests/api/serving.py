"""Serving the API inside the test process, over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager

from api.app import create_app
from api.server import Server, listen
from kernel.settings import Settings


class QuietServer(Server):
    """Leaves the signals of the test process alone."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[str]:
    """An API process in all but the process. Its URL."""
    listener = listen("127.0.0.1", 0)
    host, port = listener.getsockname()
    app = create_app(settings)
    started = asyncio.Event()

    class StartedServer(QuietServer):
        async def startup(self, sockets: object = None) -> None:
            await super().startup(sockets=[listener])
            started.set()

    server = StartedServer(app, end_streams=app.end_streams)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        task.result()
        raise AssertionError("the server ended while it was starting")
    try:
        yield f"http://{host}:{port}"
    finally:
        app.end_streams()
        server.should_exit = True
        await task
