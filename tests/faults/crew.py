"""A stack whose processes die: its workers are counted before each test and found by the runs they hold."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from kernel.replay import read_frames
from kernel.tenants import create_key, ensure_org
from tests.stack import Program, Stack
from tests.waiting import eventually

PATIENT_MODEL = {"LONGHAUL_MODEL_IDLE_TIMEOUT": "60"}
"""A model that has gone silent holds its run for as long as a test needs it to."""

SHORT_LEASES = {**PATIENT_MODEL, "LONGHAUL_LEASE_SECONDS": "1", "LONGHAUL_LEASE_RENEW_SECONDS": "0.3"}


def crew(stack: Stack) -> list[Program]:
    """The workers that live."""
    return [worker for worker in stack.workers if worker.alive]


async def staff(stack: Stack, wanted: int) -> list[Program]:
    """Takes on or sends home workers until so many are there."""
    for worker in crew(stack):
        worker.send(signal.SIGCONT)
    spare = crew(stack)[wanted:]
    await asyncio.gather(*(worker.stop() for worker in spare))
    missing = wanted - len(crew(stack))
    await asyncio.gather(*(stack.add_worker() for _ in range(missing)))
    return crew(stack)


def holder(stack: Stack, event: Mapping[str, Any]) -> Program:
    """The worker that a `run_started` or `run_resumed` event names."""
    pid = int(event["worker"].rpartition(":")[2])
    return next(worker for worker in stack.workers if worker.pid == pid)


async def writes(worker: Program, text: str) -> None:
    """Waits until the worker's log says so."""

    async def written() -> bool:
        return text in worker.log

    await eventually(written, what=f"{worker.name} logs {text!r}")


async def log_bytes(stack: Stack, session_id: str, *, after: int = 0) -> bytes:
    """A session's log as its followers must get it."""
    org_id = await stack.database.fetchval("SELECT org_id FROM sessions WHERE id = $1", session_id)
    frames = await read_frames(stack.database, org_id, session_id, after=after, limit=10_000)
    return b"".join(entry.data for entry in frames)


async def org_with_key(stack: Stack) -> tuple[str, str]:
    """A new org and a key of it."""
    org_id = await ensure_org(stack.database, f"org {uuid4().hex}")
    return org_id, (await create_key(stack.database, org_id, name="tests")).secret.get_secret_value()
