"""A key log whose entries are held in a list, as the coordinator's `KeyLog` shows it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from zkc.coordinator.keylog import KeyLog
from zkc.crypto.heads import log_leaf
from zkc.crypto.merkle import Frontier, leaf_hash
from zkc.crypto.signing import IdentityKey
from zkc.stores.keydb import LogEntry


class LogRows:
    """What `KeyLog` asks of a key database."""

    def __init__(self, rows: list[LogEntry]) -> None:
        self.rows = rows

    def log_size(self) -> int:
        return len(self.rows)

    def log_entries(self, first: int, limit: int) -> list[LogEntry]:
        return self.rows[first : first + limit]

    def log_frontier(self, size: int) -> Frontier:
        tree = Frontier()
        for each in self.rows[:size]:
            tree = tree.add(leaf_hash(log_leaf(each.event, each.name, each.card_hash, each.reason)))
        return tree


def key_log(rows: LogRows, identity: IdentityKey) -> KeyLog:
    """It, signed by ``identity``."""
    core: Any = SimpleNamespace(db=rows, identity=SimpleNamespace(signing=identity, epoch=1))
    return KeyLog(core)
