"""``zkc get``: asks another client for something that it shares, and takes it out of the inbox when it has come."""

from __future__ import annotations

import contextlib

import click

from zkc.errors import DaemonError, NobodyThere, UsageError
from zkc.ui.cli.items import CONFLICTS
from zkc.ui.cli.kinds import Duration, offers, word
from zkc.ui.cli.options import Command, Invocation, pass_invocation


@click.command(
    "get", cls=Command, example=(
        "zkc get alice:builds/nightly.tar -o downloads/\n"
        "zkc get alice:builds --exclude '*.tmp' --wait 1h\n"
        "zkc get alice:builds/nightly.tar -o - | tar x"
    ),
    help="Ask CLIENT to send a file or folder of its shares to this client, whose daemon runs, and write it into the "
    "current folder. PATH is SHARE, or SHARE/PATH below it; zkc shares CLIENT lists them.",
    short_help="Ask another client for what it shares.",
)
@click.argument("source", metavar="CLIENT:PATH", shell_complete=offers("fetchable"))
@click.option(
    "-o", "output", metavar="PATH|DIR|-", shell_complete=offers("files"),
    help="Write it there; '-': to standard output.",
)
@click.option(
    "--exclude", metavar="GLOB", multiple=True,
    help="Leave out what has such a name, or with a '/' such a path in the folder; may be repeated.",
)
@click.option("--wait", type=Duration(), help="How long to wait for CLIENT to be there.")
@click.option("--timeout", type=Duration(), help="Bound on the delivery.")
@click.option("--receipt", metavar="FILE", shell_complete=offers("files"), help="Write the signed receipt to FILE too.")
@click.option(
    "--conflict", type=word(*CONFLICTS), metavar="skip|overwrite|rename", default="rename",
    help="What to do where such a file exists [rename].",
)
@pass_invocation
def command(
    call: Invocation, *, source: str, output: str | None, wait: float | None, timeout: float | None,
    receipt: str | None, conflict: str, exclude: tuple[str, ...],
) -> None:
    """The events of ``send``, then ``recv``."""
    from zkc.client.control import AskExpect, AskStatus, ControlReply
    from zkc.client.principal import load_main
    from zkc.client.taking import Wish, take
    from zkc.env import SystemClock
    from zkc.ids import check_name
    from zkc.net.local_client import LocalClient
    from zkc.rules.names import escape
    from zkc.ui.cli.fetching import fetch, wish
    from zkc.ui.cli.homes import client_home, open_inbox, open_store, pause
    from zkc.ui.cli.recv import Use, handle
    from zkc.ui.cli.send import copy_receipt, receipt_file

    sender, colon, path = source.partition(":")
    if not colon or not path:
        raise UsageError("get: it takes CLIENT:PATH", hint="zkc shares CLIENT lists what one may ask for")
    check_name(sender, "client")
    if output == "":
        raise UsageError("get: -o is empty", hint="name a file or a folder")
    if receipt == "-":
        raise UsageError("get: --receipt takes a file", hint="zkc receipt show FILE prints it")
    copy, what = receipt_file(receipt), wish(path, exclude=exclude)
    home = client_home(call)
    with open_store(home) as store:
        own = load_main(store).name
    client: LocalClient[ControlReply] = LocalClient(home.socket_path(), ControlReply)
    client.call(AskStatus())  # the daemon receives it
    if output == "-":
        call.out.payload_on_stdout()

    wishes: list[tuple[bytes, bytes]] = []
    with open_inbox(home) as inbox, contextlib.ExitStack() as waiting:

        def expect(fingerprint: bytes, tid: bytes) -> None:
            """Who asks for it himself is not asked whether he wants it, and takes it himself."""
            waiting.enter_context(inbox.wanted.waiting(fingerprint, tid))
            wishes.append((fingerprint, tid))
            client.call(AskExpect(fingerprint, tid, wanted=True))

        try:
            done = fetch(call, sender, own, what, wait=wait, timeout=timeout, expect=expect)
        finally:
            # It has come, or is not waited for any more: what comes under its id now comes like anything else.
            with contextlib.suppress(DaemonError):
                for fingerprint, tid in wishes:
                    client.call(AskExpect(fingerprint, tid, wanted=False))
        copy_receipt(done, copy)
        try:
            claim = take(inbox, Wish(sender, transfer=done.transfer), 0.0, clock=SystemClock(), pause=pause)
        except NobodyThere:
            raise NobodyThere(
                f"{escape(done.name)} has come, and another command here has taken it out of the inbox by its id",
                detail="taken", hint="run the same command again to get it once more",
            ) from None
        with claim:
            handle(call.out, claim, Use(output, False, conflict, ()))
