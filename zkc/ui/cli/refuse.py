"""``zkc refuse``: a person does not let a transfer in that waits for one."""

from __future__ import annotations

import click

from zkc.errors import UsageError
from zkc.ui.cli.kinds import offers
from zkc.ui.cli.options import Command, Invocation, pass_invocation

_REASON_MAX = 512


@click.command(
    "refuse", cls=Command, example="zkc refuse 3f9a --reason 'not today'",
    help="Refuse the transfer ID, which waits for a person. Its sender is told that a person refused it, and the "
    "reason, which is sealed for it; it is in the daemon's log here, too.",
    short_help="Refuse a transfer that waits for a person.",
)
@click.argument("id", shell_complete=offers("pending"))
@click.option("--reason", metavar="TEXT", default="", help="Why; told to the sender.")
@pass_invocation
def command(call: Invocation, *, id: str, reason: str) -> None:
    """``refused``, the item as ``inbox`` has it."""
    from zkc.ui.cli.pending import decide

    if len(reason) > _REASON_MAX:
        raise UsageError("refuse: --reason is too long", hint=f"at most {_REASON_MAX} characters")
    decide(call, id, accept=False, reason=reason)
