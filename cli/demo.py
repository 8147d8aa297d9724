"""`longhaul demo`: one real agent job on a fresh stack, shown from the request to the last event.

The first run has the agent remember a fact. The second, in a new session, asks what can only be answered with
that fact recalled, a computation in Python and a sub-agent's check.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from cli.client import Client
    from cli.follow import Outcome
    from cli.stack import Stack

FACT = "Remember: the warehouse in Bergen ships at most 340 parcels a day."
QUESTION = (
    "How many days does the Bergen warehouse need to ship 12500 parcels? "
    "Compute it with Python, and have the checker confirm it."
)

AGENT = {
    "name": "logistics planner",
    "description": "Answers questions about shipping.",
    "instructions": (
        "You plan shipments. Facts about warehouses are in your memory: use what is recalled, and remember what "
        "you are told to. Never compute in your head: use the python tool. Before you answer, delegate the "
        "result to the checker with all numbers it needs. Answer in one or two sentences."
    ),
    "tools": ["python", "remember", "recall"],
    "sub_agents": [
        {
            "name": "checker",
            "description": "Checks a computation independently with Python.",
            "instructions": "Repeat the computation you are given with the python tool and say whether it holds.",
            "tools": ["python"],
        }
    ],
    "memory": {"recall": True},
}

_SECONDS = 300.0


def demo() -> None:
    """Answer a question that needs a tool, a sub-agent and memory, on a stack made for it. Needs no model key."""
    asyncio.run(_demo())


async def _demo() -> None:
    from cli.console import results, say
    from cli.errors import RunFailed
    from cli.signals import Stopped, stop_event, unless_stopped
    from cli.stack import Stack, StackOptions

    # A model that can't be reached should be said at once, not after patient retries.
    environment = {"LONGHAUL_MODEL_RETRIES": "0", "LONGHAUL_MODEL_CONNECT_TIMEOUT": "3", **os.environ}
    with tempfile.TemporaryDirectory(prefix="longhaul-") as folder, stop_event() as stop:
        stack = Stack(StackOptions(Path(folder), environment), say)
        say("starting Postgres, Redis, the API and a worker")
        try:
            await unless_stopped(stack.start(), stop)
            try:
                async with asyncio.timeout(_SECONDS):
                    await unless_stopped(_jobs(stack, results()), stop)
            finally:
                say("stopping")
                await stack.stop()
        except Stopped:
            raise typer.Exit(130) from None
        except TimeoutError:
            raise RunFailed(f"The demo did not end within {_SECONDS:g} s.") from None


async def _jobs(stack: Stack, console: Console) -> None:
    from cli.client import Client

    if stack.rehearsal:
        console.print(
            "No model is configured, so the rehearsal model answers: a small deterministic program behind the same "
            "HTTP interface, not a language model. Set OPENAI_API_KEY, or OPENAI_BASE_URL and LLM_MODEL, for one.\n"
        )
    async with Client(stack.url, stack.api_key) as client:
        agent = await client.post("/v1/agents", AGENT)
        await _ask(client, console, str(agent["id"]), FACT)
        outcome = await _ask(client, console, str(agent["id"]), QUESTION)
    _check(outcome, rehearsal=stack.rehearsal)
    _report(outcome, console)


async def _ask(client: Client, console: Console, agent_id: str, text: str) -> Outcome:
    from rich.text import Text

    from cli.follow import Transcript

    console.print(Text().append("› ", style="bold").append(text))
    outcome = await Transcript(console).follow(client.run({"input": text, "agent_id": agent_id}))
    console.print()
    outcome.raise_for_status()
    return outcome


def _check(outcome: Outcome, *, rehearsal: bool) -> None:
    """The rehearsal model always does its part, so with it a missing part is a fault of ours."""
    from cli.errors import RunFailed

    happened = {
        "no memory was recalled": outcome.seen.get("memory_recalled"),
        "no tool did its work": outcome.tools_ok,
        "no sub-agent answered": outcome.seen.get("delegate_result"),
        "there is no answer": outcome.answer.strip(),
    }
    missing = [words for words, found in happened.items() if not found]
    if rehearsal and missing:
        raise RunFailed(f"The run succeeded, but {' and '.join(missing)}.")


def _report(outcome: Outcome, console: Console) -> None:
    from rich.text import Text

    from cli.console import harmless

    console.print(Text().append("answer: ", style="bold green").append(harmless(outcome.answer)))
    tokens = f"{outcome.usage.get('input_tokens', 0)} tokens in, {outcome.usage.get('output_tokens', 0)} out"
    console.print(Text(f"{outcome.timing()}; {tokens}; {outcome.run_id}", style="dim"))
