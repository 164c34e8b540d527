"""The key log as clients see it: pages of entries, proofs, and signed heads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from zkc.coordinator.core import Core
from zkc.coordinator.sessions import Session
from zkc.crypto.heads import Head, log_leaf, sign_head
from zkc.errors import UnknownRecipient
from zkc.stores.keydb import LogEntry
from zkc.wire.messages import AnswerBody, LogAsk, LogPage, LogProof, LogProve

_PAGE_ENTRIES: Final = 256
_PAGE_BYTES: Final = 40 * 1024
"""Of entries, before the last: with that, head and frontier a page stays below 64 KiB."""


class KeyLog:
    """Answers what clients ask of the log. Nothing of it is asked between ends that know each other."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._newest: tuple[int, bytes] = -1, b""
        """Size and signed note: signing costs 1 ms, so once for each change."""

    def page(self, session: Session, _call: bytes, body: LogAsk) -> AnswerBody:
        """What follows; for one who has nothing yet, from its own registration on."""
        db = self._core.db
        size = db.log_size()
        first = session.client.row.log_index if body.fresh else body.size
        frontier = list(db.log_frontier(first).hashes) if body.fresh else []
        entries = _fitting(_leaf(each) for each in db.log_entries(first, min(_PAGE_ENTRIES, max(size - first, 0))))
        return LogPage(self._head(size), first, frontier, entries)

    def prove(self, _session: Session, _call: bytes, body: LogProve) -> AnswerBody:
        """That the present card of a name is in the log."""
        db = self._core.db
        row = db.client_named(body.name)
        if row is None or row.card_hash != body.card_hash or not row.log_index < body.size <= db.log_size():
            raise UnknownRecipient("the name has no such card", detail="unknown")
        return LogProof(row.log_index, db.log_inclusion(row.log_index, body.size))

    def _head(self, size: int) -> bytes:
        if self._newest[0] != size:
            head = Head(size, self._core.db.log_frontier(size).root)
            self._newest = size, sign_head(self._core.identity.signing, head)
        return self._newest[1]


def _fitting(leaves: Iterable[bytes]) -> list[bytes]:
    """As many as a page holds, one at least."""
    taken: list[bytes] = []
    held = 0
    for leaf in leaves:
        taken.append(leaf)
        held += len(leaf)
        if held >= _PAGE_BYTES:
            break
    return taken


def _leaf(entry: LogEntry) -> bytes:
    return log_leaf(entry.event, entry.name, entry.card_hash, entry.reason)
