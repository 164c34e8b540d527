"""``zkc wait``: until a peer is there."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from zkc.ui.cli.kinds import Duration, offers
from zkc.ui.cli.options import Command, Invocation, pass_invocation

if TYPE_CHECKING:
    from zkc.wire.messages import Peer

_PAUSE_SECONDS = 1.0


@click.command(
    "wait", cls=Command, example=(
        "zkc wait bob\n"
        "zkc wait bob --present --timeout 1h && zkc send bob report.pdf"
    ),
    help="Wait until NAME is online, or until a person is present there. Ends with 0 then, with 21 or 22 if the time "
    "is over before.",
    short_help="Wait until a peer is there.",
)
@click.argument("name", shell_complete=offers("peers"))
@click.option("--present", is_flag=True, help="Until a person is present there.")
@click.option("--timeout", type=Duration(), help="For how long [for ever].")
@pass_invocation
def command(call: Invocation, *, name: str, present: bool, timeout: float | None) -> None:
    """``peers``, one object, as it was found."""
    from zkc.client.access import open_access
    from zkc.env import SystemClock, SystemEntropy
    from zkc.errors import CoordinatorUnreachable, NobodyThere, RecipientOffline, ZkcError
    from zkc.ids import check_name
    from zkc.ui.cli.homes import client_config, client_home, open_store, pause

    check_name(name)
    home, clock = client_home(call), SystemClock()
    end = None if timeout is None else clock.monotonic() + timeout
    with open_store(home) as store:
        config = client_config(call, home)
        with contextlib.closing(open_access(home, store, config, clock, SystemEntropy())) as access:
            peer: Peer
            unmet: ZkcError
            while True:
                try:
                    peer = access.seen(name)
                except CoordinatorUnreachable as error:
                    unmet = error
                else:
                    if peer.online and (peer.person == "present" or not present):
                        break
                    unmet = RecipientOffline(f"{name} is offline", detail="offline", hint="wait longer")
                    if peer.online:
                        unmet = NobodyThere(
                            f"nobody is known to be present at {name} ({peer.person})", detail=peer.person,
                            hint="wait longer, or ask for zkc presence there",
                        )
                left = None if end is None else end - clock.monotonic()
                if left is not None and left <= 0:
                    raise unmet
                pause(_PAUSE_SECONDS if left is None else min(_PAUSE_SECONDS, left))
    call.out.event("peers", {
        "name": name, "kind": peer.kind, "online": peer.online, "person": peer.person,
        "person_age": peer.person_age if peer.person != "unknown" else None,
    })
