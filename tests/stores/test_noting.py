"""The audit log's writer: many notes in few transactions, a log that cannot be written, refusals without number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.support.env import FixedClock
from zkc.crypto.audit import Note
from zkc.errors import LocalIOError
from zkc.stores.noting import (
    PRUNE_SECONDS,
    PRUNE_STEP,
    REPEATS_MAX,
    REPEATS_SECONDS,
    WAITING_MAX,
    AuditWriter,
)


class Log:
    """In memory; ``full`` is a full disk."""

    def __init__(self) -> None:
        self.batches: list[list[Note]] = []
        self.old = 0
        self.pruned: list[tuple[float, int]] = []
        self.full = False

    @property
    def notes(self) -> list[Note]:
        return [note for batch in self.batches for note in batch]

    def audit(self, notes: Sequence[Note]) -> None:
        if self.full:
            raise LocalIOError("no space left", detail="no-space")
        self.batches.append(list(notes))

    def prune_audit(self, before: float, at_most: int, step: int) -> int:
        self.pruned.append((before, at_most))
        removed = min(self.old, step)
        self.old -= removed
        return removed


class House:
    def __init__(self) -> None:
        self.log, self.clock = Log(), FixedClock()
        self.due: list[Callable[[], None]] = []
        self.writer = AuditWriter(self.log, self.clock, self.due.append, lambda: (86400.0, 5000))

    def time_is_up(self) -> None:
        due, self.due[:] = list(self.due), []
        for each in due:
            each()


@pytest.fixture
def house() -> House:
    return House()


def test_what_comes_within_a_moment_is_one_transaction(house: House) -> None:
    for name in ("bob", "carol", "dave"):
        house.writer.note("transfer", "alice", name)
    assert (len(house.due), house.log.batches) == (1, [])
    house.time_is_up()
    assert [[note.recipient for note in batch] for batch in house.log.batches] == [["bob", "carol", "dave"]]
    assert house.log.notes[0].at == int(house.clock.wall() * 1000)
    house.writer.note("transfer", "alice", "eve")
    assert len(house.due) == 1


@pytest.mark.attack("K06")
def test_a_full_disk_stops_nobody_and_what_waited_is_written_later(house: House) -> None:
    """Up to a bound: how many came beyond it is noted."""
    house.log.full = True
    for _ in range(WAITING_MAX + 7):
        house.writer.note("transfer", "alice", "bob")
    house.time_is_up()
    with pytest.raises(LocalIOError):
        house.writer.tick()
    house.log.full = False
    house.writer.tick()
    assert len(house.log.notes) == WAITING_MAX + 1
    last = house.log.notes[-1]
    assert (last.event, last.times) == ("entries-lost", 7)
    house.writer.note("transfer", "alice", "bob")
    house.time_is_up()
    assert len(house.log.notes) == WAITING_MAX + 2


def test_a_refusal_that_comes_again_and_again_is_counted_in_one_entry_a_minute(house: House) -> None:
    for _ in range(1000):
        house.writer.note("transfer", "mallory", code=25, detail="limit")
        house.writer.note("transfer", "alice", "bob")
    house.writer.note("transfer", "mallory", "bob", code=25, detail="limit")
    house.time_is_up()
    assert sum(note.sender == "alice" for note in house.log.notes) == 1000
    assert sum(note.sender == "mallory" for note in house.log.notes) == REPEATS_MAX + 1
    house.clock.advance(REPEATS_SECONDS)
    house.writer.tick()
    assert house.log.notes[-1].times == 1000 - REPEATS_MAX
    house.writer.note("transfer", "mallory", code=25, detail="limit")
    house.writer.close()
    assert house.log.notes[-1].times == 1


@pytest.mark.attack("F07")
def test_no_text_of_a_peer_is_noted(house: House) -> None:
    """Neither in the place of a name nor in that of a word."""
    house.writer.note("transfer", "alice", "../\x1b[2J secret", code=25, detail="the merger of A and B")
    house.writer.note("transfer", "alice/backup", "bob", code=25, detail="broken-stream")
    house.writer.close()
    assert [(note.sender, note.recipient, note.detail) for note in house.log.notes] == [
        ("alice", "?", "other"), ("alice/backup", "bob", "broken-stream")
    ]


def test_what_was_only_counted_is_written_at_an_orderly_end(house: House) -> None:
    for _ in range(REPEATS_MAX + 2):
        house.writer.note("transfer", "mallory", code=25, detail="limit")
    house.writer.close()
    assert [note.times for note in house.log.notes] == [1] * REPEATS_MAX + [2]


def test_old_entries_go_while_it_runs_a_part_with_each_tick(house: House) -> None:
    house.log.old = 2 * PRUNE_STEP + 5
    for _ in range(5):
        house.writer.tick()
    assert (house.log.old, len(house.log.pruned)) == (0, 3)
    assert house.log.pruned[0] == (house.clock.wall() - 86400.0, 5000)
    house.log.old = 1
    house.clock.advance(PRUNE_SECONDS)
    house.writer.tick()
    assert house.log.old == 0
