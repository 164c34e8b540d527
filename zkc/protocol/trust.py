"""Whether a card is the one that a name should have: every rule of trust between clients, in one pure function.

New -> pinned -> verified -> changed: a changed key is blocked until a command names the new fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass

from zkc.constants import CARD_GRACE_SECONDS
from zkc.crypto.cards import VerifiedCard, verify_card, verify_certificate
from zkc.crypto.signing import IdentityPublic
from zkc.crypto.suites import Suite
from zkc.errors import IdentityError, PeerViolation


class KeyChanged(IdentityError):
    """The alarm that a person has to look into."""

    def __init__(self, name: str, pinned: bytes, seen: bytes) -> None:
        super().__init__(
            f"the key of {name} has CHANGED: pinned {pinned.hex()}, now {seen.hex()}; nothing was sent",
            detail="identity",
            hint=f"ask {name} for its fingerprint over another channel; only if it is the new one:"
            f" zkc verify {name} --trust {seen.hex()}",
        )
        self.seen = seen


@dataclass(frozen=True, slots=True)
class Known:
    """What this client already knows that bears on one name."""

    fingerprint: bytes = b""
    """Pinned under the name; empty at first contact."""
    epoch: int = 0
    owner_fingerprint: bytes = b""
    """Pinned under the owner's name, for ``owner/app``."""
    names: tuple[str, ...] = ()
    """Every name under which the card's fingerprint is pinned."""
    card: bytes = b""
    """The one that was seen last under the name."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Whose certificates count: one coordinator, one suite."""

    identity: IdentityPublic
    suite: Suite


def verify_peer(authority: Authority, name: str, card: bytes, certificate: bytes) -> VerifiedCard:
    """The card that the coordinator certifies for ``name``, whatever is pinned.

    `IdentityError`: ``bad-card``, ``bad-certificate``, ``name``.
    """
    try:
        verified = verify_card(card, authority.suite)
    except PeerViolation as violation:
        raise _alarm(name, "bad-card", f"the coordinator gave no valid card ({violation})") from None
    if verified.name != name:
        raise _alarm(name, "name", f"the coordinator gave the card of {verified.name!r}")
    body = verified.body
    try:
        verify_certificate(authority.identity, certificate, body.name, body.uid, verified.hash, body.epoch)
    except PeerViolation:
        raise _alarm(name, "bad-certificate", "the card is not certified by the coordinator") from None
    return verified


def judge_peer(card: VerifiedCard, known: Known, now: float | None) -> None:
    """Holds a verified card against what is pinned; ``now`` (seconds since 1970) only where its end counts.

    `KeyChanged` (``identity``); `IdentityError`: ``two-names``, ``owner``, ``epoch``, ``expired``.
    """
    name = card.name
    if known.fingerprint and card.fingerprint != known.fingerprint:
        raise KeyChanged(name, known.fingerprint, card.fingerprint)
    if any(other != name for other in known.names):
        raise _alarm(name, "two-names", f"the same key is pinned as {known.names[0]!r}")
    if known.owner_fingerprint and card.owner_fingerprint != known.owner_fingerprint:
        raise _alarm(name, "owner", "the application is not vouched for by the pinned key of its owner")
    if card.body.epoch < known.epoch:
        raise _alarm(name, "epoch", f"the card is older (epoch {card.body.epoch}) than one already seen")
    if now is not None and now > card.body.not_after + CARD_GRACE_SECONDS:
        raise _alarm(name, "expired", "its card has expired, or one of the two clocks is wrong")


def _alarm(name: str, detail: str, why: str) -> IdentityError:
    return IdentityError(
        f"the identity of {name} did not verify: {why}; nothing was sent",
        detail=detail,
        hint=f"compare fingerprints with {name} over another channel (zkc verify {name})",
    )
