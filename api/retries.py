"""`POST /v1/runs/{id}/retry`: a run that goes on from where another one has ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ConfigDict, Field

from api.endpoint import Answer, Call, Endpoint, NoQuery
from api.run_request import Budget, Secrets
from api.run_views import RunView, show_run
from api.values import Body
from kernel.bell import Bell
from kernel.fanout import Publisher
from kernel.retries import retry
from kernel.runs import get_run
from kernel.sealing import Sealer


class RetryRequest(Body):
    """Where to go on from, and with what. Nothing is needed."""

    from_step: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="a finished step of the run's own agent; what came after its calls is not taken over. "
        "Else the last one that led somewhere",
    )
    budget: Budget | None = Field(
        default=None, description="limits that count instead of those that the run was started with"
    )
    secrets: Secrets = Field(default={})


class RetriedRunView(RunView):
    """The new run, and where it goes on from."""

    model_config = ConfigDict(extra="forbid", serialize_by_alias=True)

    from_step: str = Field(alias="from", description="a step of the run that is retried, or `start`")


class Retries:
    """The endpoint of retries."""

    def __init__(self, publisher: Publisher, bell: Bell, sealer: Sealer) -> None:
        self._sealer = sealer
        self._publisher = publisher
        self._bell = bell

    def endpoints(self) -> Iterator[Endpoint[Any, Any]]:
        yield Endpoint(
            method="POST",
            path="/v1/runs/{run_id}/retry",
            handler=self.retry,
            tag="runs",
            summary="Go on from where a run has ended",
            description="Makes a new run in the same session, with the same agent, version and input. Model calls "
            "that led somewhere and tool calls that have an outcome are not repeated. It has a budget of its own: "
            "what the old run used is not counted. So are secrets: those of the old run were forgotten when it "
            "ended. 409 if it has not.",
            scope="write",
            body=RetryRequest,
            response=RetriedRunView,
            status=202,
            location="/v1/runs/{id}",
            problems=(409,),
            idempotent=True,
        )

    async def retry(self, call: Call[RetryRequest, NoQuery]) -> Answer:
        asked = call.body
        retried = await retry(
            call.db,
            call.org_id,
            call.principal.user_id,
            call.path["run_id"],
            from_step=asked.from_step,
            budget=None if asked.budget is None else asked.budget.model_dump(exclude_none=True),
            secrets={name: value.get_secret_value() for name, value in asked.secrets.items()},
            sealer=self._sealer,
        )
        run = await get_run(call.db, call.org_id, retried.run_id)

        async def tell() -> None:
            self._publisher.nudge(run.org_id, run.session_id)
            if retried.head:
                await self._bell.ring()

        return Answer({**show_run(run), "from": retried.from_step}, after=tell)
