"""``zkc audit``: what this client decided."""

from __future__ import annotations

import click

from zkc.ui.cli.auditing import audit_options, tell_entries, tell_verified
from zkc.ui.cli.options import Command, Invocation, pass_invocation


@click.command(
    "audit", cls=Command, example="zkc audit --follow\nzkc audit --verify",
    help="Show every decision of this client: who, what, outcome. --verify walks the whole chain and prints its head; "
    "noted elsewhere, a head proves later, with --head, that nothing was cut off.",
    short_help="Show or verify the log of this client's decisions.",
)
@audit_options
@pass_invocation
def command(call: Invocation, *, follow: bool, verify: bool, head: bytes | None) -> None:
    """``audit``, an object for each entry; with ``--verify`` one ``verified`` with ``seq`` and ``head``."""
    from zkc.stores.audit_file import AuditFile
    from zkc.stores.noting import entries_of
    from zkc.ui.cli.homes import client_config, client_home, open_store

    home = client_home(call)
    client_config(call, home)
    open_store(home).close()
    with AuditFile.open(home) as file:
        if verify:
            tell_verified(call.out, *file.verify_audit(head))
        else:
            tell_entries(call.out, entries_of(file, follow=follow))
