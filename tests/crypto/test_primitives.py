from __future__ import annotations

import copy
import hmac
import pickle
import traceback
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkc.crypto.primitives import (
    ZERO_NONCE,
    Secret,
    aead_open,
    aead_seal,
    check_mac,
    counter_nonce,
    digest,
    expand,
    extract,
    mac,
)
from zkc.errors import PeerViolation

KEY = bytes(range(32))
MARK = b"attack at dawn, quietly"


# --- Secret: shows nowhere ------------------------------------------------------------------------------------------


def test_a_secret_does_not_show_in_repr_str_or_format() -> None:
    secret = Secret(MARK)
    for shown in (repr(secret), str(secret), f"{secret}", f"{[secret]!r}", "%s" % secret):  # noqa: UP031
        assert MARK.decode() not in shown
        assert MARK.hex() not in shown


def test_a_secret_does_not_show_in_a_traceback_with_locals() -> None:
    def fail(key: Secret) -> None:
        raise RuntimeError(f"something else went wrong with {key}")

    try:
        fail(Secret(MARK))
    except RuntimeError as error:
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "key = Secret(…)" in shown
    assert MARK.decode() not in shown


@pytest.mark.parametrize("store", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_secret_is_neither_pickled_nor_copied(store) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError):
        store(Secret(MARK))


def test_a_wiped_secret_is_empty_and_its_buffer_was_overwritten() -> None:
    secret = Secret(MARK)
    buffer = secret._buffer
    view = bytes(buffer)
    secret.wipe()
    assert view == MARK
    assert not buffer
    with pytest.raises(ValueError, match="wiped"):
        secret.reveal()
    assert repr(secret) == "Secret(wiped)"


def test_a_secret_keeps_bytes_of_its_own() -> None:
    """Whoever made it may clear the buffer that it came from."""
    given_bytes = bytearray(MARK)
    secret = Secret(given_bytes)
    given_bytes[:] = bytes(len(given_bytes))
    assert secret.reveal() == MARK


# --- hash, HKDF, MAC ------------------------------------------------------------------------------------------------


def test_digest_is_sha256_of_the_parts_joined() -> None:
    assert digest(b"a", b"", b"bc") == sha256(b"abc").digest()


def test_extract_and_expand_are_rfc_5869() -> None:
    """RFC 5869 in three lines of HMAC, with our label as info."""
    prk = extract(b"salt", Secret(b"one"), Secret(b"two"))
    assert prk.reveal() == hmac.digest(b"salt", b"onetwo", "sha256")
    first = hmac.digest(prk.reveal(), b"zkc/1 name" + b"\1", "sha256")
    second = hmac.digest(prk.reveal(), first + b"zkc/1 name" + b"\2", "sha256")
    assert expand(prk, "name", 44) == (first + second)[:44]


def test_expand_takes_a_name_as_text_or_bytes() -> None:
    prk = Secret(KEY)
    assert expand(prk, "token data", 16) == expand(prk, b"token data", 16)


@given(st.text(max_size=20), st.text(max_size=20))
def test_two_names_give_two_keys(one: str, other: str) -> None:
    """H10 core: a derivation's name separates it from every other."""
    prk = Secret(KEY)
    assert (expand(prk, one, 32) == expand(prk, other, 32)) is (one == other)


def test_mac_is_hmac_sha256_of_the_parts_joined() -> None:
    assert mac(KEY, b"a", b"bc") == hmac.digest(KEY, b"abc", "sha256")


def test_check_mac_accepts_the_same_bytes_alone() -> None:
    tag = mac(KEY, b"data")
    check_mac(tag, tag)
    for i in range(len(tag)):
        damaged = bytearray(tag)
        damaged[i] ^= 1
        with pytest.raises(PeerViolation) as caught:
            check_mac(tag, bytes(damaged))
        assert caught.value.detail == "forged"
    for wrong in (b"", tag[:-1], tag + b"\0"):
        with pytest.raises(PeerViolation):
            check_mac(tag, wrong)


# --- AEAD -----------------------------------------------------------------------------------------------------------


def test_what_was_sealed_opens_under_the_same_key_nonce_and_aad_alone() -> None:
    sealed = aead_seal(KEY, ZERO_NONCE, MARK, b"aad")
    assert len(sealed) == len(MARK) + 16
    assert aead_open(KEY, ZERO_NONCE, sealed, b"aad") == MARK
    for key, nonce, ciphertext, aad in (
        (KEY[::-1], ZERO_NONCE, sealed, b"aad"),
        (KEY, b"\1" * 12, sealed, b"aad"),
        (KEY, ZERO_NONCE, sealed, b"AAD"),
        (KEY, ZERO_NONCE, sealed[:-1], b"aad"),
        (KEY, ZERO_NONCE, b"", b"aad"),
        (KEY, ZERO_NONCE, bytes((sealed[0] ^ 1,)) + sealed[1:], b"aad"),
    ):
        with pytest.raises(PeerViolation) as caught:
            aead_open(key, nonce, ciphertext, aad)
        assert str(caught.value) == "forged: a ciphertext does not open"


@pytest.mark.parametrize("size", [0, 8, 11, 13, 16, 128])
def test_a_nonce_of_another_length_than_12_is_never_used(size: int) -> None:
    """The library takes 8 to 128 bytes; the protocol takes 12."""
    with pytest.raises(ValueError, match="12 bytes"):
        aead_seal(KEY, bytes(size), MARK, b"")


@pytest.mark.parametrize("size", [0, 16, 24, 31, 33])
def test_a_key_of_another_length_than_32_is_never_used(size: int) -> None:
    """AES-128 would be taken silently otherwise."""
    with pytest.raises(ValueError, match="32 bytes"):
        aead_seal(bytes(size), ZERO_NONCE, MARK, b"")


@given(st.binary(min_size=12, max_size=12), st.sets(st.integers(0, 2**64 - 1), min_size=2, max_size=20))
def test_each_counter_has_a_nonce_of_its_own(base: bytes, counters: set[int]) -> None:
    nonces = {counter_nonce(base, counter) for counter in counters}
    assert len(nonces) == len(counters)
    assert all(len(nonce) == 12 for nonce in nonces)


def test_counter_nonce_is_base_xor_counter() -> None:
    base = bytes.fromhex("0102030405060708090a0b0c")
    assert counter_nonce(base, 0) == base
    assert counter_nonce(bytes(12), 0x1122) == bytes(10) + b"\x11\x22"
    assert counter_nonce(base, 2**64 - 1).hex() == "01020304faf9f8f7f6f5f4f3"
