"""Sealing: what is kept of a secret gives nothing away, and opens only where it belongs."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from pydantic import SecretStr

from kernel.sealing import DERIVED, CannotOpen, Sealed, Sealer, parse_keys, same
from kernel.settings import Settings

OLD, NEW = os.urandom(32), os.urandom(32)


def sealer_of(settings: Settings) -> Sealer:
    return Sealer.of(settings.sealing_keys, settings.secret_key)


def settings_with(keys: str = "", secret_key: str = "k" * 32) -> Settings:
    return Settings.model_validate(
        {"DATABASE_URL": "postgresql://db", "REDIS_URL": "redis://r", "secret_key": secret_key, "sealing_keys": keys}
    )


def encoded(key: bytes) -> str:
    return base64.urlsafe_b64encode(key).decode()


async def ready(**keys: bytes) -> Sealer:
    sealer = Sealer(keys)
    await sealer.ready()
    return sealer


async def test_what_was_sealed_opens_again() -> None:
    sealer = await ready(one=OLD)
    sealed = sealer.seal(b"hunter2", "org", "name")
    assert sealed.key_id == "one"
    assert b"hunter2" not in sealed.data
    assert sealer.open(sealed, "org", "name") == b"hunter2"


async def test_the_same_value_is_never_sealed_to_the_same_bytes() -> None:
    sealer = await ready(one=OLD)
    assert len({sealer.seal(b"hunter2", "org", "name").data for _ in range(100)}) == 100


@pytest.mark.parametrize("about", [("other", "name"), ("org", "other"), ("org",), ("orgname",), ("org", "name", "")])
async def test_it_opens_only_for_what_it_was_sealed_for(about: tuple[str, ...]) -> None:
    sealer = await ready(one=OLD)
    with pytest.raises(CannotOpen):
        sealer.open(sealer.seal(b"hunter2", "org", "name"), *about)


async def test_a_changed_byte_is_noticed_wherever_it_is() -> None:
    sealer = await ready(one=OLD)
    sealed = sealer.seal(b"hunter2", "org")
    for place in range(len(sealed.data)):
        changed = bytearray(sealed.data)
        changed[place] ^= 1
        with pytest.raises(CannotOpen):
            sealer.open(replace(sealed, data=bytes(changed)), "org")
    for cut in (b"", sealed.data[:5], sealed.data[:-1]):
        with pytest.raises(CannotOpen):
            sealer.open(replace(sealed, data=cut), "org")


async def test_the_first_key_seals_and_older_ones_still_open() -> None:
    before, after = await ready(old=OLD), await ready(new=NEW, old=OLD)
    sealed = before.seal(b"hunter2", "org")
    assert after.open(sealed, "org") == b"hunter2"
    assert after.seal(b"hunter2", "org").key_id == "new"


async def test_a_key_that_is_missing_is_named() -> None:
    sealed = (await ready(old=OLD)).seal(b"hunter2", "org")
    with pytest.raises(CannotOpen, match="'old', which is not among") as caught:
        (await ready(new=NEW)).open(sealed, "org")
    assert "LONGHAUL_SEALING_KEYS" in caught.value.suggestions[0]
    with pytest.raises(CannotOpen, match="'old' does not open it"):
        (await ready(old=NEW)).open(sealed, "org")


async def test_without_keys_of_its_own_a_process_seals_with_one_that_is_derived() -> None:
    first, second = sealer_of(settings_with()), sealer_of(settings_with())
    other = sealer_of(settings_with(secret_key="another" * 8))
    for sealer in (first, second, other):
        await sealer.ready()
    sealed = first.seal(b"hunter2", "org")
    assert sealed.key_id == DERIVED
    assert second.open(sealed, "org") == b"hunter2"
    with pytest.raises(CannotOpen):
        other.open(sealed, "org")


async def test_what_the_derived_key_sealed_stays_readable_when_keys_are_given() -> None:
    before = sealer_of(settings_with())
    after = sealer_of(settings_with(f"new:{encoded(NEW)}, old:{encoded(OLD)}"))
    await before.ready()
    await after.ready()
    assert after.open(before.seal(b"hunter2", "org"), "org") == b"hunter2"
    assert after.seal(b"hunter2", "org").key_id == "new"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no-colon", "entry 1 must be id:key"),
        (f":{encoded(OLD)}", "entry 1 must be id:key"),
        (f"derived:{encoded(OLD)}", "entry 1 must be id:key"),
        (f"one:{encoded(OLD)},two:{encoded(OLD)[:-8]}", "'two' must be 32 bytes"),
        ("one:not*base64", "'one' must be 32 bytes"),
        (f"one:{encoded(OLD)},one:{encoded(NEW)}", "two keys 'one'"),
    ],
    ids=["no colon", "no id", "an id that is taken", "a short key", "no base64", "an id twice"],
)
def test_a_wrong_key_is_named_and_not_shown(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_keys(text)
    assert encoded(OLD)[:-8] not in str(caught.value)


def test_keys_may_lack_their_padding() -> None:
    assert parse_keys(f"one:{encoded(OLD).rstrip('=')}") == {"one": OLD}


def test_the_keys_are_not_shown_with_the_settings() -> None:
    assert encoded(OLD) not in repr(settings_with(f"one:{encoded(OLD)}"))


def test_the_library_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, kernel.runs, kernel.secrets, kernel.settings; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_sealing_before_it_is_ready_is_a_fault() -> None:
    with pytest.raises(KeyError):
        Sealer({"one": OLD}).seal(b"hunter2")
    with pytest.raises(CannotOpen):
        Sealer({"one": OLD}).open(Sealed("one", b"x"))


# fingerprints


def test_a_fingerprint_is_of_one_text_for_one_thing() -> None:
    sealer = Sealer({"one": OLD})
    found = sealer.fingerprint(b"1234", "org", "route")
    assert same(found, sealer.fingerprint(b"1234", "org", "route"))
    for other in (
        sealer.fingerprint(b"1235", "org", "route"),
        sealer.fingerprint(b"1234", "another", "route"),
        sealer.fingerprint(b"1234", "org", "another"),
        Sealer({"one": NEW}).fingerprint(b"1234", "org", "route"),
        b"",
    ):
        assert not same(found, other)


def test_a_fingerprint_can_not_be_guessed_without_a_key() -> None:
    found = Sealer({"one": OLD}).fingerprint(b"1234", "org")
    for guess in (b"1234", b"org\x001234"):
        assert hashlib.sha256(guess).digest() not in found
        assert hmac.digest(OLD, guess, hashlib.sha256) not in found


def test_a_fingerprint_outlives_the_change_of_a_key() -> None:
    before = Sealer.of(SecretStr(f"a:{encoded(OLD)}"), SecretStr("k" * 32)).fingerprint(b"1234", "org")
    put_in_front = Sealer.of(SecretStr(f"b:{encoded(NEW)},a:{encoded(OLD)}"), SecretStr("k" * 32))
    replaced = Sealer.of(SecretStr(f"b:{encoded(NEW)}"), SecretStr("k" * 32))
    other_secret = Sealer.of(SecretStr(f"a:{encoded(OLD)}"), SecretStr("l" * 32))
    for sealer in (put_in_front, replaced, other_secret):
        assert same(before, sealer.fingerprint(b"1234", "org"))
        assert not same(before, sealer.fingerprint(b"1235", "org"))
