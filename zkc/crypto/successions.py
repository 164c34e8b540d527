"""Successions: a registration's new identity, in the place of its former one, by the word of both.

body = `SuccessionBody`; succession = body, SIG(former identity, "succession", H(body)), SIG(new identity, the same).
"""

from __future__ import annotations

from dataclasses import dataclass

from zkc.crypto.primitives import digest
from zkc.crypto.signing import IdentityKey, IdentityPublic, read_identity
from zkc.errors import PeerViolation
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Succession, SuccessionBody


@dataclass(frozen=True)
class Heir:
    """The identity that a succession leads to."""

    identity: IdentityPublic
    epoch: int
    """Of its first card."""


def make_succession(name: str, former: IdentityKey, identity: IdentityKey, epoch: int) -> bytes:
    """A succession, encoded."""
    keys = identity.public
    body = encode(SuccessionBody(name, former.public.fingerprint, keys.ed25519, keys.ml_dsa, epoch))
    hashed = digest(body)
    signatures = (key.sign_durable("succession", hashed) for key in (former, identity))
    return encode(Succession(body, *signatures))


def verify_succession(former: IdentityPublic, encoded: bytes, name: str) -> Heir:
    """Whom ``former``, of ``name``, has named, and who agreed. `PeerViolation` (``malformed``, ``bad-key``,
    ``forged``, ``identity``)."""
    succession: Succession = decode(encoded, Succession)
    body: SuccessionBody = decode(succession.body, SuccessionBody)
    if (body.name, body.former) != (name, former.fingerprint):
        raise PeerViolation("identity", "the succession is another identity's")
    identity, hashed = read_identity(body.ed25519, body.ml_dsa), digest(succession.body)
    former.verify_durable("succession", hashed, succession.former_signature)
    identity.verify_durable("succession", hashed, succession.signature)
    return Heir(identity, body.epoch)


def heir_of(encoded: bytes) -> bytes:
    """The fingerprint that a succession leads to, nothing checked; `PeerViolation` (``malformed``, ``bad-key``)."""
    succession: Succession = decode(encoded, Succession)
    body: SuccessionBody = decode(succession.body, SuccessionBody)
    return read_identity(body.ed25519, body.ml_dsa).fingerprint
