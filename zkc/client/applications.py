"""Applications of a home's registration: ``bob/backup`` beside ``bob``, vouched for by bob, with keys of its own."""

from __future__ import annotations

import contextlib

from zkc.client import control
from zkc.client.access import open_access
from zkc.client.command_audit import CommandAudit
from zkc.client.join import Joined, join, read_invitation
from zkc.client.principal import Principal, load_main
from zkc.config import ClientConfig
from zkc.env import Clock, Entropy
from zkc.errors import IdentityError, NotRegistered, UsageError
from zkc.ids import check_name
from zkc.net.local_client import LocalClient
from zkc.net.local_frames import NotRunning
from zkc.stores.home import Home
from zkc.stores.keystore import KeyStore


def application_name(principal: Principal, app: str) -> str:
    """``NAME/app``; `UsageError` (``bad-name``) for what is no name of an application."""
    if "/" in app:
        raise UsageError(
            f"{app[:80]!r} is not the name of an application", detail="bad-name",
            hint="leave out the name before the slash: it is always this home's own",
        )
    return check_name(f"{principal.name}/{check_name(app, 'application')}", "application")


def join_application(
    home: Home, store: KeyStore, config: ClientConfig, app: str, *, clock: Clock, entropy: Entropy, force: bool = False
) -> Joined:
    """Register ``NAME/app`` without an invitation from anybody; a running daemon serves it from now on.

    ``force`` puts aside what this home has registered under that name: it was revoked. `UsageError`
    (``already-registered``), and the errors of `open_access` and `join`.
    """
    store.unlock()
    principal = load_main(store)
    name = application_name(principal, app)
    if store.registration(name) is not None and not force:
        raise UsageError(
            f"this home has registered {name} already", detail="already-registered",
            hint="if the coordinator has revoked it, --force puts it aside",
        )
    with contextlib.closing(open_access(home, store, config, clock, entropy)) as access:
        invitation = read_invitation(access.invite_application(app))
    wanted = (name, "application", principal.registration.coordinator_fingerprint)
    if (invitation.name, invitation.kind, invitation.fingerprint) != wanted:
        raise IdentityError(
            f"the coordinator's invitation is not for {name}", detail="name", hint="ask its administrator"
        )
    joined = join(store, invitation, config, clock=clock, entropy=entropy, owner=principal, force=force)
    CommandAudit(home, config, clock).note("joined", joined.name)
    tell_daemon(home)
    return joined


def ensure_application(
    home: Home, store: KeyStore, config: ClientConfig, app: str, *, clock: Clock, entropy: Entropy
) -> Joined | None:
    """`join_application` where there is none yet; None where there is. `NotRegistered` (``revoked``)."""
    name = application_name(load_main(store), app)
    if store.registration(name) is not None:
        return None
    if store.was_revoked(name):
        raise NotRegistered(
            f"the registration of {name} was revoked", detail="revoked", hint=f"zkc join --app {app} registers it anew"
        )
    return join_application(home, store, config, app, clock=clock, entropy=entropy)


def tell_daemon(home: Home) -> None:
    """Have a running daemon look at its registrations and its configuration again; none is fine."""
    client: LocalClient[control.ControlReply] = LocalClient(home.socket_path(), control.ControlReply)
    with contextlib.suppress(NotRunning):
        client.call(control.AskReload())
