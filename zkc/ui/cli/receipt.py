"""``zkc receipt``: what a receipt says, and whether it is genuine; offline, from the receipt and a pinned key alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from zkc.errors import IdentityError, IntegrityError, LocalIOError, PeerViolation, UsageError
from zkc.ui.cli.kinds import Fingerprint, offers
from zkc.ui.cli.options import Command, Group, Invocation, pass_invocation

if TYPE_CHECKING:
    from zkc.crypto.receipts import OpenedReceipt

_RECEIPT_MAX: Final = 64 * 1024
"""Bytes; the longest, an application's, has less than half of it."""
_BLOCK: Final = 1 << 20

fingerprint_option = click.option(
    "--fingerprint", type=Fingerprint(), help="The recipient's key, in place of the one that is pinned in this home."
)


@click.command(
    "show", cls=Command, example=(
        "zkc receipt show report.receipt\n"
        "zkc receipt show --json - < report.receipt"
    ),
    help="Show what a receipt says, and whether the key that signed it is the one pinned for the recipient. '-': "
    "standard input. One whose signatures do not verify is not shown.",
    short_help="Show what a receipt says.",
)
@click.argument("file", shell_complete=offers("files"))
@fingerprint_option
@pass_invocation
def _show(call: Invocation, *, file: str, fingerprint: bytes | None) -> None:
    """``receipt`` with every field, ``verified``, and ``why`` where it is not."""
    opened = _opened(file)
    why = None
    try:
        by = _signer(call, opened, fingerprint)
    except IdentityError as error:
        by, why = "", error
    told = _fields(opened) | {"verified": why is None, "why": None if why is None else why.detail}
    if call.out.json:
        call.out.event("receipt", told)
        return
    _print(call, "verified", f"yes, by the key {by}" if why is None else f"NO: {why}")
    for key, value in told.items():
        if key not in {"verified", "why"} and value is not None:
            _print(call, key.replace("_", " "), value)


@click.command(
    "verify", cls=Command, example=(
        "zkc receipt verify report.receipt\n"
        "zkc receipt verify report.receipt --file report.pdf"
    ),
    help="Check that a receipt is genuine: every signature, made with the key that is pinned for the recipient. "
    "Ends with 12 where it is not. '-': standard input. Needs no daemon and no network; with --fingerprint no home.",
    short_help="Check that a receipt is genuine.",
)
@click.argument("file", shell_complete=offers("files"))
@fingerprint_option
@click.option(
    "--file", "payload", metavar="PATH", shell_complete=offers("files"),
    help="Check that the receipt is of this file too (32 where not).",
)
@pass_invocation
def _verify(call: Invocation, *, file: str, fingerprint: bytes | None, payload: str | None) -> None:
    """``receipt`` with every field; ``verified`` is true."""
    if payload is not None and Path(payload).is_dir():
        raise UsageError(f"receipt verify: {payload} is a folder", detail="folder", hint="name the file that was sent")
    if file == payload == "-":
        raise UsageError("receipt verify: standard input is the receipt or the file", hint="name one of the two")
    opened = _opened(file)
    by = _signer(call, opened, fingerprint)
    if payload is not None:
        _compare(opened, payload)
    told = _fields(opened)
    if call.out.json:
        call.out.event("receipt", told | {"verified": True, "why": None})
        return
    from zkc.rules.names import escape

    body = opened.body
    what = f"{body.size} bytes" if payload is None else escape(payload)
    sender = escape(body.sender) + (f", asked by {escape(body.asked_by)}" if body.asked_by else "")
    call.out.text(f"genuine: {body.recipient} has received {what} from {sender}, {told['digest']}")
    when = f" on {told['ended']}" if told["ended"] else ""
    call.out.notice(f"signed{when} with the key {by}: {opened.card.fingerprint.hex()}")


def _opened(file: str) -> OpenedReceipt:
    """The receipt in ``file``; `IdentityError` for one whose signatures do not verify, or that is none."""
    from zkc.crypto.receipts import open_receipt

    encoded = _read(file)
    try:
        return open_receipt(encoded)
    except PeerViolation as violation:
        if violation.detail == "malformed":
            what = f"{file} is not a receipt, or is damaged"
        else:
            what = f"the receipt {file} is not genuine ({violation})"
        raise IdentityError(what, detail=violation.detail, hint="ask for the original") from None


def _read(file: str) -> bytes:
    """At most a byte more than the longest receipt, which is then none."""
    with _open(file, "receipt") as source:
        try:
            return source.read(_RECEIPT_MAX + 1)
        except OSError as error:
            raise _unreadable(file, error) from None


def _open(file: str, what: str) -> BinaryIO:
    if file == "-":
        if sys.stdin is None:
            raise LocalIOError("standard input is closed", detail="unreadable", hint=f"name the {what}")
        return sys.stdin.buffer
    try:
        return open(file, "rb")
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: str, error: OSError | ValueError) -> LocalIOError:
    why = error.strerror if isinstance(error, OSError) else error
    return LocalIOError(f"cannot read {file}: {why}", detail="unreadable", hint="is it the right file?")


def _signer(call: Invocation, opened: OpenedReceipt, fingerprint: bytes | None) -> str:
    """Whose key signed, in words, if it is the one that it should be; `IdentityError` (``identity``, ``not-pinned``).

    An option's fingerprint decides alone, so that no home is needed.
    """
    name, signer = opened.card.name, opened.card.fingerprint
    if fingerprint is not None:
        if signer != fingerprint:
            raise IdentityError(
                f"the receipt was signed with the key {signer.hex()}, not with {fingerprint.hex()}", detail="identity",
                hint=f"ask {name} for its fingerprint over another channel",
            )
        return "that was named"
    own, pinned, former = _known(call, name)
    known = own or pinned
    if signer in former:
        return f"that {name} had before, and that itself named the one that is pinned now"
    if known is None:
        raise IdentityError(
            f"no key of {name} is pinned here; the receipt was signed with {signer.hex()}", detail="not-pinned",
            hint=f"ask {name} over another channel whether that is its key, and give it with --fingerprint",
        )
    if signer != known:
        raise IdentityError(
            f"the receipt was signed with the key {signer.hex()}, and {known.hex()} is pinned for {name}",
            detail="identity",
            hint=f"if {name} had that key when it received, say so with --fingerprint; if not, somebody else signed",
        )
    return "of this home" if own else f"pinned for {name}"


def _known(call: Invocation, name: str) -> tuple[bytes | None, bytes | None, tuple[bytes, ...]]:
    """The fingerprint that ``name`` has in this home: as a registration of its own, and as a pin; and those that it was
    pinned under before, by successions."""
    from zkc.client.principal import load_principal
    from zkc.ui.cli.homes import client_config, client_home, open_store

    home = client_home(call)
    client_config(call, home)
    if not os.path.lexists(home.keys_db):
        return None, None, ()
    with open_store(home) as store:
        own, pin = store.registration(name), store.pin(name)
        former = store.former(name)
        return load_principal(own).fingerprint if own else None, pin.fingerprint if pin else None, former


def _compare(opened: OpenedReceipt, path: str) -> None:
    """Whether the file at ``path`` is what was received; `IntegrityError` (``another-file``)."""
    from blake3 import blake3

    hashed, size = blake3(), 0
    with _open(path, "file") as source:
        try:
            while block := source.read(_BLOCK):
                hashed.update(block)
                size += len(block)
        except OSError as error:
            raise _unreadable(path, error) from None
    if (size, hashed.digest()) != (opened.body.size, opened.body.digest):
        differs = f"{size} bytes, not {opened.body.size}" if size != opened.body.size else "its content differs"
        raise IntegrityError(
            f"the receipt is genuine, and of another file than {path}: {differs}", detail="another-file",
            hint="has it changed since it was sent?",
        )


def _fields(opened: OpenedReceipt) -> dict[str, Any]:
    body = opened.body
    return {
        "transfer": body.xid.hex(),
        "delivery": body.tid.hex(),
        "recipient": body.recipient,
        "recipient_fingerprint": body.recipient_fingerprint.hex(),
        "sender": body.sender,
        "sender_fingerprint": body.sender_fingerprint.hex(),
        "bytes": body.size,
        "digest": f"blake3:{body.digest.hex()}",
        "key_source": body.key_source,
        "cipher": body.cipher,
        "presence": body.presence,
        "presence_age": body.presence_age,
        "durable": body.durable,
        "asker": body.asker.hex() or None,
        "asked_by": body.asked_by or None,
        "began": _time(body.began),
        "ended": _time(body.ended),
        "name_digest": body.name_digest.hex(),
        "manifest_digest": body.manifest_digest.hex(),
    }


def _time(milliseconds: int) -> str | None:
    """None for a time that no calendar has: a recipient may sign any number."""
    from zkc.ui.cli.output import rfc3339

    try:
        return rfc3339(milliseconds / 1000)
    except (ValueError, OverflowError, OSError):
        return None


def _print(call: Invocation, key: str, value: object) -> None:
    from zkc.rules.names import escape

    shown = ("yes" if value else "no") if isinstance(value, bool) else escape(str(value))
    call.out.text(f"{key + ':':<22} {shown}")


command = Group(
    "receipt", {"show": _show, "verify": _verify}, default="show", takes_words=True,
    example="zkc receipt verify report.receipt",
    help="What a receipt says, and whether it is genuine; offline. Without a subcommand: show.",
    short_help="What a receipt says, and whether it is genuine.",
)
