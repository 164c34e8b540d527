"""A key log whose entries are held in a list, as the coordinator's `KeyLog` shows it; and one with several faces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from zkc.coordinator.core import Core
from zkc.coordinator.keylog import KeyLog
from zkc.coordinator.sessions import Session
from zkc.crypto.heads import log_leaf
from zkc.crypto.merkle import Frontier, inclusion_path, leaf_hash, new_nodes
from zkc.crypto.signing import IdentityKey
from zkc.stores.keydb import LogEntry
from zkc.wire.messages import AnswerBody, LogAsk, LogHeadAsk, LogProve


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
        for leaf in self._leaves(size):
            tree = tree.add(leaf)
        return tree

    def log_inclusion(self, index: int, size: int) -> list[bytes]:
        nodes: dict[tuple[int, int], bytes] = {}
        for place, leaf in enumerate(self._leaves(size)):
            nodes.update(new_nodes(place, leaf, nodes.__getitem__))
        return inclusion_path(index, size, lambda level, position: nodes[level, position])

    def client_named(self, name: str) -> LogEntry | None:
        """What says it of a client: the newest entry of that name."""
        return next((each for each in reversed(self.rows) if each.name == name), None)

    def log_index_of(self, uid: bytes, card_hash: bytes) -> int | None:
        return next((each.log_index for each in self.rows if (each.uid, each.card_hash) == (uid, card_hash)), None)

    def _leaves(self, size: int) -> list[bytes]:
        return [leaf_hash(log_leaf(each.event, each.name, each.card_hash, each.reason)) for each in self.rows[:size]]


def key_log(rows: LogRows, identity: IdentityKey) -> KeyLog:
    """It, signed by ``identity``."""
    core: Any = SimpleNamespace(db=rows, identity=SimpleNamespace(signing=identity, epoch=1))
    return KeyLog(core)


Face = Callable[[list[LogEntry]], list[LogEntry]]
"""What somebody is shown in place of the true entries."""


class ManyFaces(KeyLog):
    """The true log, but for those of whom something else was said: each face is properly signed."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self._faces: dict[str, tuple[Face, IdentityKey | None]] = {}

    def show(self, face: Face, names: Iterable[str], signed_by: IdentityKey | None = None) -> None:
        """To the clients of these names, from now on. ``signed_by``: by this identity, and not the present one."""
        self._faces.update(dict.fromkeys(names, (face, signed_by)))

    def page(self, session: Session, call: bytes, body: LogAsk) -> AnswerBody:
        shown = self._shown_to(session)
        return super().page(session, call, body) if shown is None else shown.page(session, call, body)

    def prove(self, session: Session, call: bytes, body: LogProve) -> AnswerBody:
        shown = self._shown_to(session)
        return super().prove(session, call, body) if shown is None else shown.prove(session, call, body)

    def head_at(self, session: Session, call: bytes, body: LogHeadAsk) -> AnswerBody:
        shown = self._shown_to(session)
        return super().head_at(session, call, body) if shown is None else shown.head_at(session, call, body)

    def _shown_to(self, session: Session) -> KeyLog | None:
        face, signed_by = self._faces.get(session.client.name, (None, None))
        if face is None:
            return None
        true = self._core.db.log_entries(0, self._core.db.log_size())
        return key_log(LogRows(face(true)), signed_by or self._core.identity.signing)
