"""``zkc send bob,carol``: the same to each, one result each."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zkc.errors import UsageError, ZkcError
from zkc.ui.cli.options import Invocation

if TYPE_CHECKING:
    from zkc.client.events import Options
    from zkc.client.sources import AnySource
    from zkc.net.pipe.bell import Bell
    from zkc.ui.cli.send import What
    from zkc.wire.messages import Manifest


def recipients_of(text: str) -> list[str]:
    """The names in ``bob,carol``; `UsageError` for what is no name, one named twice, or too many."""
    from zkc.constants import RECIPIENTS_MAX
    from zkc.ids import check_name

    names = [check_name(name, "recipient") for name in text.split(",")]
    if len(set(names)) < len(names):
        raise UsageError(f"send: a recipient is named twice in {text[:80]!r}", hint="name each once")
    if len(names) > RECIPIENTS_MAX:
        raise UsageError(f"send: {len(names)} recipients", hint=f"at most {RECIPIENTS_MAX} at once")
    return names


def receipt_files(names: Sequence[str], receipt: str | None) -> dict[str, str | None]:
    """Where the receipt is copied to; of several ``FILE.bob``, ``FILE.bob+backup`` for an application of bob's."""
    if len(names) == 1:
        return {names[0]: receipt}
    if receipt == "-":
        raise UsageError("send: --receipt - takes one recipient", hint="name a file: each one's is kept as FILE.NAME")
    return {name: f"{receipt}.{name.replace('/', '+')}" if receipt else receipt for name in names}


def _another(first: tuple[AnySource, Manifest], what: What) -> tuple[AnySource, Manifest]:
    """``what`` for one more recipient; a folder is walked once, whoever it goes to."""
    from zkc.client.trees import TreeSource
    from zkc.ui.cli.send import open_source

    source, manifest = first
    return (TreeSource(source.tree), manifest) if isinstance(source, TreeSource) else open_source(None, what)


def send_to_each(
    call: Invocation, names: Sequence[str], what: What, options: Options, copies: Mapping[str, Path | None]
) -> int:
    """Send to all at the same time; the highest exit code. Each result is told as soon as it is there."""
    from zkc.client.events import Delivery
    from zkc.client.fanout import Fan, SharedPace, Team
    from zkc.client.reporting import DaemonReports
    from zkc.client.sending import Sending
    from zkc.env import SystemClock, SystemEntropy
    from zkc.ui.cli.homes import client_config, client_home, reached
    from zkc.ui.cli.meant import add_hint_about
    from zkc.ui.cli.progress import Board
    from zkc.ui.cli.send import Shown, copy_receipt, open_source
    from zkc.ui.cli.signals import Signals

    context = click.get_current_context()
    home = client_home(call)
    clock, entropy = SystemClock(), SystemEntropy()
    pace = SharedPace(options.bwlimit or math.inf)
    with contextlib.ExitStack() as closing:
        config = client_config(call, home)
        access = closing.enter_context(reached(home, config, clock, entropy))
        with contextlib.ExitStack() as opened:
            sources: dict[str, tuple[AnySource, Manifest]] = {}
            first = open_source(call.out, what)
            for name in names:
                sources[name] = _another(first, what) if sources else first
                opened.callback(sources[name][0].close)
            opened.pop_all()  # each is closed by who sends it
        if not isinstance(what.payload, str | list) and not options.dry_run:
            fan = closing.enter_context(Fan(what.payload, len(names)))
            sources = {name: (branch, sources[name][1]) for name, branch in zip(names, fan.branches, strict=True)}
        board = closing.enter_context(Board(call.out))

        def one(name: str, bell: Bell) -> int:
            source, manifest = sources[name]
            with contextlib.closing(source), Shown(call.out, name, board) as shown:
                try:
                    done = Sending(
                        home, config, access, name, source, manifest, options, clock=clock, entropy=entropy,
                        bell=bell, on_event=shown.event, pace=pace, reports=DaemonReports(home.socket_path(), clock),
                    ).run()
                    shown.done(done)
                    if isinstance(done, Delivery):
                        copy_receipt(done, copies[name])
                except ZkcError as error:
                    shown.close()
                    if not bell.rung:  # whoever sent the signal knows
                        add_hint_about(context, error, name)
                        with board.mutex:
                            call.out.error(error, about=name)
                    return error.code
            return 0

        team = closing.enter_context(Team(names, one, clock))
        with Signals(team.ring):
            return max(team.wait().values())
