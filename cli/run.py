"""`longhaul run`: submits a question and follows the run in the terminal."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from cli.dev import DataDir

if TYPE_CHECKING:
    from cli.follow import Outcome


def run(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    agent: Annotated[str | None, typer.Option(help="Id of the agent; by default the org's own.")] = None,
    session: Annotated[str | None, typer.Option(help="Id of a session to go on with.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as one line of JSON.")] = False,
    url: Annotated[str | None, typer.Option(envvar="LONGHAUL_URL", help="The API, if not the dev stack.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="LONGHAUL_API_KEY", help="Key for it.", show_envvar=True)
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Ask an agent and follow its work. The exit code is 0 when the run succeeded."""
    from cli.state import default_directory, find_running

    if url is None or api_key is None:
        stack = find_running(data_dir or default_directory())
        url, api_key = url or stack.url, api_key or stack.api_key
    body: dict[str, object] = {"input": question}
    if agent is not None:
        body["agent_id"] = agent
    if session is not None:
        body["session_id"] = session
    asyncio.run(_run(url, api_key, body, as_json)).raise_for_status()


async def _run(url: str, api_key: str, body: dict[str, object], as_json: bool) -> Outcome:
    from cli.client import Client
    from cli.console import results, say
    from cli.follow import Transcript
    from cli.signals import Stopped, stop_event, unless_stopped

    transcript = Transcript(results(), as_json=as_json)
    session = body.pop("session_id", None)
    path = "/v1/runs" if session is None else f"/v1/sessions/{session}/runs"
    async with Client(url, api_key) as client:
        with stop_event() as stop:
            try:
                return await unless_stopped(transcript.follow(client.run(body, path)), stop)
            except Stopped:
                # Going away does not cancel a run.
                say(f"left the run {transcript.outcome.run_id}, which goes on")
                raise typer.Exit(130) from None
