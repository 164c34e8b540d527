"""``zkc verify``: the safety number of a pair, and a person's word on a peer's key."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from zkc.errors import CoordinatorUnreachable, IdentityError, UsageError
from zkc.ui.cli.kinds import Fingerprint, offers
from zkc.ui.cli.options import Command, Invocation, pass_invocation
from zkc.ui.cli.output import Out, rfc3339

if TYPE_CHECKING:
    from zkc.client.principal import Principal
    from zkc.config import ClientConfig
    from zkc.crypto.cards import VerifiedCard
    from zkc.stores.home import Home
    from zkc.stores.key_rows import Pin
    from zkc.stores.keystore import KeyStore
    from zkc.stores.noting import Notes


@click.command(
    "verify", cls=Command, example="zkc verify bob\nzkc verify bob --confirm",
    help="Show the safety number that both ends of a pair have. Compare it with NAME over another channel: --confirm.",
    short_help="Compare the keys of a pair.",
)
@click.argument("name", shell_complete=offers("peers"))
@click.option("--confirm", is_flag=True, help="Record that it was compared, and is the same.")
@click.option("--trust", type=Fingerprint(), help="Accept a changed key: the whole fingerprint that NAME has now.")
@pass_invocation
def command(call: Invocation, *, name: str, confirm: bool, trust: bytes | None) -> None:
    """``verify`` with ``name``, ``safety_number``, both fingerprints, ``verified``."""
    from zkc.client.command_audit import CommandAudit
    from zkc.client.principal import load_main
    from zkc.crypto.signing import safety_number
    from zkc.env import SystemClock
    from zkc.ids import check_name
    from zkc.ui.cli.homes import client_config, client_home, open_store

    check_name(name)
    home = client_home(call)
    now = SystemClock().wall()
    with open_store(home) as store:
        own = load_main(store)
        if name == own.name:
            raise UsageError("verify: that is this client itself", hint="name the other end")
        config = client_config(call, home)
        notes = CommandAudit(home, config, SystemClock())
        pin = _judged(call.out, home, store, config, own, name, trust, now, notes)
        if confirm:
            store.update_pin(name, lambda known: replace(known, verified=now) if known == pin else known)
            pin = store.pin(name) or pin
            notes.note("verified", own.name, name)
    number = safety_number(own.fingerprint, pin.fingerprint)
    told = {
        "name": name, "safety_number": number, "own_fingerprint": own.fingerprint.hex(),
        "fingerprint": pin.fingerprint.hex(), "pinned": True, "verified": pin.verified is not None,
        "verified_at": rfc3339(pin.verified) if pin.verified is not None else None,
    }
    if call.out.json:
        call.out.event("verify", told)
    else:
        _show(call.out, name, own, pin, number)


def _judged(
    out: Out, home: Home, store: KeyStore, config: ClientConfig, own: Principal, name: str, trusted: bytes | None,
    now: float, notes: Notes,
) -> Pin:
    """The pin of ``name``, made now where there is none; `IdentityError` while another key than it was seen."""
    from msgspec import structs

    from zkc.client.principal import another_key_seen, known_about, note_alarm, pin_peer, trust_peer
    from zkc.protocol.trust import KeyChanged, judge_peer

    pin = store.pin(name)
    try:
        card, registered = _card(home, store, config, name)
    except CoordinatorUnreachable as error:
        if pin is None or pin.alarm or trusted is not None:
            raise
        out.notice(f"this is the pinned key; what the coordinator says now is not known: {error.message}")
        return pin
    pin = store.pin(name)  # a succession may have moved it
    if trusted is not None:
        if trusted != card.fingerprint:
            raise IdentityError(
                f"{trusted.hex()} is not the key that {name} has now: the coordinator gives {card.fingerprint.hex()}",
                detail="identity", hint=f"ask {name} again over another channel",
            )
        judge_peer(card, structs.replace(known_about(store, name, card.fingerprint), fingerprint=b"", epoch=0), None)
        trust_peer(store, card, now)
        notes.note("trusted", own.name, name)
    else:
        try:
            judge_peer(card, known_about(store, name, card.fingerprint), None)
        except KeyChanged as alarm:
            note_alarm(store, name, alarm.seen)
            notes.note("key-changed", own.name, name, code=alarm.code, detail=alarm.detail)
            raise IdentityError(
                f"{alarm.message}; {_how(pin, card, registered)}", detail=alarm.detail, hint=alarm.hint
            ) from None
        if pin is not None and pin.alarm:
            raise another_key_seen(name, pin)
        pin_peer(store, card, now)
    pinned = store.pin(name)
    if pinned is None:
        raise IdentityError(f"the key of {name} was forgotten meanwhile", detail="identity", hint="run it again")
    return pinned


def _how(pin: Pin | None, card: VerifiedCard, registered: float) -> str:
    """How, by the coordinator's word, the name has come to another key."""
    from zkc.crypto.cards import uid_of
    from zkc.ui.cli.output import local_time

    if pin is not None and uid_of(pin.card) == card.body.uid:
        return "the registration is the same, and its former key does not vouch for this one"
    by = "its owner" if card.body.kind == "application" else "an invitation"
    return f"registered anew at the coordinator on {local_time(registered)}, by {by}, says the coordinator"


def _card(home: Home, store: KeyStore, config: ClientConfig, name: str) -> tuple[VerifiedCard, float]:
    """The card of ``name`` that the coordinator certifies now, and since when it has the client that it is of."""
    from zkc.client.access import open_access
    from zkc.client.principal import load_main
    from zkc.env import SystemClock, SystemEntropy
    from zkc.errors import UnknownRecipient
    from zkc.protocol.trust import verify_peer

    with contextlib.closing(open_access(home, store, config, SystemClock(), SystemEntropy())) as access:
        try:
            found = access.card(name)
        except UnknownRecipient as error:
            raise UnknownRecipient(
                f"there is no {name} at this coordinator", detail=error.detail, hint="zkc peers lists who is there"
            ) from None
        own = load_main(store)  # the coordinator may have another identity by now
    return verify_peer(own.authority, name, found.card, found.certificate), float(found.registered)


def _show(out: Out, name: str, own: Principal, pin: Pin, number: str) -> None:
    from zkc.ui.cli.output import local_time

    groups = number.split()
    for start in range(0, len(groups), 4):
        out.text("  ".join(groups[start : start + 4]))
    if sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        out.text(_qr_code(number))
    out.notice(f"{own.name}: {own.fingerprint.hex()}")
    out.notice(f"{name}: {pin.fingerprint.hex()}")
    if pin.verified is not None:
        out.notice(f"compared on {local_time(pin.verified)}")
    else:
        out.notice(f"not compared yet: if {name} sees the same number, zkc verify {name} --confirm")


def _qr_code(number: str) -> str:
    """The digits, for the other end's camera."""
    import io

    import segno

    drawn = io.StringIO()
    segno.make(number.replace(" ", ""), micro=False).terminal(out=drawn, compact=True)
    return drawn.getvalue().rstrip("\n")
