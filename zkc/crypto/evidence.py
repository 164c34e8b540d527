"""Evidence that a coordinator has signed two key logs: its card, and two heads of one size with two roots.

A head may be of an identity that it had before: then the successions from that one to the card's are in it too.
Whoever has it needs nothing else to check it, on any machine: whose coordinator that is, its fingerprint tells.
"""

from __future__ import annotations

from typing import Final

import msgspec

from zkc.crypto.cards import read_coordinator_card
from zkc.crypto.heads import claim_of, verify_head
from zkc.crypto.signing import IdentityPublic
from zkc.crypto.successions import Descent
from zkc.decoders import json_decoder
from zkc.errors import IdentityError, PeerViolation

EVIDENCE_MAX: Final = 256 * 1024
"""Bytes of a file of evidence."""


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """As it is written, in JSON."""

    v: int
    kind: str
    coordinator: bytes
    """Its card."""
    heads: list[bytes]
    """Signed notes."""
    descent: Descent | None = None
    """From the oldest identity that has signed one of them to the card's; none where the card's has signed both."""


class Proved(msgspec.Struct, frozen=True):
    """What evidence proves."""

    coordinator: bytes
    """Fingerprint of the card's identity."""
    signers: list[bytes]
    """Of those that signed the one and the other head: the coordinator's, or one that it had before."""
    size: int
    """Of which two roots were signed."""


def encode_evidence(coordinator_card: bytes, one: bytes, other: bytes, descent: Descent | None) -> bytes:
    return msgspec.json.encode(Evidence(1, "log-fork", coordinator_card, [one, other], descent)) + b"\n"


def check_evidence(data: bytes) -> Proved:
    """What it proves; `IdentityError` (``evidence``): nothing."""
    try:
        evidence = json_decoder(Evidence).decode(data)
        if (evidence.v, evidence.kind, len(evidence.heads)) != (1, "log-fork", 2):
            raise PeerViolation("malformed", "of another kind")
        identity = read_coordinator_card(evidence.coordinator).identity
        signers = [_signer(_identities(identity, evidence.descent), note) for note in evidence.heads]
        one, other = (verify_head(*each) for each in zip(signers, evidence.heads, strict=True))
    except (msgspec.DecodeError, UnicodeDecodeError, PeerViolation, ValueError) as error:
        raise _unproved(f"it does not verify ({error})") from None
    if one.size != other.size or one.root == other.root:
        raise _unproved("the two heads go together")
    return Proved(identity.fingerprint, [each.fingerprint for each in signers], one.size)


def _identities(present: IdentityPublic, descent: Descent | None) -> list[IdentityPublic]:
    """All that are the coordinator's; `PeerViolation`."""
    if descent is None:
        return [present]
    found = descent.identities()
    if found[-1] != present:
        raise PeerViolation("identity", "the successions lead to another identity")
    return found


def _signer(identities: list[IdentityPublic], note: bytes) -> IdentityPublic:
    signer, _ = claim_of(note)
    for each in identities:
        if each.fingerprint == signer:
            return each
    raise PeerViolation("identity", "a head is of no identity of this coordinator")


def _unproved(why: str) -> IdentityError:
    return IdentityError(f"this is no evidence of two key logs: {why}", detail="evidence", hint="is the file whole?")
