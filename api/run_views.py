"""How runs and steps are shown."""

from __future__ import annotations

from typing import Any

from pydantic import AwareDatetime, Field

from api.problems import ProblemView
from api.values import View
from kernel.events import RunStatus
from kernel.runs import Run
from kernel.steps import Step


class RunView(View):
    """A run."""

    id: str
    session_id: str
    turn: int = Field(description="its place in the session, from 1")
    status: RunStatus
    agent_id: str
    agent_version: int
    workflow: str
    attempt: int = Field(description="how often a worker has started it")
    user_id: str | None
    metadata: dict[str, Any]
    finish_reason: str | None
    usage: dict[str, Any] | None
    error: dict[str, Any] | None
    first_seq: int = Field(description="its first event in the session's log")
    created_at: AwareDatetime
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    cancel_requested_at: AwareDatetime | None
    pause_requested_at: AwareDatetime | None = Field(description="set while the run is paused, or about to be")
    deadline_at: AwareDatetime | None = Field(description="when it expires, if it has not ended by then")
    priority: int = Field(description="within the org, higher ones start first")
    retry_of: str | None = Field(description="the run that it goes on from")


class FinishedRunView(RunView):
    """A run with its answer."""

    answer: str | None = Field(description="the final message, once the run has ended with one")
    output: Any = Field(description="the answer as a value, where a response_schema asked for JSON")


class RunPage(View):
    """Runs."""

    data: list[RunView]
    next_cursor: str | None


class BatchItemView(View):
    """What came of one run of a batch: exactly one of the two."""

    run: RunView | None
    problem: ProblemView | None


class BatchView(View):
    """What came of a batch, in the order of the request."""

    results: list[BatchItemView]


class StepView(View):
    """A finished step of a run."""

    step_id: str
    run_id: str
    path: str = Field(description="empty for the agent itself, else the sub-agent")
    state: str
    epoch: int = Field(description="which of the run's owners took it")
    started_at: AwareDatetime
    finished_at: AwareDatetime


class StepPage(View):
    """Steps."""

    data: list[StepView]
    next_cursor: str | None


def show_run(run: Run) -> dict[str, Any]:
    """A `RunView`."""
    return {
        "id": run.id,
        "session_id": run.session_id,
        "turn": run.turn,
        "status": run.status,
        "agent_id": run.agent_id,
        "agent_version": run.agent_version,
        "workflow": run.workflow,
        "attempt": run.attempt,
        "user_id": run.user_id,
        "metadata": run.metadata,
        "finish_reason": run.finish_reason,
        "usage": run.usage,
        "error": run.error,
        "first_seq": run.first_seq,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "cancel_requested_at": run.cancel_requested_at,
        "pause_requested_at": run.pause_requested_at,
        "deadline_at": run.deadline_at,
        "priority": run.priority,
        "retry_of": run.retry_of,
    }


def show_step(step: Step) -> dict[str, Any]:
    """A `StepView`."""
    return {
        "step_id": step.step_id,
        "run_id": step.run_id,
        "path": step.path,
        "state": step.state,
        "epoch": step.epoch,
        "started_at": step.started_at,
        "finished_at": step.finished_at,
    }
