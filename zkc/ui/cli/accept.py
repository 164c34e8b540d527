"""``zkc accept``: a person lets a transfer in that waits for one."""

from __future__ import annotations

import click

from zkc.ui.cli.options import Command, Invocation, pass_invocation


@click.command(
    "accept", cls=Command, example="zkc accept 3f9a",
    help="Let in the transfer ID, which waits for a person: zkc inbox lists them. Its data comes straight after.",
    short_help="Let in a transfer that waits for a person.",
)
@click.argument("id")
@pass_invocation
def command(call: Invocation, *, id: str) -> None:
    """``accepted``, the item as ``inbox`` has it."""
    from zkc.ui.cli.pending import decide

    decide(call, id, accept=True)
