"""The code reproduces the frozen vectors where they are deterministic and opens or verifies them where they are not."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import sha3_256
from typing import Any, Final

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.vectors import handshakes, make
from zkc.crypto.cards import certify, verify_card, verify_certificate, verify_coordinator_card
from zkc.crypto.chunks import StreamOpener, StreamSealer, token, xid_tag
from zkc.crypto.invitations import (
    format_invitation,
    invitation_curve_secret,
    invitation_psk,
    parse_invitation,
)
from zkc.crypto.primitives import Secret, expand, extract
from zkc.crypto.receipts import manifest_digest, name_digest, verify_receipt
from zkc.crypto.signing import IdentityKey, read_identity, safety_number
from zkc.crypto.suites import kem_decapsulate, open_sealed, read_private, suite_named
from zkc.crypto.transcript import Transcript
from zkc.rules.trees import ListingReader
from zkc.wire.codec import decode, encode
from zkc.wire.frames import DataHeader, Flag, Stream
from zkc.wire.messages import Manifest, Receipt, ReceiptBody

Vector = dict[str, Any]


def of(vector: Vector, field: str) -> bytes:
    return bytes.fromhex(vector[field])


def transcript(vector: Vector) -> None:
    th = Transcript.start(vector["pattern"], vector["suite"])
    assert th.value == of(vector, "th0")
    for field, after in zip(vector["fields"], vector["th"], strict=True):
        th = th.absorb(bytes.fromhex(field))
        assert th.value.hex() == after


def hkdf(vector: Vector) -> None:
    prk = extract(of(vector, "salt"), *(Secret(bytes.fromhex(s)) for s in vector["secrets"]))
    assert prk.reveal() == of(vector, "prk")
    assert {name: expand(prk, name, 32).hex() for name in vector["expanded"]} == vector["expanded"]


def tokens(vector: Vector) -> None:
    k = Secret(of(vector, "k"))
    assert xid_tag(k) == of(vector, "xid_tag")
    assert token(k, vector["socket"], vector["attempt"]) == vector["token"]


def streams(vector: Vector) -> None:
    which = (Secret(of(vector, "k")), Stream[vector["stream"].upper()], vector["attempt"], vector["cipher"])
    sealer, opener = StreamSealer(*which), StreamOpener(*which)
    for number, (chunk, frame) in enumerate(zip(vector["chunks"], vector["frames"], strict=True), 1):
        plaintext, expected = bytes.fromhex(chunk), bytes.fromhex(frame)
        flags = Flag.LAST if number == len(vector["frames"]) else Flag.NONE
        assert sealer.seal(plaintext, flags) == expected
        assert opener.open(DataHeader.unpack(expected), expected) == plaintext


def trees(vector: Vector) -> None:
    stream, contents = of(vector, "stream"), of(vector, "contents")
    reader = ListingReader(len(stream))
    found = [msgspec.structs.asdict(entry) for entry in reader.feed(stream)]
    told = [{name: value for name, value in entry.items() if name != "tag"} for entry in vector["entries"]]
    for each in found + told:
        each.update({name: bytes.fromhex(each[name]) for name in ("name", "target") if isinstance(each.get(name), str)})
    assert found == told
    assert reader.complete
    assert stream[reader.length :] == contents


def seals(vector: Vector) -> None:
    suite, key = suite_named(vector["suite"]), read_private(of(vector, "private"))
    read = suite.read_public if vector["use"] == "permanent" else suite.read_one_time
    assert read(of(vector, "public")) == key.public
    assert open_sealed(key, vector["label"], of(vector, "th"), of(vector, "sealed")) == of(vector, "plaintext")
    secret = kem_decapsulate(key, vector["label"], of(vector, "th"), of(vector, "encapsulated"))
    assert secret.reveal() == of(vector, "secret")


def identities(vector: Vector) -> None:
    key = IdentityKey.from_seed(of(vector, "seed"))
    assert key.public == read_identity(of(vector, "ed25519"), of(vector, "ml_dsa"))
    assert key.public.fingerprint == of(vector, "fingerprint")
    assert key.sign(vector["label"], of(vector, "hash")) == of(vector, "signature")
    key.public.verify_durable(vector["durable_label"], of(vector, "hash"), of(vector, "durable_signature"))


def safety_numbers(vector: Vector) -> None:
    assert safety_number(of(vector, "one"), of(vector, "other")) == vector["number"]


def cards(vector: Vector) -> None:
    card = verify_card(of(vector, "card"), suite_named(vector["suite"]))
    body = card.body
    assert (body.name, body.kind, body.epoch, body.not_after) == (
        vector["name"], vector["kind"], vector["epoch"], vector["not_after"]
    )
    assert (card.hash, card.fingerprint, body.uid) == (of(vector, "hash"), of(vector, "identity"), of(vector, "uid"))
    assert card.kem_key.encode() == of(vector, "kem_key")
    assert (card.owner_fingerprint or b"") == of(vector, "owner")
    coordinator = IdentityKey.from_seed(of(vector, "coordinator_seed"))
    named = (vector["name"], of(vector, "uid"), card.hash, vector["epoch"])
    verify_certificate(coordinator.public, of(vector, "certificate"), *named)
    assert certify(coordinator, *named)[:64] == of(vector, "certificate")[:64], "the Ed25519 half is deterministic"


def coordinator_cards(vector: Vector) -> None:
    read = verify_coordinator_card(of(vector, "card"), of(vector, "signature"), of(vector, "fingerprint"))
    assert read.identity == IdentityKey.from_seed(of(vector, "seed")).public
    assert (read.general_key.encode(), read.curve_key) == (of(vector, "general_key"), of(vector, "curve_key"))
    assert read.suite.name == vector["suite"]
    again = make.make_coordinator_card(
        IdentityKey.from_seed(of(vector, "seed")), read.general_key, read.curve_key, vector["suite"], vector["epoch"]
    )
    assert again == of(vector, "card")


def invitations(vector: Vector) -> None:
    invitation = parse_invitation(vector["text"])
    assert format_invitation(invitation) == vector["text"]
    fields = msgspec.structs.asdict(invitation)
    assert {k: v.hex() if isinstance(v, bytes) else v for k, v in fields.items()} == vector["fields"]
    assert invitation_psk(invitation.secret).reveal() == of(vector, "psk")
    assert invitation_curve_secret(invitation.secret).reveal() == of(vector, "curve_secret")


def receipts(vector: Vector) -> None:
    body = verify_receipt(IdentityKey.from_seed(of(vector, "seed")).public, of(vector, "receipt"))
    assert encode(body) == of(vector, "body")
    assert decode(of(vector, "body"), ReceiptBody) == body
    assert decode(of(vector, "receipt"), Receipt).card == of(vector, "card")
    assert name_digest(vector["name"]) == of(vector, "name_digest") == body.name_digest
    manifest: Manifest = decode(of(vector, "manifest"), Manifest)
    assert encode(manifest) == of(vector, "manifest")
    assert manifest_digest(manifest) == of(vector, "manifest_digest") == body.manifest_digest


def registrations(vector: Vector) -> None:
    assert handshakes.registration_values(vector) == vector["values"]


def channels(vector: Vector) -> None:
    assert handshakes.channel_values(vector) == vector["values"]


def transfers(vector: Vector) -> None:
    assert handshakes.transfer_values(vector) == vector["values"]


CHECKS: Final[dict[str, Callable[[Vector], None]]] = {
    check.__name__: check
    for check in (
        transcript, hkdf, tokens, streams, trees, seals, identities, safety_numbers, cards, coordinator_cards,
        invitations, receipts, registrations, channels, transfers,
    )
}


@pytest.mark.parametrize(
    ("topic", "number"), [(topic, number) for topic in CHECKS for number in range(len(make.load(topic)))]
)
def test_the_code_agrees_with_the_frozen_vectors(topic: str, number: int) -> None:
    CHECKS[topic](make.load(topic)[number])


@pytest.mark.parametrize("use", ["permanent", "one-time"])
def test_a_hybrid_seal_opens_by_hand_as_the_specification_says(use: str) -> None:
    """docs/protocol.md 1: KEM id, order of the halves, combiner, then the key schedule of RFC 9180 in base mode."""
    (vector,) = (each for each in make.load("seals") if (each["suite"], each["use"]) == ("hybrid", use))
    private, public, sealed = of(vector, "private")[1:], of(vector, "public")[1:], of(vector, "sealed")
    lattice, curve, ciphertext = sealed[:1088], sealed[1088:1120], sealed[1120:]
    shared = sha3_256(
        MLKEM768PrivateKey.from_seed_bytes(private[:64]).decapsulate(lattice)
        + X25519PrivateKey.from_private_bytes(private[64:]).exchange(X25519PublicKey.from_public_bytes(curve))
        + curve + public[1184:] + bytes.fromhex("5c2e2f2f5e5c")
    ).digest()  # fmt: skip
    suite = b"HPKE" + bytes.fromhex("647a00010002")

    def extracted(salt: bytes, label: bytes, ikm: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")

    def expanded(prk: bytes, label: bytes, info: bytes, n: int) -> bytes:
        labelled = n.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
        return hmac.digest(prk, labelled + b"\x01", "sha256")[:n]

    info = b"zkc/1 " + vector["label"].encode() + b"\0" + of(vector, "th")
    context = b"\0" + extracted(b"", b"psk_id_hash", b"") + extracted(b"", b"info_hash", info)
    secret = extracted(shared, b"secret", b"")
    key, nonce = expanded(secret, b"key", context, 32), expanded(secret, b"base_nonce", context, 12)
    assert AESGCM(key).decrypt(nonce, ciphertext, b"") == of(vector, "plaintext")


def test_every_topic_has_a_file_and_a_check_and_every_file_a_topic() -> None:
    assert set(make.TOPICS) == set(CHECKS) == {path.stem for path in make.FOLDER.glob("*.json")}


@pytest.mark.parametrize("topic", ["transcript", "hkdf", "tokens", "streams", "trees", "safety_numbers", "invitations"])
def test_what_is_deterministic_is_made_again_byte_for_byte(topic: str) -> None:
    assert make.TOPICS[topic]() == make.load(topic)


def test_making_vectors_again_changes_no_frozen_file() -> None:
    before = {path.name: path.read_bytes() for path in make.FOLDER.glob("*.json")}
    make.main()
    assert {path.name: path.read_bytes() for path in make.FOLDER.glob("*.json")} == before


# --- the machines as they are now ------------------------------------------------------------------------------------
# A frozen message says what the machines once sent; these say that what they send today is read in the same way.


@pytest.mark.claims("A1", "A3", "A5", "A6", 8, 9, 10, 29, 30, 43, 50, 107, 108, 109)
def test_a_second_implementation_reads_every_seal_and_mac_of_a_registration_made_now() -> None:
    made = handshakes.registrations()
    assert [vector["sealed_to"] for vector in made] == ["permanent", "temporary", "permanent"]


@pytest.mark.claims("B1", "B2", "C2", 3, 19, 71, 95)
def test_a_second_implementation_reads_every_record_of_a_channel_made_now() -> None:
    """The requests open under the permanent server key, the notifications under the permanent client key as well."""
    for vector in handshakes.channels():
        assert [bytes.fromhex(text) for text in vector["values"]["up"]] == [b"up 0", b"up 1"]
        assert [bytes.fromhex(text) for text in vector["values"]["down"]] == [b"down 0", b"down 1"]


@pytest.mark.claims("B3", "B7", "C2", 1, 17, 26, 58, 110)
def test_a_second_implementation_derives_the_session_key_of_a_transfer_made_now() -> None:
    """In every form, from the permanent and the one-time keys; it is the key that the two ends agreed on."""
    made = handshakes.transfers()
    assert {(vector["key_source"], vector["key_order"]) for vector in made} == {
        ("sender", "recipient-first"), ("coordinator", "recipient-first"), ("coordinator", "sender-first")
    }  # fmt: skip
