"""The command line says what is wrong with a command and what to do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app

_LONGHAUL = str(Path(sys.executable).with_name("longhaul"))


def _longhaul(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("LONGHAUL_") and key not in ("DATABASE_URL", "REDIS_URL")
    }
    return subprocess.run(
        [_LONGHAUL, *arguments],
        env=inherited | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_help_names_every_command_without_loading_the_graph() -> None:
    answer = _longhaul("--help", PYTHONPROFILEIMPORTTIME="1")
    assert answer.returncode == 0
    for command in ("demo", "dev", "run", "migrate", "keys", "orgs", "workers", "api", "worker"):
        assert f" {command} " in answer.stdout
    for heavy in ("langgraph", "langchain_openai", "aiohttp", "asyncpg", "starlette"):
        assert f"| {heavy}\n" not in answer.stderr.replace("|   ", "| ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["fly"], "No such command 'fly'"),
        (["dev", "--port", "70000"], "less than or equal to 65535"),
        (["dev", "--workers", "0"], "greater than or equal to 1"),
        (["run"], "Missing argument 'question'"),
        (["keys", "create"], "Missing argument 'name'"),
    ],
)
def test_bad_usage_is_named_with_exit_code_2(arguments: list[str], complaint: str) -> None:
    answer = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
    assert answer.exit_code == 2
    assert complaint in answer.stderr


@pytest.mark.parametrize("arguments", [["run", "hello"], ["migrate"], ["keys", "list"], ["workers"]])
def test_without_a_stack_the_commands_say_how_to_start_one(arguments: list[str], data_dir: Path) -> None:
    answer = _longhaul(*arguments, "--data-dir", str(data_dir))
    assert answer.returncode == 1
    assert f"No stack runs on {data_dir}" in answer.stderr
    assert "longhaul dev" in answer.stderr
    assert answer.stdout == ""


def test_a_port_that_is_taken_is_named(data_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        answer = _longhaul("dev", "--port", port, "--data-dir", str(data_dir))
    assert answer.returncode == 1
    assert f"Port {port} is taken" in answer.stderr
    assert answer.stdout == ""


def test_a_database_that_is_away_is_named() -> None:
    answer = _longhaul("migrate", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert answer.returncode == 1
    assert "Postgres can't be reached" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_an_api_that_is_away_is_named() -> None:
    answer = _longhaul("run", "hello", LONGHAUL_URL="http://127.0.0.1:1", LONGHAUL_API_KEY="lh_x")
    assert answer.returncode == 1
    assert "http://127.0.0.1:1 can't be reached" in answer.stderr
