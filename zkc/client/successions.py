"""A peer's new identity, for which its former one vouches: the pin moves, and nobody has to look.

The coordinator is asked for the successions only where a key is not the pinned one, so that no handshake carries them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from zkc.client.keylog import check_logged
from zkc.client.principal import Principal, known_about, succeed_peer
from zkc.constants import SUCCESSIONS_MAX
from zkc.crypto.successions import heir_of
from zkc.errors import IdentityError, InternalError, PeerViolation, ZkcError
from zkc.ids import owner_of
from zkc.protocol.keylog import LogAlarm
from zkc.protocol.trust import KeyChanged, OwnerChanged, judge_peer, verify_peer
from zkc.stores.keystore import KeyStore
from zkc.stores.noting import Notes
from zkc.wire.messages import AnswerBody, AskSuccessions, LookUp, PeerCard, RequestBody, Successions

Request = Callable[[RequestBody], Awaitable[AnswerBody]]
"""`Link.request`, or alike."""


async def look_up(
    request: Request, store: KeyStore, principal: Principal, name: str, now: float, notes: Notes
) -> PeerCard:
    """The card of ``name`` that the coordinator has; where successions lead there, its key is pinned from now on. That
    of one who is not pinned is in the key log.

    A changed key is told as that, by who judges it. `LogAlarm`, `IdentityError`; errors of the link.
    """
    found = await request(LookUp(name))
    if not isinstance(found, PeerCard):
        raise InternalError(f"the coordinator answered with {type(found).__name__}", detail="unexpected")
    is_new = store.pin(name) is None and name != principal.name
    try:
        card = verify_peer(principal.authority, name, found.card, found.certificate)
        judge_peer(card, known_about(store, name, card.fingerprint), None)
    except (KeyChanged, OwnerChanged) as changed:
        await follow(request, store, principal, changed, now, notes)
    except IdentityError:
        if is_new:
            raise
    else:
        if is_new:
            await check_logged(request, store, principal, card)
    return found


async def follow(
    request: Request, store: KeyStore, principal: Principal, changed: KeyChanged | OwnerChanged, now: float,
    notes: Notes,
) -> bool:
    """Whether successions lead from the pinned key to the one that was seen, which then is pinned. ``now`` in seconds
    since 1970. `LogAlarm`: that one is not in the coordinator's key log."""
    try:
        if isinstance(changed, OwnerChanged):
            owner = owner_of(changed.name) or ""
            before = store.pin(owner)
            await look_up(request, store, principal, owner, now, notes)
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
        if changed.card is None or not chain:
            return False
        await check_logged(request, store, principal, changed.card)
        if not succeed_peer(store, principal.authority.suite, changed, chain, now):
            return False
        notes.note("key-succeeded", principal.name, changed.name)
        return True
    except LogAlarm:
        raise
    except (ZkcError, PeerViolation):
        return False
