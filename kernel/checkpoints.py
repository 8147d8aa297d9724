"""Checkpoint rows: what the orchestrator remembers of a run, as bytes that mean nothing here.

The orchestrator's checkpointer makes these rows; a run's pen stages them and the journal commits them together
with the step's events, under the run's epoch. The kernel never looks inside. The org is not part of a row, for it
is that of the run that writes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CheckpointWriteRow:
    """One channel's value from a finished task, kept beside the checkpoint that the task started from.

    `idx` is the place among its task's writes, or negative for errors, interrupts and answers to them.
    """

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    task_id: str
    idx: int
    channel: str
    format: str
    value: bytes
    task_path: str


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """The state of one thread after a step. Ids rise with time, bytewise; `parent_id` is the one before."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_id: str | None
    format: str
    checkpoint: bytes
    metadata: bytes
