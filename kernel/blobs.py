"""The blob store: bytes under keys, in a directory or in an S3 bucket.

Whoever writes here makes up the keys (`kernel.files` does, at random): no name that a caller or a model chose ever
becomes part of a path. A blob is whole or not there: a write that fails or is cancelled leaves nothing that could be
read. The library behind it, obstore, is imported on first use.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from kernel.errors import StoreUnavailable
from kernel.settings import Settings

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_PART: Final = 5 * 1_048_576  # what S3 takes as a part of an upload at least
_CHUNK: Final = 262_144
_ABORT_SECONDS: Final = 5.0

_CLIENT: Final[Mapping[str, Any]] = {
    "connect_timeout": timedelta(seconds=3),
    "read_timeout": timedelta(seconds=15),
    "timeout": timedelta(minutes=15),  # for a whole answer, which a slow reader may take slowly
}
_RETRIES: Final[Mapping[str, Any]] = {"max_retries": 2, "retry_timeout": timedelta(seconds=8)}


class BlobMissing(Exception):
    """There is nothing under this key."""


class _Aborted(Exception):
    """Ends an upload from our side."""


@dataclass(frozen=True, slots=True)
class BlobPlace:
    """Where blobs lie: `file:///directory`, `s3://bucket/prefix`, or nowhere at all (empty).

    `endpoint` is the URL of an S3 server that is not Amazon's; it is addressed by path. Without keys those of the
    machine's role are used.
    """

    url: str
    endpoint: str = ""
    region: str = "us-east-1"
    access_key: SecretStr = field(default_factory=lambda: SecretStr(""))
    secret_key: SecretStr = field(default_factory=lambda: SecretStr(""))

    @classmethod
    def from_settings(cls, settings: Settings) -> BlobPlace:
        return cls(
            settings.files_url,
            settings.files_s3_endpoint,
            settings.files_s3_region,
            settings.files_s3_access_key,
            settings.files_s3_secret_key,
        )


class Blobs:
    """The blobs of one place. Nothing is opened before the first use, and nothing has to be closed."""

    def __init__(self, place: BlobPlace) -> None:
        self._place = place
        self._store: ObjectStore | None = None
        self._directory = Path(unquote(urlsplit(place.url).path)) if place.url.startswith("file:") else None

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Writes what `chunks` gives. An error that comes out of `chunks` passes through, and nothing is written.

        Raises:
            StoreUnavailable: the store can't be reached, refuses us, is full or is not configured.
        """
        store = await self._opened()
        first = bytearray()
        async for chunk in chunks:
            first += chunk
            if len(first) >= _PART:
                await self._write_parts(store, key, bytes(first), chunks)
                return
        async with _reaching():
            import obstore

            await obstore.put_async(store, key, bytes(first))

    @asynccontextmanager
    async def open(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes from `start` up to, and without, `end`, in pieces. What is open stays readable when it is deleted.

        Raises:
            BlobMissing: nothing is under this key.
            StoreUnavailable: as for `write`, also in the midst of reading.
        """
        import obstore

        store = await self._opened()
        if end is not None and end <= start:
            yield _nothing()
            return
        options: Any = {"range": {"offset": start} if end is None else (start, end)} if start or end is not None else {}
        async with _reaching():
            try:
                found = await obstore.get_async(store, key, options=options)
            except FileNotFoundError as error:
                raise BlobMissing from error
        yield _pieces(found)

    async def delete(self, keys: Sequence[str]) -> None:
        """Deletes what is there of these.

        Raises:
            StoreUnavailable: as for `write`; some may be deleted.
        """
        store = await self._opened()
        if self._directory is not None:
            async with _reaching():
                await asyncio.to_thread(_unlink, self._directory, keys)
            return
        import obstore

        for begin in range(0, len(keys), 1000):
            async with _reaching():
                await obstore.delete_async(store, keys[begin : begin + 1000])

    async def _write_parts(self, store: ObjectStore, key: str, first: bytes, chunks: AsyncIterator[bytes]) -> None:
        """Hands the pieces over one by one, so that `chunks` is read by whoever called, under his timeouts."""
        import obstore

        pipe: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(1)
        pipe.put_nowait(first)
        upload = asyncio.ensure_future(obstore.put_async(store, key, _drain(pipe)))
        try:
            async for chunk in chunks:
                await _hand_over(pipe, chunk, upload)
            await _hand_over(pipe, None, upload)
            async with _reaching():
                await asyncio.shield(upload)
        except BaseException:
            # To cancel the upload would leave its parts in the bucket: it is told that its source has failed.
            with contextlib.suppress(BaseException):
                async with asyncio.timeout(_ABORT_SECONDS):
                    await _hand_over(pipe, _Aborted(), upload)
                    await asyncio.wait([upload])
            if not upload.done():
                upload.cancel()
            elif not upload.cancelled():
                upload.exception()
            raise

    async def _opened(self) -> ObjectStore:
        if self._store is None:
            if not self._place.url:
                raise StoreUnavailable(
                    "This deployment has no place for files.", suggestions=("set LONGHAUL_FILES_URL",)
                )
            async with _reaching():
                self._store = await asyncio.to_thread(self._connect)
        return self._store

    def _connect(self) -> ObjectStore:
        from obstore.store import LocalStore, S3Store

        if self._directory is not None:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            return LocalStore(self._directory)
        place = self._place
        parts = urlsplit(place.url)
        config: dict[str, Any] = {"region": place.region}
        if place.access_key.get_secret_value():
            config["access_key_id"] = place.access_key.get_secret_value()
            config["secret_access_key"] = place.secret_key.get_secret_value()
        if place.endpoint:
            config |= {"endpoint": place.endpoint, "virtual_hosted_style_request": False}
        client: Any = {**_CLIENT, "allow_http": place.endpoint.startswith("http://")}
        retries: Any = dict(_RETRIES)
        return S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            client_options=client,
            retry_config=retries,
            **config,
        )


async def _nothing() -> AsyncIterator[bytes]:
    pieces: tuple[bytes, ...] = ()
    for piece in pieces:
        yield piece


async def _pieces(found: Any) -> AsyncIterator[bytes]:
    async with _reaching():
        async for piece in found.stream(min_chunk_size=_CHUNK):
            yield bytes(piece)


async def _drain(pipe: asyncio.Queue[bytes | BaseException | None]) -> AsyncIterator[bytes]:
    while (piece := await pipe.get()) is not None:
        if isinstance(piece, BaseException):
            raise piece
        yield piece


async def _hand_over(
    pipe: asyncio.Queue[bytes | BaseException | None], piece: bytes | BaseException | None, upload: asyncio.Future[Any]
) -> None:
    """Waits until the upload takes it, or has failed."""
    if not pipe.full():
        pipe.put_nowait(piece)
        return
    putting = asyncio.ensure_future(pipe.put(piece))
    try:
        await asyncio.wait({putting, upload}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        putting.cancel()
    if not putting.done() or putting.cancelled():
        async with _reaching():
            upload.result()


def _unlink(directory: Path, keys: Sequence[str]) -> None:
    """Removes files and what an interrupted write has left beside them, and folders that are empty then."""
    for key in keys:
        path = directory / key
        for found in (path, *path.parent.glob(f"{path.name}#*")):
            found.unlink(missing_ok=True)
        for folder in path.relative_to(directory).parents[:-1]:
            try:
                (directory / folder).rmdir()
            except OSError:
                break


@asynccontextmanager
async def _reaching() -> AsyncIterator[None]:
    """What the library raises, as errors of ours."""
    try:
        yield
    except TimeoutError:
        raise
    except Exception as error:
        from obstore.exceptions import BaseError

        if isinstance(error, BaseError | OSError):
            first = str(error).split("\n", 1)[0][:300]
            raise StoreUnavailable(f"The store of files can't be used: {first}") from error
        raise
