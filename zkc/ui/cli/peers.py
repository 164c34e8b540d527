"""``zkc peers``: the clients of the coordinator, and what is known of their keys here."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from zkc.errors import CoordinatorUnreachable, UnknownRecipient, ZkcError
from zkc.ui.cli.kinds import offers
from zkc.ui.cli.options import Command, Group, Invocation, pass_invocation
from zkc.ui.cli.output import local_time, rfc3339

if TYPE_CHECKING:
    from zkc.stores.key_rows import Pin
    from zkc.wire.messages import Peer


@click.command(
    "list", cls=Command, example="zkc peers",
    help="List the clients of the coordinator. Where there is no link: those whose keys are pinned here.",
    short_help="List the clients of the coordinator.",
)
@pass_invocation
def _list(call: Invocation) -> None:
    """``peers``, an object for each; ``alarm``: the fingerprint that was seen in place of the pinned one."""
    from zkc.client.access import open_access
    from zkc.client.principal import load_main
    from zkc.env import SystemClock, SystemEntropy
    from zkc.ui.cli.homes import client_config, client_home, open_store

    home = client_home(call)
    listed: list[Peer] | None = None
    with open_store(home) as store:
        own = load_main(store).name
        config = client_config(call, home)
        try:
            with contextlib.closing(open_access(home, store, config, SystemClock(), SystemEntropy())) as access:
                listed = access.peers()
                for peer in listed:
                    pin = store.pin(peer.name)
                    if pin is not None and pin.fingerprint != peer.fingerprint:
                        with contextlib.suppress(ZkcError):
                            access.card(peer.name)  # where successions lead there, it is pinned from now on
        except CoordinatorUnreachable as error:
            call.out.notice(f"who is online is not known: {error.message}")
        pins = {pin.name: pin for pin in store.pins()}
    peers = {peer.name: peer for peer in listed or ()}
    names = sorted(({*peers} | {*pins}) - {own})
    rows = [_row(name, peers.get(name), pins.get(name), asked=listed is not None) for name in names]
    if call.out.json:
        for row in rows:
            told = {**row, "last_seen": rfc3339(row["last_seen"]) if row["last_seen"] else None}
            call.out.event("peers", told)
        return
    columns = {
        "name": "name", "kind": "kind", "online": "online", "person": "person", "last_seen": "last seen",
        "fingerprint": "fingerprint", "pinned": "pinned", "verified": "verified",
    }
    shown = {"last_seen": local_time, "fingerprint": lambda text: text[:16]}
    call.out.table("peers", rows, columns, shown)
    for row in rows:
        if row["alarm"]:
            call.out.notice(f"the key of {row['name']} has changed: see zkc verify {row['name']}")


def _row(name: str, peer: Peer | None, pin: Pin | None, *, asked: bool) -> dict[str, Any]:
    fingerprint = pin.fingerprint if pin else peer.fingerprint if peer else b""
    alarm = pin.alarm if pin else b""
    if pin and peer and peer.fingerprint != pin.fingerprint:
        alarm = peer.fingerprint
    return {
        "name": name,
        "kind": peer.kind if peer else pin.kind if pin else None,
        "online": peer.online if peer else False if asked else None,
        "person": peer.person if peer else "unknown",
        "person_age": peer.person_age if peer and peer.person != "unknown" else None,
        "last_seen": float(peer.last_seen) if peer and peer.last_seen else pin.last_seen if pin else None,
        "fingerprint": fingerprint.hex(),
        "pinned": pin is not None,
        "verified": pin is not None and pin.verified is not None,
        "alarm": alarm.hex() or None,
    }


@click.command(
    "forget", cls=Command, example="zkc peers forget bob",
    help="Forget the key that is pinned for NAME: the next one seen is taken for a first contact.",
    short_help="Forget the key that is pinned for NAME.",
)
@click.argument("name", shell_complete=offers("peers"))
@pass_invocation
def _forget(call: Invocation, *, name: str) -> None:
    """``forgotten`` with ``name`` and ``fingerprint``."""
    from zkc.client.command_audit import CommandAudit
    from zkc.env import SystemClock
    from zkc.ids import check_name
    from zkc.ui.cli.homes import client_config, client_home, open_store

    check_name(name)
    home = client_home(call)
    config = client_config(call, home)
    with open_store(home) as store:
        pin = store.pin(name)
        if pin is None or not store.forget(name):
            raise UnknownRecipient(f"no key is pinned for {name}", detail="not-pinned", hint="see zkc peers")
    CommandAudit(home, config, SystemClock()).note("forgotten", recipient=name)
    call.out.event("forgotten", {"name": name, "fingerprint": pin.fingerprint.hex()})
    if not call.out.json:
        call.out.notice(f"forgot the key of {name} ({pin.fingerprint.hex()})")


command = Group(
    "peers", {"list": _list, "forget": _forget}, default="list",
    example="zkc peers\nzkc peers forget bob",
    help="Known clients and their keys. Without a subcommand: list.", short_help="Known clients and their keys.",
)
