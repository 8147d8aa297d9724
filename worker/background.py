"""What the background jobs of a worker are: a handler for each kind. See `worker.jobs`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kernel.jobs import Job
from kernel.postgres import Pool
from kernel.settings import Settings
from memory.documents.ingest import Ingestion
from memory.documents.records import JOB
from memory.port import Memory
from memory.store import PostgresMemory
from orchestrator.extraction.extraction import Extraction
from orchestrator.extraction.requests import EXTRACT
from orchestrator.measures import Measures
from orchestrator.models.factory import Models
from orchestrator.tools.tool import Vault
from orchestrator.window.compaction import Compaction
from orchestrator.window.windows import COMPACT, Windows
from worker.jobs import Handler


def background(
    *,
    settings: Settings,
    db: Pool,
    memory: Memory,
    models: Models,
    windows: Windows,
    vault_of: Callable[[str, str], Vault],
    measures: Measures | None = None,
) -> dict[str, Handler]:
    """The handlers by the kind of job they do. `vault_of` gives the secrets of an org and one of its runs."""
    extraction = Extraction(db, memory, models, vault_of, model=settings.extraction_model, measures=measures)
    return {
        **(memory.background() if isinstance(memory, PostgresMemory) else {}),
        EXTRACT: extraction.do,
        COMPACT: Compaction(windows, models, vault_of).do,
        JOB: Ingestion.from_settings(settings, db, memory),
    }


def burials(*, settings: Settings, db: Pool, memory: Memory) -> dict[str, Callable[[Job], Awaitable[None]]]:
    """What is done, by the kind of job, after all of a job's workers have died."""
    return {JOB: Ingestion.from_settings(settings, db, memory).buried}
