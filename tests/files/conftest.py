"""Workspaces over a directory and over S3 (moto's server on loopback): every test here runs over both."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote
from uuid import uuid4

import aiohttp
import pytest
from pydantic import SecretStr

from kernel.blobs import BlobPlace, Blobs
from kernel.file_quotas import FileLimits
from kernel.files import Author, Files
from kernel.postgres import Pool
from kernel.sessions import create_session

LIMITS = FileLimits(file_bytes=8_000_000, session_bytes=12_000_000, session_files=6)


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """An S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


async def s3_place(s3_url: str) -> BlobPlace:
    """A bucket of its own."""
    bucket = f"bucket-{uuid4().hex}"
    async with aiohttp.ClientSession() as session, session.put(f"{s3_url}/{bucket}") as answer:
        assert answer.status == 200
    return BlobPlace(f"s3://{bucket}/some/where", s3_url, "us-east-1", SecretStr("key"), SecretStr("secret"))


@pytest.fixture(params=["directory", "s3"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> BlobPlace:
    """Where blobs lie, in one of the two ways."""
    if request.param == "directory":
        return BlobPlace((tmp_path / "with a space").as_uri())
    return await s3_place(request.getfixturevalue("s3_url"))


@pytest.fixture
def blobs(place: BlobPlace) -> Blobs:
    return Blobs(place)


@dataclass(frozen=True, slots=True)
class Workspace:
    """The files of one session, and the ids to ask for them."""

    files: Files
    blobs: Blobs
    place: BlobPlace
    db: Pool
    org: str
    session: str

    @property
    def at(self) -> tuple[str, str]:
        return self.org, self.session

    async def write(self, path: str, data: bytes = b"data", *, expected: str | None = None) -> str:
        """Writes a file; its etag."""
        file = await self.files.write(*self.at, path, data, by=Author("ada"), expected=expected)
        return file.etag

    async def read(self, path: str) -> bytes:
        return await self.files.read(*self.at, path, 100_000_000)

    async def paths(self) -> list[str]:
        return [file.path for file in await self.files.list(*self.at)]

    async def stored(self) -> list[str]:
        """The keys of all blobs that are in the store, those that are being written included."""
        if self.place.url.startswith("file:"):
            return await asyncio.to_thread(_all_files, Path(unquote(self.place.url.removeprefix("file://"))))
        import obstore

        store = await self.blobs._opened()
        return sorted([entry["path"] async for page in obstore.list(store) for entry in page])

    async def loose(self) -> list[str]:
        rows = await self.db.fetch("SELECT blob FROM loose_blobs WHERE blob LIKE $1 || '/%'", self.org)
        return [row["blob"] for row in rows]


def _all_files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture
async def workspace(place: BlobPlace, blobs: Blobs, database: Pool, org: str) -> Workspace:
    session = await create_session(database, org)
    return Workspace(Files(database, blobs, LIMITS), blobs, place, database, org, session.id)
