"""A client's audit log: the entries of `zkc.crypto.audit` in ``audit.db``, for the daemon and any command beside it.

The chain alone shows what was changed. A commit does not wait for the disk: what was written outlives the process that
wrote it; a machine that loses power may lose the last of it, and never what comes before.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from zkc.crypto.audit import GENESIS, Entry, Note, broken, entry_after, follows, verify
from zkc.decoders import convert
from zkc.stores.home import Home
from zkc.stores.localdb import LocalDb, Schema

_NOTE: Final = Note.__struct_fields__
_COLUMNS: Final = ("seq", *_NOTE, "previous", "hash")
_SCHEMA: Final = Schema(
    what="the audit log",
    application_id=0x7A6B6333,
    version=1,
    statements=(
        f"CREATE TABLE audit (seq INTEGER PRIMARY KEY, {', '.join(f'{each} NOT NULL' for each in _COLUMNS[1:])})",
        "CREATE TABLE audit_start (seq INTEGER PRIMARY KEY, hash NOT NULL)",
    ),
    is_synced=False,
)
_SELECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM audit WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608
_INSERT: Final = f"INSERT INTO audit ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608


class AuditFile:
    """The open log of a client's home. Processes and threads may share it: each appends to what it finds.

    Every method raises `LocalIOError` (``no-space``, ``busy``, ``damaged``, ``permission``, ``io``).
    """

    def __init__(self, db: LocalDb) -> None:
        self._db = db
        self.last = 0
        """The number of the last entry that was written here; 0: none yet."""

    @classmethod
    def open(cls, home: Home) -> Self:
        """The log of ``home``, made where there is none."""
        return cls(_open(home.audit_db))

    def close(self) -> None:
        """Harmless when repeated."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def audit(self, notes: Sequence[Note]) -> int:
        """Append ``notes``, whatever they follow (`verify_audit` says where a log was damaged); the last number.

        A file that was removed, or moved aside, is not written any more: a new one takes its place.
        """
        if not self._db.is_there():
            anew = _open(self._db.path)
            self._db.close()
            self._db = anew
        with self._db.writing() as connection:
            seq, previous = _end(connection)
            rows = []
            for note in notes:
                entry = entry_after(seq, previous, note)
                seq, previous = entry.seq, entry.hash
                rows.append((seq, *msgspec.structs.astuple(note), entry.previous, previous))
            connection.executemany(_INSERT, rows)
        self.last = seq
        return seq

    def prune_audit(self, before: float, at_most: int, step: int) -> int:
        """Remove at most ``step`` of the oldest entries: those of before ``before`` (seconds since 1970), and all but
        the newest ``at_most``; how many. The newest one stays."""
        with self._db.writing() as connection:
            # Each by itself is found without a look at the others.
            ends = "SELECT (SELECT min(seq) FROM audit), (SELECT max(seq) FROM audit)"
            oldest, newest = connection.execute(ends).fetchone()
            if oldest is None:
                return 0
            young = connection.execute(
                "SELECT min(seq) FROM audit WHERE seq < ? AND at >= ?", (oldest + step, int(before * 1000))
            ).fetchone()[0]
            first = max(oldest + step if young is None else young, newest - at_most + 1)
            first = min(first, oldest + step, newest)
            gone = connection.execute("SELECT max(seq), hash FROM audit WHERE seq < ?", (first,)).fetchone()
            if gone[0] is None:
                return 0
            connection.execute("DELETE FROM audit_start")
            connection.execute("INSERT INTO audit_start VALUES (?, ?)", gone)
            return connection.execute("DELETE FROM audit WHERE seq < ?", (first,)).rowcount

    def audit_entries(self, after: int = 0, limit: int = 256) -> list[Entry]:
        """At most ``limit`` entries behind the number ``after``. `IdentityError` (``audit-chain``): one was changed."""
        with self._db.reading() as connection:
            entries = list(_entries(connection, after, limit))
        for entry in entries:
            if not follows(entry, entry.seq - 1, entry.previous):
                raise broken(entry.seq)
        return entries

    def verify_audit(self, noted: bytes | None = None) -> tuple[int, bytes]:
        """Number and hash of the last entry, once every one is found in order. Errors: `zkc.crypto.audit.verify`."""
        with self._db.reading() as connection:
            seq, previous = _start(connection)
            last = verify(_entries(connection), seq, previous, noted)
        return (seq, previous) if last is None else (last.seq, last.hash)

    def version(self) -> int:
        """A number that grows whenever this or another process has written."""
        return self._db.version()


def _open(path: Path) -> LocalDb:
    return LocalDb.open(path, _SCHEMA)


def _start(connection: sqlite3.Connection) -> tuple[int, bytes]:
    """Number and hash of what the oldest entry follows."""
    row = connection.execute("SELECT seq, hash FROM audit_start").fetchone()
    return _link(row) if row else (0, GENESIS)


def _end(connection: sqlite3.Connection) -> tuple[int, bytes]:
    """The same of what the next entry follows."""
    row = connection.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
    return _link(row) if row else _start(connection)


def _link(row: tuple[Any, Any]) -> tuple[int, bytes]:
    """What is no number or no hash fits nothing, and is found as that."""
    seq, found = row
    return seq if isinstance(seq, int) else 0, found if isinstance(found, bytes) else b""


def _entries(connection: sqlite3.Connection, after: int = 0, limit: int = -1) -> Iterator[Entry]:
    """In order; `IdentityError` at one that is no entry at all."""
    for row in connection.execute(_SELECT, (after, limit)):
        seq, *told, previous, found = row
        try:
            note = convert(dict(zip(_NOTE, told, strict=True)), Note)
        except msgspec.ValidationError:
            raise broken(seq) from None
        yield Entry(seq, note, previous, found)
