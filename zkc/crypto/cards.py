"""Cards: a client's signed keys; certificates: the coordinator's word that a card belongs to a name.

body = `CardBody`; card = body, SIG(identity, "card", H(body)), for an application also its owner's keys and
SIG(owner, "app", H(body)). H(card) means H(body) everywhere.
certificate = SIG(coordinator, "cert", H(`Certified`)).
"""

from __future__ import annotations

from functools import lru_cache

from msgspec import Struct

from zkc.constants import VERIFIED_KEPT_MAX
from zkc.crypto.primitives import digest
from zkc.crypto.signing import IdentityKey, IdentityPublic, read_identity
from zkc.crypto.suites import KemPublicKey, Suite, suite_named
from zkc.errors import PeerViolation
from zkc.ids import Kind, is_name, owner_of
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Card, CardBody, Certified, CoordinatorCard


class VerifiedCard(Struct, frozen=True):
    """A card whose signatures verified; ``encoded`` is the card as it travels."""

    encoded: bytes
    body: CardBody
    hash: bytes
    identity: IdentityPublic
    kem_key: KemPublicKey
    owner_fingerprint: bytes | None

    @property
    def name(self) -> str:
        return self.body.name

    @property
    def fingerprint(self) -> bytes:
        return self.identity.fingerprint


def make_card(
    *, name: str, kind: Kind, uid: bytes, identity: IdentityKey, kem_key: KemPublicKey, epoch: int, not_after: int,
    owner: IdentityKey | None = None,
) -> bytes:
    """A card, encoded. An application's is countersigned by ``owner``, the registration that vouches for it."""
    body = encode(
        CardBody(
            name, kind, uid, identity.public.ed25519, identity.public.ml_dsa, kem_key.encode(), epoch, not_after,
            owner.public.fingerprint if owner else b"",
        )
    )
    hashed = digest(body)
    return encode(
        Card(
            body,
            identity.sign_durable("card", hashed),
            owner.public.ed25519 if owner else b"",
            owner.public.ml_dsa if owner else b"",
            owner.sign_durable("app", hashed) if owner else b"",
        )
    )


def hash_of(encoded: bytes) -> bytes:
    """H(card) of a card that is one of our own; `PeerViolation` (``malformed``)."""
    card: Card = decode(encoded, Card)
    return digest(card.body)


def uid_of(encoded: bytes) -> bytes:
    """Whose card it says that it is, nothing checked; `PeerViolation` (``malformed``)."""
    card: Card = decode(encoded, Card)
    body: CardBody = decode(card.body, CardBody)
    return body.uid


@lru_cache(VERIFIED_KEPT_MAX)
def verify_card(encoded: bytes, suite: Suite) -> VerifiedCard:
    """The card, every signature in it checked; `PeerViolation` (``malformed``, ``bad-key``, ``forged``).

    The same bytes are checked once (decision 0008): what they say of time and names is judged by who asks.
    """
    card: Card = decode(encoded, Card)
    body: CardBody = decode(card.body, CardBody)
    if not is_name(body.name) or (owner_of(body.name) is None) is (body.kind == "application"):
        raise PeerViolation("malformed", "name and kind do not go together")
    hashed = digest(card.body)
    identity = read_identity(body.ed25519, body.ml_dsa)
    kem_key = suite.read_public(body.kem_key)
    identity.verify_durable("card", hashed, card.signature)
    owner_fingerprint: bytes | None = None
    if body.kind == "application":
        owner = read_identity(card.owner_ed25519, card.owner_ml_dsa)
        if owner.fingerprint != body.owner:
            raise PeerViolation("forged", "the owner's keys are not those that the card names")
        owner.verify_durable("app", hashed, card.owner_signature)
        owner_fingerprint = owner.fingerprint
    elif body.owner or card.owner_ed25519 or card.owner_ml_dsa or card.owner_signature:
        raise PeerViolation("malformed", "only an application has an owner")
    return VerifiedCard(encoded, body, hashed, identity, kem_key, owner_fingerprint)


def kem_key_of(encoded: bytes) -> bytes:
    """The permanent key, encoded, of a card from our own store, where it was verified before it was written."""
    card: Card = decode(encoded, Card)
    body: CardBody = decode(card.body, CardBody)
    return body.kem_key


def certify(identity: IdentityKey, name: str, uid: bytes, key_hash: bytes, epoch: int) -> bytes:
    """The coordinator's certificate over a card (``key_hash`` = H(card)) or a permanent server key (= H(PSK.pk))."""
    return identity.sign_durable("cert", digest(encode(Certified(name, uid, key_hash, epoch))))


@lru_cache(VERIFIED_KEPT_MAX)
def verify_certificate(
    coordinator: IdentityPublic, certificate: bytes, name: str, uid: bytes, key_hash: bytes, epoch: int
) -> None:
    """`PeerViolation` (``forged``) where the coordinator did not say so. The same certificate is checked once."""
    coordinator.verify_durable("cert", digest(encode(Certified(name, uid, key_hash, epoch))), certificate)


def make_coordinator_card(identity: IdentityKey, general: KemPublicKey, curve: bytes, suite: str, epoch: int) -> bytes:
    """What the coordinator answers to R0: its public keys."""
    keys = identity.public
    return encode(CoordinatorCard(keys.ed25519, keys.ml_dsa, general.encode(), curve, suite, epoch))


class VerifiedCoordinator(Struct, frozen=True):
    """The coordinator's keys after the fingerprint was compared."""

    identity: IdentityPublic
    general_key: KemPublicKey
    curve_key: bytes
    suite: Suite


def sign_coordinator_card(identity: IdentityKey, encoded: bytes) -> bytes:
    return identity.sign_durable("coordinator-card", digest(encoded))


def verify_coordinator_card(encoded: bytes, signature: bytes, fingerprint: bytes) -> VerifiedCoordinator:
    """The coordinator's keys; `PeerViolation` (``identity``) for another identity than the pinned ``fingerprint``."""
    coordinator = read_coordinator_card(encoded)
    if coordinator.identity.fingerprint != fingerprint:
        raise PeerViolation("identity", "another coordinator identity than the one pinned")
    coordinator.identity.verify_durable("coordinator-card", digest(encoded), signature)
    return coordinator


def read_coordinator_card(encoded: bytes) -> VerifiedCoordinator:
    """A coordinator card from our own store, where it was verified before it was written."""
    card: CoordinatorCard = decode(encoded, CoordinatorCard)
    suite = suite_named(card.suite)
    return VerifiedCoordinator(
        read_identity(card.ed25519, card.ml_dsa), suite.read_public(card.general_key), card.curve_key, suite
    )
