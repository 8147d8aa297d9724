"""What every memory backend must hold, as checks that a backend's own tests run.

    @pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
    async def test_conforms(check: Check, backend: Memory, org: str, another_org: str) -> None:
        await check(backend, org, another_org)

Each check takes the backend and the ids of two orgs of its own that exist and hold nothing, and raises `NotConforming`
where a promise is broken. They look at what a caller sees, through `memory.port` alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Final, TypeAlias

from kernel.errors import Conflict, InvalidInput, LonghaulError, NotFound
from memory.port import Memory
from memory.records import (
    MAX_BATCH,
    MAX_ITEMS,
    MAX_SOURCE,
    MAX_TEXT,
    Changes,
    Filter,
    MemoryItem,
    NewMemory,
    Scope,
    ScopeKind,
)

Check: TypeAlias = Callable[[Memory, str, str], Awaitable[None]]

_USER: Final = "ada"
_AGENT: Final = f"agt_{'a' * 32}"
_SESSION: Final = f"ses_{'a' * 32}"
_MISSING: Final = f"mem_{'0' * 32}"
_HARBOUR: Final = "The harbour of Valparaiso opens at seven"
_ASKED: Final = "When does the harbour of Valparaiso open?"


class NotConforming(AssertionError):
    """A backend breaks a promise of the port."""


def _must(holds: bool, promise: str) -> None:
    if not holds:
        raise NotConforming(promise)


@contextmanager
def _refused(error: type[LonghaulError], promise: str) -> Iterator[None]:
    try:
        yield
    except error:
        return
    raise NotConforming(promise)


async def _texts(memory: Memory, scope: Scope, query: str = _ASKED, **options: object) -> list[str]:
    found = await memory.recall(scope, query, limit=MAX_ITEMS, **options)  # type: ignore[arg-type]
    return [item.text for item in found]


async def what_is_kept_comes_back_whole(memory: Memory, org: str, _: str) -> None:
    scope = Scope(org, _USER, _AGENT, _SESSION, f"run_{'a' * 32}")
    until = datetime.now(UTC) + timedelta(days=1)
    new = NewMemory(
        _HARBOUR,
        "procedure",
        scope="user",
        source="harbour.md",
        provenance="person",
        confidence=0.7,
        valid_from=until - timedelta(days=2),
        valid_until=until,
        entities=["Valparaiso"],
        thread="harbours",
        place=3,
        context="opening hours",
        document_id=f"doc_{'a' * 32}",
        page=4,
        metadata={"by": "the pilot", "depth": 3},
    )
    [kept] = await memory.remember_all(scope, [new])
    for name in ("text", "kind", "scope", "source", "provenance", "confidence", "valid_from", "valid_until"):
        _must(getattr(kept, name) == getattr(new, name), f"{name} is kept as it was given")
    for name in ("thread", "place", "context", "document_id", "page", "metadata"):
        _must(getattr(kept, name) == getattr(new, name), f"{name} is kept as it was given")
    _must([*kept.entities] == ["valparaiso"], "entities are kept in lower case")
    _must((kept.owner, kept.user_id) == (_USER, _USER), "a user's memory names them as its owner")
    _must((kept.agent_id, kept.session_id, kept.run_id) == _ids(scope), "agent, session and run are provenance")
    _must(kept.ended_at is None and kept.superseded_by is None, "a new memory is not over")
    _must(await memory.get(scope, kept.id) == kept, "get gives what remember gave")
    _must(await memory.list(scope) == [kept], "list gives what remember gave")
    [found] = await memory.recall(scope, _ASKED)
    for name in ("id", "text", "kind", "scope", "source", "provenance", "confidence", "document_id", "page", "thread"):
        _must(getattr(found, name) == getattr(kept, name), f"recall gives the memory's {name}")
    _must(0 < found.score <= 1, "scores are in (0, 1]")


def _ids(scope: Scope) -> tuple[str | None, str | None, str | None]:
    """Agent, session and run."""
    return scope.agent_id, scope.session_id, scope.run_id


async def texts_are_cleaned(memory: Memory, org: str, _: str) -> None:
    item = await memory.remember(Scope(org), "  a\x00b \udcff ", source=" here ")
    _must((item.text, item.source) == ("ab", "here"), "NUL and lone surrogates are dropped, ends are trimmed")


async def what_can_not_be_kept_is_refused(memory: Memory, org: str, _: str) -> None:
    scope, text = Scope(org), "something"
    bad: Mapping[str, NewMemory] = {
        "text": NewMemory(" \x00 "),
        "source": NewMemory(text, source="x" * (MAX_SOURCE + 1)),
        "confidence": NewMemory(text, confidence=1.5),
        "valid_until": NewMemory(
            text, valid_from=datetime(2026, 1, 2, tzinfo=UTC), valid_until=datetime(2026, 1, 1, tzinfo=UTC)
        ),
        "valid_from": NewMemory(text, valid_from=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=23)))),
        "scope": NewMemory(text, scope="user"),
        "thread": NewMemory(text, place=1),
        "kind": NewMemory(text, kind="rumour"),  # type: ignore[arg-type]
    }
    for field, new in bad.items():
        with _refused(InvalidInput, f"a bad {field} is refused"):
            await memory.remember_all(scope, [NewMemory("good"), new])
    with _refused(InvalidInput, "a text that is too long is refused"):
        await memory.remember(scope, "x" * (MAX_TEXT + 1))
    with _refused(InvalidInput, "a batch that is too large is refused"):
        await memory.remember_all(scope, [NewMemory(str(number)) for number in range(MAX_BATCH + 1)])
    _must(await memory.list(scope) == [], "of a batch that is refused nothing is kept")
    for limit in (0, MAX_ITEMS + 1):
        with _refused(InvalidInput, "a limit out of range is refused"):
            await memory.recall(scope, "something", limit=limit)
    await memory.remember(scope, "x" * MAX_TEXT)
    odd = datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=23, minutes=59)))
    [item] = await memory.remember_all(scope, [NewMemory("on the far side", valid_until=odd)])
    _must(item.valid_until == odd, "any time zone will do")
    tiny = await memory.remember_all(scope, [NewMemory("hardly true", confidence=1e-60)])
    _must(tiny[0].confidence == 0, "confidence is kept to four digits")
    _must(await memory.remember_all(scope, []) == [], "nothing is kept of an empty batch")


async def the_same_text_is_one_memory(memory: Memory, org: str, _: str) -> None:
    scope = Scope(org, _USER)
    first = await memory.remember(scope, _HARBOUR)
    again = await memory.remember(scope, f" {_HARBOUR} ", kind="knowledge", source="the pilot")
    _must(again.id == first.id, "the same text in the same scope keeps its id")
    _must((again.kind, again.source) == ("knowledge", "the pilot"), "the same text again updates the rest")
    for_all = replace(scope, user_id=None)
    _must((await memory.remember(for_all, _HARBOUR)).id != first.id, "in another scope it is another memory")
    two = await memory.remember_all(scope, [NewMemory("twice"), NewMemory("once"), NewMemory("twice")])
    _must(two[0].id == two[2].id != two[1].id, "twice in one batch is one memory")
    _must(len(await memory.list(scope)) == 4, "each memory is listed once")


async def everyone_sees_what_is_theirs(memory: Memory, org: str, another: str) -> None:
    scopes: dict[ScopeKind, Scope] = {
        "org": Scope(org),
        "user": Scope(org, user_id=_USER),
        "agent": Scope(org, agent_id=_AGENT),
        "session": Scope(org, session_id=_SESSION),
    }
    items: dict[ScopeKind, MemoryItem] = {}
    for kind, scope in scopes.items():
        [items[kind]] = await memory.remember_all(scope, [NewMemory(f"{_HARBOUR}, says the {kind}", scope=kind)])
    for kind, scope in scopes.items():
        seen = {items["org"].text, items[kind].text}
        _must(set(await _texts(memory, scope)) == seen, f"recall for the {kind} gives the org's and its own")
        _must(
            {item.text for item in await memory.list(scope)} == seen, f"list for the {kind} gives the org's and its own"
        )
        for other, item in items.items():
            if other in (kind, "org"):
                _must(await memory.get(scope, item.id) == item, "get gives what the asker may see")
                continue
            with _refused(NotFound, f"a {kind} can't get what is of the {other}"):
                await memory.get(scope, item.id)
            with _refused(NotFound, f"a {kind} can't change what is of the {other}"):
                await memory.change(scope, item.id, Changes(frozenset({"kind"}), kind="summary"))
            with _refused(NotFound, f"a {kind} can't end what is of the {other}"):
                await memory.supersede(scope, item.id, None)
            _must(await memory.forget(scope, [item.id]) == 0, f"a {kind} can't forget what is of the {other}")
    whole = Scope(org, _USER, _AGENT, _SESSION)
    _must(len(await _texts(memory, whole)) == 4, "whoever is user, agent and session sees all four")
    _must(len(await _texts(memory, Scope(org), everyone=True)) == 4, "everyone=True sees all of the org")
    _must(len(await memory.list(Scope(org), everyone=True)) == 4, "everyone=True lists all of the org")
    _must(await memory.get(Scope(org), items["user"].id, everyone=True) == items["user"], "everyone=True gets all")
    stranger = Scope(another, _USER, _AGENT, _SESSION)
    _must(await _texts(memory, stranger, everyone=True) == [], "another org recalls nothing")
    _must(await memory.list(stranger, everyone=True) == [], "another org lists nothing")
    for item in items.values():
        with _refused(NotFound, "another org gets nothing"):
            await memory.get(stranger, item.id, everyone=True)
        _must(await memory.forget(stranger, [item.id], everyone=True) == 0, "another org forgets nothing")
    _must(await memory.erase(another, _USER) == 0, "another org erases nothing")
    _must([item async for item in memory.export(another, _USER)] == [], "another org exports nothing")
    _must(len(await memory.list(Scope(org), everyone=True)) == 4, "nothing of it is gone")


async def recall_finds_what_is_relevant(memory: Memory, org: str, _: str) -> None:
    scope = Scope(org)
    texts = [
        _HARBOUR,
        "The user prefers short answers without emojis.",
        "Deployments happen every Tuesday at 14:00 UTC.",
        "用户对花生和海鲜过敏。",
    ]
    await memory.remember_all(scope, [NewMemory(text) for text in texts])
    questions = {
        _ASKED: texts[0],
        "how short should answers be?": texts[1],
        "On which day do deployments happen?": texts[2],
        "我对花生过敏吗？": texts[3],
    }
    for question, text in questions.items():
        _must((await _texts(memory, scope, question))[:1] == [text], f"{question!r} finds {text!r} first")
    _must(
        await _texts(memory, scope, "Explain how photosynthesis works") == [], "nothing comes where nothing is relevant"
    )
    _must(await _texts(memory, scope, "") == [], "nothing comes of an empty query")
    _must(len(await memory.recall(scope, "harbour deployments", limit=1)) <= 1, "limit is held")
    long = f"{'lorem ipsum ' * 2000} {_ASKED}"
    _must(texts[0] in await _texts(memory, scope, long), "of a long query its end counts")


async def filters_hold(memory: Memory, org: str, _: str) -> None:
    scope, document = Scope(org, _USER), f"doc_{'b' * 32}"
    await memory.remember_all(
        scope,
        [
            NewMemory(f"{_HARBOUR}, a fact"),
            NewMemory(f"{_HARBOUR}, a wish", "preference"),
            NewMemory(f"{_HARBOUR}, for all", scope="org"),
            NewMemory(f"{_HARBOUR}, in a book", "knowledge", document_id=document, page=1),
        ],
    )
    wanted: list[tuple[Filter, set[str]]] = [
        (Filter(kinds=("preference",)), {"a wish"}),
        (Filter(kinds=("preference", "knowledge")), {"a wish", "in a book"}),
        (Filter(scopes=("org",)), {"for all"}),
        (Filter(document_ids=(document,)), {"in a book"}),
        (Filter(kinds=("fact",), document_ids=(document,)), set()),
    ]
    for where, ends in wanted:
        found = {text.rpartition(", ")[2] for text in await _texts(memory, scope, where=where)}
        _must(found == ends, f"recall holds {where}")
        listed = {item.text.rpartition(", ")[2] for item in await memory.list(scope, where=where)}
        _must(listed == ends, f"list holds {where}")


async def what_is_not_valid_now_is_not_recalled(memory: Memory, org: str, _: str) -> None:
    now, day = datetime.now(UTC), timedelta(days=1)
    await memory.remember_all(
        Scope(org),
        [
            NewMemory(f"{_HARBOUR} now", valid_from=now - day, valid_until=now + day),
            NewMemory(f"{_HARBOUR} no more", valid_until=now - day),
            NewMemory(f"{_HARBOUR} not yet", valid_from=now + day),
        ],
    )
    _must(await _texts(memory, Scope(org)) == [f"{_HARBOUR} now"], "only what is valid now is recalled")
    _must(len(await memory.list(Scope(org))) == 3, "what is not valid now is listed")


async def lists_come_in_pages(memory: Memory, org: str, _: str) -> None:
    scope = Scope(org)
    ids = [(await memory.remember(scope, f"number {number}")).id for number in range(5)]
    first = await memory.list(scope, limit=2)
    rest = await memory.list(scope, after=first[-1].id, limit=10)
    _must([item.id for item in (*first, *rest)] == ids[::-1], "pages hold all, the newest first")


async def a_change_is_found_by_its_new_words(memory: Memory, org: str, _: str) -> None:
    scope = Scope(org, _USER)
    item = await memory.remember(scope, _HARBOUR)
    given = frozenset({"text", "kind", "source", "metadata", "confidence"})
    changes = Changes(
        given, text="The library of Concepción closes at nine", kind="knowledge", metadata={"a": 1}, confidence=0.4
    )
    changed = await memory.change(scope, item.id, changes)
    _must(changed.id == item.id and changed.created_at == item.created_at, "a change keeps id and birth")
    _must((changed.kind, changed.source, changed.metadata) == ("knowledge", None, {"a": 1}), "what is given is changed")
    _must(await memory.get(scope, item.id) == changed, "a change is kept")
    _must(await _texts(memory, scope) == [], "it is not found by its old words")
    _must(await _texts(memory, scope, "when does the library close?") == [changed.text], "it is found by its new words")
    await memory.remember(scope, _HARBOUR)
    with _refused(Conflict, "a text that another memory of the scope has is refused"):
        await memory.change(scope, item.id, Changes(frozenset({"text"}), text=_HARBOUR))
    with _refused(InvalidInput, "a change to nothing is refused"):
        await memory.change(scope, item.id, Changes(frozenset({"text"}), text=" "))
    with _refused(NotFound, "what is not there can't be changed"):
        await memory.change(scope, _MISSING, Changes(frozenset({"kind"}), kind="fact"))


async def what_is_superseded_stays_readable(memory: Memory, org: str, _: str) -> None:
    scope = Scope(org, _USER)
    old = await memory.remember(scope, _HARBOUR)
    new = await memory.supersede(scope, old.id, NewMemory("The harbour of Valparaiso opens at eight"))
    _must((new.scope, new.owner) == ("user", _USER), "what takes its place is of the same scope")
    ended = await memory.get(scope, old.id)
    _must(ended.ended_at is not None and ended.superseded_by == new.id, "the old one says its end and its successor")
    _must(await _texts(memory, scope) == [new.text], "the old one is not recalled")
    _must([item.id for item in await memory.list(scope)] == [new.id], "the old one is not listed")
    listed = await memory.list(scope, where=Filter(ended=True))
    _must({item.id for item in listed} == {old.id, new.id}, "unless it is asked for")
    with _refused(Conflict, "what is over can't be changed"):
        await memory.change(scope, old.id, Changes(frozenset({"kind"}), kind="summary"))
    back = await memory.remember(scope, _HARBOUR)
    _must(back.id != old.id, "its text again is a new memory")
    last = await memory.supersede(scope, back.id, None)
    _must(
        last.id == back.id and last.ended_at is not None and last.superseded_by is None, "one can end without another"
    )
    _must(await memory.supersede(scope, back.id, None) == last, "ending what is over changes nothing")
    with _refused(NotFound, "what is not there can't be ended"):
        await memory.supersede(scope, _MISSING, None)


async def what_is_forgotten_is_gone(memory: Memory, org: str, _: str) -> None:
    scope, document = Scope(org, _USER), f"doc_{'c' * 32}"
    [one, two, three] = await memory.remember_all(
        scope,
        [
            NewMemory(_HARBOUR),
            NewMemory("The lighthouse is red"),
            NewMemory("Page of a book", "knowledge", document_id=document, page=1),
        ],
    )
    _must(await memory.forget(scope, [one.id, one.id, _MISSING]) == 1, "forget says how many there were")
    _must(await _texts(memory, scope) == [], "what is forgotten is not recalled")
    with _refused(NotFound, "what is forgotten can't be read"):
        await memory.get(scope, one.id)
    _must(await memory.forget_document(org, document) == 1, "all passages of a document are removed")
    _must([item.id for item in await memory.list(scope)] == [two.id], "and nothing else")
    _must(await memory.forget_document(org, document) == 0 and three.document_id == document, "once")


async def a_user_can_be_taken_along_and_erased(memory: Memory, org: str, _: str) -> None:
    ada, bob = Scope(org, _USER), Scope(org, "bob")
    first = await memory.remember(ada, _HARBOUR)
    second = await memory.supersede(ada, first.id, NewMemory("The harbour opens at eight"))
    other, for_all = await memory.remember(bob, _HARBOUR), await memory.remember(Scope(org), _HARBOUR)
    exported = [item async for item in memory.export(org, _USER)]
    _must([item.id for item in exported] == [first.id, second.id], "an export holds all of the user, also what is over")
    _must(await memory.erase(org, _USER) == 2, "erase says how many there were")
    _must([item async for item in memory.export(org, _USER)] == [], "nothing of the user is left")
    left = await memory.list(Scope(org), where=Filter(ended=True), everyone=True)
    _must({item.id for item in left} == {other.id, for_all.id}, "and nothing else is gone")


async def writers_do_not_disturb_each_other(memory: Memory, org: str, another: str) -> None:
    async def write(number: int) -> None:
        scope = Scope(org if number % 2 else another, f"user {number % 3}")
        await memory.remember_all(scope, [NewMemory(f"{_HARBOUR} {place % 7}") for place in range(20)])

    await asyncio.gather(*(write(number) for number in range(12)))
    for each in (org, another):
        items = await memory.list(Scope(each), limit=100, everyone=True)
        _must(len(items) == 3 * 7, "each text is there once for each user")


CHECKS: Final[Mapping[str, Check]] = {
    check.__name__: check
    for check in (
        what_is_kept_comes_back_whole,
        texts_are_cleaned,
        what_can_not_be_kept_is_refused,
        the_same_text_is_one_memory,
        everyone_sees_what_is_theirs,
        recall_finds_what_is_relevant,
        filters_hold,
        what_is_not_valid_now_is_not_recalled,
        lists_come_in_pages,
        a_change_is_found_by_its_new_words,
        what_is_superseded_stays_readable,
        what_is_forgotten_is_gone,
        a_user_can_be_taken_along_and_erased,
        writers_do_not_disturb_each_other,
    )
}
