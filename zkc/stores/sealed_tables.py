"""Tables of a local database that are read as a whole, and are what was written or are refused (attack K03).

Each row carries a MAC (`rowmac`), and each table a seal over the MACs of all its rows, so that damage neither changes a
row nor hides one. The MAC's key lies in the file: this is against damage, not against somebody who can write the file.
The tables have no index: a damaged one would hide a row without a word.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from zkc.env import Entropy, SystemEntropy
from zkc.errors import LocalIOError
from zkc.stores.localdb import LocalDb, Schema
from zkc.stores.rowmac import MAC_BYTES, Field, mac, verifies

T = TypeVar("T")
Row = Sequence[Field]


class Loaded(NamedTuple):
    """A table at one moment, verified: its rows, each with its MAC."""

    seal: bytes
    """Names what is in it: the same seal, the same rows."""
    stored: Sequence[tuple[Row, bytes]]


class SealedTables:
    """The open tables. A change is durable when the block that makes it has ended.

    Each method raises `LocalIOError`: ``damaged`` where the file is not what was written, ``no-space``, ``busy``,
    ``io``.
    """

    def __init__(self, db: LocalDb, key: bytes, columns: Mapping[str, tuple[str, ...]], kept: frozenset[str]) -> None:
        self._db = db
        self._key = key
        self._columns = columns
        self._kept: dict[str, Loaded | None] = dict.fromkeys(kept)
        self._remembered: tuple[int, dict[Any, Any]] = 0, {}
        """What was read since the file was at that version: kept tables and single values."""

    @classmethod
    def open(
        cls, path: Path, *, what: str, application_id: int, version: int, columns: Mapping[str, tuple[str, ...]],
        kept: frozenset[str] = frozenset(), entropy: Entropy | None = None,
    ) -> SealedTables:
        """The tables ``columns`` (names of ours, with their columns' names), made where there are none; a file of an
        earlier version gets those that it lacks. ``kept`` ones stay in memory, verified, as long as nobody changes
        them. ``entropy`` makes the MAC key of a new file."""
        schema = Schema(
            what=what, application_id=application_id, version=version,
            statements=(
                "CREATE TABLE meta (name, value)",
                *(f"CREATE TABLE {table} ({', '.join(own)}, mac BLOB NOT NULL)" for table, own in columns.items()),
            ),
        )

        def fill(connection: sqlite3.Connection) -> None:
            key = (entropy or SystemEntropy()).bytes(32)
            connection.execute("INSERT INTO meta VALUES ('mac-key', ?)", (key + _key_check(key),))
            for table in columns:
                connection.execute("INSERT INTO meta VALUES (?, ?)", (f"seal-{table}", _seal(key, table, ())))

        def upgrade(connection: sqlite3.Connection) -> None:
            have = connection.execute("SELECT name FROM sqlite_master").fetchall()
            if (key := _mac_key(connection)) is None:
                return  # told below
            for table, made in zip(columns, schema.statements[1:], strict=True):
                if (table,) not in have:
                    connection.execute(made)
                    connection.execute("INSERT INTO meta VALUES (?, ?)", (f"seal-{table}", _seal(key, table, ())))

        db = LocalDb.open(path, schema, fill, upgrade)
        try:
            with db.reading() as connection:
                key = _mac_key(connection)
            if key is None:
                raise db.damaged()
            return cls(db, key, columns, kept)
        except BaseException:
            db.close()
            raise

    def close(self) -> None:
        """Harmless when repeated."""
        self._db.close()

    @property
    def path(self) -> Path:
        return self._db.path

    def version(self) -> int:
        """A number that grows whenever this or another process has changed something."""
        return self._db.version()

    def damaged(self) -> LocalIOError:
        return self._db.damaged()

    # --- rows -------------------------------------------------------------------------------------------------------

    def rows(self, name: str) -> list[Row]:
        return self.rows_of(name)[0]

    def rows_of(self, *names: str) -> list[list[Row]]:
        """Those of several tables at one moment."""
        with self._db.reading() as connection:
            return [[row for row, _ in self._load(connection, name).stored] for name in names]

    def load(self, name: str) -> Loaded:
        """For a kept table the same value as long as nobody changes it."""
        if name not in self._kept:
            with self._db.reading() as connection:
                return self._load(connection, name)
        return self._remember(name, lambda connection: self._load(connection, name))

    def _remember(self, key: object, read: Callable[[sqlite3.Connection], T]) -> T:
        """What ``read`` has read since the last change of the file, by whatever process: it is asked for each
        transfer, several times."""
        # Before it is read: what changes in between is found changed the next time.
        version = self._db.version()
        of, known = self._remembered
        if of != version:
            self._remembered = of, known = version, {}
        if key not in known:
            with self._db.reading() as connection:
                known[key] = read(connection)
        found: T = known[key]
        return found

    @contextmanager
    def changing(self, *names: str) -> Iterator[tuple[Table, ...]]:
        """The tables ``names``, verified; what the block does to them is one durable step."""
        with self._db.writing() as connection:
            tables = tuple(Table(name, self._load(connection, name).stored) for name in names)
            yield tables
            written = {table.name: self._apply(connection, table) for table in tables if table.gone or table.new}
        self._kept.update((name, loaded) for name, loaded in written.items() if name in self._kept)
        # What was committed leaves the log, whose damage SQLite takes for the log's end, without a word.
        self._db.checkpoint()

    def _load(self, connection: sqlite3.Connection, name: str) -> Loaded:
        seals = connection.execute("SELECT value FROM meta WHERE name = ?", (f"seal-{name}",)).fetchall()
        if len(seals) != 1 or not isinstance(seals[0][0], bytes):
            raise self._db.damaged()
        known, seal = self._kept.get(name), bytes(seals[0][0])
        if known is not None and known.seal == seal:
            return known
        columns = ", ".join(self._columns[name])
        found = connection.execute(f"SELECT mac, {columns} FROM {name} ORDER BY rowid")  # noqa: S608 - names of ours
        stored: list[tuple[Row, bytes]] = [(row, made) for made, *row in found]
        whole = all(verifies(self._key, name, row, made) for row, made in stored)
        if not whole or not _same(seal, _seal(self._key, name, (made for _, made in stored))):
            raise self._db.damaged()
        loaded = Loaded(seal, stored)
        if name in self._kept:
            self._kept[name] = loaded
        return loaded

    def _apply(self, connection: sqlite3.Connection, table: Table) -> Loaded:
        """Write what is new of ``table``, and its seal; how it stands then."""
        first, marks = self._columns[table.name][0], ", ".join("?" * (len(self._columns[table.name]) + 1))
        for value, count in table.gone:
            done = connection.execute(f"DELETE FROM {table.name} WHERE {first} = ?", (value,))  # noqa: S608 - ours
            if done.rowcount != count:
                raise self._db.damaged()
        new = [(row, mac(self._key, table.name, row)) for row in table.new]
        for row, made in new:
            connection.execute(f"INSERT INTO {table.name} VALUES ({marks})", (*row, made))  # noqa: S608 - ours
        stored = [*table.stored, *new]
        seal = _seal(self._key, table.name, (made for _, made in stored))
        done = connection.execute("UPDATE meta SET value = ? WHERE name = ?", (seal, f"seal-{table.name}"))
        if done.rowcount != 1:
            raise self._db.damaged()
        return Loaded(seal, stored)

    # --- single values ----------------------------------------------------------------------------------------------

    def value(self, kind: str, about: bytes) -> bytes | None:
        """What was kept of this kind about this, with a MAC of its own; None: nothing was."""
        return self._remember((kind, about), lambda connection: self._value(connection, kind, about))

    def change_value(self, kind: str, about: bytes, change: Callable[[bytes | None], bytes | None]) -> None:
        """In one step: what ``change`` makes of the present one; None leaves it."""
        with self._db.writing() as connection:
            new = change(self._value(connection, kind, about))
            if new is not None:
                name, made = _value_name(kind, about), mac(self._key, kind, (about, new))
                connection.execute("DELETE FROM meta WHERE name = ?", (name,))
                connection.execute("INSERT INTO meta VALUES (?, ?)", (name, new + made))
        self._db.checkpoint()

    def _value(self, connection: sqlite3.Connection, kind: str, about: bytes) -> bytes | None:
        found = connection.execute("SELECT value FROM meta WHERE name = ?", (_value_name(kind, about),)).fetchall()
        if not found:
            return None
        stored = found[0][0] if isinstance(found[0][0], bytes) else b""
        value, made = stored[:-MAC_BYTES], stored[-MAC_BYTES:]
        if not verifies(self._key, kind, (about, value), made):
            raise self._db.damaged()
        return value


class Table:
    """A sealed table inside a transaction: what stands there, what goes, what comes."""

    def __init__(self, name: str, stored: Sequence[tuple[Row, bytes]]) -> None:
        self.name = name
        self.stored = stored
        self.gone: list[tuple[Field, int]] = []
        """First columns, and how many rows have each."""
        self.new: list[Row] = []

    def rows(self) -> list[Row]:
        return [row for row, _ in self.stored]

    def delete(self, first: Field) -> bool:
        """The rows whose first column is ``first``. Whether there was one."""
        kept = [stored for stored in self.stored if stored[0][0] != first]
        count = len(self.stored) - len(kept)
        if count:
            self.gone.append((first, count))
            self.stored = kept
        return count > 0

    def insert(self, row: Row) -> None:
        self.new.append(row)


def _value_name(kind: str, about: bytes) -> str:
    return f"{kind}-{about.hex()}"


def _seal(key: bytes, table: str, macs: Iterable[bytes]) -> bytes:
    return mac(key, f"seal {table}", sorted(macs))


def _key_check(key: bytes) -> bytes:
    return hashlib.sha256(b"zkc key store\0" + key).digest()


def _mac_key(connection: sqlite3.Connection) -> bytes | None:
    """None where it is damaged."""
    rows = connection.execute("SELECT value FROM meta WHERE name = 'mac-key'").fetchall()
    value = rows[0][0] if len(rows) == 1 else None
    if not isinstance(value, bytes) or len(value) != 64 or not _same(value[32:], _key_check(value[:32])):
        return None
    return value[:32]


def _same(stored: object, expected: bytes) -> bool:
    return isinstance(stored, bytes) and hmac.compare_digest(stored, expected)
