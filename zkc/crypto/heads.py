"""Heads of the key log: how many entries it has, under which root, signed by the coordinator for years.

A head is a checkpoint as C2SP's tlog-checkpoint describes it, a signed note: origin, size and root, a line each, an
empty line, and the signatures. The first is Ed25519 over the text, as every tool for such logs reads it; the second,
under a type of our own, ML-DSA-65 over the same text. Both must verify.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from zkc.crypto.merkle import HASH_BYTES
from zkc.crypto.signing import ED25519_SIGNATURE, IdentityKey, IdentityPublic
from zkc.errors import PeerViolation
from zkc.wire.codec import encode
from zkc.wire.messages import LogLeaf

_HEADS_KEPT: Final = 64
_ORIGIN: Final = b"zkc.log/"
_REASON_MAX: Final = 512
"""Characters of a reason that are logged: whatever an administrator wrote, an entry is below 3 KiB."""
_CARD_EVENTS: Final = "registered", "rotated", "succeeded"
_ED25519_TYPE: Final = b"\x01"
_ML_DSA_TYPE: Final = b"\xffzkc ml-dsa-65\n"


@dataclass(frozen=True, slots=True)
class Head:
    """What one signed note says."""

    size: int
    root: bytes


def log_leaf(event: str, name: str, card_hash: bytes, reason: str) -> bytes:
    """An entry as it is hashed into the tree. H(card) covers everything else that a card says, its epoch too."""
    return encode(LogLeaf(event, name, card_hash, reason[:_REASON_MAX]))


def card_leaves(name: str, card_hash: bytes) -> tuple[bytes, ...]:
    """The entries that give a card to a name: its registration, or new keys in the place of former ones."""
    return tuple(log_leaf(event, name, card_hash, "") for event in _CARD_EVENTS)


def sign_head(identity: IdentityKey, head: Head) -> bytes:
    """The signed note; 1 ms."""
    origin, text = _origin(identity.public), _text(identity.public, head)
    signature = identity.sign_note(text)
    lines = (
        _signature_line(origin, _ED25519_TYPE, identity.public.ed25519, signature[:ED25519_SIGNATURE]),
        _signature_line(origin, _ML_DSA_TYPE, identity.public.ml_dsa, signature[ED25519_SIGNATURE:]),
    )
    return text + b"\n" + b"".join(lines)


def claim_of(note: bytes) -> tuple[bytes, Head]:
    """Fingerprint of the identity whose head it says that it is, and what it says; no signature is checked.

    `PeerViolation` (``malformed``).
    """
    text, _, _ = note.partition(b"\n\n")
    try:
        origin, size, root = text.split(b"\n")
        signer = bytes.fromhex(origin.removeprefix(_ORIGIN).decode())
        head = Head(int(size), base64.b64decode(root, validate=True))
    except ValueError:
        raise PeerViolation("malformed", "not a head of a log") from None
    if origin != _ORIGIN + signer.hex().encode() or len(signer) != HASH_BYTES:
        raise PeerViolation("malformed", "not a head of a coordinator's log")
    if len(head.root) != HASH_BYTES or not 0 <= head.size < 2**63:
        raise PeerViolation("malformed", "no log has such a head")
    return signer, head


@lru_cache(_HEADS_KEPT)
def verify_head(coordinator: IdentityPublic, note: bytes) -> Head:
    """What the coordinator has signed; `PeerViolation` (``malformed``, ``forged``). The same note is checked once."""
    signer, head = claim_of(note)
    if signer != coordinator.fingerprint:
        raise PeerViolation("malformed", "not a head of this coordinator's log")
    origin, text = _origin(coordinator), _text(coordinator, head)
    try:
        signatures = [base64.b64decode(line.split(b" ")[2]) for line in note[len(text) + 1 :].splitlines()]
    except (ValueError, IndexError):
        raise PeerViolation("malformed", "not a head of a log") from None
    if len(signatures) != 2:
        raise PeerViolation("malformed", "a head has two signatures")
    coordinator.verify_note(text, signatures[0][4:] + signatures[1][4:])
    # There is one way to write a head: what differs in anything else is not one that an honest coordinator made.
    lines = (
        _signature_line(origin, _ED25519_TYPE, coordinator.ed25519, signatures[0][4:]),
        _signature_line(origin, _ML_DSA_TYPE, coordinator.ml_dsa, signatures[1][4:]),
    )
    if note != text + b"\n" + b"".join(lines):
        raise PeerViolation("malformed", "a head that is written in another way")
    return head


def _origin(coordinator: IdentityPublic) -> bytes:
    return _ORIGIN + coordinator.fingerprint.hex().encode()


def _text(coordinator: IdentityPublic, head: Head) -> bytes:
    return b"%s\n%d\n%s\n" % (_origin(coordinator), head.size, base64.b64encode(head.root))


def _signature_line(origin: bytes, kind: bytes, public: bytes, signature: bytes) -> bytes:
    key_id = hashlib.sha256(origin + b"\n" + kind + public).digest()[:4]
    return "\N{EM DASH} ".encode() + origin + b" " + base64.b64encode(key_id + signature) + b"\n"
