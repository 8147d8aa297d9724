"""The programs of a stack that are ours: how each is started and with which environment."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping

from cli import state
from cli.embedded.directory import DataDirectory
from cli.process import ProcessSpec
from cli.supervisor import ProcessService

# Short, for nobody likes to wait for his own machine.
_GRACE = {"LONGHAUL_GRACE_SECONDS": "2", "LONGHAUL_EFFECT_GRACE_SECONDS": "3"}


def base_environment(inherited: Mapping[str, str], data: DataDirectory, port: int) -> dict[str, str]:
    """What the API and the workers read, but for the stores: what was set stays, the rest suits development."""
    return {
        "LONGHAUL_HOST": "127.0.0.1",
        **_GRACE,
        "LONGHAUL_LOG_FORMAT": "console",
        "LONGHAUL_FILES_URL": data.files.as_uri(),
        **inherited,
        "LONGHAUL_SECRET_KEY": inherited.get("LONGHAUL_SECRET_KEY") or state.secret_key(data.path),
        "LONGHAUL_PORT": str(port),
        "PYTHONUNBUFFERED": "1",
    }


def rehearsal_environment(port: int) -> dict[str, str]:
    """Points the model client at the rehearsal model."""
    return {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "OPENAI_API_KEY": "rehearsal",
        "LLM_MODEL": "rehearsal",
    }


def api(data: DataDirectory, environment: Mapping[str, str]) -> ProcessService:
    return _python("api", data, environment, "-m", "api")


def worker(data: DataDirectory, environment: Mapping[str, str], number: int) -> ProcessService:
    return _python(f"worker-{number}", data, environment, "-m", "worker")


def rehearsal(data: DataDirectory, environment: Mapping[str, str], port: int) -> ProcessService:
    return _python("rehearsal", data, environment, "-m", "cli.rehearsal", "--port", str(port))


def _python(name: str, data: DataDirectory, environment: Mapping[str, str], *arguments: str) -> ProcessService:
    grace = sum(float(environment.get(name, usual)) for name, usual in _GRACE.items())
    return ProcessService(
        ProcessSpec(
            name=name,
            # -P: a directory `api` or `worker` of whoever calls us must not be taken for ours.
            argv=(sys.executable, "-P", *arguments),
            env=dict(environment),
            log=data.log(name),
            pid_file=data.pid_file(name),
            stop_steps=((signal.SIGTERM, grace + 7.0),),
        )
    )
