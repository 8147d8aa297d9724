"""Long queues, made in one statement: what takes callers minutes is there in a second or two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from kernel.ids import new_id
from kernel.postgres import Connection, Pool


async def queue_many(
    database: Pool | Connection,
    org: str,
    runs: int,
    *,
    texts: Sequence[str] = ("hello",),
    workflow: str = "agent_chat",
    request: dict[str, Any] | None = None,
) -> list[str]:
    """Takes so many runs in, each in a new session, with one of `texts` in turn; their ids. No bell rings."""
    ids = [(new_id("ses"), new_id("run"), new_id("msg")) for _ in range(runs)]
    contents = [orjson.dumps(text).decode() for text in texts]
    sessions, run_ids, messages = (list(column) for column in zip(*ids, strict=True))
    await database.execute(
        """SELECT count(submit_run($1, NULL, i.session, true, i.run, NULL, $2, $3, '{}', 'enqueue', ARRAY[i.message],
                                   ARRAY['user'], ARRAY[i.text], 0, NULL::double precision))
           FROM unnest($4::text[], $5::text[], $6::text[], $7::text[]) AS i (session, run, message, text)""",
        *(org, workflow, orjson.dumps(request or {}).decode()),
        *(sessions, run_ids, messages, [contents[number % len(contents)] for number in range(runs)]),
    )
    return run_ids
