"""Evidence that a coordinator has signed two key logs: its card, and two heads of one size with two roots.

Whoever has it needs nothing else to check it, on any machine: whose coordinator that is, its fingerprint tells.
"""

from __future__ import annotations

from typing import Final

import msgspec

from zkc.crypto.cards import read_coordinator_card
from zkc.crypto.heads import verify_head
from zkc.errors import IdentityError, PeerViolation

EVIDENCE_MAX: Final = 64 * 1024
"""Bytes of a file of evidence."""


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As it is written, in JSON."""

    v: int
    kind: str
    coordinator: bytes
    """Its card."""
    heads: list[bytes]
    """Signed notes."""


def encode_evidence(coordinator_card: bytes, one: bytes, other: bytes) -> bytes:
    return msgspec.json.encode(Evidence(1, "log-fork", coordinator_card, [one, other])) + b"\n"


def check_evidence(data: bytes) -> tuple[bytes, int]:
    """Fingerprint of the coordinator, and the size of which it has signed two roots.

    `IdentityError` (``evidence``): it does not prove that.
    """
    try:
        evidence = msgspec.json.decode(data, type=Evidence)
        if (evidence.v, evidence.kind, len(evidence.heads)) != (1, "log-fork", 2):
            raise PeerViolation("malformed", "of another kind")
        identity = read_coordinator_card(evidence.coordinator).identity
        one, other = (verify_head(identity, note) for note in evidence.heads)
    except (msgspec.DecodeError, UnicodeDecodeError, PeerViolation, ValueError) as error:
        raise _unproved(f"it does not verify ({error})") from None
    if one.size != other.size or one.root == other.root:
        raise _unproved("the two heads go together")
    return identity.fingerprint, one.size


def _unproved(why: str) -> IdentityError:
    return IdentityError(f"this is no evidence of two key logs: {why}", detail="evidence", hint="is the file whole?")
