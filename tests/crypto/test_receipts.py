from __future__ import annotations

from typing import Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkc.crypto.cards import make_card
from zkc.crypto.primitives import digest
from zkc.crypto.receipts import make_receipt, manifest_digest, name_digest, open_receipt, verify_receipt
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import SUITES, KemPrivateKey
from zkc.errors import PeerViolation
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Card, Manifest, Receipt, ReceiptBody

BODY: Final = ReceiptBody(
    tid=b"t" * 16, xid=b"x" * 16, th=b"h" * 32, sender="alice", sender_fingerprint=b"a" * 32, recipient="bob",
    recipient_fingerprint=b"b" * 32, card_hash=digest(b"bob's card"), name_digest=name_digest("report.pdf"),
    size=12345, digest=b"d" * 32, manifest_digest=b"m" * 32, key_source="sender", cipher="aes-256-gcm",
    presence="online", presence_age=2, durable=True, asker=b"", asked_by="", began=1_700_000_000_000,
    ended=1_700_000_001_000,
)
CARD: Final = encode(Card(b"bob's card", b"", b"", b"", b""))
MANIFEST: Final = Manifest("file", "report.pdf", "", 12345, 0o644, 0)


def refused(identity: IdentityKey, encoded: bytes) -> str:
    with pytest.raises(PeerViolation) as caught:
        verify_receipt(identity.public, encoded)
    return caught.value.detail


def test_a_receipt_says_what_its_recipient_signed(bob: IdentityKey) -> None:
    encoded = make_receipt(bob, BODY, CARD)
    assert verify_receipt(bob.public, encoded) == BODY
    assert decode(encoded, Receipt).card == CARD


def test_a_receipt_is_the_recipient_s_alone(alice: IdentityKey, bob: IdentityKey) -> None:
    """D17 core: nobody else can acknowledge in the recipient's place."""
    assert refused(bob, make_receipt(alice, BODY, CARD)) == "forged"


@pytest.mark.attack("D17")
@pytest.mark.parametrize("card", [encode(Card(b"carol's card", b"", b"", b"", b"")), b""])
def test_another_card_beside_a_receipt_is_refused(card: bytes, bob: IdentityKey) -> None:
    """Whoever is shown a receipt sees whose it is: what the card says is under the signature too."""
    assert refused(bob, make_receipt(bob, BODY, card)) in {"forged", "malformed"}


@pytest.mark.parametrize("label", ["card", "app", "cert", "coordinator-card", ""])
def test_no_other_signature_of_the_recipient_makes_a_receipt(label: str, bob: IdentityKey) -> None:
    body = encode(BODY)
    assert refused(bob, encode(Receipt(body, bob.sign_durable(label, digest(body)), CARD))) == "forged"


def test_a_live_signature_is_not_enough(bob: IdentityKey) -> None:
    body = encode(BODY)
    assert refused(bob, encode(Receipt(body, bob.sign("receipt", digest(body)), CARD))) == "forged"


@pytest.mark.parametrize("field", ReceiptBody.__struct_fields__)
def test_no_field_changes_under_the_signature(field: str, bob: IdentityKey) -> None:
    encoded = make_receipt(bob, BODY, CARD)
    old = getattr(BODY, field)
    literals = {"key_source": "coordinator", "presence": "authorised", "asker": b"q" * 32}
    if field in literals:
        new: object = literals[field]
    elif isinstance(old, bytes):
        new = old[:-1] + b"?"
    elif isinstance(old, str):
        new = old + "x"
    else:
        new = not old if isinstance(old, bool) else old + 1
    body = encode(msgspec.structs.replace(BODY, **{field: new}))
    assert refused(bob, encode(msgspec.structs.replace(decode(encoded, Receipt), body=body))) == "forged"


def test_a_flip_in_any_region_of_a_receipt_is_refused(bob: IdentityKey) -> None:
    """Every byte of structure and body, a sample of the signature, the end of the card."""
    encoded = make_receipt(bob, BODY, CARD)
    signature_at = 1 + 3 + len(encode(BODY))
    end = len(encoded)
    for at in (*range(signature_at + 8), *range(signature_at + 8, end, 53), end - 2, end - 1):
        damaged = bytearray(encoded)
        damaged[at] ^= 1 << at % 8
        assert refused(bob, bytes(damaged)) in {"forged", "malformed"}


def test_a_cut_receipt_and_one_with_more_behind_it_are_refused(bob: IdentityKey) -> None:
    encoded = make_receipt(bob, BODY, CARD)
    for wrong in (b"", *(encoded[:n] for n in range(1, len(encoded), 61)), encoded[:-1], encoded + b"\0"):
        assert refused(bob, wrong) == "malformed"


def test_a_signed_body_must_still_be_one(bob: IdentityKey) -> None:
    """A recipient that signs nonsense has made no receipt."""
    for body in (b"", b"\xc0", encode(BODY) + b"\0", encode(MANIFEST)):
        assert refused(bob, encode(Receipt(body, bob.sign_durable("receipt", digest(body)), CARD))) == "malformed"


# --- a receipt alone, years later -------------------------------------------------------------------------------------


def whole(signer: IdentityKey, kem_key: KemPrivateKey, owner: IdentityKey | None = None, **changes: object) -> bytes:
    """A receipt with a true card of ``signer`` in it, as bob or bob/backup."""
    name = "bob/backup" if owner else "bob"
    card = make_card(
        name=name, kind="application" if owner else "computer", uid=b"u" * 16, identity=signer,
        kem_key=kem_key.public, epoch=1, not_after=1_800_000_000, owner=owner,
    )
    fields = {
        "recipient": name, "recipient_fingerprint": signer.public.fingerprint,
        "card_hash": digest(decode(card, Card).body),
    }
    return make_receipt(signer, msgspec.structs.replace(BODY, **(fields | changes)), card)


def not_genuine(encoded: bytes) -> str:
    with pytest.raises(PeerViolation) as caught:
        open_receipt(encoded)
    return caught.value.detail


@pytest.mark.claims("B5")
def test_a_receipt_alone_proves_who_made_it(bob: IdentityKey, private_key: KemPrivateKey) -> None:
    """Nothing else is needed, whatever the suite."""
    opened = open_receipt(whole(bob, private_key))
    assert (opened.card.name, opened.card.fingerprint) == ("bob", bob.public.fingerprint)
    assert (opened.body.size, opened.body.digest) == (BODY.size, BODY.digest)


def test_a_receipt_of_an_application_has_its_owner_s_word_too(
    alice: IdentityKey, bob: IdentityKey, private_key: KemPrivateKey
) -> None:
    opened = open_receipt(whole(alice, private_key, owner=bob))
    assert (opened.card.name, opened.card.owner_fingerprint) == ("bob/backup", bob.public.fingerprint)


@pytest.mark.attack("D17")
@pytest.mark.parametrize("application", [False, True])
def test_a_changed_byte_anywhere_in_a_receipt_is_found(
    application: bool, alice: IdentityKey, bob: IdentityKey
) -> None:
    """Card, owner's signature and keys included: every byte of it, one bit each."""
    encoded = whole(alice, SUITES["hybrid"].generate(), owner=bob if application else None)
    open_receipt(encoded)
    for at in range(len(encoded)):
        damaged = bytearray(encoded)
        damaged[at] ^= 1 << at % 8
        assert not_genuine(bytes(damaged)) in {"forged", "malformed", "bad-key"}, at


@pytest.mark.attack("D17")
@pytest.mark.parametrize(
    "changes", [{"recipient": "carol"}, {"recipient_fingerprint": b"c" * 32}, {"recipient": "bob/backup"}]
)
def test_a_receipt_in_the_name_of_another_is_forged(
    changes: dict[str, object], bob: IdentityKey, private_key: KemPrivateKey
) -> None:
    """Who signs for somebody else with his own card and key."""
    assert not_genuine(whole(bob, private_key, **changes)) == "forged"


def test_what_is_no_receipt_is_malformed(bob: IdentityKey, private_key: KemPrivateKey) -> None:
    encoded = whole(bob, private_key)
    for wrong in (b"", b"hello\n", bytes(64 * 1024), encoded[:-1], encoded + b"\n", encode(MANIFEST)):
        assert not_genuine(wrong) == "malformed"


@given(st.text(max_size=50), st.text(max_size=50))
def test_a_name_digest_shows_whether_a_name_is_the_one(one: str, other: str) -> None:
    assert (name_digest(one) == name_digest(other)) is (one == other)


@pytest.mark.parametrize(
    "change", [{"kind": "stream"}, {"name": "x"}, {"note": "x"}, {"size": None}, {"mode": 0}, {"mtime_ns": 1}]
)
def test_a_manifest_digest_covers_every_field(change: dict[str, object]) -> None:
    """F06 core: the manifest that was accepted is the one that the receipt names."""
    assert manifest_digest(msgspec.structs.replace(MANIFEST, **change)) != manifest_digest(MANIFEST)
