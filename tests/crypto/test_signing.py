from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkc.crypto.primitives import digest
from zkc.crypto.signing import (
    ED25519_SIGNATURE,
    ML_DSA_SIGNATURE,
    IdentityKey,
    read_identity,
    safety_number,
)
from zkc.errors import PeerViolation

HASHED = digest(b"what is signed")
FINGERPRINTS = st.binary(min_size=32, max_size=32)
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


def forged(identity: IdentityKey, label: str, hashed: bytes, signature: bytes, *, durable: bool = True) -> bool:
    """Whether the signature is refused, and for the one reason that a peer may learn."""
    check = identity.public.verify_durable if durable else identity.public.verify
    try:
        check(label, hashed, signature)
    except PeerViolation as error:
        assert error.detail == "forged"
        return True
    return False


def test_a_live_signature_verifies_for_its_label_hash_and_key_alone(alice: IdentityKey, bob: IdentityKey) -> None:
    signature = alice.sign("xfer-req", HASHED)
    assert len(signature) == ED25519_SIGNATURE
    alice.public.verify("xfer-req", HASHED, signature)
    assert forged(alice, "xfer-resp", HASHED, signature, durable=False)
    assert forged(alice, "xfer-req", digest(b"other"), signature, durable=False)
    assert forged(bob, "xfer-req", HASHED, signature, durable=False)


@pytest.mark.attack("H10")
def test_a_signature_under_one_label_is_none_under_another(alice: IdentityKey) -> None:
    """H10 core: no signature can be offered as one of another type, durable ones included."""
    labels = ["card", "app", "cert", "receipt", "coordinator-card", "xfer-req", "xfer-resp", "xfer-key", "reg-server"]
    for made in labels:
        live, durable = alice.sign(made, HASHED), alice.sign_durable(made, HASHED)
        for offered in labels:
            assert forged(alice, offered, HASHED, live, durable=False) is (made != offered)
            assert forged(alice, offered, HASHED, durable) is (made != offered)


def test_a_label_cannot_run_into_the_hash(alice: IdentityKey) -> None:
    """The zero byte between label and hash keeps ("a", "bc") and ("ab", "c") apart."""
    signature = alice.sign("card", b"s" + HASHED)
    assert forged(alice, "cards", HASHED, signature, durable=False)


def test_a_durable_signature_needs_both_halves(alice: IdentityKey, bob: IdentityKey) -> None:
    """Whoever breaks one of Ed25519 and ML-DSA-65 forges nothing."""
    good, other = alice.sign_durable("card", HASHED), bob.sign_durable("card", HASHED)
    assert len(good) == ED25519_SIGNATURE + ML_DSA_SIGNATURE
    alice.public.verify_durable("card", HASHED, good)
    assert forged(alice, "card", HASHED, good[:ED25519_SIGNATURE] + other[ED25519_SIGNATURE:])
    assert forged(alice, "card", HASHED, other[:ED25519_SIGNATURE] + good[ED25519_SIGNATURE:])


@pytest.mark.parametrize("cut", [0, 1, 63, 64, 65, 64 + 3308])
def test_a_durable_signature_of_another_length_is_refused(alice: IdentityKey, cut: int) -> None:
    signature = alice.sign_durable("card", HASHED)
    assert forged(alice, "card", HASHED, signature[:cut])
    assert forged(alice, "card", HASHED, signature + bytes(1 + cut))


def test_every_flipped_bit_of_a_live_signature_and_a_sample_of_a_durable_one_is_refused(alice: IdentityKey) -> None:
    live, durable = alice.sign("receipt", HASHED), alice.sign_durable("receipt", HASHED)
    for bit in range(8 * len(live)):
        damaged = bytearray(live)
        damaged[bit // 8] ^= 1 << bit % 8
        assert forged(alice, "receipt", HASHED, bytes(damaged), durable=False)
    for at in (*range(0, len(durable), 97), len(durable) - 1):
        damaged = bytearray(durable)
        damaged[at] ^= 1 << at % 8
        assert forged(alice, "receipt", HASHED, bytes(damaged))


def test_an_ed25519_signature_has_one_encoding(alice: IdentityKey) -> None:
    """S and S + L sign the same under a lax verifier; here only the reduced one is a signature (RFC 8032, 5.1.7)."""
    signature = alice.sign("card", HASHED)
    s = int.from_bytes(signature[32:], "little")
    again = signature[:32] + (s + GROUP_ORDER).to_bytes(32, "little")
    assert forged(alice, "card", HASHED, again, durable=False)


def test_an_identity_comes_back_from_its_seed() -> None:
    seed = bytes(range(64))
    one, other = IdentityKey.from_seed(seed), IdentityKey.from_seed(seed)
    assert one.public == other.public
    assert one.secret.reveal() == seed
    other.public.verify_durable("card", HASHED, one.sign_durable("card", HASHED))


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_a_seed_of_another_length_is_none(size: int) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        IdentityKey.from_seed(bytes(size))


def test_a_fingerprint_covers_both_keys(alice: IdentityKey, bob: IdentityKey) -> None:
    mixed = read_identity(alice.public.ed25519, bob.public.ml_dsa)
    assert len({alice.public.fingerprint, bob.public.fingerprint, mixed.fingerprint}) == 3
    expected = digest(b"zkc/1 id\0" + alice.public.ed25519 + alice.public.ml_dsa)
    assert alice.public.fingerprint == expected


def test_an_identity_key_shows_and_stores_nothing_of_its_secret() -> None:
    identity = IdentityKey.from_seed(b"0123456789abcdef" * 4)
    assert "0123456789abcdef" not in repr(identity)
    assert b"0123456789abcdef".hex() not in repr(identity)
    assert repr(identity).startswith(f"IdentityKey({identity.public.fingerprint.hex()[:16]}")
    with pytest.raises(TypeError):
        pickle.dumps(identity)


# --- safety numbers -------------------------------------------------------------------------------------------------


@given(FINGERPRINTS, FINGERPRINTS)
def test_both_ends_see_the_same_safety_number(one: bytes, other: bytes) -> None:
    assert safety_number(one, other) == safety_number(other, one)


@given(FINGERPRINTS, FINGERPRINTS)
def test_a_safety_number_is_12_groups_of_5_digits(one: bytes, other: bytes) -> None:
    groups = safety_number(one, other).split(" ")
    assert len(groups) == 12
    assert all(len(group) == 5 and group.isascii() and group.isdigit() for group in groups)


@given(FINGERPRINTS, FINGERPRINTS, FINGERPRINTS)
def test_another_key_at_either_end_changes_the_safety_number(one: bytes, other: bytes, third: bytes) -> None:
    if third != other:
        assert safety_number(one, other) != safety_number(one, third)


def test_a_safety_number_is_what_the_specification_says() -> None:
    low, high = bytes(32), b"\xff" * 32
    number = int.from_bytes(digest(b"zkc/1 safety\0" + low + high), "big") % 10**60
    assert safety_number(high, low).replace(" ", "") == f"{number:060d}"
