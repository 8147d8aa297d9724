"""The background job `compact`: sums up what has fallen out of a session's window, after the run that pushed it out.

It may run beside a run of the session, and more than once: of two summaries that go on from the same place one is kept,
and what it finds summed up already it leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import structlog
from langchain_core.messages import BaseMessage
from pydantic import ValidationError

from kernel.agent_config import ContextConfig, ModelChoice
from kernel.jobs import Job
from kernel.postgres import STORE_ERRORS
from kernel.shares import Charge, Used, charge
from orchestrator.models.factory import Models
from orchestrator.models.turn import Turn
from orchestrator.tools.tool import Vault
from orchestrator.window import records
from orchestrator.window.asked import MOST_TOKENS, kept
from orchestrator.window.context import summary_choice
from orchestrator.window.pieces import of_said
from orchestrator.window.record import Summary
from orchestrator.window.summary import Ask, chunk, read_turn, room_for, summarize, summary_tokens, tokens_of
from orchestrator.window.windows import Windows, falls_out

log = structlog.get_logger(__name__)

_MOST_CHUNKS: Final = 20


class Compaction:
    """One per worker. `vault_of` gives the secrets of an org and a run, for a model at an address of the caller's."""

    def __init__(self, windows: Windows, models: Models, vault_of: Callable[[str, str], Vault]) -> None:
        self._windows = windows
        self._models = models
        self._vault_of = vault_of

    async def do(self, job: Job) -> None:
        """Sums up until nothing is left to.

        Raises:
            ModelError, SummaryFailed: the model gave no summary; the job is to be tried again.
        """
        assert job.org_id is not None
        org_id, session_id = job.org_id, str(job.payload["session_id"])
        try:
            config = ContextConfig.model_validate(job.payload["context"])
            choice = summary_choice(ModelChoice.model_validate(job.payload["model"]), config)
        except ValidationError as error:
            log.warning("compaction_not_possible", session_id=session_id, error=str(error))
            return
        vault = self._vault_of(org_id, str(job.payload["run_id"]))

        read = written = 0

        async def ask(messages: Sequence[BaseMessage]) -> Turn:
            nonlocal read, written
            turn = await read_turn(await self._models.choose(choice, vault), messages)
            read, written = read + turn.usage.input_tokens, written + turn.usage.output_tokens
            return turn

        try:
            await self._sum_up(org_id, session_id, config, ask)
        finally:
            await self._charge(org_id, read, written)
        await self._windows.refresh(org_id, session_id)

    async def _charge(self, org_id: str, read: int, written: int) -> None:
        """On the org's share of the workers' slots, as any other tokens; lost where Postgres is away."""
        if not (units := Used(0.0, read, written).units):
            return
        try:
            await charge(self._windows.db, [Charge(org_id, 0.0, units)])
        except STORE_ERRORS as error:
            log.info("summary_not_charged", org_id=org_id, error=repr(error))

    async def _sum_up(self, org_id: str, session_id: str, config: ContextConfig, ask: Ask) -> None:
        room, tokens = room_for(config.max_tokens), summary_tokens(config.max_tokens)
        for _ in range(_MOST_CHUNKS):
            window = await records.load(self._windows.db, org_id, session_id, oldest=True)
            count = falls_out(window.dialogue, config)
            if not count and len(window.dialogue) >= records.MOST_DIALOGUE:
                count = records.MOST_DIALOGUE // 2
            if not count:
                break
            pieces = [of_said(said) for said in window.dialogue[:count]]
            pieces = pieces[: chunk(pieces, room)]
            earlier = window.summary
            made = await summarize(ask, earlier.text if earlier else "", pieces, tokens=tokens, room=room)
            asked = [*(earlier.asked if earlier else ()), *(one for p in pieces if (one := p.asked()) is not None)]
            summary = Summary(
                pieces[-1].at,
                made.text,
                kept(asked, MOST_TOKENS),
                len(pieces),
                sum(piece.tokens for piece in pieces) + (tokens_of(earlier.text) if earlier else 0),
                tokens_of(made.text),
            )
            used = made.turn.usage.input_tokens, made.turn.usage.output_tokens
            if not await records.keep_summary(
                self._windows.db, org_id, session_id, window.base, summary, model=made.turn.model, used=used, tell=True
            ):
                log.info("summary_not_kept", session_id=session_id, error="another one was made meanwhile")
                break
