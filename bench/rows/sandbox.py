"""What a call of the tool `python` costs when its sandbox is warm."""

from __future__ import annotations

import time

from bench.report import Bound, Line, Section
from bench.stats import latency
from bench.subject import Subject
from orchestrator.tools.python import PythonTool
from orchestrator.tools.tool import ToolContext
from orchestrator.tools.toolbox import Toolbox

KEY = "sandbox"
TITLE = "The tool python, warm"

_CALLS = 300
_WARM_UP = 20
_CODE = "total = sum(number * number for number in range(100))\nprint(total)"


async def measure(subject: Subject) -> list[Section]:
    """Calls one after the other, through the toolbox, as ACT makes them."""
    toolbox = Toolbox([PythonTool()])
    context = ToolContext("org", None, None, "ses", "run", "call", "run:step:call")
    calls = []
    try:
        for number in range(-_WARM_UP, _CALLS):
            began = time.perf_counter()
            await toolbox.call("python", {"code": _CODE}, context, allowed=["python"])
            if number >= 0:
                calls.append((time.perf_counter() - began) * 1e3)
    finally:
        await toolbox.aclose()
    return [Section(KEY, f"{TITLE} ({_CALLS} calls)", [Line("a call", "ms", latency(calls), Bound(5))])]
