"""``zkc send``: files, folders, piped data or a message to another client, with a receipt."""

from __future__ import annotations

import contextlib
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import click

from zkc.errors import LocalIOError, UsageError
from zkc.ui.cli.kinds import Duration, Size, Word, ciphers, offers, word
from zkc.ui.cli.options import Command, Invocation, pass_invocation
from zkc.ui.cli.output import Out

if TYPE_CHECKING:
    from zkc.client.events import Delivery, Event, Granted, Options, Pending, Requested, WouldAccept
    from zkc.client.small import Notice
    from zkc.client.sources import AnySource
    from zkc.client.walking import Skipped
    from zkc.ui.cli.progress import Board, Progress
    from zkc.wire.messages import Manifest


@click.command(
    "send", cls=Command,
    example=(
        "zkc send bob report.pdf photos/ --exclude '*.tmp'\n"
        "pg_dump shop | zkc send bob --name shop.sql\n"
        "zkc send bob,carol -m 'the build is done'\n"
        "zkc send bob payroll.xlsx --require authorised --wait 8h\n"
        "zkc send bob film.mkv --queue --expires 2d\n"
        "zkc send bob nightly.tar --id nightly-2026-11-27 --receipt nightly.receipt --json"
    ),
    help="Send files and folders, or standard input, to RECIPIENT, as one item. Ends with 0 once the recipient holds "
    "all of it, verified.",
    short_help="Send files, folders, pipes or a message.",
)
@click.argument("recipient", metavar="RECIPIENT[,RECIPIENT...]", shell_complete=offers("peers"))
@click.argument("paths", metavar="[PATH]...", nargs=-1, shell_complete=offers("sendable"))
@click.option("--name", metavar="NAME", help="What it is called there [piped data: stdin].")
@click.option("-m", "message", metavar="TEXT", help="Send TEXT as a message; no file.")
@click.option("--note", metavar="TEXT", default="", help="A note beside it, end-to-end encrypted too.")
@click.option(
    "--require", type=word("online", "present", "authorised"), metavar="online|present|authorised", default="online",
    help="What must hold of the recipient: it is online, a person is there, who proves that he may receive [online].",
)
@click.option("--wait", type=Duration(), help="How long to wait for the recipient to be there.")
@click.option("--timeout", type=Duration(), help="Bound on the whole command.")
@click.option(
    "--key-source", type=word("sender", "coordinator"), metavar="sender|coordinator", help="Who makes the key."
)
@click.option("--cipher", type=Word(ciphers), metavar="NAME", help="Cipher of the transfer.")
@click.option(
    "--receipt", metavar="FILE", shell_complete=offers("files"),
    help="Write the recipient's signed receipt to FILE too; '-': stdout.",
)
@click.option(
    "--exclude", metavar="GLOB", multiple=True,
    help="Leave out what has such a name, or with a '/' such a path in the folder; may be repeated.",
)
@click.option("--id", "key", metavar="KEY", help="Never deliver twice under KEY: a repeat returns the first receipt.")
@click.option("--bwlimit", type=Size(), default=0, metavar="RATE", help="Bytes a second at most, such as 512K or 2M.")
@click.option("--compress", is_flag=True, help="Compress on the way (zstd), each chunk on its own.")
@click.option("--no-resume", is_flag=True, help="Start from the first byte, whatever an earlier command has sent.")
@click.option(
    "--from", "sender", metavar="CLIENT", shell_complete=offers("peers"),
    help="Ask CLIENT to send PATH, which is SHARE or SHARE/PATH there.",
)
@click.option(
    "--queue", is_flag=True, help="Hand it to the daemon, which keeps it until it is delivered; see zkc outbox."
)
@click.option("--copy", "keep_copy", is_flag=True, help="With --queue: keep an encrypted copy of files.")
@click.option("--expires", type=Duration(), help="With --queue: give it up after so long [outbox.expires].")
@click.option("--dry-run", is_flag=True, help="Ask whether it would be accepted now; send nothing.")
@pass_invocation
def command(
    call: Invocation, *, recipient: str, paths: tuple[str, ...], name: str | None, message: str | None, note: str,
    require: Any, wait: float | None, timeout: float | None, key_source: Any, cipher: str | None,
    receipt: str | None, exclude: tuple[str, ...], key: str | None, bwlimit: int, compress: bool, no_resume: bool,
    dry_run: bool, sender: str | None, queue: bool, keep_copy: bool, expires: float | None,
) -> int:
    """Events: ``requested``, ``granted``, ``progress``, ``delivered``; ``accepted`` for a dry run, ``queued``."""
    from zkc.ui.cli.send_several import receipt_files, recipients_of

    names = recipients_of(recipient)
    if key == "":
        raise UsageError("an empty key is no key", detail="payload", hint="is a variable unset?")
    if sender is not None:
        from zkc.ui.cli.fetching import check_words, fetch, fetch_each, wish

        given = (
            name, message, key_source, cipher, key, bwlimit, compress, no_resume, dry_run, queue, keep_copy,
            expires is not None, require != "online",
        )
        wanted = wish(check_words(sender, paths, other=any(given)), note, exclude)
        files = {name: receipt_file(file) for name, file in receipt_files(names, receipt).items()}
        if len(names) > 1:
            return fetch_each(call, sender, files, wanted, wait=wait, timeout=timeout)
        if receipt == "-":
            call.out.payload_on_stdout()
        asked = fetch(call, sender, recipient, wanted, wait=wait, timeout=timeout)
        if receipt == "-":
            call.out.payload(asked.receipt.read_bytes())
        else:
            copy_receipt(asked, files[recipient])
        return 0
    copies = {name: receipt_file(file) for name, file in receipt_files(names, receipt).items()}
    if receipt == "-":
        call.out.payload_on_stdout()
    payload = _payload(call.out, paths, message, dry_run=dry_run)
    if exclude and not isinstance(payload, list):
        raise UsageError("send: --exclude is for paths", hint="leave it out, or name a folder")

    from zkc.client.events import Delivery, Options

    options = Options(wait, timeout, key_source, cipher, dry_run, key, not no_resume, bwlimit, compress, require)
    what = What(payload, name, note, exclude)
    if queue:
        from zkc.ui.cli.outbox import put

        put(call, names, what, options, copy=keep_copy, expires=expires, waits=receipt is not None or dry_run)
        return 0
    if keep_copy or expires is not None:
        raise UsageError("send: --copy and --expires go with --queue", hint="zkc send --help")
    if len(names) > 1:
        from zkc.ui.cli.send_several import send_to_each

        return send_to_each(call, names, what, options, copies)
    done = _send(call, recipient, what, options)
    if isinstance(done, Delivery) and receipt == "-":
        call.out.payload(done.receipt.read_bytes())
    elif isinstance(done, Delivery):
        copy_receipt(done, copies[recipient])
    return 0


# --- the two ways ---------------------------------------------------------------------------------------------------


class What(NamedTuple):
    """The words of the command that say what is sent."""

    payload: str | list[Path] | BinaryIO
    name: str | None
    note: str
    exclude: tuple[str, ...]

    @property
    def maybe_handed(self) -> str | Path | BinaryIO | None:
        """What the daemon may send, as far as the words tell: a message, one path, a stream."""
        if not isinstance(self.payload, list):
            return self.payload
        return self.payload[0] if len(self.payload) == 1 and not self.exclude else None


def _send(call: Invocation, recipient: str, what: What, options: Options) -> Delivery | WouldAccept:
    """What is small goes whole to the daemon, where one runs, and a file by its path; all else leaves from this
    process (decisions 0007, 0026)."""
    from zkc.client.small import OnDisk, Small, Undone, hand_over, look_at
    from zkc.env import SystemClock
    from zkc.stores.home import Home

    clock = SystemClock()
    began = clock.monotonic()
    given: Small | OnDisk | None
    payload = what.maybe_handed
    if payload is None:
        given, head = None, b""
    elif options.dry_run and not isinstance(payload, str | Path):
        given, head = Small("stream", "stdin", b""), b""  # what stdin holds is for another command
    else:
        given, head = look_at(payload, clock)
    with Shown(call.out, recipient) as shown:
        done: Delivery | WouldAccept | Undone = Undone()
        if given is not None:
            home = Home.resolve("client", call.options.home).check()
            done = hand_over(home, recipient, given, what.name, what.note, options, os.environ, shown.event)
        if isinstance(done, Undone):
            left = _less(options, clock.monotonic() - began)
            done = _send_from_here(call, recipient, what, head, left, shown, begun=done.begun)
        shown.done(done)
        return done


def _less(options: Options, spent: float) -> Options:
    """``options`` for what comes after ``spent`` seconds."""
    wait, timeout = (None if given is None else max(given - spent, 0.0) for given in (options.wait, options.timeout))
    return options._replace(wait=wait, timeout=timeout)


def _send_from_here(
    call: Invocation, recipient: str, what: What, head: bytes, options: Options, shown: Shown, *, begun: bool
) -> Delivery | WouldAccept:
    source, manifest = open_source(call.out, what, head)

    from zkc.client.reporting import DaemonReports
    from zkc.client.sending import Sending
    from zkc.env import SystemClock, SystemEntropy
    from zkc.net.pipe.bell import Bell
    from zkc.ui.cli.homes import client_config, client_home, reached
    from zkc.ui.cli.signals import Signals

    home = client_home(call)
    clock, entropy = SystemClock(), SystemEntropy()
    with contextlib.ExitStack() as closing:
        bell = Bell()
        closing.callback(bell.close)
        under_way: list[Sending] = []
        closing.enter_context(Signals(lambda: under_way[0].interrupt() if under_way else bell.ring()))
        closing.callback(source.close)
        config = client_config(call, home)
        access = closing.enter_context(reached(home, config, clock, entropy))
        under_way.append(Sending(
            home, config, access, recipient, source, manifest, options, clock=clock, entropy=entropy, bell=bell,
            on_event=shown.event, reports=DaemonReports(home.socket_path(), clock), begun=begun,
        ))
        return under_way[0].run()


# --- what is sent --------------------------------------------------------------------------------------------------


def _payload(
    out: Out, paths: tuple[str, ...], message: str | None, *, dry_run: bool
) -> str | list[Path] | BinaryIO:
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
    if "" in paths:
        raise UsageError("send: an empty path names nothing", hint="is a variable unset? the current folder is .")
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


def open_source(out: Out | None, what: What, head: bytes = b"") -> tuple[AnySource, Manifest]:
    """``what`` opened; of a stream ``head`` was read already. ``out`` is told what is skipped."""
    from zkc.client.sources import source_of

    on_skip = partial(_tell_skipped, out)
    return source_of(what.payload, what.name, what.note, head, exclude=what.exclude, on_skip=on_skip)


def _tell_skipped(out: Out | None, skipped: Skipped) -> None:
    from zkc.rules.names import escape

    if out is not None:
        out.notice(f"skipped {escape(skipped.path)}: a {skipped.kind} cannot be sent")


class Shown:
    """The events of one delivery as objects, a bar, or nothing; several share a ``board``."""

    def __init__(self, out: Out, recipient: str, board: Board | None = None) -> None:
        self._out = out
        self._recipient = recipient
        self._board = board
        self._requested: Requested | None = None
        self._progress: Progress | None = None

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def done(self, done: Delivery | WouldAccept) -> None:
        """The result."""
        from zkc.client.events import Delivery

        self.close()
        with self._alone():
            if isinstance(done, Delivery):
                _delivered(self._out, done)
            else:
                _would_accept(self._out, self._recipient, done)

    def event(self, event: Event | Notice) -> None:
        from zkc.client.events import Progress as Moved

        if not isinstance(event, Moved):
            with self._alone():
                self._tell(event)
        elif self._progress is not None:
            self._progress.update(event.bytes, event.entry, event.entry_bytes, event.entry_total)

    def _alone(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if self._board is None else self._board.mutex

    def _tell(self, event: Requested | Pending | Granted | Notice) -> None:
        from zkc.client.events import Granted, Pending, Requested
        from zkc.client.small import Notice

        match event:
            case Requested():
                if self._requested is not None:  # told by the daemon, before it ended
                    return
                self._requested = event
                told = {"recipient": event.recipient, "name": event.name, "bytes": event.size}
                self._out.event("requested", told)
            case Pending():
                self._out.event("pending", {"recipient": event.recipient})
                if not self._out.json:
                    self._out.notice(f"waiting for a person at {event.recipient} to accept it")
            case Granted():
                self._out.event(
                    "granted",
                    {
                        "recipient": event.recipient, "key_source": event.key_source, "presence": event.presence,
                        "path": event.path, "resumed_from": event.resumed_from,
                    },
                )
                self._begin(event.resumed_from)
            case Notice():
                self._out.notice(event.text)

    def _begin(self, position: int) -> None:
        from zkc.rules.names import escape
        from zkc.ui.cli.progress import Progress

        if self._progress is None:
            name, size = ("", None) if self._requested is None else (self._requested.name, self._requested.size)
            label = escape(name) if self._board is None else f"{escape(name)} to {self._recipient}"
            self._progress = Progress(
                self._out, label, size, fields={"recipient": self._recipient}, board=self._board
            )
        self._progress.begin(position)


def _delivered(out: Out, done: Delivery) -> None:
    from zkc.ids import SAFE_CIPHERS

    out.event(
        "delivered",
        {
            "transfer": done.transfer, "recipient": done.recipient, "name": done.name, "bytes": done.bytes,
            "digest": done.digest, "seconds": round(done.seconds, 3), "receipt": str(done.receipt),
            "key_source": done.key_source, "path": done.path, "cipher": done.cipher,
        },
    )
    if not done.path and not _is_of(done):
        out.notice("this key was used before, for something of another name: that is what was delivered, and not this")
    if not out.json:
        from zkc.rules.names import escape
        from zkc.rules.units import show_size

        rate = show_size(done.bytes / max(done.seconds, 0.001))
        unsafe = "" if done.cipher in SAFE_CIPHERS else f", {done.cipher} is unsafe"
        out.notice(
            f"sent {escape(done.name)} to {done.recipient}: {show_size(done.bytes)} in {done.seconds:.1f} s "
            f"({rate}/s), key made by the {done.key_source}{unsafe}, {done.path or 'delivered by an earlier try'}"
        )


def _is_of(done: Delivery) -> bool:
    """Whether the receipt is for what was to be sent now, as far as the name tells."""
    from zkc.crypto.receipts import name_digest
    from zkc.wire.codec import decode
    from zkc.wire.messages import Receipt, ReceiptBody

    body = decode(decode(done.receipt.read_bytes(), Receipt).body, ReceiptBody)
    return bool(body.name_digest == name_digest(done.name))


def _would_accept(out: Out, recipient: str, done: WouldAccept) -> None:
    out.event("accepted", {"recipient": recipient, "presence": done.presence, "asks": done.asks})
    if not out.json and done.asks:
        out.notice(f"{recipient} would ask a person first; nothing was sent")
    elif not out.json:
        out.notice(f"{recipient} would accept it now ({done.presence}); nothing was sent")


# --- the copy of the receipt ---------------------------------------------------------------------------------------


def receipt_file(receipt: str | None) -> Path | None:
    """Where the copy goes; whether it can is asked before anything is sent."""
    if receipt is None or receipt == "-":
        return None
    file = Path(receipt)
    if not receipt or os.path.isdir(file):
        raise UsageError(f"send: --receipt {receipt!r} is a folder or nothing", hint="name a file")
    if not os.access(file.parent, os.W_OK | os.X_OK) or (file.exists() and not os.access(file, os.W_OK)):
        raise LocalIOError(f"cannot write the receipt to {file}", detail="unwritable", hint="nothing was sent")
    return file


def copy_receipt(done: Delivery, file: Path | None) -> None:
    """Where one was asked for."""
    from zkc.stores.receipts import write_copy

    if file is None:
        return
    try:
        write_copy(done.receipt, file)
    except OSError as error:
        raise LocalIOError(
            f"{done.name} was delivered, but its receipt could not be written to {file}: {error.strerror}",
            detail="unwritable", hint=f"it is kept in {done.receipt}",
        ) from None
