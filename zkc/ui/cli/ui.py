"""``zkc ui``: the inbox like a mail program's, in the terminal."""

from __future__ import annotations

import importlib.util
import os
import sys

import click

from zkc.errors import UsageError
from zkc.ui.cli.options import Command, Invocation, pass_invocation


@click.command(
    "ui", cls=Command, example="zkc ui",
    help="Inbox, what waits for a person, what was sent and is to be sent, peers: in the terminal, by keyboard or "
    "mouse. '?' says which keys there are. Needs the extra 'ui' of the package.",
    short_help="The inbox, in the terminal.",
)
@pass_invocation
def command(call: Invocation) -> None:
    """Nothing on standard output but the screen."""
    from zkc.ui.cli.homes import client_config, client_home, open_store

    _check_terminal(json=call.options.json)
    home = client_home(call)
    config = client_config(call, home)
    open_store(home).close()
    if importlib.util.find_spec("textual") is None:
        raise UsageError("ui: Textual is not installed", detail="extra", hint="pipx install 'zkc[ui]'")
    from zkc.env import SystemClock
    from zkc.ui.tui.run import run

    run(call.options.home, config, SystemClock())


def _check_terminal(*, json: bool) -> None:
    if json:
        raise UsageError("ui: it is for people, and has no --json", hint="zkc events --json, zkc inbox --json")
    if not (sys.stdin and sys.stdin.isatty() and sys.stdout and sys.stdout.isatty()):
        raise UsageError("ui: there is no terminal", hint="zkc inbox, zkc events and --json are for scripts")
    if os.environ.get("TERM", "dumb") in {"dumb", "unknown"}:
        raise UsageError("ui: this terminal (TERM) cannot move its cursor", hint="zkc inbox lists the same")
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        raise UsageError(
            f"ui: the terminal's encoding is {sys.stdout.encoding}, not UTF-8", hint="set LC_ALL=C.UTF-8, say"
        )
