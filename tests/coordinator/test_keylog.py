"""Pages of the key log."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from zkc.constants import CONTROL_MESSAGE_MAX
from zkc.coordinator.keylog import KeyLog
from zkc.crypto.heads import log_leaf
from zkc.crypto.merkle import Frontier, leaf_hash
from zkc.crypto.signing import IdentityKey
from zkc.protocol.keylog import LogState, Whose, take_page
from zkc.stores.keydb import LogEntry
from zkc.wire.codec import encode
from zkc.wire.messages import LogAsk, LogPage

KEY = IdentityKey.from_seed(bytes(range(64)))
OWN = bytes(32)


class Rows:
    """What the pages ask of a key database, held in a list."""

    def __init__(self, reason: str, count: int) -> None:
        self.rows = [LogEntry(n, 0.0, "registered" if n == 0 else "revoked", "bob" if n == 0 else "n" * 127, bytes(16),
                              OWN, "" if n == 0 else reason) for n in range(count)]

    def log_size(self) -> int:
        return len(self.rows)

    def log_entries(self, first: int, limit: int) -> list[LogEntry]:
        return self.rows[first : first + limit]

    def log_frontier(self, size: int) -> Frontier:
        tree = Frontier()
        for each in self.rows[:size]:
            tree = tree.add(leaf_hash(log_leaf(each.event, each.name, each.card_hash, each.reason)))
        return tree


@pytest.mark.parametrize(("reason", "pages"), [("", 5), ("\N{GRINNING FACE}" * 100_000, 53)])
def test_a_page_is_a_control_message_whatever_stands_in_the_log_and_few_pages_are_many_entries(
    reason: str, pages: int
) -> None:
    core: Any = SimpleNamespace(db=Rows(reason, 1000), identity=SimpleNamespace(signing=KEY, epoch=1))
    session: Any = SimpleNamespace(client=SimpleNamespace(row=SimpleNamespace(log_index=0)))
    log, whose = KeyLog(core), Whose(KEY.public, "bob", frozenset({OWN}))
    state: LogState | None = None
    whole, asked = False, 0
    while not whole:
        page = log.page(session, b"", LogAsk(0 if state is None else state.frontier.size, state is None))
        assert isinstance(page, LogPage)
        assert len(encode(page)) < CONTROL_MESSAGE_MAX - 4096
        state, whole = take_page(whose, state, page)
        asked += 1
    assert asked == pages
