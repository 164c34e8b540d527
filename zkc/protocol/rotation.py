"""New permanent keys for a client that is registered, inside its channel.

 1. ROT1 -> card of the next epoch, CURVE key   stored by the client before it leaves; its identity signs both
            and a new identity's succession  signed by the present identity and by the new one
 2. ROT2 <- certificate, new server key         stored by the coordinator before it leaves; sealed to the new client key

The same card gets the same answer, whatever was lost. Of two cards for the same epoch one wins: the other is `epoch`.
What the channel does not say the card does: who sends ROT1 has the channel's keys, and has to have the identity too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zkc.crypto.cards import VerifiedCard, certify, make_card, verify_card, verify_certificate
from zkc.crypto.primitives import digest
from zkc.crypto.signing import IdentityKey
from zkc.crypto.successions import verify_succession
from zkc.crypto.suites import KemPrivateKey, KemPublicKey, open_sealed, seal
from zkc.errors import PeerViolation
from zkc.protocol.trust import Authority
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Rotate, Rotated, SealedPermServer

_CURVE_KEY: Final = 32


@dataclass(frozen=True, repr=False)
class Renewal:
    """A client's next keys, before the coordinator knows them."""

    identity: IdentityKey
    card: VerifiedCard
    kem_key: KemPrivateKey
    curve_public: bytes
    succession: bytes = b""
    """Where ``identity`` is a new one."""


def next_card(
    card: VerifiedCard, identity: IdentityKey, kem_key: KemPublicKey, not_after: int, owner: IdentityKey | None
) -> bytes:
    """The card of the next epoch, under ``identity``, the present one or a new one; ``owner`` signs that of an
    application."""
    body = card.body
    return make_card(
        name=body.name, kind=body.kind, uid=body.uid, identity=identity, kem_key=kem_key, epoch=body.epoch + 1,
        not_after=not_after, owner=owner,
    )


def create_rotate(renewal: Renewal) -> Rotate:
    """ROT1."""
    signature = renewal.identity.sign("rotate", _signed(renewal.card.hash, renewal.curve_public))
    return Rotate(renewal.card.encoded, renewal.curve_public, signature, renewal.succession)


def consume_rotate(present: VerifiedCard, authority: Authority, message: Rotate) -> VerifiedCard:
    """ROT1 at the coordinator, which has ``present`` of this client: the card that takes its place, or that very card
    once more.

    `PeerViolation`: ``identity`` for another client's, ``epoch`` for any but the next, ``malformed``, ``forged``,
    ``bad-key``.
    """
    card = verify_card(message.card, authority.suite)
    if len(message.curve_key) not in {0, _CURVE_KEY}:
        raise PeerViolation("malformed", "not a CURVE key")
    if _who(card) != _who(present):
        raise PeerViolation("identity", "the card is another client's")
    card.identity.verify("rotate", _signed(card.hash, message.curve_key), message.signature)
    if card.hash == present.hash:
        return card
    if card.body.epoch != present.body.epoch + 1:
        raise PeerViolation("epoch", f"epoch {card.body.epoch} does not follow {present.body.epoch}")
    if not message.succession and card.fingerprint != present.fingerprint:
        raise PeerViolation("identity", "another identity, and no word of the present one")
    if message.succession:
        heir = verify_succession(present.identity, message.succession, card.name)
        if (heir.identity.fingerprint, heir.epoch) != (card.fingerprint, card.body.epoch):
            raise PeerViolation("identity", "the succession is to another card")
    return card


def create_rotated(
    coordinator: IdentityKey, card: VerifiedCard, certificate: bytes, perm_server: KemPublicKey
) -> Rotated:
    """ROT2."""
    body, key = card.body, perm_server.encode()
    offer = SealedPermServer(body.uid, key, certify(coordinator, body.name, body.uid, digest(key), body.epoch))
    return Rotated(certificate, seal(card.kem_key, "rot-perm-server", card.hash, encode(offer)))


def consume_rotated(authority: Authority, renewal: Renewal, message: Rotated) -> bytes:
    """ROT2 at the client: the permanent server key from now on. `PeerViolation` (``forged``, ``identity``)."""
    card, body = renewal.card, renewal.card.body
    verify_certificate(authority.identity, message.certificate, body.name, body.uid, card.hash, body.epoch)
    opened = open_sealed(renewal.kem_key, "rot-perm-server", card.hash, message.sealed_perm_server_key)
    offer: SealedPermServer = decode(opened, SealedPermServer)
    if offer.uid != body.uid:
        raise PeerViolation("identity", "the key of another client")
    verify_certificate(
        authority.identity, offer.certificate, body.name, body.uid, digest(offer.perm_server_key), body.epoch
    )
    authority.suite.read_public(offer.perm_server_key)
    return offer.perm_server_key


def _who(card: VerifiedCard) -> tuple[str, str, bytes]:
    return card.name, card.body.kind, card.body.uid


def _signed(card_hash: bytes, curve_key: bytes) -> bytes:
    return digest(card_hash, curve_key)
