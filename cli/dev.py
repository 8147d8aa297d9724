"""`longhaul dev`: the whole stack, kept running until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Annotated

import typer

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="LONGHAUL_DATA_DIR",
        file_okay=False,
        help="Where the stack keeps its data. By default .longhaul in the project.",
    ),
]


def dev(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON on standard output once it is ready.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the API; 0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Number of worker processes.")] = 1,
    data_dir: DataDir = None,
) -> None:
    """Run the whole stack here: Postgres, Redis, the API and workers. Ctrl-C stops it.

    DATABASE_URL, REDIS_URL, OPENAI_BASE_URL and OPENAI_API_KEY, where set, are used in place of what would
    be started.
    """
    asyncio.run(_dev(as_json, port, workers, data_dir))


async def _dev(as_json: bool, port: int, workers: int, data_dir: Path | None) -> None:
    from cli.console import say
    from cli.signals import Stopped, stop_event, unless_stopped
    from cli.stack import Stack, StackOptions
    from cli.state import default_directory

    began = time.monotonic()
    options = StackOptions(data_dir or default_directory(), dict(os.environ), port, workers)
    stack = Stack(options, say)
    with stop_event() as stop:
        say(f"starting on {stack.data.path}")
        try:
            await unless_stopped(stack.start(), stop)
        except Stopped:
            return
        try:
            _announce(stack.url, stack.api_key, as_json)
            say(f"ready in {time.monotonic() - began:.1f} s; logs are in {stack.data.logs}")
            if stack.rehearsal:
                say("no model is configured: the rehearsal model answers. Set OPENAI_API_KEY for a real one.")
            await stop.wait()
            say("stopping")
        finally:
            await stack.stop()


def _announce(url: str, api_key: str, as_json: bool) -> None:
    import orjson

    if as_json:
        typer.echo(orjson.dumps({"ready": True, "url": url, "api_key": api_key}).decode())
        return
    typer.echo(f"URL      {url}")
    typer.echo(f"API key  {api_key}")
    typer.echo('try it   longhaul run "What is 6 times 7?"')
