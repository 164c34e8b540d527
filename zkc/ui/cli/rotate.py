"""``zkc rotate``: new keys for a registration."""

from __future__ import annotations

import click

from zkc.errors import UsageError
from zkc.ui.cli.options import Command, Invocation, pass_invocation
from zkc.ui.cli.output import local_time, rfc3339


@click.command(
    "rotate", cls=Command, example="zkc rotate\nzkc rotate --identity",
    help="Give this client, and its applications, new permanent keys in place of the ones that they have. Their "
    "fingerprints stay, and peers notice nothing. A daemon does it by itself before the keys expire (keys.lifetime).",
    short_help="Give this client new keys.",
)
@click.option(
    "--identity", is_flag=True,
    help="A new identity too, for which the present one vouches: peers take it, and safety numbers are others.",
)
@click.option(
    "--passphrase", "lock", flag_value="set", default=None,
    help="No new keys: lock the present ones by a passphrase, or by another one.",
)
@click.option("--no-passphrase", "lock", flag_value="none", help="No new keys: nothing locks the present ones.")
@pass_invocation
def command(call: Invocation, *, identity: bool, lock: str | None) -> None:
    """``rotated`` with ``name``, ``epoch``, ``fingerprint``, ``expires``, an object for each registration; or
    ``passphrase`` with ``locked``."""
    if lock is not None:
        if identity:
            raise UsageError("rotate: a passphrase and new keys are two commands", hint="give one after the other")
        _lock(call, wanted=lock == "set")
        return
    _rotate(call, identity=identity)


def _lock(call: Invocation, *, wanted: bool) -> None:
    from zkc.client.command_audit import CommandAudit
    from zkc.env import SystemClock
    from zkc.ui.cli.homes import client_config, client_home, open_store
    from zkc.ui.cli.passphrases import new_passphrase

    home = client_home(call)
    # A daemon that runs would find keys that it cannot read, or could read without having been asked.
    with open_store(home) as store, home.lock():
        config = client_config(call, home)
        store.unlock()
        store.set_passphrase(new_passphrase(call.out, changed=store.has_passphrase) if wanted else None)
        CommandAudit(home, config, SystemClock()).note("passphrase-set" if wanted else "passphrase-removed")
    call.out.event("passphrase", {"locked": wanted})
    if not call.out.json:
        call.out.notice("a passphrase locks the keys of this home" if wanted else "no passphrase locks the keys")


def _rotate(call: Invocation, *, identity: bool) -> None:
    import contextlib

    from zkc.client.access import open_access
    from zkc.client.applications import tell_daemon
    from zkc.client.principal import load_main
    from zkc.crypto.cards import verify_card
    from zkc.env import SystemClock, SystemEntropy
    from zkc.ui.cli.homes import client_config, client_home, open_store

    home = client_home(call)
    with open_store(home) as store:
        config = client_config(call, home)
        suite = load_main(store).coordinator.suite
        with contextlib.closing(open_access(home, store, config, SystemClock(), SystemEntropy())) as access:
            cards = access.rotate(identity=identity)
    # One that was started meanwhile has the former keys.
    tell_daemon(home)
    for encoded in cards:
        card = verify_card(encoded, suite)
        told = {
            "name": card.name, "epoch": card.body.epoch, "fingerprint": card.fingerprint.hex(),
            "expires": rfc3339(float(card.body.not_after)),
        }
        call.out.event("rotated", told)
        if not call.out.json:
            call.out.notice(f"{card.name} has new keys until {local_time(float(card.body.not_after))}")
