"""The whole stack as a person starts it: one ready line, restarts, an orderly end, and the demo.

The steps of one stack's life are one module-wide process and tests that only look; what ends a stack starts its own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from cli.pidfile import PidFile, start_time
from cli.process import until
from cli.ready import Readiness
from cli.state import find_running

_LONGHAUL = str(Path(sys.executable).with_name("longhaul"))


class DevStack:
    """A running `longhaul dev --json` and its ready line."""

    def __init__(self, data_dir: Path, *arguments: str, **environment: str) -> None:
        self.data_dir = data_dir
        self.process = subprocess.Popen(
            [_LONGHAUL, "dev", "--json", "--port", "0", "--data-dir", str(data_dir), *arguments],
            env=_environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.communicate(timeout=30)[1])
        self.ready: dict[str, Any] = orjson.loads(line)

    def pid(self, name: str) -> int:
        """The pid of a process of the stack; 0 while it is down."""
        process = PidFile(self.data_dir / "run" / f"{name}.pid").leftover()
        return 0 if process is None else process.pid

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """Exit code, the rest of stdout, and stderr."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def _environment(**more: str) -> dict[str, str]:
    """Ours without anything that would configure Longhaul."""
    own = ("LONGHAUL_", "OPENAI_", "LLM_", "DATABASE_URL", "REDIS_URL", "PORT")
    return {key: value for key, value in os.environ.items() if not key.startswith(own)} | {"NO_COLOR": "1"} | more


def _longhaul(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [_LONGHAUL, *arguments], env=_environment(**more), capture_output=True, text=True, check=False, timeout=90
    )


@pytest.fixture(scope="module")
def stack() -> Iterator[DevStack]:
    with tempfile.TemporaryDirectory(prefix="longhaul-test-") as folder:
        stack = DevStack(Path(folder))
        yield stack
        code, out, err = stack.end(signal.SIGTERM)
        assert code == 0, err
        assert out == "", "the ready line is the only one on standard output"


@pytest.fixture
def start_longhaul() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [_LONGHAUL, *arguments],
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


async def _ready(url: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/ready") as answer:
        assert answer.status == 200
        body: dict[str, Any] = await answer.json()
        return body


async def test_the_ready_line_names_a_url_that_serves_and_a_key(stack: DevStack) -> None:
    assert stack.ready["ready"] is True
    assert set(stack.ready) == {"ready", "url", "api_key"}
    assert (await _ready(stack.ready["url"]))["workers"] == 1


def test_secrets_are_for_their_owner_alone(stack: DevStack) -> None:
    for name in ("secret_key", "api_key", "stack.json"):
        assert (stack.data_dir / name).stat().st_mode & 0o077 == 0


def test_a_question_is_followed_to_its_answer(stack: DevStack) -> None:
    answer = _longhaul("run", "What is 6 * 7?", "--data-dir", str(stack.data_dir))
    assert answer.returncode == 0, answer.stderr
    assert "42" in answer.stdout
    assert "succeeded" in answer.stdout
    assert "\x1b" not in answer.stdout


def test_a_question_reaches_another_stack_by_environment_and_answers_as_json(stack: DevStack) -> None:
    ready = stack.ready
    answer = _longhaul("run", "hello", "--json", LONGHAUL_URL=ready["url"], LONGHAUL_API_KEY=ready["api_key"])
    assert answer.returncode == 0, answer.stderr
    events = [orjson.loads(line) for line in answer.stdout.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["event"] == "done"
    session = events[0]["session_id"]
    again = _longhaul("run", "hello again", "--json", "--session", session, "--data-dir", str(stack.data_dir))
    assert orjson.loads(again.stdout.splitlines()[0])["session_id"] == session


def test_an_unknown_agent_is_refused_in_words(stack: DevStack) -> None:
    answer = _longhaul("run", "hello", "--agent", "agt_" + "0" * 32, "--data-dir", str(stack.data_dir))
    assert answer.returncode == 1
    assert "The API refuses (4" in answer.stderr
    assert answer.stdout == ""


def test_a_key_is_shown_once_works_and_can_be_revoked(stack: DevStack) -> None:
    data = ("--data-dir", str(stack.data_dir))
    made = _longhaul("keys", "create", "for a test", *data)
    secret = made.stdout.strip()
    key_id = made.stderr.split(":")[0]
    assert secret.startswith("lh_")
    listed = _longhaul("keys", "list", *data).stdout
    assert f"{key_id}  live" in listed
    assert secret not in listed
    assert _longhaul("run", "hello", "--api-key", secret, *data).returncode == 0
    assert _longhaul("keys", "revoke", key_id, *data).returncode == 0
    assert f"{key_id}  revoked" in _longhaul("keys", "list", *data).stdout
    missing = _longhaul("keys", "list", "--org", "nobody", *data)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "There is no org named nobody" in missing.stderr


def test_its_worker_is_on_the_list_of_workers(stack: DevStack) -> None:
    [line] = _longhaul("workers", "--data-dir", str(stack.data_dir)).stdout.splitlines()
    assert " live " in line
    assert " of 20 slots " in line


def test_the_schema_is_up_to_date_already(stack: DevStack) -> None:
    assert _longhaul("migrate", "--data-dir", str(stack.data_dir)).stdout == "the schema is up to date\n"


def test_a_second_stack_on_the_same_directory_is_refused(stack: DevStack) -> None:
    second = _longhaul("dev", "--json", "--port", "0", "--data-dir", str(stack.data_dir))
    assert second.returncode == 1
    assert f"Process {stack.process.pid} already uses the data directory" in second.stderr
    assert second.stdout == ""


@pytest.mark.parametrize("name", ["worker-1", "api", "redis", "postgres", "rehearsal"])
async def test_a_process_of_the_stack_that_dies_is_started_again(stack: DevStack, name: str) -> None:
    before = stack.pid(name)
    os.kill(before, signal.SIGKILL)
    async with asyncio.timeout(20):
        await until(lambda: stack.pid(name) not in (0, before))


async def test_the_stack_answers_after_all_of_it_was_killed_once(stack: DevStack) -> None:
    async with asyncio.timeout(30), Readiness(stack.ready["url"]) as readiness:
        while await readiness.missing(1) is not None:  # noqa: ASYNC110  # another process: it sends no signal
            await asyncio.sleep(0.05)
    answer = await asyncio.to_thread(_longhaul, "run", "What is 2 + 3?", "--data-dir", str(stack.data_dir))
    assert answer.returncode == 0, answer.stderr
    assert "5" in answer.stdout


async def test_stores_named_by_the_environment_are_used_and_left_running(stack: DevStack, data_dir: Path) -> None:
    running = find_running(stack.data_dir)
    stores = {"DATABASE_URL": running.database_url, "REDIS_URL": running.redis_url}
    other = await asyncio.to_thread(DevStack, data_dir, "--workers", "2", **stores)
    assert (await _ready(other.ready["url"]))["workers"] >= 2
    assert not (data_dir / "postgres").exists()
    assert other.ready["api_key"] != stack.ready["api_key"]
    code, _, err = await asyncio.to_thread(other.end, signal.SIGHUP)
    assert code == 0, err
    assert await _ready(stack.ready["url"])


async def test_a_killed_stack_leaves_nothing_and_starts_again_with_the_same_key(data_dir: Path) -> None:
    first = await asyncio.to_thread(DevStack, data_dir)
    pids = [first.pid(name) for name in ("postgres", "redis", "rehearsal", "api", "worker-1")]
    assert all(pids)
    first.end(signal.SIGKILL)
    if sys.platform == "linux":
        async with asyncio.timeout(10):
            await until(lambda: not any(start_time(pid) for pid in pids))
    second = await asyncio.to_thread(DevStack, data_dir)
    assert second.ready["api_key"] == first.ready["api_key"]
    code, _, err = await asyncio.to_thread(second.end, signal.SIGINT)
    assert code == 0, err
    assert not list((data_dir / "run").glob("*.pid"))


def test_a_stack_that_is_stopped_while_it_starts_leaves_nothing(
    data_dir: Path, start_longhaul: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start_longhaul("dev", "--port", "0", "--data-dir", str(data_dir))
    assert process.stderr is not None
    while "creating the database cluster" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert not list((data_dir / "run").glob("*.pid"))


def test_the_demo_recalls_calls_a_tool_delegates_and_answers() -> None:
    answer = _longhaul("demo")
    assert answer.returncode == 0, answer.stderr
    for shown in ("rehearsal model", "recalled", "340 parcels a day", "python", "checker", "returned", "first token"):
        assert shown in answer.stdout
    assert "36.76" in answer.stdout.rpartition("answer: ")[2]


def test_the_demo_says_at_once_that_a_model_is_away() -> None:
    answer = _longhaul("demo", OPENAI_BASE_URL="http://127.0.0.1:1/v1", OPENAI_API_KEY="x", LLM_MODEL="none")
    assert answer.returncode == 1
    assert "127.0.0.1:1" in answer.stderr
    assert "Traceback" not in answer.stderr
