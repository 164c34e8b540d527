"""``zkc doctor``: each step on the way to the coordinator, or to a recipient, and what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zkc.ui.cli.kinds import offers
from zkc.ui.cli.options import Command, Invocation, pass_invocation

if TYPE_CHECKING:
    from zkc.client.findings import Finding

_WORDS = {"ok": "ok", "note": "note", "wrong": "WRONG", "skipped": "-"}


@click.command(
    "doctor", cls=Command, example="zkc doctor\nzkc doctor bob",
    help="Look at each step from this home to the coordinator, and with NAME to that recipient: what is in order, what "
    "is wrong, and how to mend it. Changes nothing, sends nothing. Ends with the code of the first that is wrong.",
    short_help="Find out what does not work, and why.",
)
@click.argument("name", required=False, default="", shell_complete=offers("peers"))
@pass_invocation
def command(call: Invocation, *, name: str) -> None:
    """A ``step`` object for each: ``step``, ``state`` (ok, note, wrong, skipped), ``message``, ``hint``, ``code``,
    ``detail``."""
    from zkc.client.doctor import Examination
    from zkc.env import SystemClock, SystemEntropy
    from zkc.ids import check_name
    from zkc.ui.cli.homes import client_config, client_home, open_store

    home = client_home(call)
    examination = Examination(
        home, lambda: client_config(call, home), lambda: open_store(home), SystemClock(), SystemEntropy()
    )
    wrong = None
    for finding in examination.examine(check_name(name, "recipient") if name else ""):
        _show(call, finding)
        wrong = wrong or finding.error
    if wrong is not None:
        raise wrong


def _show(call: Invocation, finding: Finding) -> None:
    from zkc.rules.names import escape

    error = finding.error
    call.out.event("step", {
        "step": finding.step, "state": finding.state, "message": finding.what, "hint": finding.hint,
        "code": error.code if error else 0, "detail": error.detail if error else "",
    })
    if not call.out.json:
        hint = f"; {finding.hint}" if finding.hint else ""
        call.out.text(f"{_WORDS[finding.state]:<6}{finding.step}: {escape(finding.what)}{hint}")
