"""How soon runs go on when their worker is killed or told to go, and how soon they end when they are cancelled.

All times end where the event arrives on the run's own SSE stream.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from signal import SIGKILL, SIGTERM, Signals
from typing import Any

from bench.crew import FURTHER, Crew, until
from bench.followed import DONE, RESUMED, Run, until_shown
from bench.http import BenchFailed, Server
from bench.report import Bound, Line, Section
from bench.script import Act, play
from bench.stats import Spread, percentile
from bench.subject import Subject
from worker.vigil import SETTLE_SECONDS

KEY = "recovery"
TITLE = "Recovery and cancel"

_SEED = 1729
_RUNS = 12
_KILLS = 5
_MOST_KILLS = 8
_RESUMED = 30
_TERMS = 3
_CANCELS = 20

# What workers of default settings do, see kernel/settings.py, worker/heartbeat.py and worker/vigil.py.
_RENEWAL = 3.0
_LATE = 0.2
_WATCHED = 2.0
_LOOK = 0.4
_GRACE = 2.0

_DIED = "its worker died"
_TOLD_TO_GO = "its worker was told to stop"

_STEP = Act(tokens=10, delay=0.04, calls=[("python", {"code": "6 * 7"})])
_STREAM = Act(tokens=2000, delay=0.02)
_SILENT = Act(silent=True)


@dataclass(frozen=True, slots=True)
class Blow:
    """What a signal to a worker led to: seconds until each of its runs went on, and how long before the signal it had
    renewed their leases."""

    seconds: list[float]
    silence: float


class Trial:
    """Its runs are of one agent; their streams are dropped when `streams` is closed."""

    def __init__(self, subject: Subject, crew: Crew, agent: str, streams: AsyncExitStack) -> None:
        self.api: Server = subject.api
        self.random = random.Random(_SEED)
        self._crew = crew
        self._agent = agent
        self._streams = streams
        self._silent = subject.silent

    async def start(self, act: Act, *, reached: bytes) -> Run:
        """Starts a run; its `exchange` watches for `reached`."""
        connection = await self.api.connect()
        self._streams.callback(connection.close)
        body = {"input": play(act), "agent_id": self._agent}
        return Run(connection.send(self.api.request("POST", "/v1/runs", body, stream=True), watch=reached))

    # -- workers that end --------------------------------------------------------------------------------------

    async def kills(self, runs: Sequence[Run]) -> list[Blow]:
        """Kills workers at moments that are spread over the time between two renewals."""
        moments = [_RENEWAL * (part + self.random.random()) / _KILLS for part in range(_KILLS)]
        blows: list[Blow] = []
        while len(blows) < _KILLS or sum(len(blow.seconds) for blow in blows) < _RESUMED:
            if len(blows) == _MOST_KILLS:
                raise BenchFailed(f"{_MOST_KILLS} workers were killed, and they held too few runs")
            await until_shown(runs, b"event: tool_result\n")
            moments = moments or [_RENEWAL * self.random.random()]
            blows.append(await self.strike(runs, SIGKILL, _DIED, moments))
        return blows

    async def terms(self, runs: Sequence[Run]) -> list[Blow]:
        """Tells workers to go."""
        blows = []
        for _ in range(_TERMS):
            await until_shown(runs, b"event: message_chunk\n")
            blows.append(await self.strike(runs, SIGTERM, _TOLD_TO_GO))
        return blows

    async def strike(
        self, runs: Sequence[Run], number: Signals, reason: str, moments: list[float] | None = None
    ) -> Blow:
        """Sends the signal to the worker that holds most of `runs`: so long after its last renewal as the next that
        can be had of `moments` says, which is used up."""
        victim = Counter(run.worker for run in runs).most_common(1)[0][0]
        await self._crew.until_not_alone(victim)
        if moments:
            silence = await self._crew.silence(victim)
            moment = min(moments, key=lambda moment: (moment - silence) % _RENEWAL)
            moments.remove(moment)
            await asyncio.sleep((moment - silence) % _RENEWAL)
        silence = await self._crew.silence(victim)
        struck = [(run, run.end) for run in runs if run.worker == victim]
        began = time.perf_counter()
        self._crew.send(victim, number)

        async def resumed() -> bool:
            return all(run.has(RESUMED, place) for run, place in struck)

        await until(resumed, 20, "all runs of a worker go on elsewhere")
        for run, _ in struck:
            if not run.resumed(reason) or run.worker == victim:
                raise BenchFailed(f"a run did not go on elsewhere because {reason}: {run.tail()!r}")
        return Blow([run.exchange.arrival(RESUMED, last=True) - began for run, _ in struck], silence)

    # -- cancels -----------------------------------------------------------------------------------------------

    async def cancels(self) -> tuple[dict[str, list[float]], list[float]]:
        """Milliseconds from the POST of each cancel to the `done` of its run, by where that was; and to its answer."""
        fetch = Act(calls=[("http_fetch", {"url": f"http://{self._silent}/"})])
        helper = Act(calls=[("delegate", {"agent": "helper", "task": play(_STREAM)})])
        places = {
            "while the model streams": (_STREAM, b"event: message_chunk\n"),
            "while the model is silent": (_SILENT, b'"state":"THINK"'),
            "inside a tool that hangs": (fetch, b"event: tool_start\n"),
            "inside a sub-agent": (helper, b"event: message_chunk\n"),
        }
        ended: dict[str, list[float]] = {}
        answered: list[float] = []
        for place, (act, reached) in places.items():
            runs = [await self.start(act, reached=reached) for _ in range(_CANCELS)]
            for run in runs:
                await run.exchange.until("seen")
            pauses = [self.random.uniform(0.1, 0.5) for _ in runs]
            times = await asyncio.gather(*map(self.cancel, runs, pauses))
            ended[place] = [done for done, _ in times]
            answered += [answer for _, answer in times]
        return ended, answered

    async def cancel(self, run: Run, pause: float = 0.0) -> tuple[float, float]:
        """Milliseconds until it is done, and until the cancel is answered."""
        await asyncio.sleep(pause)
        connection = await self.api.connect()
        asked = await connection.call(self.api.request("POST", f"/v1/runs/{run.id}/cancel"), status=202)
        connection.close()
        await run.exchange.until("ended")
        if not run.cancelled:
            raise BenchFailed(f"a run was not cancelled: {run.tail()!r}")
        return (run.exchange.arrival(DONE) - asked.sent) * 1e3, (asked.ended - asked.sent) * 1e3


async def measure(subject: Subject) -> list[Section]:
    """Starts two workers beside the stack's, kills them and that one, and cancels what is left."""
    async with Crew(subject) as crew, AsyncExitStack() as streams:
        trial = Trial(subject, crew, await _make_agent(subject.api), streams)
        await crew.until_served(SETTLE_SECONDS)
        runs = [await trial.start(_STEP, reached=DONE) for _ in range(_RUNS)]
        kills = await trial.kills(runs)
        runs += [await trial.start(_STREAM, reached=DONE) for _ in range(_RUNS // 2)]
        terms = await trial.terms(runs)
        cancels = await trial.cancels()
        await asyncio.gather(*map(trial.cancel, runs))
    return [_section(kills, terms, *cancels)]


async def _make_agent(api: Server) -> str:
    agent: dict[str, Any] = {
        "name": "recovery",
        "tools": ["python", "http_fetch"],
        "sub_agents": [{"name": "helper", "tools": []}],
        "limits": {"max_steps": 100, "max_tool_calls": 500},
    }
    connection = await api.connect()
    made = await connection.call(api.request("POST", "/v1/agents", agent), status=201)
    connection.close()
    return str(made.json()["id"])


def _section(kills: list[Blow], terms: list[Blow], cancels: dict[str, list[float]], answers: list[float]) -> Section:
    killed = [seconds for blow in kills for seconds in blow.seconds]
    told = [seconds for blow in terms for seconds in blow.seconds]
    missed = [max(0.0, _RENEWAL + _LATE - blow.silence) + _WATCHED for blow in kills for _ in blow.seconds]
    return Section(
        KEY,
        f"{TITLE}, {1 + FURTHER} workers",
        [
            Line(
                f"kill -9 to run_resumed (p50, p99; {len(killed)} runs, {len(kills)} kills)",
                "s",
                _p99(killed),
                Bound(8, 15),
            ),
            Line("of it, until its worker may be taken for dead", "s", _p99(missed)),
            Line(
                f"SIGTERM to run_resumed elsewhere (worst; {len(told)} runs, {len(terms)} workers)",
                "s",
                _worst(told),
                Bound(3, 3),
            ),
            *(
                Line(f"cancel to done, {place} (worst of {len(seconds)})", "ms", _worst(seconds), Bound(2000, 2000))
                for place, seconds in cancels.items()
            ),
            Line("of it, until the request is answered", "ms", _worst(answers)),
        ],
        [
            f"a worker is missed {_RENEWAL + _LATE:g} s after its last renewal (one is due every {_RENEWAL:g} s) and "
            f"dead {_WATCHED:g} s later; each of the others looks every {_LOOK:g} s",
            f"SIGTERM leaves {_GRACE:g} s for the present step; a third of the runs are in steps that take longer",
        ],
    )


def _p99(values: list[float]) -> Spread:
    ordered = sorted(values)
    return Spread(percentile(ordered, 0.5), percentile(ordered, 0.99))


def _worst(values: list[float]) -> Spread:
    ordered = sorted(values)
    return Spread(percentile(ordered, 0.5), ordered[-1])
