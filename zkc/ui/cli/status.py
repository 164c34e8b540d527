"""``zkc status``: the daemon of this home and its link."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zkc.errors import CoordinatorUnreachable, DaemonError
from zkc.ui.cli.kinds import Duration
from zkc.ui.cli.options import Command, Invocation, pass_invocation

if TYPE_CHECKING:
    from zkc.client.control import StatusReply
    from zkc.stores.home import Home

_PAUSE_SECONDS = 0.05
_ANSWER_SECONDS = 3.0
"""For a daemon's answer, which takes milliseconds: one that is stopped or stuck is told as that before long."""
_ANSWER_LEAST = 0.5
"""The same at the end of ``--wait``: a busy machine may need it."""


@click.command(
    "status", cls=Command, example="zkc status\nzkc status --wait 10s --quiet && zkc send bob report.pdf",
    help="Show the daemon, its link to the coordinator, and counters. Ends with 0 when the daemon is up and linked, "
    "with 34 when there is none, with 10 when it has no link.",
    short_help="Is the daemon up and linked?",
)
@click.option("--wait", type=Duration(), default=0.0, help="How long to wait for it to be up and linked.")
@pass_invocation
def command(call: Invocation, *, wait: float) -> None:
    """One ``status`` object, also where an ``error`` follows it."""
    from zkc.env import SystemClock
    from zkc.ui.cli.homes import client_config, client_home, pause

    home = client_home(call)
    client_config(call, home)
    clock = SystemClock()
    end = clock.monotonic() + wait
    while True:
        left = end - clock.monotonic()
        found, problem = _ask(home, min(_ANSWER_SECONDS, max(left, _ANSWER_LEAST if wait else _ANSWER_SECONDS)))
        left = end - clock.monotonic()
        if (found is not None and found.linked) or left <= 0:
            break
        pause(min(_PAUSE_SECONDS, left))
    _show(call, home, found)
    if found is None:
        raise problem or _not_running(home)
    if not found.linked:
        why = f": {found.problem}" if found.problem else ""
        looking = "" if "zkc doctor" in why else "; zkc doctor looks at each step of the way"
        raise CoordinatorUnreachable(
            f"the daemon has no link to {found.coordinator}{why}", detail="no-link",
            hint=f"it goes on trying by itself{looking}",
        )


def _ask(home: Home, within: float) -> tuple[StatusReply | None, DaemonError | None]:
    from zkc.client.control import AskStatus, ControlReply, StatusReply
    from zkc.net.local_client import LocalClient
    from zkc.net.local_frames import NotRunning

    path = home.socket_path()
    client: LocalClient[ControlReply] = LocalClient(path, ControlReply)
    try:
        reply = client.call(AskStatus(), within=within)
    except NotRunning:
        return None, _not_running(home)
    except DaemonError as error:
        return None, error
    if isinstance(reply, StatusReply):
        return reply, None
    return None, DaemonError(
        f"{path} gave an answer that makes no sense here", detail="bad-answer", hint="after an upgrade, start it again"
    )


def _not_running(home: Home) -> DaemonError:
    holder = home.held_by()
    if holder is None:
        return DaemonError("no daemon is running here", detail="not-running", hint="start it: zkc daemon")
    return DaemonError(
        f"process {holder or '?'} is starting or stopping in {home.data}: no daemon answers here now",
        detail="not-running", hint="run it again, or with --wait",
    )


def _known(home: Home) -> tuple[str | None, str | None]:
    """Name and fingerprint of the home's registration, as far as its keys tell."""
    from zkc.client.principal import load_main
    from zkc.errors import LocalIOError, NotRegistered
    from zkc.ui.cli.homes import open_store

    try:
        with open_store(home) as store:
            principal = load_main(store)
    except (LocalIOError, NotRegistered):
        return None, None
    return principal.name, principal.fingerprint.hex()


def _show(call: Invocation, home: Home, found: StatusReply | None) -> None:
    if found is None and not call.out.json:
        return
    client, fingerprint = (found.client, found.fingerprint) if found else _known(home)
    told = {
        "client": client,
        "daemon": found is not None,
        "linked": found is not None and found.linked,
        "coordinator": found.coordinator if found else None,
        "fingerprint": fingerprint,
        "presence": found.presence if found else "offline",
        "listen": found.listen if found else None,
        "apps": found.apps if found else [],
        "deliveries": found.deliveries if found else 0,
        "bytes": found.bytes if found else 0,
        "metrics": (found.metrics or None) if found else None,
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
        "metrics": found.metrics or "off",
    }
    for title, text in lines.items():
        call.out.text(f"{title + ':':<13} {escape(text)}")
