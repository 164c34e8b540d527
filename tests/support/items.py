"""Items of an inbox, and a clock that shows what it was set to."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass
class SetClock:
    """Shows what it was set to."""

    now: float = NOW

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now
