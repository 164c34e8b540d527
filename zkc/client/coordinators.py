"""The identities that a registration's coordinator has now, had before, and says that it has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from zkc.client.principal import Principal
from zkc.constants import SUCCESSIONS_MAX
from zkc.crypto.cards import VerifiedCoordinator
from zkc.crypto.signing import IdentityPublic
from zkc.crypto.successions import Descent, descend, heir_of
from zkc.errors import InternalError
from zkc.protocol.trust import follow_coordinator
from zkc.stores.keystore import KeyStore
from zkc.wire.codec import decode
from zkc.wire.messages import AnswerBody, AskCoordinator, CoordinatorNow, RequestBody


@dataclass(frozen=True)
class Successor:
    """What a coordinator has become: its card, and the successions that lead there."""

    coordinator: VerifiedCoordinator
    card: bytes
    chain: list[bytes]


async def ask_coordinator(
    ask: Callable[[RequestBody], Awaitable[AnswerBody]], known: VerifiedCoordinator
) -> Successor | None:
    """Which identity the coordinator has; None: the ``known`` one. `IdentityError` (``identity``) where that does not
    vouch for it; errors of the link."""
    chain: list[bytes] = []
    since = known.identity.fingerprint
    while True:
        now = await ask(AskCoordinator(since))
        if not isinstance(now, CoordinatorNow):
            raise InternalError(f"the coordinator answered with {type(now).__name__}", detail="unexpected")
        chain += now.successions
        if not now.more or not now.successions or len(chain) > SUCCESSIONS_MAX:
            break
        since = heir_of(chain[-1])
    found = follow_coordinator(known, now.card, now.signature, chain)
    return None if found.identity == known.identity else Successor(found, now.card, chain)


@dataclass(frozen=True)
class Lineage:
    """One coordinator under every identity that is known to be its own."""

    card: bytes
    """Of the present one."""
    identities: list[IdentityPublic]
    """The oldest first."""
    descent: Descent | None
    """From the oldest to the present one; None where that is the only one."""

    @classmethod
    def of(cls, store: KeyStore, principal: Principal) -> Lineage:
        """As far as ``principal`` has followed it."""
        stored, present = store.descent(principal.registration.uid), principal.coordinator.identity
        if stored is not None:
            descent = decode(stored, Descent)
            identities = descent.identities()
            if present in identities[1:]:  # another process may have gone on
                end = identities.index(present)
                descent = Descent(descent.ed25519, descent.ml_dsa, descent.successions[:end])
                return cls(principal.registration.coordinator_card, identities[: end + 1], descent)
        return cls(principal.registration.coordinator_card, [present], None)

    def became(self, successor: Successor) -> Lineage:
        descent = descend(self.descent, self.identities[-1], successor.chain)
        return Lineage(successor.card, descent.identities(), descent)

    def find(self, fingerprint: bytes) -> IdentityPublic | None:
        return next((each for each in self.identities if each.fingerprint == fingerprint), None)

    def since(self, *signers: bytes) -> Descent | None:
        """What leads from the oldest of ``signers``, which are known, to the present one; None: it is that one."""
        oldest = min(i for i, each in enumerate(self.identities) if each.fingerprint in signers)
        return None if self.descent is None or oldest == len(self.identities) - 1 else self.descent.since(oldest)
