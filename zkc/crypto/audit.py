"""The audit log's entries and their chain: each entry's hash covers the one before it, so none can be changed unseen.

A chain shows what was changed, put in or taken out in its middle. Entries that are missing at its end are shown only
by a head that was noted before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from zkc.crypto.primitives import digest
from zkc.crypto.transcript import Transcript
from zkc.errors import IdentityError
from zkc.ids import is_name

_WORD_MAX: Final = 32
GENESIS: Final = digest(b"zkc/1\0audit")
"""What the first entry of a log follows."""


class Note(Struct, frozen=True):
    """One decision: who, what, which rule, outcome. No content, no name of a file, no secret."""

    at: int
    """Milliseconds since 1970."""
    event: str
    """What was decided: ``registered``, ``transfer``, ..."""
    sender: str = ""
    """Who acted, or is concerned."""
    recipient: str = ""
    """Towards whom."""
    code: int = 0
    """The contract's code; 0: granted."""
    detail: str = ""
    rule: str = ""
    """The rule that decided; empty where none has a name."""
    times: int = 1
    """How often: what is refused again and again is counted in one entry."""


class Entry(Struct, frozen=True):
    """A note in its place."""

    seq: int
    """From 1, without gaps."""
    note: Note
    previous: bytes
    """The hash of the entry before."""
    hash: bytes


def clean(
    at: float, event: str, sender: str, recipient: str, *, code: int = 0, detail: str = "", rule: str = ""
) -> Note:
    """What is noted at ``at`` (seconds since 1970): names and words, never a text that a peer chose."""
    return Note(int(at * 1000), event, _as_name(sender), _as_name(recipient), code, _as_word(detail), rule)


def _as_name(name: str) -> str:
    return name if not name or is_name(name) else "?"


def _as_word(detail: str) -> str:
    is_word = len(detail) <= _WORD_MAX and detail.isascii() and detail.replace("-", "a").isalpha()
    return detail if is_word or not detail else "other"


def entry_after(seq: int, previous: bytes, note: Note) -> Entry:
    """``note`` as the entry that follows the one with number ``seq`` and hash ``previous``."""
    return Entry(seq + 1, note, previous, _hash(seq + 1, previous, note))


def follows(entry: Entry, seq: int, previous: bytes) -> bool:
    """Whether ``entry`` is what was written, and follows the entry ``seq`` with the hash ``previous``."""
    return entry == entry_after(seq, previous, entry.note)


def verify(entries: Iterable[Entry], seq: int, previous: bytes, noted: bytes | None = None) -> Entry | None:
    """Walk a whole chain that begins after the entry ``seq`` with the hash ``previous``; its last entry.

    `IdentityError`: ``audit-chain`` names the first entry that does not fit; ``audit-head`` where the head ``noted``
    earlier is none of the chain's.
    """
    last, found = None, noted is None or noted == previous
    for entry in entries:
        if not follows(entry, seq, previous):
            raise broken(seq + 1)
        seq, previous, last = entry.seq, entry.hash, entry
        found = found or previous == noted
    if last is None and seq:  # whatever is too old, the newest entry stays
        raise broken(seq + 1)
    if not found:
        raise IdentityError(
            "the head that was noted is not in the audit log: entries were cut off, or it was written anew",
            detail="audit-head", hint="compare it with a backup; entries older than audit.kept are removed, too",
        )
    return last


def broken(seq: int) -> IdentityError:
    """The entry with the number ``seq`` is not the one that was written."""
    return IdentityError(
        f"the audit log does not fit from entry {seq} on", detail="audit-chain", hint="compare it with a backup"
    )


def _hash(seq: int, previous: bytes, note: Note) -> bytes:
    """Every field with its length in front, in this order; numbers as signed 64-bit, big-endian."""
    numbers = [each.to_bytes(8, "big", signed=True) for each in (seq, note.at, note.code, note.times)]
    words = (note.event, note.sender, note.recipient, note.detail, note.rule)
    texts = [each.encode("utf-8", "surrogateescape") for each in words]
    return Transcript(previous).absorb(b"audit", *numbers, *texts).value
