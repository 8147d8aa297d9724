"""The job that takes documents in: interrupted, repeated, overtaken, and where a store or the embedder fails."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from uuid import uuid4

import orjson
import pytest

from kernel.blobs import BlobPlace, Blobs
from kernel.files import Files
from kernel.jobs import Job, JobLost, bury_jobs, get_job, requeue_job, take_job
from kernel.postgres import Pool
from kernel.settings import Settings
from kernel.tasks import end
from kernel.tenants import ensure_org
from memory.documents.ingest import Ingestion
from memory.documents.records import JOB, Document, DocumentLimits, Place
from memory.documents.refusals import DocumentRefused
from memory.documents.store import Documents, NoDocumentRoom, NoPlace
from memory.embedders.lexical import LexicalEmbedder
from memory.errors import EmbedderUnavailable, MemoryUnavailable
from memory.in_memory import InMemory
from memory.port import Memory
from memory.records import Filter, Scope
from memory.store import PostgresMemory
from tests.conftest import MakeStack
from tests.documents import made
from tests.documents.conftest import callers
from tests.waiting import eventually

LIMITS = DocumentLimits(bytes=1_000_000, org_bytes=3_000_000, per_org=5)


class Embedder(LexicalEmbedder):
    """Counts what it is asked for. `held` makes it wait, `failing` fail, from the text that contains it on."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.held: str | None = None
        self.failing: str | None = None
        self.reached = asyncio.Event()
        self.go = asyncio.Event()

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        if self.failing is not None and any(self.failing in text for text in texts):
            raise EmbedderUnavailable("The embedder is down.")
        if self.held is not None and any(self.held in text for text in texts):
            self.reached.set()
            await self.go.wait()
        self.texts += texts
        return await super().embed(texts)


class Away(InMemory):
    """Out of reach."""

    async def forget_document(self, org_id: str, document_id: str) -> int:
        raise MemoryUnavailable("memories can't be reached")


class Bench:
    """A knowledge base whose worker is played by the test."""

    def __init__(self, db: Pool, folder: Path, org: str) -> None:
        self.db = db
        self.org = org
        self.blobs = Blobs(BlobPlace(folder.as_uri()))
        self.embedder = Embedder()
        self.memory: Memory = PostgresMemory(db, self.embedder)
        self.documents = Documents(db, self.blobs, LIMITS)

    async def upload(self, text: str | bytes, name: str = "a.md") -> Document:
        data = text.encode() if isinstance(text, str) else text
        document, _ = await self.documents.upload(Place(self.org, "org", None, name), data)
        return document

    async def get(self, document: Document) -> Document:
        return await self.documents.get(Scope(self.org), document.id)

    async def take(self) -> Job:
        job = await take_job(self.db, [JOB], worker="test", lease_seconds=60)
        assert job is not None
        return job

    def ingestion(self, *, batch: int = 1) -> Ingestion:
        return Ingestion(self.db, self.memory, self.blobs, batch=batch)

    async def work(self, *, batch: int = 1) -> None:
        """Does the next job as a worker does."""
        job = await self.take()
        assert await self.ingestion(batch=batch)(job)

    async def texts(self, document: Document) -> list[str]:
        """Passages as the memory has them, by place."""
        where = Filter(document_ids=(document.id,))
        items = await self.memory.list(Scope(self.org), where=where, limit=200)
        return [item.text for item in sorted(items, key=lambda item: item.place or 0)]

    async def worker_dies(self) -> None:
        """Its leases are over."""
        await self.db.execute("UPDATE jobs SET lease_until = now() - interval '1 s' WHERE status = 'running'")

    async def blob_count(self) -> int:
        """Blobs that a document has."""
        return int(await self.db.fetchval("SELECT count(*) FROM document_versions"))


@pytest.fixture
async def bench(own_database: Pool, tmp_path: Path) -> Bench:
    return Bench(own_database, tmp_path / "files", await ensure_org(own_database, f"org {uuid4().hex}"))


def markdown(*sections: str) -> str:
    return "\n\n".join(f"# {section.split()[0]}\n\n{section}" for section in sections)


async def test_a_job_that_broke_off_goes_on_without_doing_anything_twice(bench: Bench) -> None:
    document = await bench.upload(markdown("one passage", "two passages", "three passages"))
    bench.embedder.held = "two passages"
    job = await bench.take()
    dying = asyncio.create_task(bench.ingestion()(job))
    await bench.embedder.reached.wait()
    seen = await bench.get(document)
    assert (seen.status, seen.progress) == ("embedding", {"stage": "embedding", "done": 1, "total": 3})
    dying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dying
    assert await bench.texts(document) == ["one passage"]
    await bench.worker_dies()
    bench.embedder.held = None
    await bench.work()
    ready = await bench.get(document)
    assert (ready.status, ready.served, ready.passages) == ("ready", 1, 3)
    assert await bench.texts(document) == ["one passage", "two passages", "three passages"]
    assert [text.split("\n")[-1] for text in bench.embedder.texts] == ["one passage", "two passages", "three passages"]


async def test_a_worker_that_lost_the_job_writes_nothing_more(bench: Bench) -> None:
    document = await bench.upload(markdown("one passage", "two passages", "three passages"))
    bench.embedder.held = "two passages"
    slow = asyncio.create_task(bench.ingestion()(await bench.take()))
    await bench.embedder.reached.wait()
    await bench.worker_dies()
    bench.embedder.held = None
    await bench.work()
    bench.embedder.go.set()
    with pytest.raises(JobLost):
        await slow
    assert await bench.texts(document) == ["one passage", "two passages", "three passages"]
    assert (await bench.get(document)).status == "ready"


async def test_only_what_changed_is_embedded_again(bench: Bench) -> None:
    document = await bench.upload(markdown("one passage", "two passages", "three passages"))
    await bench.work()
    bench.embedder.texts.clear()
    await bench.upload(markdown("new passage", "one passage", "2 passages", "three passages"))
    await bench.work()
    assert sorted(text.split("\n")[-1] for text in bench.embedder.texts) == ["2 passages", "new passage"]
    assert await bench.texts(document) == ["new passage", "one passage", "2 passages", "three passages"]
    ready = await bench.get(document)
    assert (ready.version, ready.served, ready.passages, await bench.blob_count()) == (2, 2, 4, 1)


async def test_the_version_before_is_searched_until_the_new_one_is_in(bench: Bench) -> None:
    document = await bench.upload(markdown("one passage", "two passages"))
    await bench.work()
    await bench.upload(markdown("three passages", "four passages"))
    bench.embedder.held = "four passages"
    working = asyncio.create_task(bench.work())
    await bench.embedder.reached.wait()
    assert {"one passage", "two passages"} <= set(await bench.texts(document))
    assert (await bench.get(document)).served == 1
    bench.embedder.go.set()
    await working
    assert await bench.texts(document) == ["three passages", "four passages"]


async def test_an_upload_meanwhile_is_taken_in_by_the_same_job(bench: Bench) -> None:
    document = await bench.upload(markdown("one passage", "two passages", "three passages"))
    bench.embedder.held = "one passage"
    working = asyncio.create_task(bench.work())
    await bench.embedder.reached.wait()
    await bench.upload(markdown("four passages"))
    bench.embedder.go.set()
    await working
    assert await bench.texts(document) == ["four passages"]
    ready = await bench.get(document)
    assert (ready.status, ready.served) == ("ready", 2)
    assert await take_job(bench.db, [JOB], worker="test", lease_seconds=60) is None


async def test_a_deletion_meanwhile_leaves_nothing(bench: Bench) -> None:
    document = await bench.upload(markdown("one passage", "two passages", "three passages"))
    bench.embedder.held = "two passages"
    working = asyncio.create_task(bench.work())
    await bench.embedder.reached.wait()
    await bench.documents.delete(bench.org, document.id)
    bench.embedder.go.set()
    await working
    assert await bench.texts(document) == []
    assert await bench.db.fetchval("SELECT count(*) FROM documents") == 0
    assert await bench.db.fetchval("SELECT count(*) FROM loose_blobs WHERE due_at <= now()") == 1
    files = Files(bench.db, bench.blobs, None)  # type: ignore[arg-type]  # sweeping needs no limits
    assert await files.sweep() == 1


async def test_a_failing_embedder_is_tried_again_and_the_document_says_so(bench: Bench) -> None:
    document = await bench.upload(markdown("one passage", "two passages"))
    bench.embedder.failing = "two"
    job = await bench.take()
    with pytest.raises(MemoryUnavailable):
        await bench.ingestion()(job)
    await requeue_job(bench.db, job, {"code": "memory_unavailable", "message": "The embedder is down."}, delay=0.0)
    seen = await bench.get(document)
    assert seen.status == "queued"
    assert seen.error is not None
    assert (seen.error["message"], "retry_at" in seen.error) == ("The embedder is down.", True)
    bench.embedder.failing = None
    await bench.work()
    ready = await bench.get(document)
    assert (ready.status, ready.error, ready.passages) == ("ready", None, 2)


async def test_after_the_last_try_the_document_has_failed_and_nothing_is_left(bench: Bench) -> None:
    document = await bench.upload(markdown("one passage", "two passages"))
    bench.embedder.failing = "two"
    await bench.db.execute("UPDATE jobs SET attempts = 1")
    await bench.work()
    failed = await bench.get(document)
    assert (failed.status, failed.served, failed.passages) == ("failed", None, 0)
    assert failed.error is not None
    assert "embedder" in failed.error["message"]
    assert await bench.texts(document) == []
    assert await bench.blob_count() == 0
    # The same bytes again are another try.
    bench.embedder.failing = None
    await bench.upload(markdown("one passage", "two passages"))
    await bench.work()
    assert (await bench.get(document)).status == "ready"


async def test_a_new_version_that_fails_in_the_end_leaves_the_one_before_as_it_was(bench: Bench) -> None:
    document = await bench.upload(markdown("one passage", "two passages"))
    await bench.work()
    await bench.upload(markdown("one passage", "three passages", "four passages", "two passages"))
    bench.embedder.failing = "four"
    await bench.db.execute("UPDATE jobs SET attempts = 1 WHERE finished_at IS NULL")
    await bench.work()
    failed = await bench.get(document)
    assert (failed.status, failed.served, failed.passages) == ("failed", 1, 2)
    assert set(await bench.texts(document)) == {"one passage", "two passages"}


async def test_a_job_whose_workers_all_died_leaves_a_document_that_failed(bench: Bench) -> None:
    document = await bench.upload(markdown("one passage"))
    told = {"code": "worker_died", "message": "The worker died."}
    await bench.db.execute(
        "UPDATE jobs SET status = 'failed', finished_at = now(), error = $1::text::json", orjson.dumps(told).decode()
    )
    failed = await bench.get(document)
    assert failed.status == "failed"
    assert failed.error == told
    await bench.upload(markdown("one passage"))
    await bench.work()
    assert (await bench.get(document)).status == "ready"


async def test_of_a_document_whose_workers_died_midway_nothing_stays(bench: Bench) -> None:
    document = await bench.upload(markdown("one passage", "two passages"))
    bench.embedder.held = "two passages"
    job = await bench.take()
    dying = asyncio.create_task(bench.ingestion()(job))
    await bench.embedder.reached.wait()
    await end(dying)
    assert await bench.texts(document) == ["one passage"]
    await bench.db.execute("UPDATE jobs SET attempt = attempts")
    await bench.worker_dies()
    [buried] = await bury_jobs(bench.db, [JOB])
    await bench.ingestion().buried(buried)
    failed = await bench.get(document)
    assert (failed.status, failed.error and failed.error["code"]) == ("failed", "not_taken_in")
    assert await bench.texts(document) == []
    assert await bench.blob_count() == 0


async def test_a_deletion_is_tried_until_it_is_done(bench: Bench) -> None:
    document = await bench.upload(markdown("one passage"))
    await bench.work()
    await bench.documents.delete(bench.org, document.id)
    await bench.db.execute("UPDATE jobs SET attempt = attempts - 1 WHERE finished_at IS NULL")
    memory, bench.memory = bench.memory, Away()
    await bench.work()
    bench.memory = memory
    assert await bench.texts(document) == ["one passage"]
    await bench.db.execute("UPDATE jobs SET not_before = now()")
    await bench.work()
    assert await bench.texts(document) == []
    assert await bench.db.fetchval("SELECT count(*) FROM documents") == 0


async def test_bytes_that_are_missing_in_the_store_are_looked_for_again_later(bench: Bench) -> None:
    document = await bench.upload(markdown("one passage"))
    blob = await bench.db.fetchval("SELECT blob FROM document_versions")
    await bench.blobs.delete([blob])
    with pytest.raises(Exception, match="missing in the store"):
        await bench.ingestion()(await bench.take())
    assert (await bench.get(document)).status == "parsing"


async def test_a_refused_document_ends_its_job(bench: Bench) -> None:
    document = await bench.upload(made.encrypted(made.pdf([("secret", 11)]), "password"), "a.pdf")
    await bench.work()
    job = await get_job(bench.db, JOB, document.id)
    assert job is not None
    assert job.finished_at is not None
    assert (await bench.get(document)).error == {
        "code": "encrypted",
        "message": "The PDF is encrypted: it opens with a password only.",
        "suggestions": ["save it without one"],
    }


async def test_another_backend_of_memory_takes_documents_too(bench: Bench) -> None:
    bench.memory = InMemory()
    document = await bench.upload(markdown("one passage", "two passages"))
    await bench.work(batch=100)
    await bench.upload(markdown("new passage", "one passage", "three passages"))
    await bench.work(batch=100)
    assert await bench.texts(document) == ["new passage", "one passage", "three passages"]
    await bench.documents.delete(bench.org, document.id)
    await bench.work()
    assert await bench.texts(document) == []


@pytest.mark.parametrize("backend", ["postgres", "in memory"])
async def test_documents_that_share_a_passage_each_have_their_own(bench: Bench, backend: str) -> None:
    if backend == "in memory":
        bench.memory = InMemory()
    fact = await bench.memory.remember(Scope(bench.org), "one passage")
    one, two = await bench.upload("one passage", "1.txt"), await bench.upload("one passage", "2.txt")
    await bench.work()
    await bench.work()
    await bench.documents.delete(bench.org, one.id)
    await bench.work()
    assert await bench.texts(one) == []
    assert await bench.texts(two) == ["one passage"]
    assert (await bench.memory.get(Scope(bench.org), fact.id)).kind == "fact"


async def test_quotas_hold(bench: Bench) -> None:
    with pytest.raises(DocumentRefused, match="at most 1000000 bytes"):
        await bench.upload("x" * 1_000_001)
    for number in range(3):
        await bench.upload(f"{number}" * 900_000, f"{number}.txt")
    with pytest.raises(NoDocumentRoom):
        await bench.upload("y" * 900_000, "3.txt")
    # Another version counts instead of the one before.
    await bench.upload("z" * 900_000, "2.txt")
    for number in (4, 5):
        await bench.upload("small", f"{number}.txt")
    with pytest.raises(NoDocumentRoom):
        await bench.upload("small", "6.txt")
    assert await bench.db.fetchval("SELECT count(*) FROM documents") == 5


async def test_an_upload_that_breaks_off_leaves_nothing(bench: Bench) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"The beginning of a text. " * 400
        raise ConnectionError("the client has gone")

    with pytest.raises(ConnectionError):
        await bench.documents.upload(Place(bench.org, "org", None, "a.txt"), broken())
    assert await bench.db.fetchval("SELECT count(*) FROM documents") == 0
    assert await bench.db.fetchval("SELECT count(*) FROM loose_blobs") == 0


async def test_without_a_place_for_files_uploads_are_refused_with_what_to_do(
    own_database: Pool, settings: Settings
) -> None:
    org = await ensure_org(own_database, "org")
    documents = Documents.from_settings(settings.model_copy(update={"files_url": ""}), own_database)
    with pytest.raises(NoPlace) as caught:
        await documents.upload(Place(org, "org", None, "a.txt"), b"text")
    assert "LONGHAUL_FILES_URL" in caught.value.suggestions[0]


async def test_a_worker_that_is_killed_midway_loses_nothing(make_stack: MakeStack) -> None:
    stack = await make_stack(workers=1)
    async with callers(stack) as make:
        caller = await make()
        rows = "\n".join(f"{number},ship number {number} of the fleet,{number * 7} tons" for number in range(5_000))
        document = await caller.upload("fleet.csv", f"no,name,load\n{rows}\n".encode())

        async def some_are_in() -> bool:
            return bool(
                await stack.database.fetchval(
                    "SELECT count(*) > 200 FROM memories WHERE document_id = $1", document["id"]
                )
            )

        await eventually(some_are_in, within=40)
        [worker] = stack.workers
        worker.send(signal.SIGKILL)
        await worker.wait()
        stack.programs.remove(worker)
        await stack.database.execute("UPDATE jobs SET lease_until = now() WHERE status = 'running'")
        await stack.add_worker()
        ready = await caller.ready(document["id"])
        counted = await stack.database.fetchrow(
            "SELECT count(*) AS n, count(DISTINCT text) AS texts, count(DISTINCT place) AS places FROM memories "
            "WHERE document_id = $1",
            document["id"],
        )
        assert counted is not None
        assert {*counted.values()} == {ready["passages"]}
    await stack.stop()
