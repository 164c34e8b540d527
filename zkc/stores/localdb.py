"""A client's SQLite file: made whole or not at all, private, shared by the daemon and any number of commands.

One door: `LocalDb.reading` and `LocalDb.writing` are the transactions, and the only places where SQLite's errors
become ours. WAL and full sync: what was committed is on disk (unless its `Schema` does without). A reader never waits
for a writer, be it of another process or a thread of this one: each has a connection of its own. So what only reads
may stand on an event loop.
"""

from __future__ import annotations

import fcntl
import functools
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from zkc.env import Clock, SystemClock
from zkc.errors import LocalIOError
from zkc.stores import files, sqlite

BUSY_SECONDS: Final = 2.0
"""How long a writer waits for another process's, and for this one's other threads; one takes milliseconds. A daemon
that pins a peer waits on its loop: it must not miss the heartbeats of `OFFLINE_SECONDS`."""
PATIENT_SECONDS: Final = 60.0
"""How long a thread that holds what a peer has sent waits for another process: what it would have to throw away costs
more than that."""
CHECKPOINT_BUSY_SECONDS: Final = 0.1
"""A checkpoint is a courtesy; readers hold it up no longer than this."""


class Schema(NamedTuple):
    """What a file of one kind holds."""

    what: str
    """For messages: "the inbox"."""
    application_id: int
    """In the file's header: one kind of file is not taken for another."""
    version: int
    statements: tuple[str, ...]
    is_synced: bool = True
    """Whether a commit waits for the disk. Else it outlives the process, and only what is older a loss of power."""


class LocalDb:
    """An open file. Threads may share it: one reads at a time, and one writes."""

    def __init__(self, path: Path, schema: Schema, reader: sqlite3.Connection) -> None:
        self.path = path
        self._schema = schema
        self._reader = reader
        self._writer: sqlite3.Connection | None = None
        """Made by the first change: most commands only read."""
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._clock: Clock = SystemClock()
        self._inode = path.stat().st_ino
        self._busy_ms = 0
        """For how long the writer waits for another process, once that was said."""
        self._wrote = 0.0
        """When a transaction of this process last got through; monotonic seconds."""
        self._closed = False

    @classmethod
    def open(
        cls, path: Path, schema: Schema, fill: Callable[[sqlite3.Connection], None] | None = None,
        upgrade: Callable[[sqlite3.Connection], None] | None = None,
    ) -> Self:
        """The file at ``path``; made, 0600, where there is none, with the schema and what ``fill`` adds, as one step.

        ``upgrade`` makes a file of an earlier version one of this; so does nothing, where there was never another.

        Errors: `LocalIOError` with ``permission`` (attack K01), ``damaged``, ``no-space``, ``busy``, ``io``;
        `VersionMismatch` (``newer``).
        """
        files.check_folder(path.parent, private=False)
        if not os.path.lexists(path):
            _create(path, schema, fill)
        sqlite.check_files(path)
        with _translated(path, schema):
            reader = _connect(path)
        opened = cls(path, schema, reader)
        try:
            if opened._check() < schema.version and upgrade is not None:
                opened._upgrade(upgrade)
        except BaseException:
            opened.close()
            raise
        return opened

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one state."""
        with self._reading:
            self._check_open()
            with self._transaction(self._reader, lambda: self._reader.execute("BEGIN")):
                yield self._reader

    def row(self, query: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The first row that ``query`` finds. One statement sees one state by itself."""
        with self._reading, _translated(self.path, self._schema):
            self._check_open()
            return one(self._reader, query, values)

    @contextmanager
    def writing(self, *, patient: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction that no other writer interleaves with; durable once the block has ended.

        An exception in the block, and one at its end, undo it. ``patient``, for a thread on which no event loop waits:
        it queues behind the writers of its own process, however many they are, and waits `PATIENT_SECONDS` for those of
        others. `LocalIOError` (``busy``) when the wait is over.
        """
        began = self._clock.monotonic()
        if not self._writing.acquire(timeout=-1 if patient else BUSY_SECONDS):
            raise sqlite.busy(self.path, self._schema.what)
        try:
            self._check_open()
            with _translated(self.path, self._schema):
                writer = self._writer = self._writer or _connect(self.path, is_synced=self._schema.is_synced)
            # Threads that wait for another process, one after the other, do not add up their waits.
            end = max(began, self._wrote) + PATIENT_SECONDS if patient else began + BUSY_SECONDS
            with self._transaction(writer, lambda: self._begin(writer, end)):
                yield writer
            self._wrote = self._clock.monotonic()
        finally:
            self._writing.release()

    def _check_open(self) -> None:
        if self._closed:
            raise LocalIOError(f"{self._schema.what} {self.path} has been closed here")

    def _begin(self, writer: sqlite3.Connection, end: float) -> None:
        """Wait for other processes' writers until ``end``, or until somebody closes this."""
        while True:
            left = max(end - self._clock.monotonic(), 0.0)
            self._wait_at_most(writer, min(left, BUSY_SECONDS))
            try:
                writer.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or left <= BUSY_SECONDS or self._closed:
                    raise
            else:
                return

    def _wait_at_most(self, writer: sqlite3.Connection, seconds: float) -> None:
        """For another process, from the next statement on."""
        if (busy_ms := int(seconds * 1000)) != self._busy_ms:
            writer.execute(f"PRAGMA busy_timeout = {busy_ms}").close()
            self._busy_ms = busy_ms

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection, begin: Callable[[], object]) -> Iterator[None]:
        with _translated(self.path, self._schema):
            try:
                begin()
                yield
                connection.execute("COMMIT")
            except BaseException:
                # SQLite has ended it already after some errors.
                if connection.in_transaction:
                    with suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                raise

    def is_there(self) -> bool:
        """Whether the file under this path is still the one that was opened."""
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    def version(self) -> int:
        """A number that grows whenever this or another process has committed. Cheap: for one who waits."""
        # The reader never commits: it counts what every other connection did, our writer's too.
        with self._reading, _translated(self.path, self._schema):
            self._check_open()
            (version,) = self._reader.execute("PRAGMA data_version").fetchone()
        return int(version)

    def checkpoint(self) -> None:
        """Move what was committed from the log into the file, where the rows' MACs watch it, and erase the log."""
        with self._writing, suppress(sqlite3.Error):  # committed it is in any case
            if self._writer is None:
                return
            self._wait_at_most(self._writer, CHECKPOINT_BUSY_SECONDS)
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def damaged(self) -> LocalIOError:
        """For who finds that the content is not what was written."""
        return sqlite.damaged(self.path, self._schema.what)

    def close(self) -> None:
        """Harmless when repeated."""
        self._closed = True
        # The last one to close moves the log into the file; what fails there is done at the next opening.
        with self._reading, suppress(sqlite3.Error):
            self._reader.close()
        with self._writing, suppress(sqlite3.Error):
            if self._writer is not None:
                self._writer.close()

    def _upgrade(self, upgrade: Callable[[sqlite3.Connection], None]) -> None:
        with self.writing() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version < self._schema.version:  # of two processes that start at once one does it
                upgrade(connection)
                connection.execute(f"PRAGMA user_version = {self._schema.version}")

    def _check(self) -> int:
        """The file's version."""
        with self.reading() as connection:
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application_id != self._schema.application_id or version < 1:
            raise self.damaged()
        if version > self._schema.version:
            raise files.newer(self._schema.what, self.path)
        return int(version)


def _connect(path: Path, *, is_synced: bool = True) -> sqlite3.Connection:
    escaped = str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    # mode=rw: a file that vanished is an error, never a new and empty store.
    connection = sqlite.prepared(sqlite3.connect(
        f"file:{escaped}?mode=rw", uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    ))
    if not is_synced:
        connection.execute("PRAGMA synchronous = NORMAL").close()
    return connection


def _create(path: Path, schema: Schema, fill: Callable[[sqlite3.Connection], None] | None) -> None:
    """A complete file under ``path``, or none: so an empty file there is damage, and never read as "nothing stored"."""
    folder = files.open_folder(path.parent)
    scratch = Path(f"{path}.new")
    try:
        with _translated(path, schema):
            fcntl.flock(folder, fcntl.LOCK_EX)  # of two processes that start at once the second finds the file
            if os.path.lexists(path):
                return
            sqlite.remove(scratch)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(scratch, flags, files.PRIVATE_FILE))
            try:
                connection = _connect(scratch)
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.execute(f"PRAGMA application_id = {schema.application_id}")
                    connection.execute(f"PRAGMA user_version = {schema.version}")
                    for statement in schema.statements:
                        connection.execute(statement)
                    if fill is not None:
                        fill(connection)
                    connection.execute("COMMIT")
                finally:
                    connection.close()
                _sync(scratch)
                scratch.rename(path)
            except BaseException:
                sqlite.remove(scratch)
                raise
            os.fsync(folder)
    finally:
        os.close(folder)


def one(connection: sqlite3.Connection, query: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The first row that ``query`` finds."""
    row: tuple[Any, ...] | None = connection.execute(query, values).fetchone()
    return row


def insert(connection: sqlite3.Connection, table: str, columns: tuple[str, ...], values: tuple[Any, ...]) -> None:
    """A new row; ``table`` and ``columns`` are names of ours."""
    connection.execute(_insertion(table, columns), values)


@functools.cache
def _insertion(table: str, columns: tuple[str, ...]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(path: Path, schema: Schema) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise sqlite.error_from(error, path, schema.what) from error
    except UnicodeDecodeError as error:
        # SQLite quotes a damaged schema in its message, and the driver stumbles over the message.
        raise sqlite.damaged(path, schema.what) from error
    except OSError as error:
        raise files.local_error(error, f"{schema.what} {path}") from error
