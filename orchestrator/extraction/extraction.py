"""The background job `extract`: reads the turn of a run that has succeeded, and keeps what matters later.

1. The turn is read, and a model asked for candidates.
2. Candidates are compared with what is known, and a model asked where rules do not decide.
3. What is to be done is kept with the job, then done.

A worker that takes the job over goes on from the last of these that was finished, so nothing is kept twice. Jobs of one
session are done in the order of their turns. The run itself is never touched.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog

from kernel.agent_config import ModelChoice
from kernel.errors import LonghaulError
from kernel.jobs import Job, JobLost, fail_job, get_job, requeue_job, say_progress
from kernel.postgres import STORE_ERRORS, Pool
from kernel.shares import Charge, Used, charge
from memory.port import Memory
from orchestrator.extraction import candidates, reconciliation
from orchestrator.extraction.asking import Answered, ExtractionFailed, ask
from orchestrator.extraction.candidates import SCHEMA, Found
from orchestrator.extraction.material import Material, read
from orchestrator.extraction.plan import Step, carry_out, last_summary, pack, turn_of, unpack
from orchestrator.extraction.requests import EXTRACT, SQL
from orchestrator.measures import Measures
from orchestrator.models.factory import Models
from orchestrator.models.provider import ChatProvider
from orchestrator.models.turn import Usage
from orchestrator.tools.tool import Vault

log = structlog.get_logger(__name__)

_IN_TURN: Final = (2.0, 6.0)
_MOST_READINGS: Final = 3  # of a model that answers, and never what it was asked for: each is paid for
_LEAST_ANSWER: Final = 4_000


class Extraction:
    """One per worker.

    Args:
        vault_of: the secrets of an org and a run, for a model at an address of the caller's.
        model: asked instead of each agent's own, at the deployment's endpoint.
    """

    def __init__(
        self,
        db: Pool,
        memory: Memory,
        models: Models,
        vault_of: Callable[[str, str], Vault],
        *,
        model: str = "",
        measures: Measures | None = None,
    ) -> None:
        self._db = db
        self._memory = memory
        self._models = models
        self._vault_of = vault_of
        self._model = model
        self._measures = measures or Measures()

    async def do(self, job: Job) -> bool | None:
        """Does the job, or puts it off until an earlier turn of its session was read.

        Raises:
            LonghaulError: a model, the embedder or a store failed; the job is to be tried again.
        """
        started = time.monotonic()
        try:
            done = await self._do(job)
        except Exception as error:
            hopeless = isinstance(error, ExtractionFailed) and job.attempt >= _MOST_READINGS
            last = hopeless or job.attempt >= job.attempts
            self._measures.count("extractions", EXTRACT, "failed" if last else "put_off", time.monotonic() - started)
            reason = error.message if isinstance(error, LonghaulError) else type(error).__name__
            if last:
                log.error("extraction_given_up", run_id=job.key, org_id=job.org_id, error=reason)
                await self._forget(job)
            if not hopeless:
                raise
            await fail_job(self._db, job, {"code": ExtractionFailed.code, "message": reason})
            return True
        if not done:
            self._measures.count("extractions", EXTRACT, "done", time.monotonic() - started)
        return done

    async def _do(self, job: Job) -> bool | None:
        assert job.org_id is not None
        material = await read(self._db, job.org_id, job.key)
        if material is None:
            await say_progress(self._db, job, {"skipped": "there is nothing to read"})
            return None
        if material.behind:
            await requeue_job(self._db, job, None, delay=random.uniform(*_IN_TURN), free=True)  # noqa: S311
            return True
        state = await get_job(self._db, EXTRACT, job.key)
        progress: dict[str, Any] = (state.progress if state else None) or {}
        if "added" in progress:  # all of it was done, and only the job's end is missing
            return None
        if (kept := progress.get("steps")) is not None:
            steps, told = unpack(kept), progress["told"]
        else:
            steps, told = await self._decide(job, material)
        if not await self._db.fetchval(SQL.is_there, job.org_id, job.key):
            await say_progress(self._db, job, {"skipped": "the run was deleted"})
            return None
        if steps:  # also where it was kept before: a job that was cancelled keeps nothing
            await say_progress(self._db, job, {"steps": pack(steps), "told": told})
        await carry_out(self._memory, material.scope, steps)
        # What was to be kept is in memory now, and nowhere else.
        await say_progress(self._db, job, told)
        log.info("memories_extracted", run_id=job.key, session_id=material.scope.session_id, org_id=job.org_id, **told)
        return None

    async def _forget(self, job: Job) -> None:
        """What was to be kept, and won't be, is not left with the job."""
        try:
            await say_progress(self._db, job, {"given_up": True})
        except (JobLost, *STORE_ERRORS) as error:
            log.info("progress_not_removed", job_id=job.id, error=repr(error))

    async def _decide(self, job: Job, material: Material) -> tuple[list[Step], dict[str, Any]]:
        used = Answered()

        def spend(usage: Usage) -> None:
            nonlocal used
            used = used.plus(usage)

        try:
            chat = await self._models.choose(self._choice(material), self._vault_of(material.scope.org_id, job.key))
            summary = await last_summary(self._memory, material)
            found = await self._candidates(chat, material, summary.text if summary else "", spend)
            known = await reconciliation.sort(self._memory, material.scope, found.memories)
            steps = [Step(None, new) for new in known.new]
            if known.doubtful:
                steps += await self._decisions(chat, known.doubtful, spend)
        finally:
            await self._charge(material.scope.org_id, used)
        told: dict[str, Any] = {
            "added": sum(step.memory_id is None for step in steps),
            "superseded": sum(step.memory_id is not None for step in steps),
            "ignored": len(found.memories) - len(steps),
            "dropped": dict(found.dropped),
            "summary": False,
            "input_tokens": used.input_tokens,
            "output_tokens": used.output_tokens,
        }
        if found.summary is not None and (summary is None or (turn_of(summary) or 0) < material.turn):
            told["summary"] = True
            if summary is None or summary.text != found.summary.text:
                replaced = summary.id if summary is not None and summary.scope == found.summary.scope else None
                steps.append(Step(replaced, found.summary))
        return steps, told

    async def _candidates(
        self, chat: ChatProvider, material: Material, summary: str, spend: Callable[[Usage], None]
    ) -> Found:
        return await ask(
            chat,
            candidates.question(material, summary),
            SCHEMA,
            lambda value, last: candidates.read(material, value, last),
            spend,
        )

    async def _decisions(
        self, chat: ChatProvider, doubtful: Sequence[reconciliation.Doubtful], spend: Callable[[Usage], None]
    ) -> list[Step]:
        messages, schema = reconciliation.question(doubtful)

        def understood(value: Any, last: bool) -> tuple[Step, ...] | list[str]:
            return reconciliation.read(doubtful, value)

        return [*await ask(chat, messages, schema, understood, spend)]

    def _choice(self, material: Material) -> ModelChoice:
        if self._model:
            return ModelChoice(name=self._model)
        most = material.model.max_tokens
        return material.model.model_copy(update={"max_tokens": most and max(most, _LEAST_ANSWER)})

    async def _charge(self, org_id: str, used: Answered) -> None:
        """On the org's share of the workers' slots, as any other tokens; lost where Postgres is away."""
        units = Used(0.0, used.input_tokens, used.output_tokens).units
        if not units:
            return
        try:
            await charge(self._db, [Charge(org_id, 0.0, units)])
        except STORE_ERRORS as error:
            log.info("extraction_not_charged", org_id=org_id, error=repr(error))
