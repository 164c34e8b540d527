"""Whose turn it is to write: threads that hold what a peer has sent wait, an event loop does not."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.support.items import FP, NOW, entry, on_disk
from tests.support.waiting import DEADLINE, wait_until
from zkc.errors import LocalIOError
from zkc.stores import localdb
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event loop's writer waits so short that every other wait here is longer."""
    monkeypatch.setattr(localdb, "BUSY_SECONDS", 0.05)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as made:
        yield made


@pytest.fixture
def other(inbox: Inbox, home: Home) -> Iterator[sqlite3.Connection]:
    """Another process's writer."""
    with closing(sqlite3.connect(home.inbox / "index.db", isolation_level=None, check_same_thread=False)) as opened:
        yield opened


def finish(inbox: Inbox, number: int) -> str:
    """A delivery from its first byte to its item."""
    partial = inbox.begin(FP, bytes([number]) * 16, entry(f"{number}.txt"))
    partial.write(b"verified")
    return inbox.commit(partial, b"d" * 32, b"receipt", NOW).id


def refused_busy(inbox: Inbox) -> None:
    """Longer than an event loop's writer waits has whoever was there before this waited already."""
    with pytest.raises(LocalIOError) as caught, inbox._db.writing():
        pass
    assert caught.value.detail == "busy"


def test_deliveries_that_end_together_wait_for_each_other_however_long_one_takes(
    inbox: Inbox, home: Home, threads: ThreadPoolExecutor
) -> None:
    with inbox._db.writing():
        done = [threads.submit(finish, inbox, number) for number in range(16)]
        for _ in range(4):
            refused_busy(inbox)
        assert not any(each.done() for each in done)
    items = sorted(each.result(DEADLINE) for each in done)
    assert on_disk(home) == [f"files/{item}" for item in items]


def test_verified_data_outlasts_another_process_that_holds_the_inbox(
    inbox: Inbox, home: Home, threads: ThreadPoolExecutor, other: sqlite3.Connection
) -> None:
    partial = inbox.begin(FP, b"t" * 16, entry())
    partial.write(b"verified")
    other.execute("BEGIN IMMEDIATE")
    done = threads.submit(inbox.commit, partial, b"d" * 32, b"receipt", NOW)
    wait_until(inbox._db._writing.locked)
    refused_busy(inbox)
    refused_busy(inbox)
    assert not done.done()
    other.execute("COMMIT")
    assert on_disk(home) == [f"files/{done.result(DEADLINE).id}"]
    assert inbox.items() == [done.result()]


def test_threads_that_wait_for_another_process_do_not_add_up_their_waits(
    inbox: Inbox, home: Home, threads: ThreadPoolExecutor, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the first has waited in vain the rest give up at once: else the last would wait sixteen times as long."""
    monkeypatch.setattr(localdb, "PATIENT_SECONDS", DEADLINE / 10)
    other.execute("BEGIN IMMEDIATE")
    done = [threads.submit(finish, inbox, number) for number in range(16)]
    for each in done:
        with pytest.raises(LocalIOError) as caught:
            each.result(DEADLINE)
        assert caught.value.detail == "busy"
    assert on_disk(home) == []


def test_closing_ends_the_wait_for_another_process(
    inbox: Inbox, threads: ThreadPoolExecutor, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localdb, "PATIENT_SECONDS", 100 * DEADLINE)
    other.execute("BEGIN IMMEDIATE")
    done = threads.submit(finish, inbox, 1)
    wait_until(inbox._db._writing.locked)
    inbox.close()
    with pytest.raises(LocalIOError):
        done.result(DEADLINE)
