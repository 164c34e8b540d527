"""A transfer's handshake from the sender's side, over this process's own link (Figures 13 and 15).

The daemon grants for commands that ask it over its control socket; a command without a daemon grants for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from zkc.client.events import WouldAccept
from zkc.client.grants import Grant, Have, Wanted
from zkc.client.link import Link
from zkc.client.principal import known_about, note_alarm, pin_peer
from zkc.constants import ID_BYTES, STEP_SECONDS
from zkc.env import Clock, Entropy
from zkc.errors import CoordinatorUnreachable, IdentityError, PeerViolation, TimedOut, ZkcError
from zkc.protocol import transfer_sender as machine
from zkc.protocol.session import Session
from zkc.protocol.step import Send, erase, step
from zkc.protocol.trust import KeyChanged, judge_peer, verify_peer
from zkc.stores.keystore import KeyStore
from zkc.wire.messages import Endpoints, LookUp, PeerCard, TransferEnd


async def grant(
    link: Link, store: KeyStore, wanted: Wanted, clock: Clock, entropy: Entropy,
    listen: Callable[[str], Awaitable[Endpoints]],
) -> Grant:
    """Ask, judge who answers, hand over the key, wait until the recipient confirms it. ``listen``: see `Listen`.

    Every error of the contract that a recipient or coordinator may give; `IdentityError` (12) before any key is made.
    """
    principal = link.principal
    sender = machine.Sender(
        principal.authority, principal.identity, principal.kem_key, principal.card,
        known_about(store, wanted.recipient), clock.wall(),
    )
    terms = machine.Terms(
        entropy.bytes(ID_BYTES), wanted.tid, wanted.recipient, wanted.key_source, wanted.key_order, wanted.cipher,
        wanted.size_class, wanted.fresh, wanted.compression, wanted.can_listen, wanted.asker, wanted.ask,
    )
    current = machine.create_request(sender, terms)
    finished = False
    try:
        while not isinstance(current.state, machine.Agreed):
            if current.effects:
                answer = await _ask(link, store, current.effects, wanted.recipient)
                current = step(machine.TABLE, sender, current.state, answer)
                continue
            state = current.state
            if isinstance(state, machine.AlreadyDelivered):
                finished = True
                keys = state.card.identity
                return Have(keys.fingerprint, keys.ed25519, keys.ml_dsa, state.receipt, principal.fingerprint)
            granted = state if isinstance(state, machine.Granted) else state.granted
            judge_peer(granted.card, known_about(store, wanted.recipient, granted.card.fingerprint), None)
            if wanted.pin not in (b"", granted.card.fingerprint):
                raise IdentityError(
                    f"{wanted.recipient} is not whom the asker named; nothing was sent", detail="identity",
                    hint="compare what is pinned at both: zkc verify",
                )
            if wanted.dry_run:
                return WouldAccept(granted.resp.presence)
            pin_peer(store, granted.card, clock.wall())
            where = await listen(link.endpoint) if granted.must_listen else None
            current = step(machine.TABLE, sender, state, machine.MakeKey(where))
        finished = True
        session: Session = current.state.session
        return session
    except KeyChanged as alarm:
        note_alarm(store, wanted.recipient, alarm.seen)
        raise
    except PeerViolation as violation:
        raise IdentityError(
            f"the handshake with {wanted.recipient} did not verify ({violation}); nothing was sent",
            detail=violation.detail,
            hint="somebody between the two ends alters messages, or a version is defective; see zkc verify",
        ) from None
    finally:
        if not finished:
            erase(current.state)
            link.tell(TransferEnd(terms.xid, 31, "ended"))


async def grant_within(
    within: float | None, link: Link, store: KeyStore, wanted: Wanted, clock: Clock, entropy: Entropy,
    listen: Callable[[str], Awaitable[Endpoints]],
) -> Grant:
    """`grant`, over a link that may not stand yet, in at most ``within`` seconds."""
    try:
        async with asyncio.timeout(within):
            # A command says at once that there is no link; whether it waits for one is its own affair.
            await link.wait_linked(link.patience)
            return await grant(link, store, wanted, clock, entropy, listen)
    except TimeoutError:
        raise _overdue(link, wanted.recipient) from None


def _overdue(link: Link, recipient: str) -> ZkcError:
    """What it means that a grant did not come in time: by what it waited for."""
    if not link.linked:
        return link.problem or CoordinatorUnreachable(
            f"no link to the coordinator at {link.endpoint} in time", detail="timeout",
            hint="is the coordinator running? a longer timeout may help",
        )
    return TimedOut(
        f"{recipient} did not answer this client's request in time", detail="timeout", hint="give it a longer timeout"
    )


async def _ask(link: Link, store: KeyStore, effects: tuple[Send, ...], recipient: str) -> object:
    (effect,) = effects
    try:
        return await link.request(effect.message, STEP_SECONDS, about=recipient)
    except IdentityError:
        try:
            await _look_into(link, store, recipient)
        except IdentityError:
            raise
        except (ZkcError, PeerViolation):
            # What was asked for an explanation and gave none does not hide what there is to explain.
            pass
        raise


async def _look_into(link: Link, store: KeyStore, recipient: str) -> None:
    """A recipient that is not the one whose key is pinned here says so first: `KeyChanged`, if it is that."""
    found = await link.request(LookUp(recipient))
    if isinstance(found, PeerCard):
        card = verify_peer(link.principal.authority, recipient, found.card, found.certificate)
        judge_peer(card, known_about(store, recipient, card.fingerprint), None)
