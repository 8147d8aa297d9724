"""The worker with one alteration, named in `ALTERATION`: what a test needs a worker to be that no setting makes it.

`stubborn_tools`: two tools more, `swallow`, which does not end when it is cancelled, and `block`, which holds up
the event loop. `next_release`: the worker of a later release, which knows graph version 2 and has dropped version 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable
from typing import Any

import orchestrator.engine
import orchestrator.workflows
import worker.__main__
import worker.equipment
from orchestrator.tools.tool import Arguments, Tool, ToolContext
from orchestrator.tools.toolbox import Toolbox


class Swallow(Tool[Arguments]):
    """Takes no cancellation for an answer."""

    name = "swallow"
    description = "Never ends."
    arguments = Arguments
    effect = "read"
    timeout = 600.0

    async def run(self, arguments: Arguments, context: ToolContext) -> str:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()


class Block(Tool[Arguments]):
    """Computes without letting anything else of its worker run."""

    name = "block"
    description = "Holds up everything."
    arguments = Arguments
    effect = "read"
    timeout = 600.0

    async def run(self, arguments: Arguments, context: ToolContext) -> str:
        await asyncio.sleep(0.2)  # what was said before gets out
        time.sleep(6)  # noqa: ASYNC251  # that it blocks is the point
        return "done"


class StubbornToolbox(Toolbox):
    """The usual tools, and the stubborn ones."""

    def __init__(self, tools: Iterable[Tool[Any]]) -> None:
        super().__init__([*tools, Swallow(), Block()])


def alter(alteration: str) -> None:
    if alteration == "stubborn_tools":
        vars(worker.equipment).update(Toolbox=StubbornToolbox)
    else:
        assert alteration == "next_release"
        graphs = orchestrator.workflows.build_workflows()[orchestrator.workflows.GRAPH_VERSION]
        vars(worker.__main__).update(GRAPH_VERSION=2)
        vars(orchestrator.engine).update(build_workflows=lambda *_: {2: graphs})


if __name__ == "__main__":
    alter(os.environ["ALTERATION"])
    worker.__main__.main()
