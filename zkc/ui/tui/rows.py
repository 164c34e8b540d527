"""What the lists of the terminal's face show, as values: text that a peer chose is escaped here, once (attack F07).

Nothing is told by colour alone: each state has a word or a sign of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from rich.cells import cell_len, set_cell_size

from zkc.client.control import PendingItem
from zkc.rules.names import escape
from zkc.rules.units import show_size
from zkc.stores.items import Item
from zkc.stores.key_rows import Pin
from zkc.stores.outbox import Job
from zkc.wire.messages import Peer, ReceiptBody

CELL: Final = 24
"""Characters of a name in a list; the reading pane has it whole."""
PEER: Final = 16
"""Characters of a peer's name there: a name may have 127, and what stands after it is to be seen too."""
_ABOVE: Final = 2
"""Lines of the pane that stand above a message's text."""
_VERIFIED: Final = {True: "✓", False: "·"}
_NEW: Final = " ●"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a list. ``detail``: what the reading pane says of it, label and text."""

    key: str
    cells: tuple[str, ...]
    detail: tuple[tuple[str, str], ...]
    peer: str = ""
    """Whose it is, whole."""
    older: Callable[..., Row] | None = field(default=None, compare=False)
    """The same at a later ``now``; None: it has no age."""
    is_new: bool = False
    """Nobody has looked at it yet."""

    def has(self, word: str) -> bool:
        """Whether ``word``, in small letters, stands anywhere in what is told of it."""
        return any(word in text.casefold() for text in (*self.cells, *(text for _, text in self.detail)))


INBOX: Final = ("from", "", "name", "size", "age", "key by", "presence")
PENDING: Final = ("from", "", "name", "size", "asks for", "ends in")
SENT: Final = ("to", "name", "size", "age", "present", "key by")
QUEUE: Final = ("to", "name", "size", "state", "sent", "why")
PEERS: Final = ("name", "", "online", "person", "seen")
TRANSFERS: Final = ("", "peer", "name", "done", "rate", "state")


def inbox_row(
    item: Item, presence: str, *, verified: bool, now: float, subject: str = "", is_new: bool = False
) -> Row:
    """An item that is here. ``subject``: what a message is about, in place of the name that all of them have."""
    name, sender = escape(item.name), escape(item.sender)
    cells = (
        cut(sender, PEER), _VERIFIED[verified] + _NEW * is_new, cut(escape(subject) or name), show_size(item.size),
        age(now - item.received), item.key_source, presence,
    )
    detail = (
        ("from", f"{sender} ({'verified' if verified else 'not verified'})"), ("name", name),
        ("note", escape(item.note)), ("asked by", escape(item.asked_by)),
        ("size", f"{show_size(item.size)} ({item.size} bytes)"),
        ("received", ago(now - item.received)),
        ("key made by", item.key_source), ("presence", presence), ("for", escape(item.app)),
        ("digest", f"blake3:{item.digest.hex()}"),
        ("id", item.id),
    )
    older = partial(inbox_row, item, presence, verified=verified, subject=subject, is_new=is_new)
    return Row(item.id, cells, _said(detail), sender, older, is_new)


def pending_row(item: PendingItem, now: float) -> Row:
    """A transfer that waits for a person here."""
    name, sender = escape(item.name or "(not told)"), escape(item.sender)
    size = f"≥ {show_size(item.least_size)}" if item.size is None else show_size(item.size)
    asks = {"online": "a yes", "present": "a person", "authorised": "your PIN"}[item.require]
    cells = (cut(sender, PEER), _VERIFIED[item.verified], cut(name), size, asks, age(item.until - now))
    detail = (
        ("from", f"{sender} ({'verified' if item.verified else 'not verified'})"), ("name", name),
        ("note", escape(item.note)), ("asked by", escape(item.asked_by)), ("size", size),
        ("key made by", item.key_source), ("for", escape(item.app)),
        ("asks for", asks), ("ends in", age(item.until - now)), ("id", item.id),
    )
    return Row(item.id, cells, _said(detail), sender, partial(pending_row, item))


def sent_row(key: str, body: ReceiptBody, name: str, now: float) -> Row:
    """What a receipt proves that somebody else has."""
    told = escape(name) if name else "-"
    since = now - body.ended / 1000
    cells = (
        cut(escape(body.recipient), PEER), cut(told), show_size(body.size), age(since), body.presence, body.key_source,
    )
    detail = (
        ("to", escape(body.recipient)), ("name", told), ("size", f"{show_size(body.size)} ({body.size} bytes)"),
        ("received", ago(since)), ("presence", body.presence), ("key made by", body.key_source),
        ("digest", f"blake3:{body.digest.hex()}"), ("receipt", key),
    )
    return Row(key, cells, _said(detail), escape(body.recipient), partial(sent_row, key, body, name))


def job_row(job: Job, sent: int | None, now: float) -> Row:
    """A job of the queue."""
    name, size = escape(job.name), "?" if job.bytes is None else show_size(job.bytes)
    how_far = "" if sent is None else f"{sent * 100 // job.bytes} %" if job.bytes else show_size(sent)
    why = escape(job.why)
    cells = (cut(escape(job.recipient), PEER), cut(name), size, job.state, how_far, cut(why))
    detail = (
        ("to", escape(job.recipient)), ("name", name), ("note", escape(job.note)), ("size", size), ("state", job.state),
        ("why", why), ("tries", str(job.tries)), ("next try", f"in {age(job.next - now)}" if job.next > now else ""),
        ("ends in", age(job.expires - now)), ("id", job.id),
    )
    return Row(job.id, cells, _said(detail), escape(job.recipient), partial(job_row, job, sent))


def peer_row(name: str, peer: Peer | None, pin: Pin | None, now: float) -> Row:
    """Somebody whom the coordinator tells of, or whose key is pinned here."""
    verified = pin is not None and pin.verified is not None
    changed = pin is not None and bool(pin.alarm or (peer is not None and peer.fingerprint != pin.fingerprint))
    sign = "! key" if changed else "✓" if verified else "·" if pin else "new"
    online = "?" if peer is None else "yes" if peer.online else "no"
    person = peer.person if peer is not None else "unknown"
    last = float(peer.last_seen) if peer is not None and peer.last_seen else pin.last_seen if pin else 0.0
    seen = ago(now - last) if last else ""
    trust = "its key has changed: see zkc verify" if changed else "verified" if verified else "not verified"
    fingerprint = pin.fingerprint if pin is not None else peer.fingerprint if peer is not None else b""
    detail = (
        ("name", escape(name)), ("online", online), ("person", person), ("seen", seen), ("key", trust),
        ("fingerprint", fingerprint.hex()),
    )
    cells = cut(escape(name), PEER), sign, online, person, seen
    return Row(name, cells, _said(detail), escape(name), partial(peer_row, name, peer, pin))


def cut(text: str, width: int = CELL) -> str:
    """``text`` for a cell of so many columns, of which a letter may take two."""
    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1).rstrip()}…"


def age(seconds: float) -> str:
    """A time for a narrow column: ``now``, ``5 min``, ``3 h``, ``12 d``."""
    for bound, unit, word in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < bound:
            return "now" if seconds < 1 else f"{int(seconds // unit)} {word}"
    return f"{int(seconds // 86400)} d"


def ago(seconds: float) -> str:
    """The same for a sentence."""
    return "just now" if seconds < 1 else f"{age(seconds)} ago"


def lines_of(text: str) -> list[str]:
    """A message's text: nothing in it moves the cursor or looks like a line of ours (attacks F07, F11)."""
    return [f"│ {escape(line)}" for line in text.split("\n")]


def pane(detail: Iterable[tuple[str, str]], body: Sequence[str] = ()) -> str:
    """The reading pane's text: who and what, then what it says, then all that else is known."""
    lines = [f"{label + ':':<13}{text}" for label, text in detail]
    return "\n".join([*lines[:_ABOVE], "", *body, "", *lines[_ABOVE:]] if body else lines)


def _said(detail: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((label, text) for label, text in detail if text)
