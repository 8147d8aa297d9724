"""The event streams of sessions and runs, and the tokens that let browsers open them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from starlette.types import Scope

from api.endpoint import Answer, Call, Endpoint, NoQuery
from api.intake import Headers, query_pairs, sequence_number
from api.stream import EventStream
from api.stream_tokens import StreamTokens, StreamTokenView
from api.values import Query
from kernel.hub import Hub
from kernel.places import Places
from kernel.postgres import Pool
from kernel.runs import get_run
from kernel.sessions import get_session
from kernel.tenants import Principal

_FOLLOWING = (
    "Server-sent events, from the start or from the event after `Last-Event-ID` or `after`, then live. "
    "The header counts where both are there: a browser that reconnects sends it anew. "
    "Where events after that are no longer kept, the first event is `reset`: its id is the last seq that is gone, its "
    "`snapshot` what the missing part came to."
)


class EventsQuery(Query):
    """Where a stream starts, and leave to open it. Unknown parameters are let pass: EventSource polyfills add some."""

    model_config = ConfigDict(extra="ignore")

    after: Annotated[str, Field(json_schema_extra={"pattern": "^[0-9]{1,18}$"})] | None = Field(
        default=None, description="the last seq that is known already"
    )
    token: str | None = Field(default=None, description="a stream token, instead of the Authorization header")


class Events:
    """The endpoints of event streams."""

    def __init__(self, db: Pool, hub: Hub, tokens: StreamTokens) -> None:
        self._db = db
        self._hub = hub
        self._places = Places(db)
        self._tokens = tokens

    def endpoints(self) -> Iterator[Endpoint[Any, Any]]:
        for one, tag, follow, issue in (
            ("/v1/runs/{run_id}", "runs", self.follow_run, self.issue_for_run),
            ("/v1/sessions/{session_id}", "sessions", self.follow_session, self.issue_for_session),
        ):
            noun = tag.removesuffix("s")
            yield Endpoint(
                method="GET",
                path=f"{one}/events",
                handler=follow,
                tag=tag,
                summary=f"Follow a {noun}",
                description=_FOLLOWING + (" Ends after `done`; 204 if that was seen already." if noun == "run" else ""),
                scope="read",
                query=EventsQuery,
                media_type="text/event-stream",
                also={204: None} if noun == "run" else None,
                stream=True,
                own_auth=self._by_token,
            )
            yield Endpoint(
                method="POST",
                path=f"{one}/stream-token",
                handler=issue,
                tag=tag,
                summary=f"Make a token with which a browser can follow this {noun}",
                scope="read",
                response=StreamTokenView,
                status=201,
            )

    async def follow_run(self, call: Call[None, EventsQuery]) -> Answer:
        run_id = call.path["run_id"]
        place = await self._places.of(call.org_id, run_id)
        after = _known(call)
        if place.end_seq is not None and after >= place.end_seq:
            return Answer(status=204)  # tells an EventSource not to come back
        if after >= place.first_seq:
            after = await self._within_the_log(call.org_id, place.session_id, after)
        return Answer(app=self._stream(call, place.session_id, run_id, max(after, place.first_seq - 1)))

    async def follow_session(self, call: Call[None, EventsQuery]) -> Answer:
        session_id = call.path["session_id"]
        after = await self._within_the_log(call.org_id, session_id, _known(call))
        return Answer(app=self._stream(call, session_id, None, after))

    async def issue_for_run(self, call: Call[None, NoQuery]) -> Answer:
        run = await get_run(call.db, call.org_id, call.path["run_id"])
        return Answer(self._tokens.issue(call.principal, run.id, f"/v1/runs/{run.id}/events"))

    async def issue_for_session(self, call: Call[None, NoQuery]) -> Answer:
        session = await get_session(call.db, call.org_id, call.path["session_id"])
        return Answer(self._tokens.issue(call.principal, session.id, f"/v1/sessions/{session.id}/events"))

    async def _within_the_log(self, org_id: str, session_id: str, after: int) -> int:
        """A place that the log does not have yet would hide events to come. Raises NotFound."""
        return min(after, await self._hub.reach(org_id, session_id, at_least=after))

    def _stream(self, call: Call[None, EventsQuery], session_id: str, run_id: str | None, after: int) -> EventStream:
        return EventStream(self._hub, self._db, org_id=call.org_id, session_id=session_id, run_id=run_id, after=after)

    def _by_token(self, scope: Scope, headers: Headers, path: Mapping[str, str]) -> Principal | None:
        if not scope["query_string"]:
            return None
        token = dict(query_pairs(scope["query_string"])).get("token")
        return None if token is None else self._tokens.verify(token, next(iter(path.values())))


def _known(call: Call[None, EventsQuery]) -> int:
    """The last seq that the follower has."""
    header = call.headers.get(b"last-event-id")
    after = 0
    if call.query.after is not None:
        after = sequence_number("after", call.query.after)
    if header is not None:
        after = sequence_number("Last-Event-ID", header.decode("latin-1"))
    return after
