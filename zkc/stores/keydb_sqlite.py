"""A key database in one SQLite file: what `zkc.stores.keydb` has under it where nothing else is configured."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from zkc.errors import LocalIOError
from zkc.stores import files, migrations, sqlite
from zkc.stores.migrations import Fill

_WHAT: Final = "the key database"


class SqliteBackend:
    """One file in WAL mode with full sync; several processes may have it open at once."""

    def __init__(self, path: Path, engine: Engine) -> None:
        self._path = path
        self._engine = engine
        self._writer = engine.execution_options(zkc_begin="BEGIN IMMEDIATE")

    @classmethod
    def open(
        cls, path: Path, mac_key: bytes, *, create: bool, patience: float, fill: Fill | None = None
    ) -> Self:
        """The file at ``path``; made, 0600, with what ``fill`` adds, if there is none and ``create`` is set.

        Errors: `LocalIOError` with ``missing``, ``permission`` (others can read or write it, it is a symbolic link or
        somebody else's: attack K01), ``damaged`` (attack K03), ``no-space``, ``busy``, ``io``; `VersionMismatch`.
        """
        with _translated(path):
            if create and not os.path.lexists(path):
                _create(path, mac_key, patience, fill)
            _check_access(path)
        backend = cls(path, _engine(path, patience))
        try:
            backend._check_content(mac_key)
        except BaseException:
            backend.close()
            raise
        return backend

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with _translated(self._path), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        with _translated(self._path), self._writer.begin() as connection:
            yield connection

    def change_counter(self) -> int:
        with self.reading() as connection:
            return int(connection.exec_driver_sql("PRAGMA data_version").scalar_one())

    def erase_deleted(self) -> None:
        # The log still holds the row, and the file its page, until the one has been moved into the other.
        with suppress(sqlite3.Error, DBAPIError), self._engine.connect() as connection:
            raw = connection.connection.driver_connection
            if not isinstance(raw, sqlite3.Connection):
                return
            (patience,) = raw.execute("PRAGMA busy_timeout").fetchone()
            raw.execute("PRAGMA busy_timeout = 0").close()  # the caller may be an event loop
            try:
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                raw.execute(f"PRAGMA busy_timeout = {int(patience)}").close()

    def close(self) -> None:
        # SQLite writes on the last close (it moves the log into the file); what fails there is done at the next open.
        with suppress(sqlite3.Error, DBAPIError):
            self._engine.dispose()

    def _check_content(self, mac_key: bytes) -> None:
        """The schema is exactly the one of its number, and every page and index of the file agrees with the others.

        The rows' MACs show a changed value; only this shows a row that damage hides (a flipped bit in an index or
        in a page's header).
        """
        with self.reading() as connection:
            version = migrations.version_of(connection, mac_key)
            whole = (
                _schema(connection) == _schema_numbered(version)
                and connection.exec_driver_sql("PRAGMA integrity_check(1)").scalars().all() == ["ok"]
            )
        if not whole:
            raise sqlite.damaged(self._path, _WHAT)
        if version < migrations.LATEST:
            with self.writing() as connection:
                migrations.upgrade(connection, mac_key)


def _engine(path: Path | None, patience: float = 0.0) -> Engine:
    """One connection to the file (None: to a database in memory), with transactions begun by us alone."""

    def connect() -> sqlite3.Connection:
        # The driver's own transactions begin late and without the write lock: two readers would then both write.
        return sqlite.prepared(sqlite3.connect(path or ":memory:", timeout=patience, isolation_level=None))

    # Parameters are keys: they stand in no error.
    engine = create_engine("sqlite://", creator=connect, poolclass=StaticPool, hide_parameters=True)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("zkc_begin", "BEGIN"))

    return engine


def _schema(connection: Connection) -> list[tuple[object, ...]]:
    rows = connection.exec_driver_sql("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").all()
    return [tuple(row) for row in rows]


def _schema_numbered(version: int) -> list[tuple[object, ...]]:
    engine = _engine(None)
    try:
        with engine.begin() as connection:
            migrations.create(connection, b"", version)
            return _schema(connection)
    finally:
        engine.dispose()


def _create(path: Path, mac_key: bytes, patience: float, fill: Fill | None) -> None:
    """A complete database under ``path``, or nothing: an empty file under that name is damage, never a beginning."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except FileNotFoundError:
        raise LocalIOError(
            f"the folder of the key database {path} does not exist", detail="missing",
            hint="make it, or correct coordinator.keydb",
        ) from None
    scratch = Path(name)
    try:
        os.fchmod(descriptor, 0o600)
        backend = SqliteBackend(scratch, _engine(scratch, patience))
        try:
            with backend.writing() as connection:
                migrations.create(connection, mac_key)
                if fill is not None:
                    fill(connection)
        finally:
            backend.close()
        os.fsync(descriptor)
        with suppress(FileExistsError):  # another process was first: its database is the database
            os.link(scratch, path)
    finally:
        os.close(descriptor)
        sqlite.remove(scratch)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _check_access(path: Path) -> None:
    """Refuse a database that somebody else could read, change or have put there (attack K01)."""
    files.check_folder(path.parent, private=False)
    if not os.path.lexists(path):
        raise LocalIOError(
            f"there is no key database {path}", detail="missing",
            hint="restore it from a backup, or correct coordinator.keydb",
        )
    sqlite.check_files(path)
    if path.lstat().st_size == 0:
        raise sqlite.damaged(path, _WHAT)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """The one door through which errors of the file system and of SQLite leave as ours."""
    try:
        yield
    except DBAPIError as error:
        raise sqlite.error_from(error.orig, path, _WHAT) from error
    except sqlite3.Error as error:
        raise sqlite.error_from(error, path, _WHAT) from error
    except UnicodeDecodeError as error:
        # The driver's, over SQLite's message that quotes the damaged schema.
        raise sqlite.damaged(path, _WHAT) from error
    except OSError as error:
        raise files.local_error(error, f"{_WHAT} {path}") from error
