"""`/v1/sessions`: conversations and their messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import orjson
from pydantic import AwareDatetime, Field
from redis.asyncio import Redis

from api.endpoint import Answer, Call, Endpoint, NoQuery
from api.paging import PageQuery, bad_cursor, page, read_cursor
from api.problems import invalid
from api.values import AgentId, Body, Metadata, View
from kernel import messages, sessions
from kernel.ids import is_id
from kernel.messages import Message
from kernel.postgres import Pool
from kernel.sessions import Session
from kernel.windows import forget_window


class NewSession(Body):
    """A session to be made."""

    title: str | None = Field(default=None, max_length=500)
    metadata: Metadata = Field(default={})
    agent_id: AgentId | None = Field(default=None, description="whose runs these are; else the default agent")


class SessionPatch(Body):
    """Fields of a session to be replaced; what is left out stays, null clears."""

    title: str | None = Field(default=None, max_length=500)
    metadata: Metadata = Field(default={})
    agent_id: AgentId | None = None


class SessionView(View):
    """A session."""

    id: str
    agent_id: str | None
    user_id: str | None
    title: str | None
    metadata: dict[str, Any]
    last_seq: int = Field(description="its newest event")
    active_run_id: str | None = Field(description="its first unfinished run")
    created_at: AwareDatetime
    updated_at: AwareDatetime


class SessionPage(View):
    """Sessions."""

    data: list[SessionView]
    next_cursor: str | None


class MessageView(View):
    """One message of a conversation."""

    id: str
    session_id: str
    run_id: str
    role: Literal["system", "user", "assistant", "tool"]
    content: Any = Field(description="a text; what a tool gave may be any JSON")
    tool_calls: list[Any] | None
    tool_call_id: str | None
    created_at: AwareDatetime


class MessagePage(View):
    """Messages."""

    data: list[MessageView]
    next_cursor: str | None


class Sessions:
    """The endpoints of sessions."""

    def __init__(self, db: Pool, redis: Redis) -> None:
        self._db = db
        self._redis = redis

    def endpoints(self) -> Iterator[Endpoint[Any, Any]]:
        one, tag = "/v1/sessions/{session_id}", "sessions"
        yield Endpoint(
            method="POST",
            path="/v1/sessions",
            handler=self.create,
            tag=tag,
            summary="Create an empty session",
            description="POST /v1/runs makes a session together with its first run.",
            scope="write",
            body=NewSession,
            response=SessionView,
            status=201,
            location="/v1/sessions/{id}",
            idempotent=True,
        )
        yield Endpoint(
            method="GET",
            path="/v1/sessions",
            handler=self.list,
            tag=tag,
            summary="List sessions, newest first",
            scope="read",
            query=PageQuery,
            response=SessionPage,
        )
        yield Endpoint(
            method="GET",
            path=one,
            handler=self.get,
            tag=tag,
            summary="Get a session",
            scope="read",
            response=SessionView,
        )
        yield Endpoint(
            method="PATCH",
            path=one,
            handler=self.update,
            tag=tag,
            summary="Change a session",
            scope="write",
            body=SessionPatch,
            response=SessionView,
        )
        yield Endpoint(
            method="DELETE",
            path=one,
            handler=self.delete,
            tag=tag,
            summary="Delete a session with all that belongs to it",
            description="Refused with 409 while a run of it is unfinished.",
            scope="write",
            status=204,
            problems=(409,),
        )
        yield Endpoint(
            method="GET",
            path=f"{one}/messages",
            handler=self.list_messages,
            tag=tag,
            summary="List a session's messages, oldest first",
            scope="read",
            query=PageQuery,
            response=MessagePage,
        )

    async def create(self, call: Call[NewSession, NoQuery]) -> Answer:
        session = await sessions.create_session(
            call.db,
            call.org_id,
            user_id=call.principal.user_id,
            agent_id=call.body.agent_id,
            title=call.body.title,
            metadata=call.body.metadata,
        )
        return Answer(_shown(session))

    async def list(self, call: Call[None, PageQuery]) -> Answer:
        cursor = read_cursor(call.query.cursor, str)
        if cursor is not None and not is_id("ses", cursor[0]):
            raise bad_cursor()
        limit = call.query.limit
        found = await sessions.list_sessions(
            call.db, call.org_id, before=cursor[0] if cursor else None, limit=limit + 1
        )
        return Answer(page(found, limit, show=_shown, key=lambda session: (session.id,)))

    async def get(self, call: Call[None, NoQuery]) -> Answer:
        return Answer(_shown(await sessions.get_session(call.db, call.org_id, call.path["session_id"])))

    async def update(self, call: Call[SessionPatch, NoQuery]) -> Answer:
        changes = call.body.model_dump(exclude_unset=True)
        if not changes:
            raise invalid(("body", "must name at least one field to change"))
        session = await sessions.update_session(call.db, call.org_id, call.path["session_id"], changes)
        return Answer(_shown(session))

    async def delete(self, call: Call[None, NoQuery]) -> Answer:
        await sessions.delete_session(self._db, call.org_id, call.path["session_id"])
        await forget_window(self._redis, call.org_id, call.path["session_id"])
        return Answer()

    async def list_messages(self, call: Call[None, PageQuery]) -> Answer:
        cursor = read_cursor(call.query.cursor, int, int)
        limit = call.query.limit
        found = await messages.list_messages(
            call.db,
            call.org_id,
            call.path["session_id"],
            after=(cursor[0], cursor[1]) if cursor else (0, -1),
            limit=limit + 1,
        )
        return Answer(page(found, limit, show=_message, key=lambda message: (message.turn, message.position)))


def _shown(session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "agent_id": session.agent_id,
        "user_id": session.user_id,
        "title": session.title,
        "metadata": session.metadata,
        "last_seq": session.last_seq,
        "active_run_id": session.head_run_id,
        "created_at": session.created_at,
        "updated_at": session.updated_at,
    }


def _message(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "session_id": message.session_id,
        "run_id": message.run_id,
        "role": message.role,
        "content": orjson.Fragment(message.content),
        "tool_calls": None if message.tool_calls is None else orjson.Fragment(message.tool_calls),
        "tool_call_id": message.tool_call_id,
        "created_at": message.created_at,
    }
