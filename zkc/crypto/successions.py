"""Successions: a registration's or the coordinator's new identity, in the place of its former one, by the word of both.

body = `SuccessionBody`; succession = body, SIG(former identity, "succession", H(body)), SIG(new identity, the same).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from zkc.constants import SUCCESSIONS_MAX
from zkc.crypto.primitives import digest
from zkc.crypto.signing import IdentityKey, IdentityPublic, read_identity
from zkc.errors import PeerViolation
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Succession, SuccessionBody

COORDINATOR_NAME: Final = ""
"""In a succession of the coordinator's own identity: no client has this name."""


class Heir(Struct, frozen=True):
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


def walk(former: IdentityPublic, name: str, chain: Sequence[bytes]) -> list[Heir]:
    """The identities to which ``chain`` leads from ``former``, one a step, their epochs rising. `PeerViolation`, as
    `verify_succession`; ``limit``, ``epoch``."""
    if len(chain) > SUCCESSIONS_MAX:
        raise PeerViolation("limit", "more successions than are followed in one go")
    heirs: list[Heir] = []
    for encoded in chain:
        heir = verify_succession(heirs[-1].identity if heirs else former, encoded, name)
        if heir.epoch <= (heirs[-1].epoch if heirs else 0):
            raise PeerViolation("epoch", "successions out of order")
        heirs.append(heir)
    return heirs


class Descent(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """From which identity a coordinator comes, and how: as a client keeps it, and evidence names it."""

    ed25519: bytes
    ml_dsa: bytes
    successions: list[bytes]

    @property
    def first(self) -> IdentityPublic:
        return read_identity(self.ed25519, self.ml_dsa)

    def identities(self) -> list[IdentityPublic]:
        """All of them, the first one's first; `PeerViolation` where a succession does not verify."""
        return [self.first, *(heir.identity for heir in walk(self.first, COORDINATOR_NAME, self.successions))]

    def since(self, index: int) -> Descent:
        """From the identity at ``index`` on."""
        first = self.identities()[index]
        return Descent(first.ed25519, first.ml_dsa, self.successions[index:])


def descend(known: Descent | None, former: IdentityPublic, chain: Sequence[bytes]) -> Descent:
    """What is known of a coordinator whose successions ``chain``, verified, have led from ``former`` to another one.

    Of one that comes later, or again, the identities before it are kept, `SUCCESSIONS_MAX` steps at most.
    """
    heirs = [heir_of(each) for each in chain]
    if former.fingerprint in heirs:  # who asked knew less than is known by now
        chain = chain[heirs.index(former.fingerprint) + 1 :]
    behind = [known.first.fingerprint, *map(heir_of, known.successions)] if known is not None else []
    if known is not None and chain and heir_of(chain[-1]) in behind:
        return known  # another process has learned of it
    if known is None or former.fingerprint != behind[-1]:
        return Descent(former.ed25519, former.ml_dsa, list(chain))
    longer = Descent(known.ed25519, known.ml_dsa, [*known.successions, *chain])
    while len(longer.successions) > SUCCESSIONS_MAX:
        first = verify_succession(longer.first, longer.successions[0], COORDINATOR_NAME).identity
        longer = Descent(first.ed25519, first.ml_dsa, longer.successions[1:])
    return longer


def heir_of(encoded: bytes) -> bytes:
    """The fingerprint that a succession leads to, nothing checked; `PeerViolation` (``malformed``, ``bad-key``)."""
    succession: Succession = decode(encoded, Succession)
    body: SuccessionBody = decode(succession.body, SuccessionBody)
    return read_identity(body.ed25519, body.ml_dsa).fingerprint
