"""Long queues, made in one statement: what takes callers minutes is there in a second."""

from __future__ import annotations

from typing import Any

import orjson

from kernel.ids import new_id
from kernel.postgres import Pool


async def queue_many(
    database: Pool, org: str, runs: int, *, workflow: str = "agent_chat", request: dict[str, Any] | None = None
) -> list[str]:
    """Takes so many runs in, each in a new session; their ids. No bell rings."""
    ids = [(new_id("ses"), new_id("run"), new_id("msg")) for _ in range(runs)]
    sessions, run_ids, messages = (list(column) for column in zip(*ids, strict=True))
    await database.execute(
        """SELECT count(submit_run($1, NULL, i.session, true, i.run, NULL, $2, $3, '{}', 'enqueue', ARRAY[i.message],
                                   ARRAY['user'], ARRAY['"hello"'], 0, NULL::double precision))
           FROM unnest($4::text[], $5::text[], $6::text[]) AS i (session, run, message)""",
        *(org, workflow, orjson.dumps(request or {}).decode(), sessions, run_ids, messages),
    )
    return run_ids
