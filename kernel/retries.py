"""Retries: a run that goes on from where another one of its session has ended.

It is a run of its own, with a budget of its own. What the old run has settled is copied to it, so model calls that led
somewhere and calls that have an outcome are not repeated; see the migration of this name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kernel.errors import Conflict, InvalidInput, NotFound
from kernel.events import encode_json
from kernel.ids import new_id
from kernel.postgres import Connection, Pool
from kernel.sealing import Sealer
from kernel.secrets import seal_of_run
from kernel.sql import statements

SQL = statements(__package__, "retries.sql")

START: Final = "start"


@dataclass(frozen=True, slots=True)
class Retried:
    """A run that was taken in. `from_step` is the old run's step that it goes on from, or `start`; `head` says whether
    it can start at once."""

    run_id: str
    session_id: str
    from_step: str
    head: bool


async def retry(
    db: Pool | Connection,
    org_id: str,
    user_id: str | None,
    run_id: str,
    *,
    from_step: str | None = None,
    budget: Mapping[str, Any] | None = None,
    secrets: Mapping[str, str] | None = None,
    sealer: Sealer | None = None,
) -> Retried:
    """Takes in a run that goes on from `run_id`, in one transaction.

    Args:
        from_step: a finished step of the run's own agent, after whose calls it is to go on; None: the last one.
        budget: limits that count instead of those that the old run was started with.
        secrets: the new run's own, which need the `sealer`; those of the old run were forgotten at its end.

    Raises:
        NotFound: no such run in the org.
        Conflict: it has not ended, or its agent was deleted.
        InvalidInput: it has no such step to go on from (`from_step`).
    """
    new = new_id("run")
    sealed: tuple[bytes, str] | tuple[()] = ()
    if secrets:
        assert sealer is not None, "a run with secrets needs a sealer"
        own = await seal_of_run(sealer, org_id, new, secrets)
        sealed = own.data, own.key_id
    statement = SQL.retry_with_secrets if sealed else SQL.retry
    limits = encode_json(dict(budget or {}))
    row = await db.fetchrow(statement, org_id, user_id, run_id, new, limits, from_step, *sealed)
    assert row is not None
    match row["outcome"]:
        case "not_found":
            raise NotFound(f"There is no run {run_id}.", field="run_id")
        case "unfinished":
            raise Conflict(
                f"Run {run_id} has not ended.",
                suggestions=("wait for its end, or cancel it", "POST …/resume lets a paused run go on"),
            )
        case "no_agent":
            raise Conflict(f"The agent of run {run_id} was deleted.", suggestions=("start a run of another agent",))
        case "no_step":
            raise InvalidInput(
                f"Run {run_id} has no finished step {from_step!r} of its own agent to go on from.",
                field="from_step",
                suggestions=(f"GET /v1/runs/{run_id}/steps lists them; RESPOND, which ends a run, is none",),
            )
    return Retried(new, row["session_id"], row["from_step"], row["head"])
