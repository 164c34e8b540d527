"""Whether a card is the one that a name should have: every rule of trust between clients, in one pure function.

New -> pinned -> verified -> changed: a changed key is blocked until a command names the new fingerprint.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from zkc.constants import CARD_GRACE_SECONDS
from zkc.crypto.cards import (
    VerifiedCard,
    VerifiedCoordinator,
    verify_card,
    verify_certificate,
    verify_coordinator_card,
)
from zkc.crypto.signing import IdentityPublic
from zkc.crypto.successions import COORDINATOR_NAME, walk
from zkc.crypto.suites import Suite
from zkc.errors import IdentityError, PeerViolation
from zkc.wire.codec import decode
from zkc.wire.messages import CoordinatorCard


class KeyChanged(IdentityError):
    """The alarm that a person has to look into."""

    def __init__(self, name: str, pinned: bytes, seen: bytes, card: VerifiedCard | None = None) -> None:
        super().__init__(
            f"the key of {name} has CHANGED: pinned {pinned.hex()}, now {seen.hex()}; nothing was sent",
            detail="identity",
            hint=f"ask {name} for its fingerprint over another channel; only if it is the new one:"
            f" zkc verify {name} --trust {seen.hex()}",
        )
        self.name = name
        self.pinned = pinned
        self.seen = seen
        self.card = card
        """On which it was seen, certified by the coordinator: successions may lead there."""


class OwnerChanged(IdentityError):
    """An application is vouched for by another key than the one that is pinned for its owner."""

    def __init__(self, name: str) -> None:
        why = "the application is not vouched for by the pinned key of its owner"
        super().__init__(_told(name, why), detail="owner", hint=_compare(name))
        self.name = name


class Known(Struct, frozen=True):
    """What this client already knows that bears on one name."""

    fingerprint: bytes = b""
    """Pinned under the name; empty at first contact."""
    epoch: int = 0
    owner_fingerprint: bytes = b""
    """Pinned under the owner's name, for ``owner/app``."""
    owner_former: tuple[bytes, ...] = ()
    """What the owner's identity took the place of."""
    names: tuple[str, ...] = ()
    """Every name under which the card's fingerprint is pinned."""
    card: bytes = b""
    """The one that was seen last under the name."""


class Authority(Struct, frozen=True):
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
        raise KeyChanged(name, known.fingerprint, card.fingerprint, card)
    if any(other != name for other in known.names):
        raise _alarm(name, "two-names", f"the same key is pinned as {known.names[0]!r}")
    # One that is pinned itself may wait for its own next card; a former identity vouches for nobody new.
    former = known.owner_former if known.fingerprint else ()
    if known.owner_fingerprint and card.owner_fingerprint not in {known.owner_fingerprint, *former}:
        raise OwnerChanged(name)
    if card.body.epoch < known.epoch:
        raise _alarm(name, "epoch", f"the card is older (epoch {card.body.epoch}) than one already seen")
    if now is not None and now > card.body.not_after + CARD_GRACE_SECONDS:
        raise _alarm(name, "expired", "its card has expired, or one of the two clocks is wrong")


def follow(pinned: VerifiedCard, card: VerifiedCard, chain: Sequence[bytes]) -> tuple[bytes, ...]:
    """Whether successions lead from the ``pinned`` key to that of ``card``; the fingerprints that lie behind.

    Each is signed by the key before it and by the next, and their epochs rise. `KeyChanged` where they lead elsewhere,
    or do not verify: a key that only the new one vouches for is an alarm (attack H13).
    """
    try:
        behind, identity = _walk(pinned.identity, card.name, card.body.epoch, chain)
    except PeerViolation:
        raise KeyChanged(card.name, pinned.fingerprint, card.fingerprint, card) from None
    if identity.fingerprint != card.fingerprint:
        raise KeyChanged(card.name, pinned.fingerprint, card.fingerprint, card)
    return tuple(behind)


def follow_coordinator(
    pinned: VerifiedCoordinator, encoded: bytes, signature: bytes, chain: Sequence[bytes]
) -> VerifiedCoordinator:
    """The coordinator with the identity that it has now, where successions lead there from the one that is pinned.

    `IdentityError` (``identity``).
    """
    card: CoordinatorCard = decode(encoded, CoordinatorCard)
    try:
        _, identity = _walk(pinned.identity, COORDINATOR_NAME, card.epoch, chain)
        found = verify_coordinator_card(encoded, signature, identity.fingerprint)
        if (found.curve_key, found.suite) != (pinned.curve_key, pinned.suite):
            raise PeerViolation("identity", "its other keys are not those that it had")
    except PeerViolation:
        raise IdentityError(
            "the coordinator has another identity, for which the one that is pinned does not vouch", detail="identity",
            hint="ask its administrator for the fingerprint; if it is right: a new invitation, and zkc join --force",
        ) from None
    return found


def _walk(
    identity: IdentityPublic, name: str, last: int, chain: Sequence[bytes]
) -> tuple[list[bytes], IdentityPublic]:
    """Where ``chain`` leads from ``identity``, and the fingerprints on the way. `PeerViolation`."""
    heirs = walk(identity, name, chain)
    if heirs and heirs[-1].epoch > last:
        raise PeerViolation("epoch", "successions out of order")
    *behind, present = [identity, *(heir.identity for heir in heirs)]
    return [each.fingerprint for each in behind], present


def _alarm(name: str, detail: str, why: str) -> IdentityError:
    return IdentityError(_told(name, why), detail=detail, hint=_compare(name))


def _told(name: str, why: str) -> str:
    return f"the identity of {name} did not verify: {why}; nothing was sent"


def _compare(name: str) -> str:
    return f"compare fingerprints with {name} over another channel (zkc verify {name})"
