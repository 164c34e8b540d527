"""The receipt: the recipient's durable signature over what it took, checkable offline for ever."""

from __future__ import annotations

from msgspec import Struct

from zkc.crypto.cards import VerifiedCard, verify_card
from zkc.crypto.primitives import digest
from zkc.crypto.signing import IdentityKey, IdentityPublic
from zkc.crypto.suites import suite_of
from zkc.errors import PeerViolation
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Card, CardBody, Manifest, Receipt, ReceiptBody


def name_digest(name: str) -> bytes:
    """H("zkc/1 name" 0x00 name): a receipt can be shown without the file's name."""
    return digest(b"zkc/1 name\0", name.encode())


def manifest_digest(manifest: Manifest) -> bytes:
    return digest(b"zkc/1 manifest\0", encode(manifest))


def make_receipt(identity: IdentityKey, body: ReceiptBody, card: bytes) -> bytes:
    """The receipt, encoded, with the recipient's card in it."""
    encoded = encode(body)
    return encode(Receipt(encoded, identity.sign_durable("receipt", digest(encoded)), card))


def verify_receipt(identity: IdentityPublic, encoded: bytes) -> ReceiptBody:
    """What ``identity`` signed, its card included; `PeerViolation` (``malformed``, ``forged``).

    The caller compares every field.
    """
    receipt: Receipt = decode(encoded, Receipt)
    identity.verify_durable("receipt", digest(receipt.body), receipt.signature)
    body: ReceiptBody = decode(receipt.body, ReceiptBody)
    card: Card = decode(receipt.card, Card)
    if digest(card.body) != body.card_hash:
        raise PeerViolation("forged", "the card beside a receipt is not the one that it names")
    return body


class OpenedReceipt(Struct, frozen=True):
    """A receipt that holds together: who has the key of ``card`` signed ``body``."""

    body: ReceiptBody
    card: VerifiedCard


def open_receipt(encoded: bytes) -> OpenedReceipt:
    """What a receipt proves by itself, of whatever suite: every signature in it, and that its recipient made them.

    Whose key that is, only a pin tells: the caller holds ``card.fingerprint`` against it. `PeerViolation`
    (``malformed``, ``bad-key``, ``forged``).
    """
    receipt: Receipt = decode(encoded, Receipt)
    signer: CardBody = decode(decode(receipt.card, Card).body, CardBody)
    card = verify_card(receipt.card, suite_of(signer.kem_key))
    body = verify_receipt(card.identity, encoded)
    if (body.recipient, body.recipient_fingerprint) != (card.name, card.fingerprint):
        raise PeerViolation("forged", "the signer is not the recipient that the receipt names")
    return OpenedReceipt(body, card)
