"""A transfer's handshake from the sender's side, over this process's own link (Figures 13 and 15).

The daemon grants for commands that ask it over its control socket; a command without a daemon grants for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from zkc.client.events import WouldAccept
from zkc.client.gossip import Gossip
from zkc.client.grants import Grant, Have, OnPending, Wanted
from zkc.client.keylog import check_logged
from zkc.client.link import Link, Unanswered
from zkc.client.principal import known_about, note_alarm, pin_peer
from zkc.client.reaching import reach
from zkc.client.successions import follow
from zkc.constants import CLOCKS_APART_SECONDS, ID_BYTES, PENDING_POLL_SECONDS, STEP_SECONDS
from zkc.env import Clock, Entropy
from zkc.errors import CoordinatorUnreachable, IdentityError, PeerViolation, TimedOut, ZkcError
from zkc.protocol import transfer_sender as machine
from zkc.protocol.session import Session
from zkc.protocol.step import Send, erase, step
from zkc.protocol.trust import KeyChanged, OwnerChanged, judge_peer, verify_peer
from zkc.rules.refusals import refused_by
from zkc.rules.units import show_apart
from zkc.stores.keystore import KeyStore
from zkc.stores.noting import Notes
from zkc.wire.messages import Endpoints, LookUp, PeerCard, TransferEnd, TransferPending


async def grant(
    link: Link, store: KeyStore, wanted: Wanted, clock: Clock, entropy: Entropy,
    listen: Callable[[str], Awaitable[Endpoints]], on_pending: OnPending, notes: Notes, gossip: Gossip,
) -> Grant:
    """Ask, judge who answers, hand over the key, wait until the recipient confirms it. ``listen``: see `Listen`.

    Where successions lead from the pinned key to the one that was seen, that is pinned, and it is asked once more.
    Every error of the contract that a recipient or coordinator may give; `IdentityError` (12) before any key is made.
    """

    async def attempt() -> Grant:
        return await _grant(link, store, wanted, clock, entropy, listen, on_pending, gossip)

    try:
        return await link.learning(attempt)
    except (KeyChanged, OwnerChanged) as changed:
        if not await follow(link.request, store, link.principal, changed, clock.wall(), notes):
            if isinstance(changed, KeyChanged):
                note_alarm(store, changed.name, changed.seen)
            raise
    return await attempt()


async def _grant(
    link: Link, store: KeyStore, wanted: Wanted, clock: Clock, entropy: Entropy,
    listen: Callable[[str], Awaitable[Endpoints]], on_pending: OnPending, gossip: Gossip,
) -> Grant:
    principal = link.principal
    sender = machine.Sender(
        principal.authority, principal.identity, principal.kem_key, principal.card,
        known_about(store, wanted.recipient), clock.wall(),
    )
    terms = machine.Terms(
        entropy.bytes(ID_BYTES), wanted.tid, wanted.recipient, wanted.key_source, wanted.key_order, wanted.cipher,
        wanted.size_class, wanted.fresh, wanted.compression, wanted.acknowledgement, wanted.can_listen,
        wanted.presence, wanted.wait, wanted.preview, wanted.asker, wanted.asked_by, wanted.ask,
        gossip.head_for(principal, wanted.recipient),
    )
    current = machine.create_request(sender, terms)
    finished = pending = False
    try:
        while not isinstance(current.state, machine.Agreed):
            if current.effects:
                answer = await _ask(link, store, current.effects, wanted.recipient, patient=pending)
                if isinstance(answer, TransferPending) and not pending:
                    if wanted.dry_run:
                        return WouldAccept("online", asks=True)
                    pending = True
                    on_pending()
                current = step(machine.TABLE, sender, current.state, answer)
                continue
            state = current.state
            if isinstance(state, machine.AlreadyDelivered):
                finished = True
                keys = state.card.identity
                return Have(keys.fingerprint, keys.ed25519, keys.ml_dsa, state.receipt, principal.fingerprint)
            if isinstance(state, machine.Declined):
                finished = True
                raise state.error
            granted = state if isinstance(state, machine.Granted) else state.granted
            judge_peer(granted.card, known_about(store, wanted.recipient, granted.card.fingerprint), None)
            await gossip.hear(link.request, principal, wanted.recipient, granted.resp.head)
            await check_logged(link.request, store, principal, granted.card)
            if wanted.pin not in (b"", granted.card.fingerprint):
                raise IdentityError(
                    f"{wanted.recipient} is not whom the asker named; nothing was sent", detail="identity",
                    hint="compare what is pinned at both: zkc verify",
                )
            if wanted.dry_run:
                places = await reach(granted.endpoints) if wanted.reach else []
                return WouldAccept(granted.resp.presence, places=tuple(places))
            pending = False
            pin_peer(store, granted.card, clock.wall())
            where = await listen(link.endpoint) if granted.must_listen else None
            current = step(machine.TABLE, sender, state, machine.MakeKey(where))
        finished = True
        session: Session = current.state.session
        return session
    except (KeyChanged, OwnerChanged):
        raise
    except IdentityError as error:
        raise blamed(error, wanted.recipient, link.clock_ahead) from None
    except PeerViolation as violation:
        raise IdentityError(
            f"the handshake with {wanted.recipient} did not verify ({violation}); nothing was sent",
            detail=violation.detail,
            hint="somebody between the two ends alters messages, or a version is defective; see zkc verify",
        ) from None
    finally:
        if not finished:
            gossip.forget(principal.registration.uid, wanted.recipient)
            erase(current.state)
            link.tell(TransferEnd(terms.xid, 31, "ended"))


async def grant_within(
    within: float | None, link: Link, store: KeyStore, wanted: Wanted, clock: Clock, entropy: Entropy,
    listen: Callable[[str], Awaitable[Endpoints]], on_pending: OnPending, notes: Notes, gossip: Gossip,
) -> Grant:
    """`grant`, over a link that may not stand yet, in at most ``within`` seconds; what came of it goes to ``notes``."""
    ends = link.principal.name, wanted.recipient
    try:
        granted = await _grant_within(
            within, link, store, wanted, clock, entropy, listen, on_pending, notes, gossip
        )
    except CoordinatorUnreachable:
        raise  # nobody decided anything
    except ZkcError as error:
        event = "key-changed" if isinstance(error, KeyChanged) else "outgoing"
        notes.note(event, *ends, code=error.code, detail=error.detail)
        raise
    told = "delivered-before" if isinstance(granted, Have) else "dry-run" if isinstance(granted, WouldAccept) else ""
    notes.note("outgoing", *ends, detail=told)
    return granted


async def _grant_within(
    within: float | None, link: Link, store: KeyStore, wanted: Wanted, clock: Clock, entropy: Entropy,
    listen: Callable[[str], Awaitable[Endpoints]], on_pending: OnPending, notes: Notes, gossip: Gossip,
) -> Grant:
    is_pending = False

    def told() -> None:
        nonlocal is_pending
        is_pending = True
        on_pending()

    try:
        async with asyncio.timeout(within):
            # A command says at once that there is no link; whether it waits for one is its own affair.
            await link.wait_linked(link.patience)
            return await grant(link, store, wanted, clock, entropy, listen, told, notes, gossip)
    except TimeoutError:
        if is_pending and link.linked:
            raise refused_by(wanted.recipient, TimedOut.code, "unanswered") from None
        raise _overdue(link, wanted.recipient) from None


def blamed(error: IdentityError, recipient: str, clock_ahead: float) -> IdentityError:
    """``error``, or where a card has expired by a clock that nobody shares, what that clock says (attack C16)."""
    if error.detail != "expired" or abs(clock_ahead) <= CLOCKS_APART_SECONDS:
        return error
    return IdentityError(
        f"by this client's clock, which is {show_apart(clock_ahead)} the coordinator's, the card of {recipient} has"
        " expired; nothing was sent", detail="clock", hint="set the clock that is wrong",
    )


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


async def _ask(
    link: Link, store: KeyStore, effects: tuple[Send, ...], recipient: str, *, patient: bool = False
) -> object:
    """``patient``: a person decides, and the same is asked again and again until that is done."""
    (effect,) = effects
    try:
        while patient:
            with contextlib.suppress(Unanswered):
                return await link.request(effect.message, PENDING_POLL_SECONDS, about=recipient)
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
