"""Places of runs: many who ask at once share a statement, and each is told the truth as of its question."""

from __future__ import annotations

import asyncio
from typing import cast
from uuid import uuid4

import asyncpg
import pytest

from kernel.errors import NotFound
from kernel.places import SQL, Place, Places
from kernel.postgres import Pool, open_pool
from kernel.runs import cancel
from kernel.tenants import ensure_org
from tests.conftest import MakeDatabase
from tests.kernel.test_audits import Counting
from tests.kernel.writing import ask


async def test_the_place_of_a_run_is_its_session_its_first_event_and_its_last(own_database: Pool, own_org: str) -> None:
    first = await ask(own_database, own_org)
    second = await ask(own_database, own_org, session_id=first.session_id)
    places = Places(own_database)
    assert await places.of(own_org, second.id) == Place(own_org, first.session_id, 2, None)
    await cancel(own_database, own_org, second.id)
    assert await places.of(own_org, second.id) == Place(own_org, first.session_id, 2, 3)


async def test_many_questions_at_once_are_few_statements(own_database: Pool, own_org: str) -> None:
    runs = [await ask(own_database, own_org) for _ in range(100)]
    counting = Counting(own_database)
    places = Places(cast(Pool, counting))
    found = await asyncio.gather(*(places.of(own_org, run.id) for run in runs for _ in range(3)))
    assert [place.session_id for place in found] == [run.session_id for run in runs for _ in range(3)]
    assert counting.asked[SQL.places] <= 3


async def test_what_is_not_there_or_not_ones_own_is_not_found_and_harms_nobody_else(
    own_database: Pool, own_org: str
) -> None:
    run = await ask(own_database, own_org)
    stranger = await ensure_org(own_database, f"stranger {uuid4().hex}")
    places = Places(own_database)
    missing, foreign, found = await asyncio.gather(
        places.of(own_org, f"run_{uuid4().hex}"),
        places.of(stranger, run.id),
        places.of(own_org, run.id),
        return_exceptions=True,
    )
    assert isinstance(missing, NotFound)
    assert isinstance(foreign, NotFound)
    assert isinstance(found, Place)


async def test_all_who_ask_in_vain_are_told_why_and_the_next_may_have_luck(
    make_database: MakeDatabase, own_database: Pool, own_org: str
) -> None:
    run = await ask(own_database, own_org)
    closed = await open_pool(await make_database(), size=2, name="tests")
    await closed.close()
    places = Places(closed)
    for _ in range(2):
        answers = await asyncio.gather(*(places.of(own_org, run.id) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(answer, asyncpg.InterfaceError) for answer in answers), answers
    with pytest.raises(asyncpg.InterfaceError):
        await places.of(own_org, run.id)
