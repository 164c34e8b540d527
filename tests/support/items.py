"""Items of an inbox, and a clock that shows what it was set to."""

from __future__ import annotations

from dataclasses import dataclass

from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.items import Item, NewItem

FP, TID, XID = b"f" * 32, b"t" * 16, b"x" * 16
NOW = 1_700_000_000.0
DAY = 86400.0


def entry(name: str = "a.txt", **changes: object) -> NewItem:
    fields = {
        "sender": "alice", "app": "", "name": name, "note": "", "kind": "file", "key_source": "sender", "xid": XID,
        "mode": 0o644, "mtime_ns": 10**18,
    }
    return NewItem(**(fields | changes))  # type: ignore[arg-type]


def receive(
    inbox: Inbox, data: bytes = b"hello", tid: bytes = TID, what: NewItem | None = None, now: float = NOW
) -> Item:
    partial = inbox.begin(FP, tid, what or entry())
    partial.write(data)
    return inbox.commit(partial, b"d" * 32, b"receipt of " + tid, now)


def stop(
    inbox: Inbox, tid: bytes = TID, data: bytes = b"half", what: NewItem | None = None, sender_fp: bytes = FP
) -> Item:
    """A link that is lost after ``data``, of a file of its own."""
    partial = inbox.begin(sender_fp, tid, what or entry(f"{tid.hex()}.txt"))
    partial.write(data)
    partial.close(discard=False)
    return next(item for item in inbox.partials() if item.id == partial.id)


def on_disk(home: Home) -> list[str]:
    """Payloads, finished or not."""
    return sorted(f"{path.parent.name}/{path.name}" for path in home.inbox.glob("*/*"))


@dataclass
class SetClock:
    """Shows what it was set to."""

    now: float = NOW

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now
