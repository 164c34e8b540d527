"""The coordinator's key log from a client's side: followed at each link, and asked before a key is pinned.

What was followed is kept in the key store and never goes back, so a coordinator that was restored from an older backup,
or shows two faces, is noticed (attacks H01, H12, K05).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from zkc.client.principal import Principal
from zkc.crypto.cards import VerifiedCard, hash_of
from zkc.crypto.merkle import Frontier
from zkc.errors import UnknownRecipient
from zkc.protocol.keylog import LogAlarm, LogState, Whose, check_proof, take_page
from zkc.stores.key_rows import KnownLog
from zkc.stores.keystore import KeyStore
from zkc.wire.messages import AnswerBody, LogAsk, LogPage, LogProof, LogProve, RequestBody

Ask = Callable[[RequestBody], Awaitable[AnswerBody]]


async def follow(ask: Ask, store: KeyStore, principal: Principal, mark: int = 0) -> LogState:
    """The log as it is now, durably followed to its end. ``mark``: see `LogState.marked`.

    `LogAlarm` (``log-proof``, ``log-shrunk``, ``log-fork``): nothing is kept. Errors of the link.
    """
    uid = principal.registration.uid
    kept = store.known_log(uid)
    state = None if kept is None else LogState(Frontier(kept.size, kept.frontier), kept.head, kept.foreign)
    if state is not None and state.frontier.size == mark:
        state = replace(state, marked=state.frontier.root)
    before, whole = state, False
    while not whole:
        page = await ask(LogAsk(0 if state is None else state.frontier.size, fresh=state is None))
        if not isinstance(page, LogPage):
            raise LogAlarm("log-proof", "it was not shown")
        # Now, and not before: what the coordinator has logged under this name was kept here before it heard of it.
        hashes, own = store.own_cards(uid)
        cards = frozenset((principal.card.hash, *hashes, *map(hash_of, own)))
        state, whole = take_page(Whose(principal.coordinator.identity, principal.name, cards), state, page, mark)
    if state is None:
        raise AssertionError("a log that was followed is known")
    if before is None or before.frontier != state.frontier:
        store.keep_log(uid, KnownLog(state.frontier.size, state.frontier.hashes, state.head, state.foreign))
    return state


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
