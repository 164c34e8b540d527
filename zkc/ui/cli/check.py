"""``zkc check``: would a transfer be accepted now? Nothing is sent."""

from __future__ import annotations

import contextlib
from typing import Any

import click

from zkc.ui.cli.kinds import Duration, Size, offers, word
from zkc.ui.cli.options import Command, Invocation, pass_invocation


@click.command(
    "check", cls=Command, example="zkc check bob\nzkc check bob --size 4G --require present --wait 1h",
    help="Ask whether NAME would accept a transfer now; nothing is sent, and nobody is asked. Ends as zkc send would.",
    short_help="Would a transfer be accepted now?",
)
@click.argument("name", shell_complete=offers("peers"))
@click.option("--size", type=Size(), help="How large it would be [not known].")
@click.option(
    "--require", type=word("online", "present", "authorised"), metavar="online|present|authorised", default="online",
    help="What must hold of the recipient [online].",
)
@click.option(
    "--key-source", type=word("sender", "coordinator"), metavar="sender|coordinator", help="Who would make the key."
)
@click.option("--wait", type=Duration(), help="How long to wait for the recipient to be there.")
@click.option("--timeout", type=Duration(), help="Bound on the whole command.")
@pass_invocation
def command(
    call: Invocation, *, name: str, size: int | None, require: Any, key_source: Any, wait: float | None,
    timeout: float | None,
) -> None:
    """``requested``, then ``accepted`` with ``presence`` and ``asks``."""
    from zkc.client.events import Options
    from zkc.client.sending import Sending
    from zkc.client.sources import source_of
    from zkc.env import SystemClock, SystemEntropy
    from zkc.net.pipe.bell import Bell
    from zkc.ui.cli.homes import client_config, client_home, reached
    from zkc.ui.cli.send import Shown
    from zkc.ui.cli.signals import Signals

    home = client_home(call)
    clock, entropy = SystemClock(), SystemEntropy()
    options = Options(wait, timeout, key_source, dry_run=True, require=require)
    source, manifest = source_of("", "check", "", b"")
    with contextlib.ExitStack() as closing:
        bell = Bell()
        closing.callback(bell.close)
        closing.enter_context(Signals(bell.ring))
        closing.callback(source.close)
        config = client_config(call, home)
        access = closing.enter_context(reached(home, config, clock, entropy))
        shown = closing.enter_context(Shown(call.out, name))
        asked = type(manifest)("stream", "check", "", size, 0o600, 0)
        shown.done(
            Sending(
                home, config, access, name, source, asked, options, clock=clock, entropy=entropy, bell=bell,
                on_event=shown.event,
            ).run()
        )
