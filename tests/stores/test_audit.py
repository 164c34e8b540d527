"""The audit log, a coordinator's and a client's: what is noted is chained, and whatever is done to the chain is found.

What is not found without a head that was noted elsewhere: entries that were cut off at the end, and a log written anew.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.support.program import TOP
from tests.support.waiting import DEADLINE
from zkc.crypto.audit import GENESIS, Note, entry_after, verify
from zkc.errors import IdentityError, InternalError, LocalIOError, VersionMismatch
from zkc.stores import audit
from zkc.stores.audit_file import AuditFile
from zkc.stores.home import Home
from zkc.stores.keydb import KeyDb
from zkc.stores.rowmac import mac

Log = KeyDb | AuditFile

MAC_KEY: Final = b"\x5a" * 32
NOTES: Final = [Note(1_000 * n, "transfer", "alice", "bob", 25 if n == 3 else 0, "", "") for n in range(1, 7)]
KINDS: Final = {"coordinator": "keys.db", "client": "home/audit.db"}


def opened(kind: str, folder: Path) -> Log:
    if kind == "coordinator":
        return KeyDb.open(f"sqlite:///{folder / KINDS[kind]}", MAC_KEY, create=True)
    return AuditFile.open(Home.resolve("client", str(folder / "home")).prepare())


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path, kind: str) -> Path:
    return tmp_path / KINDS[kind]


@pytest.fixture
def db(tmp_path: Path, kind: str) -> Iterator[Log]:
    with closing(opened(kind, tmp_path)) as log:
        log.audit(NOTES[:2])
        log.audit(NOTES[2:])
        yield log


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """The file in the hands of somebody who knows SQLite."""
    with closing(sqlite3.connect(path)) as connection, connection:
        yield connection


def refused(what: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(IdentityError) as caught:
        what()
    return caught.value.detail, caught.value.message


def test_entries_read_back_in_order_and_verify(db: Log) -> None:
    entries = db.audit_entries()
    assert [each.note for each in entries] == NOTES
    assert [each.seq for each in entries] == [1, 2, 3, 4, 5, 6]
    assert entries[0].previous == GENESIS
    assert db.verify_audit() == (6, entries[-1].hash)
    assert db.audit_entries(after=4) == entries[4:]


@pytest.mark.attack("K03")
def test_entries_that_changed_places_are_found(db: Log, path: Path) -> None:
    with raw(path) as connection:
        for old, new in ((3, 0), (4, 3), (0, 4)):
            connection.execute("UPDATE audit SET seq = ? WHERE seq = ?", (new, old))
    assert "from entry 3 on" in refused(db.verify_audit)[1]


@pytest.mark.attack("K03")
def test_a_damaged_log_goes_on_and_still_says_where_it_was_damaged(db: Log, path: Path) -> None:
    """Registrations and revocations are noted in their own transactions: damage must not stop them."""
    assert db.prune_audit(3.0, 100, 100) == 2
    with raw(path) as connection:
        connection.execute("UPDATE audit SET hash = x'00' WHERE seq = 6")
    db.audit(NOTES)
    assert "from entry 6 on" in refused(db.verify_audit)[1]
    with raw(path) as connection:
        connection.execute("UPDATE audit_start SET hash = x'00'")
        connection.execute("DELETE FROM audit WHERE seq > 3")
    db.audit(NOTES)
    assert refused(db.verify_audit)[0] == "audit-chain"


@pytest.mark.attack("K03")
@pytest.mark.parametrize("statement", [
    "UPDATE audit SET code = 0 WHERE seq = 3",
    "UPDATE audit SET recipient = 'eve' WHERE seq = 3",
    "UPDATE audit SET hash = previous WHERE seq = 3",
    "UPDATE audit SET event = x'00' WHERE seq = 3",
    "UPDATE audit SET hash = 'text' WHERE seq = 3",
    "DELETE FROM audit WHERE seq = 3",
    "UPDATE audit SET times = 2 WHERE seq = 3",
])  # fmt: skip
def test_the_first_entry_that_does_not_fit_is_named(db: Log, path: Path, statement: str) -> None:
    with raw(path) as connection:
        assert connection.execute(statement).rowcount == 1
    detail, message = refused(db.verify_audit)
    assert detail == "audit-chain"
    assert "from entry 3 on" in message
    if not statement.startswith("DELETE"):
        assert refused(db.audit_entries)[0] == "audit-chain"


@pytest.mark.attack("K03")
@pytest.mark.parametrize("kind", ["coordinator"])
def test_the_chain_shows_a_change_by_one_who_has_the_rows_key(db: Log, path: Path) -> None:
    with raw(path) as connection:
        fields = list(connection.execute("SELECT * FROM audit WHERE seq = 3").fetchone())[:-1]
        fields[5] = 0
        changed = mac(MAC_KEY, "audit", fields)
        connection.execute("UPDATE audit SET code = 0, mac = ? WHERE seq = 3", (changed,))
    assert db.audit_entries()[2].note.code == 0
    assert "from entry 3 on" in refused(db.verify_audit)[1]


@pytest.mark.attack("K03")
@pytest.mark.parametrize("kind", ["client"])
def test_an_entry_that_was_made_anew_with_its_hash_does_not_fit_the_next(db: Log, path: Path) -> None:
    third = db.audit_entries()[2]
    forged = entry_after(2, third.previous, Note(3_000, "transfer", "alice", "bob"))
    with raw(path) as connection:
        connection.execute("UPDATE audit SET code = 0, hash = ? WHERE seq = 3", (forged.hash,))
    assert "from entry 4 on" in refused(db.verify_audit)[1]


@pytest.mark.attack("K05")
def test_an_end_that_was_cut_off_or_a_log_written_anew_is_found_by_a_noted_head_alone(db: Log, path: Path) -> None:
    noted = db.verify_audit()[1]
    with raw(path) as connection:
        connection.execute("DELETE FROM audit WHERE seq > 4")
    assert db.verify_audit()[0] == 4
    assert refused(lambda: db.verify_audit(noted))[0] == "audit-head"
    db.prune_audit(0.0, 1, 100)
    with raw(path) as connection:
        connection.execute("DELETE FROM audit")
    assert "from entry 4 on" in refused(db.verify_audit)[1]
    with raw(path) as connection:
        connection.execute("DELETE FROM audit_start")
    db.audit(NOTES[1:])
    assert db.verify_audit()[0] == 5
    assert refused(lambda: db.verify_audit(noted))[0] == "audit-head"


def test_a_head_that_was_noted_is_found_once_the_log_has_grown(db: Log) -> None:
    noted = db.verify_audit()[1]
    db.audit(NOTES)
    assert db.verify_audit(noted)[0] == 12


@pytest.mark.parametrize("step", [1, 2, 100])
@pytest.mark.parametrize(("before", "at_most", "first"), [(4.0, 100, 4), (0.0, 2, 5), (99.0, 100, 6)])
def test_what_is_old_goes_and_the_rest_verifies_from_there(
    db: Log, path: Path, before: float, at_most: int, first: int, step: int
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
    with raw(path) as connection:
        connection.execute("UPDATE audit_start SET seq = seq - 1")
    assert refused(db.verify_audit)[0] == "audit-chain"


@pytest.mark.attack("K03")
@pytest.mark.parametrize("kind", ["client"])
def test_a_bit_that_was_turned_over_is_found_or_changes_nothing(tmp_path: Path, path: Path) -> None:
    """Every third byte that is not zero: of the header, the schema, the entries and where they begin."""
    with closing(opened("client", tmp_path)) as log:
        log.audit(NOTES)
        assert log.prune_audit(3.0, 100, 100) == 2
        wanted = log.verify_audit(), log.audit_entries()
    whole, found = path.read_bytes(), 0
    for place in [place for place, byte in enumerate(whole) if byte][::3]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        try:
            with closing(opened("client", tmp_path)) as log:
                assert (log.verify_audit(), log.audit_entries()) == wanted, place
        except (IdentityError, LocalIOError, VersionMismatch):
            found += 1
        # Whoever appends to it has an error of ours, or none.
        with suppress(LocalIOError, VersionMismatch, InternalError), closing(opened("client", tmp_path)) as log:
            log.audit(NOTES)
    assert found > 100


@pytest.mark.parametrize("kind", ["client"])
def test_a_log_that_was_moved_aside_is_begun_anew_by_who_has_it_open(db: Log, path: Path) -> None:
    """Nothing is noted where nobody will read it."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").rename(f"{path}.aside{suffix}")
    db.audit(NOTES[:2])
    with closing(AuditFile.open(Home.resolve("client", str(path.parent)))) as again:
        assert again.verify_audit()[0] == 2
    assert db.verify_audit()[0] == 2


_APPEND: Final = """
import sys
from pathlib import Path
from tests.stores.test_audit import Note, opened
kind, folder, name = sys.argv[1:]
log = opened(kind, Path(folder))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(50):
    log.audit([Note(1, "transfer", name, "bob"), Note(2, "transfer", name, "bob")])
log.close()
"""


def test_two_processes_that_write_at_once_make_one_chain(db: Log, kind: str, tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _APPEND, kind, str(tmp_path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            cwd=TOP,
        )
        for name in ("alice", "carol")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=DEADLINE)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert db.verify_audit()[0] == 6 + 2 * 100
    senders = [entry.note.sender for entry in db.audit_entries(6)]
    assert {name: senders.count(name) for name in ("alice", "carol")} == {"alice": 100, "carol": 100}


@pytest.mark.attack("K06")
def test_a_full_disk_leaves_the_chain_as_it_was(kind: str, small_disk: Callable[[int], Path]) -> None:
    folder = small_disk(2_000_000)
    with closing(opened(kind, folder)) as log:
        log.audit(NOTES)
        with pytest.raises(OSError, match="No space"):
            (folder / "filler").write_bytes(bytes(3_000_000))
        many = [Note(1, "transfer", "alice" * 10, "bob" * 10)] * 2_000
        with pytest.raises(LocalIOError) as caught:
            log.audit(many)
        assert caught.value.detail == "no-space"
        assert log.verify_audit()[0] == 6
        (folder / "filler").unlink()
        log.audit(many)
        assert log.verify_audit()[0] == 2_006


def test_fields_do_not_run_into_each_other() -> None:
    one = entry_after(0, GENESIS, Note(1, "a", "bc", "d"))
    other = entry_after(0, GENESIS, Note(1, "a", "b", "cd"))
    assert one.hash != other.hash
    assert verify([one], 0, GENESIS) == one
    assert audit.ENTRIES.name == "audit"
