"""The audit log: what is noted is chained, and whatever is done to the chain is found."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from zkc.crypto.audit import GENESIS, Note, entry_after, verify
from zkc.errors import IdentityError
from zkc.stores import audit
from zkc.stores.keydb import KeyDb
from zkc.stores.rowmac import mac

MAC_KEY = b"\x5a" * 32
NOTES = [Note(1_000 * n, "transfer", "alice", "bob", 25 if n == 3 else 0, "", "") for n in range(1, 7)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


@pytest.fixture
def db(path: Path) -> Iterator[KeyDb]:
    with closing(KeyDb.open(f"sqlite:///{path}", MAC_KEY, create=True)) as opened:
        opened.audit(NOTES[:2])
        opened.audit(NOTES[2:])
        yield opened


def refused(what: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(IdentityError) as caught:
        what()
    return caught.value.detail, caught.value.message


def test_entries_read_back_in_order_and_verify(db: KeyDb) -> None:
    entries = db.audit_entries()
    assert [each.note for each in entries] == NOTES
    assert [each.seq for each in entries] == [1, 2, 3, 4, 5, 6]
    assert entries[0].previous == GENESIS
    assert db.verify_audit() == (6, entries[-1].hash)
    assert db.audit_entries(after=4) == entries[4:]


@pytest.mark.attack("K03")
def test_entries_that_changed_places_are_found(db: KeyDb, path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw, raw:
        for old, new in ((3, 0), (4, 3), (0, 4)):
            raw.execute("UPDATE audit SET seq = ? WHERE seq = ?", (new, old))
    assert "from entry 3 on" in refused(db.verify_audit)[1]


@pytest.mark.attack("K03")
def test_a_damaged_log_goes_on_and_still_says_where_it_was_damaged(db: KeyDb, path: Path) -> None:
    """Registrations and revocations are noted in their own transactions: damage must not stop them."""
    assert db.prune_audit(3.0, 100, 100) == 2
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE audit SET hash = x'00' WHERE seq = 6")
    db.audit(NOTES)
    assert "from entry 6 on" in refused(db.verify_audit)[1]
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("DELETE FROM audit")
        raw.execute("UPDATE audit_start SET hash = x'00'")
    db.audit(NOTES)
    assert "from entry 1 on" in refused(db.verify_audit)[1]


@pytest.mark.attack("K03")
@pytest.mark.parametrize("statement", [
    "UPDATE audit SET code = 0 WHERE seq = 3",
    "UPDATE audit SET recipient = 'eve' WHERE seq = 3",
    "UPDATE audit SET hash = previous WHERE seq = 3",
    "DELETE FROM audit WHERE seq = 3",
    "UPDATE audit SET times = 2 WHERE seq = 3",
])  # fmt: skip
def test_the_first_entry_that_does_not_fit_is_named(db: KeyDb, path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as raw, raw:
        assert raw.execute(statement).rowcount == 1
    detail, message = refused(db.verify_audit)
    assert detail == "audit-chain"
    assert "from entry 3 on" in message


def test_the_chain_shows_a_change_by_one_who_has_the_rows_key(db: KeyDb, path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw, raw:
        fields = list(raw.execute("SELECT * FROM audit WHERE seq = 3").fetchone())[:-1]
        fields[5] = 0
        raw.execute("UPDATE audit SET code = 0, mac = ? WHERE seq = 3", (mac(MAC_KEY, "audit", fields),))
    assert db.audit_entries()[2].note.code == 0
    assert "from entry 3 on" in refused(db.verify_audit)[1]


def test_a_tail_that_was_cut_off_is_missed_by_a_noted_head_alone(db: KeyDb, path: Path) -> None:
    noted = db.verify_audit()[1]
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("DELETE FROM audit WHERE seq > 4")
    assert db.verify_audit()[0] == 4
    assert refused(lambda: db.verify_audit(noted))[0] == "audit-head"


def test_a_head_that_was_noted_is_found_once_the_log_has_grown(db: KeyDb) -> None:
    noted = db.verify_audit()[1]
    db.audit(NOTES)
    assert db.verify_audit(noted)[0] == 12


@pytest.mark.parametrize("step", [1, 2, 100])
@pytest.mark.parametrize(("before", "at_most", "first"), [(4.0, 100, 4), (0.0, 2, 5), (99.0, 100, 6)])
def test_what_is_old_goes_and_the_rest_verifies_from_there(
    db: KeyDb, path: Path, before: float, at_most: int, first: int, step: int
) -> None:
    removed = 0
    while now := db.prune_audit(before, at_most, step):
        assert now <= step
        assert db.verify_audit()[0] == 6
        removed += now
    assert removed == first - 1
    db.audit(NOTES[:1])
    assert [each.seq for each in db.audit_entries()] == list(range(first, 8))
    assert db.verify_audit()[0] == 7
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE audit_start SET seq = seq - 1")
    assert refused(db.verify_audit)[0] == "audit-chain"


def test_fields_do_not_run_into_each_other() -> None:
    one = entry_after(0, GENESIS, Note(1, "a", "bc", "d"))
    other = entry_after(0, GENESIS, Note(1, "a", "b", "cd"))
    assert one.hash != other.hash
    assert verify([one], 0, GENESIS) == one
    assert audit.ENTRIES.name == "audit"
