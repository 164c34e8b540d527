"""A peer's new identity, for which its former one vouches: the pin moves, and nobody has to look.

The coordinator is asked for the successions only where a key is not the pinned one, so that no handshake carries them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from zkc.client.principal import known_about, succeed_peer
from zkc.constants import SUCCESSIONS_MAX
from zkc.crypto.successions import heir_of
from zkc.errors import IdentityError, InternalError, PeerViolation, ZkcError
from zkc.ids import owner_of
from zkc.protocol.trust import Authority, KeyChanged, OwnerChanged, judge_peer, verify_peer
from zkc.stores.keystore import KeyStore
from zkc.wire.messages import AnswerBody, AskSuccessions, LookUp, PeerCard, RequestBody, Successions

Request = Callable[[RequestBody], Awaitable[AnswerBody]]
"""`Link.request`, or alike."""


async def look_up(request: Request, store: KeyStore, authority: Authority, name: str, now: float) -> PeerCard:
    """The card of ``name`` that the coordinator has; where successions lead there, its key is pinned from now on."""
    found = await request(LookUp(name))
    if not isinstance(found, PeerCard):
        raise InternalError(f"the coordinator answered with {type(found).__name__}", detail="unexpected")
    try:
        card = verify_peer(authority, name, found.card, found.certificate)
        judge_peer(card, known_about(store, name, card.fingerprint), None)
    except (KeyChanged, OwnerChanged) as changed:
        await follow(request, store, authority, changed, now)
    except IdentityError:
        pass  # whoever asked judges it
    return found


async def follow(
    request: Request, store: KeyStore, authority: Authority, changed: KeyChanged | OwnerChanged, now: float
) -> bool:
    """Whether successions lead from the pinned key to the one that was seen, which then is pinned. ``now`` in seconds
    since 1970."""
    try:
        if isinstance(changed, OwnerChanged):
            owner = owner_of(changed.name) or ""
            before = store.pin(owner)
            await look_up(request, store, authority, owner, now)
            return store.pin(owner) != before
        chain: list[bytes] = []
        since = changed.pinned
        while len(chain) <= SUCCESSIONS_MAX:
            page = await request(AskSuccessions(changed.name, since))
            if not isinstance(page, Successions):
                return False
            chain += page.successions
            if not page.more or not page.successions:
                break
            since = heir_of(chain[-1])
        return succeed_peer(store, authority.suite, changed, chain, now)
    except (ZkcError, PeerViolation):
        return False
