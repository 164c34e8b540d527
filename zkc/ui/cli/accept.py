"""``zkc accept``: a person lets a transfer in that waits for one."""

from __future__ import annotations

import click

from zkc.ui.cli.kinds import offers
from zkc.ui.cli.options import Command, Invocation, pass_invocation


@click.command(
    "accept", cls=Command, example="zkc accept 3f9a\nzkc accept 3f9a --pin-file pin.txt",
    help="Let in the transfer ID, which waits for a person: zkc inbox lists them. Its data comes straight after.",
    short_help="Let in a transfer that waits for a person.",
)
@click.argument("id", shell_complete=offers("pending"))
@click.option(
    "--pin-file", metavar="FILE", shell_complete=offers("files"),
    help="Prove with the PIN or code in FILE that you may receive; '-': stdin.",
)
@pass_invocation
def command(call: Invocation, *, id: str, pin_file: str | None) -> None:
    """``accepted``, the item as ``inbox`` has it."""
    from zkc.errors import NotAuthorised
    from zkc.ui.cli.pending import decide
    from zkc.ui.cli.pins import ask_pin, given_pin

    pin = given_pin(pin_file)
    try:
        decide(call, id, accept=True, pin=pin or "")
    except NotAuthorised as error:
        if error.detail != "pin-needed" or pin is not None or not call.out.may_prompt:
            raise
        decide(call, id, accept=True, pin=ask_pin("PIN or code"))
