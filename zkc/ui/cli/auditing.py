"""What ``zkc audit`` and ``zkc coordinator audit`` have in common: their options, and how entries are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from zkc.errors import UsageError
from zkc.ui.cli.output import Out, rfc3339

if TYPE_CHECKING:
    from zkc.crypto.audit import Entry


def audit_options(function: Callable[..., None]) -> Callable[..., None]:
    """``--follow``, ``--verify`` and ``--head``, which is given to ``function`` as bytes."""

    @click.option("--follow", is_flag=True, help="Go on with what is added, until a signal.")
    @click.option("--verify", is_flag=True, help="Verify the chain; 12 where an entry does not fit.")
    @click.option("--head", metavar="HASH", help="With --verify: a head that an earlier --verify printed.")
    @wraps(function)
    def checked(*args: Any, follow: bool, verify: bool, head: str | None, **others: Any) -> None:
        if (verify and follow) or (head is not None and not verify):
            raise UsageError(
                "audit: --verify goes without --follow, --head with --verify", hint="see it with --help"
            )
        function(*args, follow=follow, verify=verify, head=None if head is None else _hash_of(head), **others)

    return checked


def tell_verified(out: Out, seq: int, head: bytes) -> None:
    """``verified`` with ``seq`` and ``head``."""
    out.item("verified", {"seq": seq, "head": head.hex()}, f"{seq} {head.hex()}")


def tell_entries(out: Out, entries: Iterable[Entry]) -> None:
    """``audit``, an object for each."""
    from zkc.rules.names import escape

    for entry in entries:
        note = entry.note
        outcome = "refused" if note.code else "ok"
        at = rfc3339(note.at / 1000)
        told = {
            "seq": entry.seq, "time": at, "kind": note.event, "from": note.sender or None,
            "to": note.recipient or None, "outcome": outcome, "code": note.code, "detail": note.detail,
            "rule": note.rule, "times": note.times, "hash": entry.hash.hex(),
        }
        ends = " -> ".join(each for each in (note.sender, note.recipient) if each)
        times = f"{note.times} times" if note.times != 1 else ""
        result = " ".join(each for each in (outcome, str(note.code or ""), note.detail, note.rule, times) if each)
        out.item("audit", told, escape(f"{at}  {note.event:<20}  {ends:<30}  {result}"))


def _hash_of(head: str) -> bytes:
    try:
        value = bytes.fromhex(head)
    except ValueError:
        value = b""
    if len(value) != 32:
        raise UsageError("audit: --head takes 64 hexadecimal digits", hint="--verify prints it")
    return value
