"""Pages of the key log."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.key_log import LogRows, key_log
from zkc.constants import CONTROL_MESSAGE_MAX
from zkc.crypto.signing import IdentityKey
from zkc.protocol.keylog import LogState, Whose, take_page
from zkc.stores.keydb import LogEntry
from zkc.wire.codec import encode
from zkc.wire.messages import LogAsk, LogPage

KEY = IdentityKey.from_seed(bytes(range(64)))
OWN = bytes(32)


def rows(reason: str, count: int) -> LogRows:
    """bob's registration, and ends of many others."""
    ends = [LogEntry(n, 0.0, "revoked", "n" * 127, bytes(16), OWN, reason) for n in range(1, count)]
    return LogRows([LogEntry(0, 0.0, "registered", "bob", bytes(16), OWN, ""), *ends])


@pytest.mark.parametrize(("reason", "pages"), [("", 5), ("\N{GRINNING FACE}" * 100_000, 53)])
def test_a_page_is_a_control_message_whatever_stands_in_the_log_and_few_pages_are_many_entries(
    reason: str, pages: int
) -> None:
    session: Any = SimpleNamespace(client=SimpleNamespace(row=SimpleNamespace(log_index=0)))
    log, whose = key_log(rows(reason, 1000), KEY), Whose(KEY.public, "bob", frozenset({OWN}))
    state: LogState | None = None
    whole, asked = False, 0
    while not whole:
        page = log.page(session, b"", LogAsk(0 if state is None else state.frontier.size, state is None))
        assert isinstance(page, LogPage)
        assert len(encode(page)) < CONTROL_MESSAGE_MAX - 4096
        state, whole = take_page(whose, state, page)
        asked += 1
    assert asked == pages
