"""``zkc shares``: what another client lets this one ask for."""

from __future__ import annotations

import click

from zkc.ui.cli.kinds import offers
from zkc.ui.cli.options import Command, Invocation, pass_invocation


@click.command(
    "shares", cls=Command, example="zkc shares alice",
    help="List what CLIENT lets this client ask for, with zkc get and zkc send --from.",
    short_help="List what another client shares.",
)
@click.argument("client", shell_complete=offers("peers"))
@pass_invocation
def command(call: Invocation, *, client: str) -> None:
    """``share``, an object for each, with ``name``, ``kind`` (file, folder; gone: there is nothing now), ``note`` and
    ``for``: the recipients."""
    from zkc.ids import check_name
    from zkc.rules.names import escape
    from zkc.ui.cli.fetching import asker_of
    from zkc.ui.cli.signals import Signals

    check_name(client, "client")
    with Signals(), asker_of(call, client) as asker:
        listed = asker.shares()
    rows = [{"name": each.name, "kind": each.kind, "note": each.note, "for": each.recipients} for each in listed]
    for row in rows:
        call.out.event("share", row)
    if not call.out.json:
        shown = {"for": lambda names: escape(",".join(names)), "name": escape, "note": escape}
        call.out.table("share", rows, {"name": "name", "kind": "kind", "for": "for", "note": "note"}, shown)
