"""``zkc recv``: takes the oldest item that matches out of the inbox."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from zkc.errors import LocalIOError, UsageError
from zkc.ui.cli.items import CONFLICTS, Saved, item_fields, save
from zkc.ui.cli.kinds import Duration, offers, word
from zkc.ui.cli.options import Command, Invocation, pass_invocation
from zkc.ui.cli.output import Out

if TYPE_CHECKING:
    from zkc.client.taking import Wish
    from zkc.config import ClientConfig
    from zkc.stores.home import Home
    from zkc.stores.inbox import Claim
    from zkc.stores.items import Item

_CHUNK: Final = 1 << 20
_CHILD_SECONDS: Final = 1.0
"""How long a command may take to end after SIGTERM."""


class _Recv(Command):
    """All that follows ``--exec`` is its command, whatever it looks like."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--exec" in args:
            at = args.index("--exec")
            if args[at + 1 :]:
                args = [*args[:at], *(f"--exec={word}" for word in args[at + 1 :])]
        return super().parse_args(ctx, args)


@dataclass(frozen=True)
class Use:
    """What becomes of an item."""

    output: str | None
    keep: bool
    conflict: Any
    run: tuple[str, ...]


@click.command(
    "recv", cls=_Recv, example=(
        "zkc recv -o downloads/\n"
        "zkc recv --from alice --name '*.tar' -o - --wait 10m | tar x\n"
        "zkc recv --app backup --loop --exec tar x -C /srv/backup\n"
        "zkc recv --live | mpv -"
    ),
    help="Take the oldest waiting item that matches out of the inbox, into the current folder under its own name.",
    short_help="Take an item out of the inbox.",
)
@click.option(
    "-o", "output", metavar="PATH|DIR|-", shell_complete=offers("files"),
    help="Write it there; '-': to standard output, a folder as tar.",
)
@click.option("--from", "sender", metavar="NAME", shell_complete=offers("peers"), help="Only from NAME.")
@click.option("--name", metavar="GLOB", help="Only what has such a name.")
@click.option(
    "--app", metavar="APP", shell_complete=offers("applications"),
    help="Only what was sent to the application APP of this client; registers it if need be.",
)
@click.option("--wait", type=Duration(), help="How long to wait for an item.")
@click.option("--loop", is_flag=True, help="Go on with the next, until SIGTERM or SIGINT.")
@click.option("--keep", is_flag=True, help="Leave it in the inbox.")
@click.option(
    "--live", is_flag=True, help="Take the next transfer in place of the inbox, straight to standard output, never on "
    "disk; says 'waiting' on stderr once it can.",
)
@click.option(
    "--conflict", type=word(*CONFLICTS), metavar="skip|overwrite|rename", default="rename",
    help="What to do where such a file or folder exists [rename].",
)
@click.option(
    "--exec", "run", multiple=True, metavar="CMD ARG...",
    help="Run CMD with the payload on its stdin and ZKC_SENDER, ZKC_NAME, ZKC_NOTE, ZKC_DIGEST, ZKC_TRANSFER, "
    "ZKC_KEY_SOURCE, ZKC_ASKED_BY in its environment. All that follows is its.",
)
@pass_invocation
def command(
    call: Invocation, *, output: str | None, sender: str | None, name: str | None, app: str | None,
    wait: float | None, loop: bool, keep: bool, conflict: str, run: tuple[str, ...], live: bool,
) -> None:
    """``recv`` with the keys of an item of the inbox; ``path`` is where it was saved."""
    from zkc.client.taking import Wish, take
    from zkc.env import SystemClock
    from zkc.ids import check_name
    from zkc.ui.cli.homes import client_config, client_home, open_inbox, pause
    from zkc.ui.cli.signals import Signals

    if sender is not None:
        check_name(sender, "--from")
    if run and output is not None:
        raise UsageError("recv: --exec and -o exclude each other")
    if output == "":
        raise UsageError("recv: -o is empty", hint="name a file or a folder")
    if live:
        _check_live(output, run, keep=keep)
    home = client_home(call)
    config = client_config(call, home)
    wish, use, clock = Wish(sender, name, app), Use(output, keep, conflict, run), SystemClock()
    if live or output == "-":
        call.out.payload_on_stdout()
    if live:
        _live(call, home, config, wish, wait, loop=loop)
        return
    with Signals(graceful=loop):
        if app is not None:
            _register(call, home, config, app)
        with open_inbox(home) as inbox:
            stays: set[str] = set()
            seconds = float("inf") if loop and wait is None else wait or 0.0
            while True:
                with take(inbox, wish, seconds, clock=clock, pause=pause, but=stays) as claim:
                    if not handle(call.out, claim, use):
                        stays.add(claim.item.id)
                if not loop:
                    return


def _register(call: Invocation, home: Home, config: ClientConfig, app: str) -> None:
    """``recv --app`` registers the application where it is not."""
    from zkc.client.applications import ensure_application
    from zkc.env import SystemClock, SystemEntropy
    from zkc.ui.cli.homes import open_store

    with open_store(home) as store:
        joined = ensure_application(home, store, config, app, clock=SystemClock(), entropy=SystemEntropy())
        if joined is not None:
            call.out.notice(f"registered {joined.name}")


# --- straight from the wire -----------------------------------------------------------------------------------------


def _check_live(output: str | None, run: tuple[str, ...], *, keep: bool) -> None:
    """`UsageError` for what a stream that is never on disk cannot do."""
    if output not in (None, "-"):
        raise UsageError("recv: --live writes to standard output", hint=f"write  > {output}  instead of -o")
    if run or keep:
        raise UsageError(f"recv: --live and {'--exec' if run else '--keep'} exclude each other")


def _live(
    call: Invocation, home: Home, config: ClientConfig, wanted: Wish, wait: float | None, *, loop: bool,
) -> None:
    """``recv --live``: one transfer after the other, or one."""
    from zkc.client.live import LiveReader, LiveWish
    from zkc.env import SystemClock
    from zkc.stores.pipes import widen_pipe
    from zkc.ui.cli.homes import open_store, pause
    from zkc.ui.cli.signals import Signals

    open_store(home).close()
    out = call.out
    widen_pipe(out.payload_descriptor())

    def waiting() -> None:
        out.event("waiting")
        if not out.json:
            out.notice("waiting")

    with LiveReader(home, config, SystemClock()) as reader, Signals(reader.interrupt, graceful=loop):
        reader.check_daemon()
        if wanted.app is not None:
            _register(call, home, config, wanted.app)
        wish = LiveWish(wanted.sender or "", wanted.app or "", wanted.name or "")
        seconds = float("inf") if wait is None else wait
        while True:
            item = reader.take(wish, seconds, out.payload, pause, waiting)
            _tell(out, item, None)
            if not loop:
                return


# --- what becomes of it ---------------------------------------------------------------------------------------------


def handle(out: Out, claim: Claim, use: Use) -> bool:
    """Write or run; the item leaves the inbox once that is done. Whether it does, and is not to be kept or skipped."""
    item, saved = claim.item, None
    if use.run:
        _run(claim, use.run)
    elif use.output == "-":
        for chunk in _bytes(claim):
            out.payload(chunk)
    else:
        from zkc.rules.names import escape

        done = save(item, use.output, use.conflict)
        if not isinstance(done, Saved):
            out.event("recv", item_fields(item, None))
            what = escape(str(done)) if item.kind != "tree" else f"a part of {escape(item.name)}"
            out.notice(f"{what} exists: skipped, and item {item.id} stays in the inbox")
            return False
        saved = done
    if not use.keep:
        claim.finish()
    _tell(out, item, saved)
    return not use.keep


def _bytes(claim: Claim) -> Iterator[bytes]:
    """The payload; of a tree a tar."""
    if claim.item.kind == "tree":
        from zkc.stores.tars import bytes_of
        from zkc.stores.trees import StoredTree

        with StoredTree.opened(claim.item) as tree:
            yield from bytes_of(tree)
        return
    with claim.open() as payload:
        while chunk := payload.read(_CHUNK):
            yield chunk


def _tell(out: Out, item: Item, saved: Saved | None) -> None:
    out.event("recv", item_fields(item, None) if saved is None else item_fields(item, saved.path, saved.together))
    if out.json:
        return
    from zkc.rules.names import escape
    from zkc.rules.units import show_size

    for path in () if saved is None else saved.lines:
        out.text(escape(str(path)))
    note = f", note: {escape(item.note)}" if item.note else ""
    out.notice(
        f"received {escape(item.name)} from {item.sender}: {show_size(item.size)}, key made by the "
        f"{item.key_source}{note}"
    )


def _run(claim: Claim, words: tuple[str, ...]) -> None:
    """``--exec``: `LocalIOError` where the command does not end with 0; the item stays."""
    from zkc.client.environment import item_environment, without_secrets

    is_tree = claim.item.kind == "tree"
    with claim.open() as payload:
        own = without_secrets(os.environ)
        try:
            child = subprocess.Popen(
                words, stdin=subprocess.PIPE if is_tree else payload, env={**own, **item_environment(claim.item)}
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise LocalIOError(f"cannot run {words[0]}: {why}", detail="command", hint="the item stays") from None
    try:
        if is_tree:
            _feed(child, claim)
        status = child.wait()
    except BaseException:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_CHILD_SECONDS)
        child.kill()
        child.wait()
        raise
    if status != 0:
        how = f"ended with {status}" if status > 0 else f"was ended by signal {-status}"
        raise LocalIOError(f"{words[0]} {how}", detail="command", hint=f"item {claim.item.id} stays in the inbox")


def _feed(child: subprocess.Popen[bytes], claim: Claim) -> None:
    """The tar to its stdin, as much as it takes: what it does not read is its own affair."""
    stdin = child.stdin
    if stdin is None:
        raise ValueError("its stdin is not ours")
    with contextlib.suppress(BrokenPipeError), stdin:
        for chunk in _bytes(claim):
            stdin.write(chunk)
