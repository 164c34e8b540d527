"""``zkc leave``: ends this client's registration."""

from __future__ import annotations

import click

from zkc.ui.cli.options import Command, Invocation, pass_invocation


@click.command(
    "leave", cls=Command, example="zkc leave",
    help="End this client's registration, at the coordinator and here, and that of its applications. Inbox, receipts "
    "and configuration stay; a running daemon ends.",
    short_help="End this client's registration.",
)
@pass_invocation
def command(call: Invocation) -> None:
    """``left`` with ``names``."""
    import contextlib

    from zkc.client.access import open_access
    from zkc.client.command_audit import CommandAudit
    from zkc.client.principal import load_main
    from zkc.env import SystemClock, SystemEntropy
    from zkc.ui.cli.homes import client_config, client_home, open_store

    home = client_home(call)
    with open_store(home) as store:
        config = client_config(call, home)
        name = load_main(store).name
        with contextlib.closing(open_access(home, store, config, SystemClock(), SystemEntropy())) as access:
            access.leave()
        names = [registration.name for registration in store.registrations()]
        # The owner last: interrupted in between, or before, the command can be given again.
        notes = CommandAudit(home, config, SystemClock())
        for each in reversed(names):
            store.remove(each)
            notes.note("left", each)
    call.out.event("left", {"names": names})
    if not call.out.json:
        call.out.notice(f"{name} is no longer registered")
