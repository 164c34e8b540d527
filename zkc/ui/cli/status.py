"""``zkc status``: the daemon of this home and its link."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zkc.errors import CoordinatorUnreachable, DaemonError
from zkc.ui.cli.kinds import Duration
from zkc.ui.cli.options import Command, Invocation, pass_invocation

if TYPE_CHECKING:
    from pathlib import Path

    from zkc.client.control import StatusReply

_PAUSE_SECONDS = 0.05


@click.command(
    "status", cls=Command, example="zkc status --wait 10s",
    help="Show the daemon, its link to the coordinator, and counters. Ends with 0 when the daemon is up and linked, "
    "with 34 when there is none, with 10 when it has no link.",
    short_help="Is the daemon up and linked?",
)
@click.option("--wait", type=Duration(), default=0.0, help="Wait so long for it to be up and linked.")
@pass_invocation
def command(call: Invocation, *, wait: float) -> None:
    """One ``status`` object, also where an ``error`` follows it."""
    from zkc.env import SystemClock
    from zkc.ui.cli.homes import client_home, pause

    home = client_home(call)
    clock = SystemClock()
    end = clock.monotonic() + wait
    while True:
        found, problem = _ask(home.socket_path())
        left = end - clock.monotonic()
        if (found is not None and found.linked) or left <= 0:
            break
        pause(min(_PAUSE_SECONDS, left))
    _show(call, found)
    if found is None:
        raise problem or DaemonError("no daemon", detail="not-running")
    if not found.linked:
        why = f": {found.problem}" if found.problem else ""
        raise CoordinatorUnreachable(f"the daemon has no link to {found.coordinator}{why}", detail="no-link")


def _ask(path: Path) -> tuple[StatusReply | None, DaemonError | None]:
    from zkc.client.control import AskStatus, ControlReply, StatusReply
    from zkc.net.local_client import LocalClient

    client: LocalClient[ControlReply] = LocalClient(path, ControlReply)
    try:
        reply = client.call(AskStatus())
    except DaemonError as error:
        if error.detail == "not-running":
            error = DaemonError("no daemon is running here", detail="not-running", hint="start it: zkc daemon")
        return None, error
    if isinstance(reply, StatusReply):
        return reply, None
    return None, DaemonError(f"{path} gave an answer that makes no sense here", detail="bad-answer")


def _show(call: Invocation, found: StatusReply | None) -> None:
    told = {
        "client": found.client if found else None,
        "daemon": found is not None,
        "linked": found is not None and found.linked,
        "coordinator": found.coordinator if found else None,
        "fingerprint": found.fingerprint if found else None,
        "presence": found.presence if found else "offline",
        "listen": found.listen if found else None,
        "apps": found.apps if found else [],
        "deliveries": found.deliveries if found else 0,
        "bytes": found.bytes if found else 0,
    }
    call.out.event("status", told)
    if found is None or call.out.json:
        return
    from zkc.rules.names import escape
    from zkc.rules.units import show_size

    lines = {
        "client": found.client,
        "fingerprint": found.fingerprint,
        "coordinator": f"{found.coordinator} ({'linked' if found.linked else 'no link'})",
        "presence": found.presence,
        "listen": found.listen,
        "apps": ", ".join(found.apps) or "-",
        "received": f"{found.deliveries} ({show_size(found.bytes)}) since its start",
    }
    for title, text in lines.items():
        call.out.text(f"{title + ':':<13} {escape(text)}")
