"""Starts the servers of this folder, and knows how to name them in definitions."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from kernel.mcp_servers import McpProgram

ROOT = Path(__file__).parents[2]


def offer(diary: Path, *, older: bool = False, **env: str) -> McpProgram:
    """The server with tools of every sort, as a program that workers start."""
    command = [sys.executable, "-m", "tests.mcp_servers.offer", "stdio", *(["older"] if older else [])]
    return McpProgram.model_validate(
        {"command": command, "env": {"PYTHONPATH": str(ROOT), "MCP_DIARY": str(diary), **env}}
    )


def rude(*arguments: str, **env: str) -> McpProgram:
    """The program that barely knows MCP."""
    command = [sys.executable, str(ROOT / "tests/mcp_servers/rude.py"), *arguments]
    return McpProgram.model_validate({"command": command, "env": env})


@dataclass
class HttpServer:
    """The server with tools of every sort, serving HTTP."""

    url: str
    port: int
    process: asyncio.subprocess.Process

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)


@asynccontextmanager
async def http_offer(diary: Path, *, older: bool = False) -> AsyncIterator[HttpServer]:
    """A process that ends with the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.mcp_servers.offer", "http", *(["older"] if older else [])),
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "MCP_DIARY": str(diary)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), 30))
        yield HttpServer(f"http://127.0.0.1:{port}/mcp", port, process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def pids(diary: Path) -> list[int]:
    """The processes that have written into the diary, in their order."""
    return [int(line.split()[1]) for line in entries(diary) if line.startswith("pid ")]


def notes(diary: Path) -> list[str]:
    """The effects that were had."""
    return [line.removeprefix("note ") for line in entries(diary) if line.startswith("note ")]


def entries(diary: Path) -> list[str]:
    """All that has been written into the diary."""
    return diary.read_text().splitlines() if diary.exists() else []


def is_alive(pid: int) -> bool:
    """Whether there is such a process that is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
