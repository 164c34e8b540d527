from __future__ import annotations

from typing import Any, Final

import msgspec
import pytest

from zkc.crypto.cards import (
    certify,
    make_card,
    make_coordinator_card,
    read_coordinator_card,
    sign_coordinator_card,
    verify_card,
    verify_certificate,
    verify_coordinator_card,
)
from zkc.crypto.primitives import digest
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import SUITES, KemPrivateKey, Suite
from zkc.errors import PeerViolation
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Card, CardBody, CoordinatorCard

SUITE: Final = SUITES["x25519"]
KEM: Final = SUITE.generate()
UID: Final = bytes(range(16))


def card_of(
    identity: IdentityKey, name: str = "alice", kind: Any = "computer", owner: IdentityKey | None = None
) -> bytes:
    return make_card(
        name=name, kind=kind, uid=UID, identity=identity, kem_key=KEM.public, epoch=3, not_after=2**31, owner=owner
    )


def altered(encoded: bytes, **changes: object) -> bytes:
    return encode(msgspec.structs.replace(decode(encoded, Card), **changes))


def resigned(encoded: bytes, identity: IdentityKey, voucher: IdentityKey | None = None, **changes: object) -> bytes:
    """The card with another body, signed again by those who hold the keys."""
    card: Card = decode(encoded, Card)
    body = encode(msgspec.structs.replace(decode(card.body, CardBody), **changes))
    return encode(
        Card(
            body, identity.sign_durable("card", digest(body)), card.owner_ed25519, card.owner_ml_dsa,
            voucher.sign_durable("app", digest(body)) if voucher else card.owner_signature,
        )
    )


def refused(encoded: bytes) -> str:
    with pytest.raises(PeerViolation) as caught:
        verify_card(encoded, SUITE)
    return caught.value.detail


# --- cards of computers and users -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["computer", "user"])
def test_a_card_says_what_its_maker_put_in(kind: str, alice: IdentityKey) -> None:
    encoded = card_of(alice, kind=kind)
    card = verify_card(encoded, SUITE)
    assert card.encoded == encoded
    assert card.name == "alice"
    assert card.body.kind == kind
    assert card.body.uid == UID
    assert (card.body.epoch, card.body.not_after) == (3, 2**31)
    assert card.identity == alice.public
    assert card.fingerprint == alice.public.fingerprint
    assert card.kem_key == KEM.public
    assert card.owner_fingerprint is None


def test_a_card_s_hash_is_that_of_its_body(alice: IdentityKey) -> None:
    """Two signings of one body have one hash: the certificate and the log name what was said, not the signature."""
    one, other = card_of(alice), card_of(alice)
    assert verify_card(one, SUITE).hash == digest(decode(one, Card).body) == verify_card(other, SUITE).hash


def test_a_card_of_each_suite_verifies_in_its_suite_alone(
    suite: Suite, private_key: KemPrivateKey, alice: IdentityKey
) -> None:
    encoded = make_card(
        name="alice", kind="user", uid=UID, identity=alice, kem_key=private_key.public, epoch=0, not_after=0
    )
    assert verify_card(encoded, suite).kem_key == private_key.public
    for other in SUITES.values():
        if other is not suite:
            with pytest.raises(PeerViolation) as caught:
                verify_card(encoded, other)
            assert caught.value.detail == "bad-key"


def test_a_card_is_signed_by_the_identity_in_it(alice: IdentityKey, bob: IdentityKey) -> None:
    encoded = card_of(alice)
    card: Card = decode(encoded, Card)
    hashed = digest(card.body)
    for signature in (
        bob.sign_durable("card", hashed), alice.sign_durable("app", hashed), alice.sign_durable("cert", hashed),
        alice.sign("card", hashed), b"", card.signature[:-1], card.signature + b"\0",
    ):
        assert refused(altered(encoded, signature=signature)) == "forged"


@pytest.mark.parametrize(
    "change",
    [{"name": "mallory"}, {"kind": "user"}, {"uid": bytes(16)}, {"epoch": 4}, {"not_after": 2**32}, {"owner": b""}],
)
def test_no_field_changes_under_the_signature(change: dict[str, object], alice: IdentityKey) -> None:
    encoded = card_of(alice)
    body = encode(msgspec.structs.replace(decode(decode(encoded, Card).body, CardBody), **change))
    if change == {"owner": b""}:
        assert verify_card(altered(encoded, body=body), SUITE)
    else:
        assert refused(altered(encoded, body=body)) == "forged"


def test_a_flip_of_any_byte_of_a_card_is_refused(alice: IdentityKey) -> None:
    """Each byte of structure and body, and a sample of the long signature."""
    encoded = card_of(alice)
    body = len(decode(encoded, Card).body) + 10
    for at in (*range(40), *range(40, body, 7), *range(body, len(encoded), 101), len(encoded) - 1):
        damaged = bytearray(encoded)
        damaged[at] ^= 1 << at % 8
        assert refused(bytes(damaged)) in {"malformed", "forged", "bad-key"}


def test_a_cut_card_and_one_with_more_behind_it_are_refused(alice: IdentityKey) -> None:
    encoded = card_of(alice)
    for wrong in (b"", *(encoded[:n] for n in range(1, len(encoded), 97)), encoded[:-1], encoded + b"\0", encoded * 2):
        assert refused(wrong) == "malformed"


@pytest.mark.parametrize(
    "name",
    ["", "Alice", "al ice", "al\u0131ce", "alice\n", "-alice", "a" * 64, "../alice", "alice/", "a/b/c", "\u202ealice"],
)
def test_a_card_for_what_is_no_name_is_refused(name: str, alice: IdentityKey) -> None:
    """R11 core: even signed by its own identity."""
    assert refused(resigned(card_of(alice), alice, name=name)) == "malformed"


def test_a_kind_of_none_of_the_three_is_refused(alice: IdentityKey) -> None:
    assert refused(resigned(card_of(alice), alice, kind="daemon")) == "malformed"


# --- applications -----------------------------------------------------------------------------------------------


def application(identity: IdentityKey, owner: IdentityKey) -> bytes:
    return card_of(identity, "bob/backup", "application", owner)


def test_an_application_s_card_names_its_owner(alice: IdentityKey, bob: IdentityKey) -> None:
    card = verify_card(application(alice, bob), SUITE)
    assert card.name == "bob/backup"
    assert card.owner_fingerprint == bob.public.fingerprint
    assert card.fingerprint == alice.public.fingerprint


def test_an_application_without_its_owner_s_signature_is_refused(alice: IdentityKey, bob: IdentityKey) -> None:
    encoded = application(alice, bob)
    hashed = digest(decode(encoded, Card).body)
    for signature in (
        b"", alice.sign_durable("app", hashed), bob.sign_durable("card", hashed), bob.sign("app", hashed),
        bob.sign_durable("app", digest(b"another card")),
    ):
        assert refused(altered(encoded, owner_signature=signature)) == "forged"
    assert refused(card_of(alice, "bob/backup", "application")) == "bad-key"


def test_an_owner_s_keys_must_be_those_that_the_card_names(alice: IdentityKey, bob: IdentityKey) -> None:
    """Somebody else cannot vouch in the owner's place, neither by keys beside the body nor by another fingerprint."""
    encoded = application(alice, bob)
    hashed = digest(decode(encoded, Card).body)
    stranger = altered(
        encoded, owner_ed25519=alice.public.ed25519, owner_ml_dsa=alice.public.ml_dsa,
        owner_signature=alice.sign_durable("app", hashed),
    )
    assert refused(stranger) == "forged"
    assert refused(resigned(encoded, alice, bob, owner=alice.public.fingerprint)) == "forged"
    assert refused(resigned(encoded, alice, bob, owner=b"")) == "forged"


def test_an_owner_s_word_is_for_one_body(alice: IdentityKey, bob: IdentityKey) -> None:
    """The application cannot change its name, epoch or key and keep the owner's signature."""
    encoded = application(alice, bob)
    for change in ({"name": "bob/other"}, {"epoch": 4}, {"kem_key": SUITE.generate().public.encode()}):
        assert refused(resigned(encoded, alice, **change)) == "forged"


def test_only_an_application_has_an_owner(alice: IdentityKey, bob: IdentityKey) -> None:
    encoded = card_of(alice)
    for change in (
        {"owner_ed25519": bob.public.ed25519}, {"owner_ml_dsa": bob.public.ml_dsa}, {"owner_signature": b"x"},
    ):
        assert refused(altered(encoded, **change)) == "malformed"
    assert refused(resigned(encoded, alice, owner=bob.public.fingerprint)) == "malformed"
    assert refused(card_of(alice, owner=bob)) == "malformed"


@pytest.mark.parametrize(("name", "kind"), [("bob", "application"), ("bob/backup", "computer"), ("bob/backup", "user")])
def test_name_and_kind_go_together(name: str, kind: str, alice: IdentityKey, bob: IdentityKey) -> None:
    for owner in (None, bob):
        assert refused(card_of(alice, name, kind, owner)) == "malformed"


# --- certificates -----------------------------------------------------------------------------------------------


def test_a_certificate_is_for_one_name_uid_key_and_epoch(alice: IdentityKey, bob: IdentityKey) -> None:
    key_hash = digest(b"card")
    certificate = certify(alice, "bob", UID, key_hash, 3)
    verify_certificate(alice.public, certificate, "bob", UID, key_hash, 3)
    for who, what, name, uid, hashed, epoch in (
        (bob, certificate, "bob", UID, key_hash, 3),
        (alice, certificate, "rob", UID, key_hash, 3),
        (alice, certificate, "bob", UID[::-1], key_hash, 3),
        (alice, certificate, "bob", UID, digest(b"other"), 3),
        (alice, certificate, "bob", UID, key_hash, 2),
        (alice, certificate[:64], "bob", UID, key_hash, 3),
        (alice, b"", "bob", UID, key_hash, 3),
    ):
        with pytest.raises(PeerViolation) as caught:
            verify_certificate(who.public, what, name, uid, hashed, epoch)
        assert caught.value.detail == "forged"


def test_a_certificate_is_no_card_signature(alice: IdentityKey) -> None:
    """H10 core: what a coordinator certifies never serves as its own card's signature."""
    encoded = card_of(alice)
    certificate = certify(alice, "alice", UID, verify_card(encoded, SUITE).hash, 3)
    assert refused(altered(encoded, signature=certificate)) == "forged"


# --- the coordinator's card -------------------------------------------------------------------------------------


def coordinator_card(identity: IdentityKey) -> bytes:
    return make_coordinator_card(identity, KEM.public, bytes(range(32)), "x25519", 1)


def test_a_coordinator_is_who_the_invitation_pinned(alice: IdentityKey) -> None:
    encoded = coordinator_card(alice)
    coordinator = verify_coordinator_card(encoded, sign_coordinator_card(alice, encoded), alice.public.fingerprint)
    assert coordinator.identity == alice.public
    assert coordinator.general_key == KEM.public
    assert coordinator.curve_key == bytes(range(32))
    assert coordinator.suite is SUITE
    assert read_coordinator_card(encoded) == coordinator


@pytest.mark.attack("R01")
def test_another_coordinator_is_an_identity_alarm(alice: IdentityKey, bob: IdentityKey) -> None:
    """R01 core: another identity, perfectly signed, under the pinned address."""
    encoded = coordinator_card(bob)
    with pytest.raises(PeerViolation) as caught:
        verify_coordinator_card(encoded, sign_coordinator_card(bob, encoded), alice.public.fingerprint)
    assert caught.value.detail == "identity"


def test_a_coordinator_s_keys_are_signed_by_its_identity(alice: IdentityKey, bob: IdentityKey) -> None:
    """The fingerprint covers the identity alone; the signature covers the KEM and CURVE keys with it."""
    encoded = coordinator_card(alice)
    signature = sign_coordinator_card(alice, encoded)
    card: CoordinatorCard = decode(encoded, CoordinatorCard)
    for change in ({"general_key": SUITE.generate().public.encode()}, {"curve_key": bytes(32)}, {"epoch": 2}):
        other = encode(msgspec.structs.replace(card, **change))
        with pytest.raises(PeerViolation) as caught:
            verify_coordinator_card(other, signature, alice.public.fingerprint)
        assert caught.value.detail == "forged"
    for wrong in (sign_coordinator_card(bob, encoded), alice.sign_durable("card", digest(encoded)), b""):
        with pytest.raises(PeerViolation) as caught:
            verify_coordinator_card(encoded, wrong, alice.public.fingerprint)
        assert caught.value.detail == "forged"


def test_a_coordinator_s_suite_must_be_known_and_fit_its_key(alice: IdentityKey) -> None:
    card: CoordinatorCard = decode(coordinator_card(alice), CoordinatorCard)
    for suite, detail in (("rot13", "version"), ("hybrid", "bad-key"), ("rsa", "bad-key")):
        other = encode(msgspec.structs.replace(card, suite=suite))
        with pytest.raises(PeerViolation) as caught:
            verify_coordinator_card(other, sign_coordinator_card(alice, other), alice.public.fingerprint)
        assert caught.value.detail == detail
