"""What is being received, or was until a link was lost: a file and a row each, apart from the items of the inbox.

A partial item is never an item (attack D04): it is listed apart, and its bytes are read by nobody but the delivery that
goes on. It stays until that is done, its sender begins or delivers another one of that name, a person removes it, it
has become too old, or its sender has too many. With what came of a pipe only the command that read it goes on: it stays
until that has had time to come back. Files go before their rows: a row without a file is no partial item, and the next
start removes it.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from zkc.constants import PARTIALS_PER_SENDER_MAX
from zkc.errors import LocalIOError
from zkc.stores import files
from zkc.stores.items import (
    NEW_COLUMNS,
    PARTIAL_COLUMNS,
    SELECT_PARTIALS,
    Item,
    NewItem,
    checked_id,
    item_of,
    new_values_of,
)
from zkc.stores.localdb import LocalDb, insert, one
from zkc.stores.payloads import Swept, sweep

PARTIAL_SECONDS: Final = 7 * 86400.0
"""How long after its beginning a partial item is kept."""


class Partial:
    """A payload that is being received. One owner; its methods raise `LocalIOError`."""

    def __init__(
        self, partials: Partials, folder: int, item_id: str, sender_fp: bytes, tid: bytes, entry: NewItem, *,
        new: bool = True,
    ) -> None:
        self.id = item_id
        self.sender_fp = sender_fp
        self.tid = tid
        self.entry = entry
        self._partials = partials
        self._folder = folder
        flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if new else os.O_NONBLOCK) | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor: int | None = os.open(item_id, flags, files.PRIVATE_FILE, dir_fd=folder)
        self.position = os.lseek(self._descriptor, 0, os.SEEK_END)
        """Bytes written. What a crash of the machine took of them, the digest of the whole will find missing."""

    def fileno(self) -> int:
        """The open file."""
        if self._descriptor is None:
            raise LocalIOError("this partial item is closed")
        return self._descriptor

    def read(self, position: int, n: int) -> bytes:
        """At most ``n`` bytes from ``position`` on: for the digest of the whole."""
        with files.translated("reading a partial item of the inbox"):
            return os.pread(self.fileno(), n, position)

    def announce(self, entry: NewItem) -> None:
        """What its delivery says of it now, which may be in other words than before."""
        self.entry = entry
        self._partials.describe(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append ``data``, which has been authenticated."""
        with files.translated("writing to the inbox"):
            files.write_all(self.fileno(), data)
        self.position += len(data)

    def close(self, discard: bool) -> None:
        """End: with ``discard`` nothing of it stays, else `Inbox.partials` has it.

        Harmless when repeated, and after `Inbox.commit`.
        """
        if self._descriptor is None:
            return
        try:
            if discard:
                files.unlink(self._folder, self.id)
            else:
                with suppress(OSError):
                    os.utime(self._descriptor)  # for `Partials.drop_pipes`: a pipe may have been silent for long
            self._partials.ended(self)
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Only the descriptor, and with it the lock."""
        if self._descriptor is not None:
            self._partials.running.discard(self.id)
            os.close(self._descriptor)
            self._descriptor = None


class Partials:
    """All of one inbox. Rows change in transactions of the inbox's index, mostly the caller's."""

    def __init__(self, db: LocalDb, path: Path, folder: int) -> None:
        """``folder``: the open folder at ``path``, which the caller closes."""
        self._db = db
        self._path = path
        self._folder = folder
        self.running: Final[set[str]] = set()
        """Those that this process receives now: it need not try their locks."""

    def begin(self, item_id: str, sender_fp: bytes, tid: bytes, entry: NewItem, began: float) -> Partial:
        """See `Inbox.begin`."""
        partial: Partial | None = None
        try:
            # In the transaction: so `Inbox.recover` never meets a file that has no lock yet, or no row.
            with self._db.writing(patient=True) as connection, files.translated("making a partial item in the inbox"):
                self.drop_delivery(connection, sender_fp, tid)
                partial = Partial(self, self._folder, item_id, sender_fp, tid, entry)
                fcntl.flock(partial.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.running.add(item_id)
                insert(connection, "partials", PARTIAL_COLUMNS, (item_id, sender_fp, tid, *new_values_of(entry), began))
                self.drop_older(connection, partial)
                self._drop_surplus(connection, sender_fp)
        except BaseException:
            if partial is not None:
                partial.close(discard=True)
            raise
        return partial

    def resume(self, sender_fp: bytes, tid: bytes) -> Partial | None:
        """See `Inbox.resume`."""
        partial: Partial | None = None
        try:
            with self._db.writing(patient=True) as connection, files.translated("going on with a partial item"):
                item = next(iter(self.select(connection, "WHERE sender_fp = ? AND tid = ?", sender_fp, tid)), None)
                if item is None:
                    return None
                entry = NewItem(**{name: getattr(item, name) for name in NEW_COLUMNS})
                partial = Partial(self, self._folder, item.id, sender_fp, tid, entry, new=False)
                try:
                    fcntl.flock(partial.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise _busy(item.id) from None
        except BaseException:
            if partial is not None:
                partial.let_go()
            raise
        return partial

    def held_bytes(self, sender_fp: bytes, tid: bytes) -> int:
        """See `Inbox.held_bytes`."""
        with self._db.reading() as connection:
            found = self.select(connection, "WHERE sender_fp = ? AND tid = ?", sender_fp, tid)
        return sum(item.size for item in found)

    def describe(self, partial: Partial) -> None:
        """Its row says what `Partial.entry` says."""
        changes = ", ".join(f"{name} = ?" for name in NEW_COLUMNS)
        with self._db.writing(patient=True) as connection:
            connection.execute(
                f"UPDATE partials SET {changes} WHERE id = ?", (*new_values_of(partial.entry), partial.id)  # noqa: S608
            )

    def ended(self, partial: Partial) -> None:
        """`Partial.close` has come to its end: let it stay for a person to see where it has a file.

        Without a row its place has been taken, by a later attempt or by the item: then its file goes. What the index
        cannot take now, `Inbox.recover` does.
        """
        listed = "SELECT 1 FROM partials WHERE id = ?", (partial.id,)
        with suppress(LocalIOError):
            has_file = self._size(partial.id) is not None
            with self._db.reading() as connection:
                if not has_file and one(connection, *listed) is None:
                    return  # after a commit, which thus waits for no other writer
            with self._db.writing(patient=True) as connection:
                if not has_file:
                    connection.execute("DELETE FROM partials WHERE id = ?", (partial.id,))
                    return
                if one(connection, *listed) is None:
                    files.unlink(self._folder, partial.id)
                    return
                self.drop_older(connection, partial)
                # In the transaction: a later attempt finds it running, or here to be removed.
                self.running.discard(partial.id)
                fcntl.flock(partial.fileno(), fcntl.LOCK_UN)
                self._drop_surplus(connection, partial.sender_fp)

    def select(self, connection: sqlite3.Connection, clauses: str, *values: Any) -> list[Item]:
        """Those of the rows that ``clauses`` choose, each with what of it has come."""
        rows = connection.execute(f"{SELECT_PARTIALS} {clauses}", values).fetchall()
        items = (item_of(self._db, row, self._path) for row in rows)
        return [
            replace(item, size=size, state="partial") for item in items if (size := self._size(item.id)) is not None
        ]

    def remove(self, connection: sqlite3.Connection, item_id: str) -> bool:
        """Whether there was one of that id, which is gone now. `LocalIOError` (``busy``) while it is being received."""
        if one(connection, "SELECT 1 FROM partials WHERE id = ?", (item_id,)) is None:
            return False
        swept = self._drop(connection, item_id)
        if swept == "locked":
            raise _busy(item_id)
        return swept == "removed"

    def drop_delivery(self, connection: sqlite3.Connection, sender_fp: bytes, tid: bytes) -> None:
        """No partial item of this delivery stays; the file of one that still runs goes with it (`ended`)."""
        row = one(connection, "SELECT id FROM partials WHERE sender_fp = ? AND tid = ?", (sender_fp, tid))
        if row is not None:
            sweep(self._folder, checked_id(self._db, row[0]))
            connection.execute("DELETE FROM partials WHERE id = ?", row)

    def drop_older(self, connection: sqlite3.Connection, partial: Partial) -> None:
        """What stopped in the middle for good: of one sender and name, one partial item is enough for a person to see.

        Those that are being received stay.
        """
        alike = connection.execute(
            "SELECT id FROM partials WHERE sender_fp = ? AND app = ? AND name = ? AND id != ?",
            (partial.sender_fp, partial.entry.app, partial.entry.name, partial.id),
        )
        for (item_id,) in alike.fetchall():
            if item_id not in self.running:
                self._drop(connection, item_id)

    def drop_old(self, connection: sqlite3.Connection, now: float) -> int:
        """Rows without a file, and what is older than `PARTIAL_SECONDS`; how many files went."""
        removed = 0
        for item_id, began in connection.execute("SELECT id, began FROM partials").fetchall():
            if not isinstance(began, int | float):
                raise self._db.damaged()
            if began < now - PARTIAL_SECONDS or self._size(item_id) is None:
                removed += self._drop(connection, item_id) == "removed"
        return removed

    def has_pipes(self, connection: sqlite3.Connection, before: float) -> bool:
        """Whether `drop_pipes` has something to do, maybe."""
        return bool(self._pipes(connection, before))

    def drop_pipes(self, connection: sqlite3.Connection, before: float) -> int:
        """What came of pipes and nobody receives, where nobody did since ``before`` either; how many files went."""
        return sum(self._drop(connection, item_id) == "removed" for item_id in self._pipes(connection, before))

    def _pipes(self, connection: sqlite3.Connection, before: float) -> list[Any]:
        """Those whose file is that old, which also one may be that is being received."""
        rows = connection.execute("SELECT id FROM partials WHERE kind = 'stream'").fetchall()
        return [
            item_id for (item_id,) in rows
            if (found := self._stat(item_id)) is not None and found.st_mtime < before
        ]

    def _drop_surplus(self, connection: sqlite3.Connection, sender_fp: bytes) -> None:
        """The oldest go where one sender has too many; those that are being received count, and stay."""
        (count,) = connection.execute("SELECT count(*) FROM partials WHERE sender_fp = ?", (sender_fp,)).fetchone()
        surplus = count - PARTIALS_PER_SENDER_MAX
        if surplus <= 0:
            return
        rows = connection.execute("SELECT id FROM partials WHERE sender_fp = ? ORDER BY seq", (sender_fp,)).fetchall()
        for (item_id,) in rows:
            surplus -= self._drop(connection, item_id) != "locked"
            if surplus <= 0:
                return

    def _drop(self, connection: sqlite3.Connection, item_id: Any) -> Swept:
        """Remove a partial item, file and row, unless it is being received."""
        swept = sweep(self._folder, checked_id(self._db, item_id))
        if swept != "locked":
            connection.execute("DELETE FROM partials WHERE id = ?", (item_id,))
        return swept

    def _size(self, item_id: Any) -> int | None:
        """Bytes that have come; None where there is no file of ours."""
        found = self._stat(item_id)
        return None if found is None else found.st_size

    def _stat(self, item_id: Any) -> os.stat_result | None:
        with files.translated("reading the inbox"):
            try:
                found = os.stat(checked_id(self._db, item_id), dir_fd=self._folder, follow_symlinks=False)
            except FileNotFoundError:
                return None
        return found if stat.S_ISREG(found.st_mode) else None


def _busy(item_id: str) -> LocalIOError:
    return LocalIOError(
        f"item {item_id} is being received now", detail="busy", hint="run it again when its transfer has ended"
    )
