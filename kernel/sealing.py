"""Sealing: how secrets are kept in Postgres so that its rows, dumps and backups don't give them away.

AES-256-GCM under a random nonce. What a sealed value belongs to (its org, its name) is authenticated with it, so a row
that is copied to another org can't be opened there. Each sealed value names its key: the first key of the settings
seals, all of them open, and so a new key is put in front of the old ones.

Fingerprints tell whether two texts are the same, where neither may be kept and a plain digest would let a short secret
be guessed from a dump. They are HMACs under keys that are derived from those that seal.

The library that seals takes 30 ms to import and is imported by the first `ready()`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic import SecretStr

from kernel.errors import OperatorError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

DERIVED: Final = "derived"
"""The id of the key that is derived from `LONGHAUL_SECRET_KEY`."""

_KEY_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_FINGERPRINT_BYTES: Final = 32
_FORM: Final = b"\x01"  # what follows: nonce, ciphertext and tag of AES-256-GCM


class CannotOpen(OperatorError):
    """A sealed value can't be opened with the keys that this process has. Names the key that it asks for."""

    code = "sealed"


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed value as it is stored: the id of its key, and bytes that mean nothing without it."""

    key_id: str
    data: bytes


class Sealer:
    """Seals and opens.

    Args:
        keys: 32 bytes each, by their ids. The first one seals.

    Raises:
        ValueError: there is no key.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        if not keys:
            raise ValueError("a sealer needs a key")
        self._keys = dict(keys)
        self._first = next(iter(self._keys))
        self._ciphers: dict[str, AESGCM] = {}
        self._fingerprint_keys = [_expanded(key, b"fingerprint key") for key in self._keys.values()]

    @classmethod
    def of(cls, keys: SecretStr, secret: SecretStr) -> Sealer:
        """The sealing keys of the settings, and last one that is derived from the secret key: what it sealed while
        there was no other stays readable."""
        return cls({**parse_keys(keys.get_secret_value()), DERIVED: _derived(secret.get_secret_value())})

    async def ready(self) -> None:
        """Prepares for `seal` and `open`, which must not be called before. Takes time once per process, off the
        event loop."""
        if not self._ciphers:
            self._ciphers = await asyncio.to_thread(_ciphers, self._keys)

    def seal(self, plain: bytes, *about: str) -> Sealed:
        """`plain`, sealed for what it is `about`: whoever opens it must say the same."""
        nonce = os.urandom(_NONCE_BYTES)
        data = self._ciphers[self._first].encrypt(nonce, plain, _bound(about))
        return Sealed(self._first, _FORM + nonce + data)

    def open(self, sealed: Sealed, *about: str) -> bytes:
        """What was sealed.

        Raises:
            CannotOpen: its key is not among those of this process, or it was sealed for something else or changed.
        """
        cipher = self._ciphers.get(sealed.key_id)
        if cipher is None:
            raise CannotOpen(
                f"It was sealed with the key {sealed.key_id!r}, which is not among this process's sealing keys.",
                suggestions=(f"put the key {sealed.key_id!r} back into LONGHAUL_SEALING_KEYS", "set the secret anew"),
            )
        from cryptography.exceptions import InvalidTag  # loaded by now

        form, nonce, data = sealed.data[:1], sealed.data[1 : 1 + _NONCE_BYTES], sealed.data[1 + _NONCE_BYTES :]
        try:
            if form != _FORM or len(nonce) != _NONCE_BYTES:
                raise InvalidTag
            return cipher.decrypt(nonce, data, _bound(about))
        except InvalidTag:
            raise CannotOpen(
                f"The key {sealed.key_id!r} does not open it: it was sealed with another key of that id, or changed.",
                suggestions=("give all processes the same sealing keys", "set the secret anew"),
            ) from None

    def fingerprint(self, plain: bytes, *about: str) -> bytes:
        """What `plain` can be recognised by with `same`, for what it is `about`: 32 bytes for each key, so that it is
        still recognised when some of the keys have been replaced. Needs no `ready`."""
        text = b"\x00".join((_bound(about), plain))
        return b"".join(hmac.digest(key, text, hashlib.sha256) for key in self._fingerprint_keys)


def same(one: bytes, other: bytes) -> bool:
    """Whether two fingerprints, of processes that have a key in common, are of the same text."""
    return not _pieces(one).isdisjoint(_pieces(other))


def parse_keys(text: str) -> dict[str, bytes]:
    """The keys in `id:key,id:key`, where a key is 32 bytes in base64url.

    Raises:
        ValueError: says which entry is wrong, by its place or id, and never repeats a key.
    """
    keys: dict[str, bytes] = {}
    for place, entry in enumerate((part.strip() for part in text.split(",") if part.strip()), start=1):
        name, colon, encoded = entry.partition(":")
        if not colon or not _KEY_ID.fullmatch(name) or name == DERIVED:
            raise ValueError(
                f"entry {place} must be id:key, where the id is letters, digits, _ . - and not {DERIVED!r}"
            )
        try:
            key = base64.b64decode(encoded.rstrip("=") + "=" * (-len(encoded.rstrip("=")) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != _KEY_BYTES:
            raise ValueError(f"the key {name!r} must be {_KEY_BYTES} bytes in base64url")
        if name in keys:
            raise ValueError(f"there are two keys {name!r}")
        keys[name] = key
    return keys


def _derived(secret: str) -> bytes:
    """HKDF-SHA256 (RFC 5869) with one block of output."""
    extracted = hmac.digest(b"longhaul", secret.encode(), hashlib.sha256)
    return _expanded(extracted, b"sealing key")


def _expanded(key: bytes, purpose: bytes) -> bytes:
    """HKDF's second half, where `key` is as good as random."""
    return hmac.digest(key, purpose + b"\x01", hashlib.sha256)


def _pieces(fingerprint: bytes) -> set[bytes]:
    return {fingerprint[at : at + _FINGERPRINT_BYTES] for at in range(0, len(fingerprint), _FINGERPRINT_BYTES)}


def _bound(about: tuple[str, ...]) -> bytes:
    return b"\x00".join(part.encode() for part in about)


def _ciphers(keys: Mapping[str, bytes]) -> dict[str, AESGCM]:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return {name: AESGCM(key) for name, key in keys.items()}
