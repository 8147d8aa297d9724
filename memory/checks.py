"""What every backend refuses, and how it reads what it is given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, get_args

import orjson

from kernel.errors import InvalidInput
from memory.records import (
    KINDS,
    MAX_BATCH,
    MAX_CONTEXT,
    MAX_ENTITIES,
    MAX_ITEMS,
    MAX_QUERY,
    MAX_SOURCE,
    MAX_TEXT,
    Changes,
    MemoryItem,
    NewMemory,
    Provenance,
    Scope,
    ScopeKind,
)

_LONGEST_ENTITY: Final = 200
_LONGEST_THREAD: Final = 200
_MOST_METADATA: Final = 16_384
_LAST_PLACE: Final = 2**31 - 1
# Words that begin with a capital letter but not a sentence, and what holds a digit. Found in the text where the caller
# names none; scripts without capitals have theirs named by whoever extracts them.
_NAME: Final = re.compile(r"\b(?:(?<![.!?:]\s)(?<!^)[A-ZÀ-ÖØ-Þ][\w&'’-]*(?:\s+[A-ZÀ-ÖØ-Þ][\w&'’-]*)*|\w*\d[\w.:/-]*\b)")


def checked(scope: Scope, memories: Sequence[NewMemory]) -> list[NewMemory]:
    """The memories as they are to be kept: texts cleaned, scope and entities filled in.

    Raises:
        InvalidInput: `field` says what is wrong; of several memories with its place, such as `memories.3.text`.
    """
    if len(memories) > MAX_BATCH:
        raise InvalidInput(f"at most {MAX_BATCH} memories can be kept at once", field="memories")
    if len(memories) == 1:
        return [_checked(scope, memories[0], "")]
    return [_checked(scope, memory, f"memories.{place}.") for place, memory in enumerate(memories)]


def checked_change(changes: Changes, old: MemoryItem) -> dict[str, Any]:
    """The fields that change, with their new values.

    Raises:
        InvalidInput: `field` says what is wrong.
    """
    given = {name: getattr(changes, name) for name in changes.given}
    wanted = NewMemory(
        text=given.get("text", old.text) or "",
        kind=given.get("kind", old.kind),
        scope=old.scope,
        source=given.get("source", old.source),
        confidence=given.get("confidence", old.confidence),
        valid_from=given.get("valid_from", old.valid_from),
        valid_until=given.get("valid_until", old.valid_until),
        entities=given.get("entities") if "entities" in given or "text" in given else old.entities,
        metadata=given.get("metadata", old.metadata),
    )
    owner = {old.scope: old.owner}
    asker = Scope("", owner.get("user"), owner.get("agent"), owner.get("session"))
    fits = _checked(asker, wanted, "")
    names = {*given, "entities"} if "text" in given else {*given}
    return {name: getattr(fits, name) for name in names}


def checked_limit(limit: int) -> None:
    """Raises InvalidInput where `limit` is out of range."""
    if not 1 <= limit <= MAX_ITEMS:
        raise InvalidInput(f"limit must be 1 to {MAX_ITEMS}", field="limit")


def clean(text: str) -> str:
    """Without what UTF-8 and Postgres cannot hold, trimmed."""
    return text.encode("utf-8", "ignore").decode().replace("\x00", "").strip()


def clipped(query: str) -> str:
    """Of a long query the beginning and the end: there the question is, with the matter in between."""
    query, half = clean(query), MAX_QUERY // 2
    return query if len(query) <= MAX_QUERY else f"{query[:half]} {query[-half:]}"


def entities_of(text: str) -> list[str]:
    """Names and numbers in a text, in lower case, in order, each once."""
    found = (match[0].casefold()[:_LONGEST_ENTITY] for match in _NAME.finditer(text))
    return [*dict.fromkeys(found)][:MAX_ENTITIES]


def _checked(scope: Scope, memory: NewMemory, at: str) -> NewMemory:
    text = _bounded(memory.text, f"{at}text", MAX_TEXT)
    if not text:
        raise InvalidInput("there is nothing to remember", field=f"{at}text")
    if memory.kind not in KINDS:
        raise InvalidInput(f"kind must be one of {', '.join(KINDS)}", field=f"{at}kind")
    if memory.provenance not in get_args(Provenance):
        raise InvalidInput(f"provenance must be one of {', '.join(get_args(Provenance))}", field=f"{at}provenance")
    if not 0 <= memory.confidence <= 1:
        raise InvalidInput("confidence must be from 0 to 1", field=f"{at}confidence")
    valid_from = _moment(memory.valid_from, f"{at}valid_from")
    valid_until = _moment(memory.valid_until, f"{at}valid_until")
    if valid_from and valid_until and valid_until < valid_from:
        raise InvalidInput("valid_until must not be before valid_from", field=f"{at}valid_until")
    if (memory.thread is None) != (memory.place is None):
        raise InvalidInput("thread and place are given both or neither", field=f"{at}thread")
    if memory.thread is not None and not 1 <= len(memory.thread) <= _LONGEST_THREAD:
        raise InvalidInput(f"thread must have 1 to {_LONGEST_THREAD} characters", field=f"{at}thread")
    if memory.place is not None and not 0 <= memory.place <= _LAST_PLACE:
        raise InvalidInput("place must be from 0 to 2^31 - 1", field=f"{at}place")
    if memory.page is not None and not 1 <= memory.page <= _LAST_PLACE:
        raise InvalidInput("page must be 1 or more", field=f"{at}page")
    if memory.metadata is not None and len(orjson.dumps(dict(memory.metadata))) > _MOST_METADATA:
        raise InvalidInput(f"metadata must not be larger than {_MOST_METADATA} bytes of JSON", field=f"{at}metadata")
    return replace(
        memory,
        text=text,
        confidence=round(memory.confidence, 4),  # no backend need keep more
        valid_from=valid_from,
        valid_until=valid_until,
        scope=_scope(scope, memory.scope, f"{at}scope"),
        source=_bounded(memory.source or "", f"{at}source", MAX_SOURCE) or None,
        context=_bounded(memory.context or "", f"{at}context", MAX_CONTEXT) or None,
        entities=_entities(memory, text, f"{at}entities"),
    )


def _scope(asker: Scope, wanted: ScopeKind | None, field: str) -> ScopeKind:
    kind = wanted or ("org" if asker.user_id is None else "user")
    owners = {"org": "", "user": asker.user_id, "agent": asker.agent_id, "session": asker.session_id}
    if kind not in owners:
        raise InvalidInput(f"scope must be one of {', '.join(owners)}", field=field)
    if owners[kind] is None:
        raise InvalidInput(f"there is no {kind} whose memory it could be", field=field)
    return kind


def _entities(memory: NewMemory, text: str, field: str) -> list[str]:
    if memory.entities is None:
        return entities_of(text)
    if len(memory.entities) > MAX_ENTITIES:
        raise InvalidInput(f"at most {MAX_ENTITIES} entities can be kept", field=field)
    named = (clean(entity).casefold()[:_LONGEST_ENTITY] for entity in memory.entities)
    return [*dict.fromkeys(entity for entity in named if entity)]


def _moment(given: datetime | None, field: str) -> datetime | None:
    """In UTC: Postgres does not take every offset that others know."""
    if given is None:
        return None
    if given.tzinfo is None:
        raise InvalidInput("a moment needs a time zone", field=field)
    try:
        return given.astimezone(UTC)
    except OverflowError:
        raise InvalidInput("the moment is not within the years 1 to 9999", field=field) from None


def _bounded(text: str, field: str, longest: int) -> str:
    text = clean(text)
    if len(text) > longest:
        raise InvalidInput(f"{field} has {len(text)} characters; at most {longest} can be kept", field=field)
    return text
