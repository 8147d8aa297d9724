"""What ends between two looks at it."""

from __future__ import annotations

import asyncio

from tests.e2e.caller import Caller
from tests.faults.crew import staff
from tests.faults.test_postgres import connected
from tests.stack import Stack
from tests.waiting import eventually


async def test_who_names_a_place_beyond_the_end_of_a_run_that_ends_meanwhile_is_told_not_to_come_back(
    mortal: Stack, caller: Caller
) -> None:
    await staff(mortal, 0)
    run = await caller.start("hello", workflow="echo")
    async with connected(mortal) as connection:
        async with connection.transaction():
            await connection.execute("LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE")
            path = f"/v1/runs/{run['id']}/events"
            asking = asyncio.create_task(caller.call("GET", path, Last_Event_ID="999999999"))

            async def waits() -> bool:
                return bool(
                    await connection.fetchval(
                        "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'sessions'::regclass)"
                    )
                )

            await eventually(waits, what="the request waits to read the session")
            org_id = await connection.fetchval("SELECT org_id FROM runs WHERE id = $1", run["id"])
            await connection.execute("SELECT cancel_run($1, $2)", org_id, run["id"])
        assert (await asking).status == 204
