"""The key log as clients see it: pages of entries, proofs, and signed heads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from zkc.coordinator.core import Core
from zkc.coordinator.sessions import Session
from zkc.crypto.heads import Head, log_leaf, sign_head
from zkc.errors import UnknownRecipient
from zkc.stores.keydb import LogEntry
from zkc.wire.messages import AnswerBody, LogAsk, LogHead, LogHeadAsk, LogPage, LogProof, LogProve

_PAGE_ENTRIES: Final = 256
_PAGE_BYTES: Final = 40 * 1024
"""Of entries, before the last: with that, head and frontier a page stays below 64 KiB."""


class KeyLog:
    """Answers what clients ask of the log. Nothing of it is asked between ends that know each other."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._newest: tuple[int, int, bytes] = -1, 0, b""
        """Size, epoch of the identity and signed note: signing costs 1 ms, so once for each change."""

    def page(self, session: Session, _call: bytes, body: LogAsk) -> AnswerBody:
        """What follows; for one who has nothing yet, from its own registration on."""
        db = self._core.db
        size = db.log_size()
        first = session.client.row.log_index if body.fresh else body.size
        frontier = list(db.log_frontier(first).hashes) if body.fresh else []
        entries = _fitting(_leaf(each) for each in db.log_entries(first, min(_PAGE_ENTRIES, max(size - first, 0))))
        return LogPage(self._head(size), first, frontier, entries)

    def prove(self, _session: Session, _call: bytes, body: LogProve) -> AnswerBody:
        """That a card of the client who has the name now is in the log."""
        db = self._core.db
        row = db.client_named(body.name)
        index = None
        if row is not None:
            # A handshake may have begun under the card that it had before its keys rotated.
            same = row.card_hash == body.card_hash
            index = row.log_index if same else db.log_index_of(row.uid, body.card_hash)
        if index is None or not index < body.size <= db.log_size():
            raise UnknownRecipient("the name has no such card", detail="unknown")
        return LogProof(index, db.log_inclusion(index, body.size))

    def head_at(self, _session: Session, _call: bytes, body: LogHeadAsk) -> AnswerBody:
        """The root over so many entries, signed: what another client was shown is held against it."""
        if not 0 < body.size <= self._core.db.log_size():
            raise UnknownRecipient("the log has not so many entries", detail="unknown")
        root = self._core.db.log_frontier(body.size).root
        return LogHead(sign_head(self._core.identity.signing, Head(body.size, root)))

    def _head(self, size: int) -> bytes:
        identity = self._core.identity
        if self._newest[:2] != (size, identity.epoch):
            head = Head(size, self._core.db.log_frontier(size).root)
            self._newest = size, identity.epoch, sign_head(identity.signing, head)
        return self._newest[2]


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
