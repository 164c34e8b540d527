"""``zkc send``: files, folders, piped data or a message to another client, with a receipt."""

from __future__ import annotations

import contextlib
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zkc.errors import LocalIOError, UsageError
from zkc.ui.cli.kinds import Duration, Word, word
from zkc.ui.cli.options import Command, Invocation, pass_invocation
from zkc.ui.cli.output import Out

if TYPE_CHECKING:
    from zkc.client.grants import WouldAccept
    from zkc.client.sending import Delivery, Event
    from zkc.client.sources import Payload
    from zkc.client.walking import Skipped
    from zkc.ui.cli.progress import Progress
    from zkc.wire.messages import Manifest


def _ciphers() -> tuple[str, ...]:
    from zkc.ids import CIPHERS

    return CIPHERS


@click.command(
    "send", cls=Command,
    example="zkc send bob report.pdf photos/\npg_dump shop | zkc send bob --name shop.sql",
    help="Send files and folders, or standard input, to RECIPIENT, as one item. Ends with 0 once the recipient holds "
    "all of it, verified.",
    short_help="Send files, folders, pipes or a message.",
)
@click.argument("recipient")
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option("--name", metavar="NAME", help="What it is called there [piped data: stdin].")
@click.option("-m", "message", metavar="TEXT", help="Send TEXT as a message; no file.")
@click.option("--note", metavar="TEXT", default="", help="A note beside it, end-to-end encrypted too.")
@click.option(
    "--require", type=word("online"), metavar="online", default="online", help="What must hold of the recipient.",
)
@click.option("--wait", type=Duration(), help="How long to wait for the recipient to be there.")
@click.option("--timeout", type=Duration(), help="Bound on the whole command.")
@click.option(
    "--key-source", type=word("sender", "coordinator"), metavar="sender|coordinator", help="Who makes the key."
)
@click.option("--cipher", type=Word(_ciphers), metavar="NAME", help="Cipher of the transfer.")
@click.option("--receipt", metavar="FILE", help="Write the recipient's signed receipt to FILE too; '-': stdout.")
@click.option(
    "--exclude", metavar="GLOB", multiple=True,
    help="Leave out what has such a name, or with a '/' such a path in the folder; may be repeated.",
)
@click.option("--no-resume", is_flag=True, expose_value=False, help="Start from the first byte.")
@click.option("--dry-run", is_flag=True, help="Ask whether it would be accepted now; send nothing.")
@pass_invocation
def command(
    call: Invocation, *, recipient: str, paths: tuple[str, ...], name: str | None, message: str | None, note: str,
    require: str, wait: float | None, timeout: float | None, key_source: Any, cipher: str | None,
    receipt: str | None, exclude: tuple[str, ...], dry_run: bool,
) -> None:
    """Events: ``requested``, ``granted``, ``progress``, ``delivered``; ``accepted`` for a dry run."""
    from zkc.ids import check_name

    check_name(recipient, "recipient")
    copy_to = _receipt_file(receipt)
    if receipt == "-":
        call.out.payload_on_stdout()
    payload = _payload(call.out, paths, message, dry_run=dry_run)
    if exclude and not isinstance(payload, list):
        raise UsageError("send: --exclude is for paths", hint="leave it out, or name a folder")

    from zkc.client.sources import source_of

    source, manifest = source_of(payload, name, note, exclude=exclude, on_skip=partial(_tell_skipped, call.out))

    from zkc.client.access import open_access
    from zkc.client.sending import Delivery, Options, Sending
    from zkc.env import SystemClock, SystemEntropy
    from zkc.net.pipe import Bell
    from zkc.ui.cli.homes import client_config, client_home, open_store
    from zkc.ui.cli.signals import Signals

    home = client_home(call)
    clock, entropy = SystemClock(), SystemEntropy()
    options = Options(wait, timeout, key_source, cipher, dry_run)
    with contextlib.ExitStack() as closing:
        bell = Bell()
        closing.callback(bell.close)
        closing.enter_context(Signals(bell.ring))
        closing.callback(source.close)
        store = closing.enter_context(open_store(home))
        config = client_config(call, home)
        access = closing.enter_context(contextlib.closing(open_access(home, store, config, clock, entropy)))
        shown = closing.enter_context(_Shown(call.out, recipient, manifest))
        done = Sending(
            home, config, access, recipient, source, manifest, options, clock=clock, entropy=entropy, bell=bell,
            on_event=shown.event,
        ).run()
        shown.close()
        if isinstance(done, Delivery):
            _delivered(call.out, done, cipher or config.transfer.cipher)
            if receipt == "-":
                call.out.payload(done.receipt.read_bytes())
            elif copy_to is not None:
                _copy_receipt(done, copy_to)
        else:
            _would_accept(call.out, recipient, done)


# --- what is sent --------------------------------------------------------------------------------------------------


def _payload(out: Out, paths: tuple[str, ...], message: str | None, *, dry_run: bool) -> Payload:
    """What the words of the command name. What a person types ends with Ctrl-D, and he is told so."""
    from zkc.constants import MESSAGE_TEXT_MAX

    if message is not None:
        if paths:
            raise UsageError("send: -m and a path exclude each other", hint="send the file, with --note")
        if len(os.fsencode(message)) > MESSAGE_TEXT_MAX:
            raise UsageError("send: -m is too long", hint=f"at most {MESSAGE_TEXT_MAX} bytes; pipe it in instead")
        return message
    if "-" in paths and len(paths) > 1:
        raise UsageError("send: '-' is standard input, and goes alone", hint="a file of that name is ./-")
    if paths and paths != ("-",):
        return [Path(path) for path in paths]
    if sys.stdin is None:
        raise LocalIOError("standard input is closed", detail="unreadable", hint="name a file, or pipe something in")
    if not dry_run and sys.stdin.isatty():
        if not paths and out.style.batch:
            raise UsageError("send: nothing to send", hint="name a file, pipe data in, or say '-' to type it")
        out.notice("reading from the terminal; end with Ctrl-D")
    return sys.stdin.buffer


# --- what is told --------------------------------------------------------------------------------------------------


def _tell_skipped(out: Out, skipped: Skipped) -> None:
    from zkc.rules.names import escape

    out.notice(f"skipped {escape(skipped.path)}: a {skipped.kind} cannot be sent")


class _Shown:
    """The events of one delivery as objects, a bar, or nothing."""

    def __init__(self, out: Out, recipient: str, manifest: Manifest) -> None:
        self._out = out
        self._recipient = recipient
        self._manifest = manifest
        self._progress: Progress | None = None

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def event(self, event: Event) -> None:
        from zkc.client.sending import Granted, Requested
        from zkc.client.sending import Progress as Moved

        match event:
            case Requested():
                told = {"recipient": event.recipient, "name": event.name, "bytes": event.size}
                self._out.event("requested", told)
            case Granted():
                self._out.event(
                    "granted",
                    {
                        "recipient": event.recipient, "key_source": event.key_source, "presence": event.presence,
                        "path": event.path, "resumed_from": 0,
                    },
                )
                self._begin()
            case Moved():
                if self._progress is not None:
                    self._progress.update(event.bytes)

    def _begin(self) -> None:
        from zkc.rules.names import escape
        from zkc.ui.cli.progress import Progress

        self.close()
        self._progress = Progress(
            self._out, escape(self._manifest.name), self._manifest.size, fields={"recipient": self._recipient}
        )


def _delivered(out: Out, done: Delivery, cipher: str) -> None:
    from zkc.ids import SAFE_CIPHERS

    out.event(
        "delivered",
        {
            "transfer": done.transfer, "recipient": done.recipient, "name": done.name, "bytes": done.bytes,
            "digest": done.digest, "seconds": round(done.seconds, 3), "receipt": str(done.receipt),
            "key_source": done.key_source, "path": done.path, "cipher": cipher,
        },
    )
    if not out.json:
        from zkc.rules.names import escape
        from zkc.rules.units import show_size

        rate = show_size(done.bytes / max(done.seconds, 0.001))
        unsafe = "" if cipher in SAFE_CIPHERS else f", {cipher} is unsafe"
        out.notice(
            f"sent {escape(done.name)} to {done.recipient}: {show_size(done.bytes)} in {done.seconds:.1f} s "
            f"({rate}/s), key made by the {done.key_source}{unsafe}, {done.path or 'delivered by an earlier try'}"
        )


def _would_accept(out: Out, recipient: str, done: WouldAccept) -> None:
    out.event("accepted", {"recipient": recipient, "presence": done.presence})
    if not out.json:
        out.notice(f"{recipient} would accept it now ({done.presence}); nothing was sent")


# --- the copy of the receipt ---------------------------------------------------------------------------------------


def _receipt_file(receipt: str | None) -> Path | None:
    """Where the copy goes; whether it can is asked before anything is sent."""
    if receipt is None or receipt == "-":
        return None
    file = Path(receipt)
    if not receipt or file.is_dir():
        raise UsageError(f"send: --receipt {receipt!r} is a folder or nothing", hint="name a file")
    if not os.access(file.parent, os.W_OK | os.X_OK) or (file.exists() and not os.access(file, os.W_OK)):
        raise LocalIOError(f"cannot write the receipt to {file}", detail="unwritable", hint="nothing was sent")
    return file


def _copy_receipt(done: Delivery, file: Path) -> None:
    try:
        file.write_bytes(done.receipt.read_bytes())
    except OSError as error:
        raise LocalIOError(
            f"{done.name} was delivered, but its receipt could not be written to {file}: {error.strerror}",
            detail="unwritable", hint=f"it is kept in {done.receipt}",
        ) from None
