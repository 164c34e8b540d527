"""``zkc join``: registers this home at a coordinator, or an application of this home."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zkc.errors import LocalIOError, UsageError
from zkc.ui.cli.kinds import offers, word
from zkc.ui.cli.options import Command, Invocation, pass_invocation

if TYPE_CHECKING:
    from zkc.client.join import Joined
    from zkc.config import ClientConfig
    from zkc.stores.home import Home, HomeLock
    from zkc.stores.keystore import KeyStore
    from zkc.wire.messages import InvitationText

_INVITATION_MAX = 64 * 1024


@click.command(
    "join", cls=Command, example=(
        "zkc join --invite-file bob.invite\n"
        "ssh host zkc coordinator invite bob | zkc join --invite-file -\n"
        "zkc join --invite-file bob.invite --listen tcp://192.0.2.8:7700-7719 --accept ask\n"
        "zkc join --app backup"
    ),
    help="Register this computer (or user) with an invitation from 'zkc coordinator invite', read from FILE or "
    "ZKC_INVITE, or asked for on a terminal.",
    short_help="Register with an invitation.",
)
@click.option(
    "--invite-file", metavar="FILE", shell_complete=offers("files"), help="The invitation; '-': standard input."
)
@click.option(
    "--listen", metavar="ENDPOINT",
    help="Where the other end of a transfer connects, tcp://HOST:PORT[-PORT], two ports for each at once; off: nobody "
    "can [tcp://*:0].",
)
@click.option(
    "--accept", type=word("all", "ask", "none"), metavar="all|ask|none",
    help="What to do with transfers to this client that no rule of policy names [all].",
)
@click.option("--app", metavar="NAME", help="Register an application of this home, NAME; needs no invitation.")
@click.option(
    "--passphrase", is_flag=True,
    help="Lock the keys of this home by a passphrase, from ZKC_PASSPHRASE_FILE or asked for on a terminal.",
)
@click.option("--force", is_flag=True, help="Put the registration of that name (without --app: each one) aside.")
@pass_invocation
def command(
    call: Invocation, *, invite_file: str | None, listen: str | None, accept: str | None, app: str | None, force: bool,
    passphrase: bool,
) -> None:
    """``joined`` with ``name``, ``fingerprint`` and ``endpoints``."""
    from zkc.hardening import protect_memory

    protect_memory()
    if app is not None:
        if invite_file is not None or listen is not None or accept is not None or passphrase:
            raise UsageError("join: --app goes with --force alone", hint=f"zkc join --app {app}")
        joined = _join_application(call, app, force=force)
    else:
        joined = _join(call, invite_file, listen, accept, force=force, lock_keys=passphrase)
    told = {
        "name": joined.name, "fingerprint": joined.fingerprint.hex(), "endpoints": list(joined.endpoints),
    }
    call.out.event("joined", told)
    if not call.out.json:
        call.out.notice(f"joined as {joined.name} (fingerprint {joined.fingerprint.hex()})")


def _join_application(call: Invocation, app: str, *, force: bool) -> Joined:
    from zkc.client.applications import join_application
    from zkc.env import SystemClock, SystemEntropy
    from zkc.ui.cli.homes import client_config, client_home, open_store

    home = client_home(call)
    with open_store(home) as store:
        config = client_config(call, home)
        return join_application(
            home, store, config, app, clock=SystemClock(), entropy=SystemEntropy(), force=force
        )


def _join(
    call: Invocation, invite_file: str | None, listen: str | None, accept: str | None, *, force: bool,
    lock_keys: bool = False,
) -> Joined:
    from zkc.client.command_audit import CommandAudit
    from zkc.client.join import join, read_invitation, refuse_second_registration
    from zkc.config import save_client
    from zkc.env import SystemClock, SystemEntropy
    from zkc.stores.keystore import KeyStore
    from zkc.ui.cli.homes import client_config, client_home
    from zkc.ui.cli.passphrases import new_passphrase

    home = client_home(call)
    config = client_config(call, home, {"transfer.listen": listen, "inbox.accept": accept})
    invitation = read_invitation(_invitation(call, invite_file))
    if "/" in invitation.name:
        raise UsageError(
            f"this invitation is for the application {invitation.name}", detail="bad-invite",
            hint="zkc join --app in its owner's home needs no invitation",
        )
    home.prepare()
    if os.path.lexists(home.keys_db):
        # Asked before the lock too: where a daemon runs, it is the registration that stands in the way.
        with KeyStore.open(home) as store:
            refuse_second_registration(store, force=force)
    with home.lock() as lock, _attempt(home.prepare(), lock, invitation) as store:
        refuse_second_registration(store, force=force)
        if lock_keys and not store.has_passphrase:
            # Before the registration: its keys are never in the file as they are.
            store.set_passphrase(new_passphrase(call.out))
        store.unlock()
        if accept is None and call.out.may_prompt:
            accept = _ask_accept(config)
        told: dict[str, object] = {}
        if listen is not None:
            told["transfer.listen"] = listen
        if accept is not None:
            told["inbox.accept"] = accept
        if told and not force:
            # Before the registration: it never stands without what was asked for with it. A forced join that
            # fails leaves the old registration as it was.
            save_client(home.config_file, told)
        joined = join(store, invitation, config, clock=SystemClock(), entropy=SystemEntropy(), force=force)
        save_client(home.config_file, told | {"coordinator.endpoints": list(joined.endpoints)})
        CommandAudit(home, config, SystemClock()).note("joined", joined.name)
    return joined


@contextmanager
def _attempt(home: Home, lock: HomeLock, invitation: InvitationText) -> Iterator[KeyStore]:
    """The home's keys. A join that fails, with no key that the coordinator may know, leaves the home as it was."""
    from zkc.config import put_back
    from zkc.stores.keystore import KeyStore
    from zkc.ui.cli.passphrases import passphrase

    is_new = not os.path.lexists(home.keys_db)
    config = home.config_file.read_bytes() if home.config_file.exists() else None
    kept = False
    try:
        with KeyStore.open(home, passphrase=passphrase) as store:
            try:
                yield store
            finally:
                registered = store.registration(invitation.name) is not None
                kept = registered or store.pending(invitation.invite_id) is not None
    except BaseException:
        if not kept:
            put_back(home.config_file, config)
            if is_new:
                home.clear(lock)
        raise


def _invitation(call: Invocation, invite_file: str | None) -> str:
    """The invitation's text: from a file, standard input, the environment or a person, never from an argument."""
    if invite_file == "-":
        if sys.stdin is None:
            raise LocalIOError("standard input is closed", detail="unreadable", hint="name a file")
        return sys.stdin.buffer.read(_INVITATION_MAX).decode(errors="replace")
    if invite_file is not None:
        try:
            with Path(invite_file).open("rb") as file:
                return file.read(_INVITATION_MAX).decode(errors="replace")
        except OSError as error:
            raise LocalIOError(
                f"cannot read the invitation {invite_file}: {error.strerror}", detail="unreadable",
                hint="is it the right file?",
            ) from None
    if text := os.environ.get("ZKC_INVITE"):
        return text
    if call.out.may_prompt:
        return str(click.prompt("Invitation", hide_input=True, err=True))
    raise UsageError("join: there is no invitation", hint="give it with --invite-file FILE, or in ZKC_INVITE")


def _ask_accept(config: ClientConfig) -> str:
    return str(
        click.prompt(
            "Accept what other clients of this coordinator send", type=click.Choice(["all", "ask", "none"]),
            default=config.inbox.accept, err=True,
        )
    )
