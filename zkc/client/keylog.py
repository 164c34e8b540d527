"""The coordinator's key log from a client's side: followed at each link, and asked before a key is pinned.

What was followed is kept in the key store and never goes back, so a coordinator that was restored from an older backup,
or shows two faces, is noticed (attacks H01, H12, K05).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from zkc.client.principal import Principal
from zkc.crypto.cards import VerifiedCard
from zkc.crypto.merkle import Frontier
from zkc.errors import InternalError, UnknownRecipient
from zkc.protocol.keylog import LogAlarm, LogState, Whose, check_proof, take_page
from zkc.protocol.trust import verify_peer
from zkc.stores.keystore import KeyStore, KnownLog
from zkc.wire.messages import AnswerBody, LogAsk, LogPage, LogProof, LogProve, LookUp, PeerCard, RequestBody

Ask = Callable[[RequestBody], Awaitable[AnswerBody]]


async def follow(ask: Ask, store: KeyStore, principal: Principal) -> LogState:
    """The log as it is now, durably followed to its end.

    `LogAlarm` (``log-proof``, ``log-shrunk``, ``log-fork``): nothing is kept. Errors of the link.
    """
    whose = Whose(principal.coordinator.identity, principal.name, principal.card.hash)
    uid = principal.registration.uid
    kept = store.known_log(uid)
    state = None if kept is None else LogState(Frontier(kept.size, kept.frontier), kept.head, kept.foreign)
    before, whole = state, False
    while not whole:
        page = await ask(LogAsk(0 if state is None else state.frontier.size, fresh=state is None))
        if not isinstance(page, LogPage):
            raise LogAlarm("log-proof", "it was not shown")
        state, whole = take_page(whose, state, page)
    if state is None:
        raise AssertionError("a log that was followed is known")
    if before is None or before.frontier != state.frontier:
        store.keep_log(uid, KnownLog(state.frontier.size, state.frontier.hashes, state.head, state.foreign))
    return state


async def look_up(ask: Ask, store: KeyStore, principal: Principal, name: str) -> PeerCard:
    """The card that the coordinator gives for ``name``; that of one who is not pinned is in the log.

    A changed key is told as that, by who judges it. `LogAlarm`, `IdentityError`; errors of the link.
    """
    found = await ask(LookUp(name))
    if not isinstance(found, PeerCard):
        raise InternalError("the coordinator answered something else than what was asked", detail="unexpected")
    if store.pin(name) is None and name != principal.name:
        card = verify_peer(principal.authority, name, found.card, found.certificate)
        await check_logged(ask, store, principal, card)
    return found


async def check_logged(ask: Ask, store: KeyStore, principal: Principal, card: VerifiedCard) -> None:
    """Before ``card`` is pinned: that the coordinator has committed itself to it before everybody.

    Nothing is asked where this very card is pinned. `LogAlarm`; errors of the link.
    """
    pin = store.pin(card.name)
    if pin is not None and pin.card_hash == card.hash:
        return
    state = await follow(ask, store, principal)
    try:
        proof = await ask(LogProve(card.name, card.hash, state.frontier.size))
    except UnknownRecipient:
        raise LogAlarm("log-proof", f"the card that it gave for {card.name} is not in it") from None
    if not isinstance(proof, LogProof):
        raise LogAlarm("log-proof", f"it does not show the card of {card.name}")
    check_proof(state, card.name, card.hash, proof)
