"""``zkc presence``: what this client knows, and tells, of its person."""

from __future__ import annotations

from typing import Any

import click

from zkc.ui.cli.kinds import offers, word
from zkc.ui.cli.options import Command, Invocation, pass_invocation

_GUESS_SECONDS = 60.0


@click.command(
    "presence", cls=Command, example="zkc presence\nzkc presence here\nzkc presence auto",
    help="Show whether a person is here, as far as this client knows; or say it: here, away, or auto, which leaves it "
    "to the sources that person.sources names.",
    short_help="Show or say whether a person is here.",
)
@click.argument("mode", type=word("here", "away", "auto"), required=False, metavar="[here|away|auto]")
@click.option(
    "--pin-file", metavar="FILE", shell_complete=offers("files"),
    help="With here: prove with the PIN in FILE that you may receive.",
)
@pass_invocation
def command(call: Invocation, *, mode: Any, pin_file: str | None) -> None:
    """``presence`` with ``person``, ``age``, ``source``, ``mode``, ``level``."""
    from zkc.client import control
    from zkc.errors import UsageError
    from zkc.net.local_client import LocalClient
    from zkc.ui.cli.homes import client_config, client_home
    from zkc.ui.cli.pins import given_pin

    if pin_file is not None and mode != "here":
        raise UsageError("presence: --pin-file goes with here")
    home = client_home(call)
    client_config(call, home)
    pin = given_pin(pin_file) if pin_file is not None else None
    client: LocalClient[Any] = LocalClient(home.socket_path(), control.ControlReply)
    told = client.call(control.AskPerson(mode, pin or ""), within=_GUESS_SECONDS)
    known = told.state != "unknown"
    call.out.event("presence", {
        "person": told.state, "age": told.age if known else None, "source": told.source or None, "mode": told.mode,
        "level": told.level,
    })
    if not call.out.json:
        since = f", {told.age} s ago ({told.source})" if known else ""
        call.out.text(f"person: {told.state}{since}\nmode:   {told.mode}\nlevel:  {told.level}")
