"""What has arrived at a client: whole, verified and on disk, or not there at all.

::

    inbox/partial/ID        what is being received (locked by the process that writes it), or was until a link was lost
    inbox/files/ID          payloads of items; visible only through a row of the index
    inbox/index.db          items, partial items, and the deliveries that are done, with their receipts

`Inbox.commit` is the one way in: fsync(file), rename without replacing, fsync(folder), one transaction {delivery done,
item, receipt}. Killed anywhere, the old or the new state is there, once `Inbox.recover` has swept (attack P03).

A partial item is never an item (attack D04): it is listed apart, and nothing here reads its bytes. It stays until its
delivery comes again, its sender begins or delivers another one of that name, a person removes it, `PARTIAL_SECONDS`
have gone by, or its sender has too many. Files go before their rows: a row without a file is no partial item, and the
next start removes it.

Every name on disk is one that we made: no text of a peer becomes part of a path here (attacks F01, F02).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import sqlite3
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Literal, Self

from zkc.constants import PARTIALS_PER_SENDER_MAX
from zkc.env import Clock, Entropy, SystemClock, SystemEntropy
from zkc.errors import LocalIOError, UsageError
from zkc.ids import KeySource
from zkc.stores import files
from zkc.stores.home import Home
from zkc.stores.localdb import LocalDb, Schema
from zkc.stores.sqlite import NothingChanged

DONE_SECONDS: Final = 90 * 86400.0
"""How long a repeated delivery is answered with its receipt (`protocol`: the sender keeps its rows as long)."""
PARTIAL_SECONDS: Final = 7 * 86400.0
"""How long after its beginning a partial item is kept."""

ItemKind = Literal["file", "stream", "message"]
ItemState = Literal["ready", "partial"]
_Swept = Literal["removed", "locked", "nothing"]

_ID_BYTES: Final = 8
_ID: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_PREFIX: Final = re.compile(r"[0-9a-f]{1,16}", re.ASCII)


@dataclass(frozen=True, slots=True)
class NewItem:
    """What is known of an item before its first byte. All text is the peer's, as it came."""

    sender: str
    app: str
    """The registration that it came to, where that is an application; else empty."""
    name: str
    note: str
    kind: ItemKind
    key_source: KeySource
    xid: bytes
    mode: int = 0o600
    """Permissions as sent."""
    mtime_ns: int = 0
    """Time of change as sent, nanoseconds since 1970; 0: not told."""


@dataclass(frozen=True, slots=True)
class Item:
    """An item of the inbox. ``sender``, ``name`` and ``note`` are the peer's text: escape them before printing.

    Of one whose ``state`` is ``partial`` the sender stopped, or still sends: ``size`` is what came so far, ``digest``
    is empty, ``received`` is when it began.
    """

    id: str
    sender: str
    sender_fp: bytes
    app: str
    name: str
    note: str
    size: int
    digest: bytes
    """BLAKE3 of the whole payload."""
    key_source: KeySource
    kind: ItemKind
    received: float
    """Seconds since 1970."""
    xid: bytes
    tid: bytes
    mode: int
    mtime_ns: int
    path: Path
    state: ItemState = "ready"

    @property
    def transfer(self) -> str:
        return self.xid.hex()


_SQL_TYPES: Final[dict[str, tuple[type, ...]]] = {"int": (int,), "float": (int, float), "bytes": (bytes,)}
_TYPES: Final = {
    item.name: _SQL_TYPES.get(str(item.type), (str,))
    for item in fields(Item) if item.name not in {"path", "state"}
}
_COLUMNS: Final = tuple(_TYPES)
_SELECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM items"  # noqa: S608 - names of ours

_PARTIAL_COLUMNS: Final = ("id", "sender_fp", "tid", *(item.name for item in fields(NewItem)), "began")
_NOT_YET: Final = {"size": "0", "digest": "x''", "received": "began"}
_SELECT_PARTIALS: Final = (
    f"SELECT {', '.join(_NOT_YET.get(name, name) for name in _COLUMNS)} FROM partials"  # noqa: S608 - names of ours
)

_SCHEMA: Final = Schema(
    what="the index of the inbox",
    application_id=0x7A6B6332,
    version=1,
    statements=(
        f"CREATE TABLE items (seq INTEGER PRIMARY KEY AUTOINCREMENT, {', '.join(_COLUMNS)}, UNIQUE (id))",
        "CREATE TABLE done (sender_fp, tid, id, receipt, finished, PRIMARY KEY (sender_fp, tid)) WITHOUT ROWID",
        "CREATE INDEX done_finished ON done (finished)",
        f"CREATE TABLE partials (seq INTEGER PRIMARY KEY AUTOINCREMENT, {', '.join(_PARTIAL_COLUMNS)}, UNIQUE (id))",
        "CREATE UNIQUE INDEX partials_delivery ON partials (sender_fp, tid)",
    ),
)


class Partial:
    """A payload that is being received. One owner; its methods raise `LocalIOError`."""

    def __init__(
        self, inbox: Inbox, folder: int, item_id: str, sender_fp: bytes, tid: bytes, entry: NewItem
    ) -> None:
        self.id = item_id
        self.sender_fp = sender_fp
        self.tid = tid
        self.entry = entry
        self.position = 0
        """Bytes written."""
        self._inbox = inbox
        self._folder = folder
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor: int | None = os.open(item_id, flags, files.PRIVATE_FILE, dir_fd=folder)

    def fileno(self) -> int:
        """The open file."""
        if self._descriptor is None:
            raise LocalIOError("this partial item is closed")
        return self._descriptor

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
            self._inbox.ended(self)
        finally:
            os.close(self._descriptor)
            self._descriptor = None


class Inbox:
    """The inbox of a client's home: for the daemon, its threads, and any command beside it.

    Every method raises `LocalIOError` (``no-space``, ``busy``, ``damaged``, ``permission``, ``io``).
    """

    def __init__(self, home: Home, db: LocalDb, folders: tuple[int, int], entropy: Entropy, clock: Clock) -> None:
        self._files = home.inbox / "files"
        self._partial = home.inbox / "partial"
        self._db = db
        self._entropy = entropy
        self._clock = clock
        self._files_folder, self._partial_folder = folders
        self._closed = False

    @classmethod
    def open(cls, home: Home, entropy: Entropy | None = None, clock: Clock | None = None) -> Self:
        """The inbox of ``home``, made where there is none. ``entropy`` makes the ids; ``clock`` dates partial items."""
        files.check_folder(home.data, private=False)
        for folder in (home.inbox, home.inbox / "files", home.inbox / "partial"):
            files.make_folder(folder)
        db = LocalDb.open(home.inbox / "index.db", _SCHEMA)
        opened: list[int] = []
        try:
            opened += (files.open_folder(home.inbox / name) for name in ("files", "partial"))
        except BaseException:
            db.close()
            for folder_descriptor in opened:
                os.close(folder_descriptor)
            raise
        return cls(home, db, (opened[0], opened[1]), entropy or SystemEntropy(), clock or SystemClock())

    def close(self) -> None:
        """Harmless when repeated."""
        if not self._closed:
            self._closed = True
            self._db.close()
            os.close(self._files_folder)
            os.close(self._partial_folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- arriving ---------------------------------------------------------------------------------------------------

    def begin(self, sender_fp: bytes, tid: bytes, entry: NewItem) -> Partial:
        """A new and empty partial item for delivery ``tid`` of the sender with this fingerprint.

        It takes the place of the one that an earlier attempt left, and of those of its sender and name that earlier
        deliveries left; an attempt that still runs goes on, and leaves none.
        """
        partial: Partial | None = None
        try:
            # In the transaction: so `recover` never meets a file that has no lock yet, or no row.
            with self._db.writing() as connection, files.translated("making a partial item in the inbox"):
                self._drop_delivery(connection, sender_fp, tid)
                item_id = self._entropy.bytes(_ID_BYTES).hex()
                partial = Partial(self, self._partial_folder, item_id, sender_fp, tid, entry)
                fcntl.flock(partial.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                _insert(
                    connection, "partials", _PARTIAL_COLUMNS,
                    (item_id, sender_fp, tid, *astuple(entry), self._clock.wall()),
                )
                self._drop_older(connection, partial)
                self._drop_surplus(connection, sender_fp)
        except BaseException:
            if partial is not None:
                partial.close(discard=True)
            raise
        return partial

    def commit(self, partial: Partial, digest: bytes, receipt: bytes, now: float) -> Item:
        """Make ``partial``, whose every byte has been verified, an item; durable when this returns.

        A delivery that is done already stays as it is: the item that it had is the answer (its file may have been taken
        since), `done` has its receipt, and ``partial`` is discarded. After an error nothing of it is visible and
        ``partial`` can only be closed.
        """
        known = self._done_item(partial, digest, now)
        if known is not None:
            partial.close(discard=True)
            return known
        with files.translated("finishing an item of the inbox"):
            os.fsync(partial.fileno())
            files.publish(self._partial_folder, partial.id, self._files_folder, partial.id)
            os.fsync(self._files_folder)
        try:
            item = self._record(partial, digest, receipt, now)
        except NothingChanged:
            # After any other error it is not certain that nothing was recorded: `recover` will see.
            files.unlink(self._files_folder, partial.id)
            raise
        if item.id != partial.id:
            files.unlink(self._files_folder, partial.id)
        partial.close(discard=True)
        return item

    def _record(self, partial: Partial, digest: bytes, receipt: bytes, now: float) -> Item:
        with self._db.writing() as connection:
            known = self._known(connection, partial, digest, now)
            if known is not None:
                return known
            item = self._item_of(partial, partial.id, digest, now)
            _insert(connection, "items", _COLUMNS, astuple(item)[: len(_COLUMNS)])
            self._drop_delivery(connection, partial.sender_fp, partial.tid)
            self._drop_older(connection, partial)
            connection.execute("DELETE FROM done WHERE finished < ?", (now - DONE_SECONDS,))
            connection.execute(
                "INSERT INTO done VALUES (?, ?, ?, ?, ?)", (partial.sender_fp, partial.tid, item.id, receipt, now)
            )
            # Once a reader can see the item he can also take it; until then `recover` is kept out by this transaction.
            fcntl.flock(partial.fileno(), fcntl.LOCK_UN)
        return item

    def _done_item(self, partial: Partial, digest: bytes, now: float) -> Item | None:
        with self._db.reading() as connection:
            return self._known(connection, partial, digest, now)

    def _known(self, connection: sqlite3.Connection, partial: Partial, digest: bytes, now: float) -> Item | None:
        """The item of a delivery that is done; as it was, where it has left the inbox."""
        row = connection.execute(
            "SELECT id FROM done WHERE sender_fp = ? AND tid = ?", (partial.sender_fp, partial.tid)
        ).fetchone()
        if row is None:
            return None
        found = connection.execute(f"{_SELECT} WHERE id = ?", row).fetchone()
        return self._item(found) if found is not None else self._item_of(partial, row[0], digest, now)

    def done(self, sender_fp: bytes, tid: bytes) -> bytes | None:
        """The receipt of a delivery that is done. Kept for 90 days, whatever became of the item."""
        with self._db.reading() as connection:
            row = connection.execute(
                "SELECT receipt FROM done WHERE sender_fp = ? AND tid = ?", (sender_fp, tid)
            ).fetchone()
        return None if row is None else bytes(row[0])

    def recover(self, now: float) -> int:
        """Sweep what killed processes left, files without a row and rows without a file, and what has become too old:
        receipts of 90 days, partial items of 7.

        For the daemon, at its start. What a living process works on is locked and stays; a file that has no name of
        ours is not ours. Answers how many files went.
        """
        with self._db.writing() as connection:
            self._check_ids(connection)
            connection.execute("DELETE FROM done WHERE finished < ?", (now - DONE_SECONDS,))
            removed = 0
            for row in connection.execute(_SELECT_PARTIALS).fetchall():
                begun = self._item(row)
                if begun.received < now - PARTIAL_SECONDS or self._partial_size(begun.id) is None:
                    removed += self._drop(connection, begun.id) == "removed"
            # A commit under way holds its file's lock until it is inside a transaction like this one.
            for folder, table in ((self._partial_folder, "partials"), (self._files_folder, "items")):
                rows = connection.execute(f"SELECT id FROM {table}")  # noqa: S608 - names of ours
                kept = {self._checked_id(row[0]) for row in rows}
                orphans = [name for name in self._names(folder) if name not in kept]
                removed += sum(_sweep(folder, name) == "removed" for name in orphans)
        return removed

    def _check_ids(self, connection: sqlite3.Connection) -> None:
        """A damaged index takes no payload with it (attack K03): each id stands in its row and in an index, alike."""
        for table in ("items", "partials"):
            if connection.execute(f"PRAGMA integrity_check({table})").fetchall() != [("ok",)]:
                raise self._db.damaged()

    @staticmethod
    def _names(folder: int) -> list[str]:
        with files.translated("reading the inbox"):
            return [name for name in os.listdir(folder) if _ID.fullmatch(name)]

    # --- arrived in part --------------------------------------------------------------------------------------------

    def partials(self) -> list[Item]:
        """What is being received, and what a lost link left; oldest first, each with state ``partial``."""
        with self._db.reading() as connection:
            rows = connection.execute(f"{_SELECT_PARTIALS} ORDER BY seq").fetchall()
        return [item for row in rows if (item := self._partial_item(row)) is not None]

    def ended(self, partial: Partial) -> None:
        """`Partial.close` has come to its end: let it stay for a person to see where it has a file.

        Without a row its place has been taken, by a later attempt or by the item: then its file goes. What the index
        cannot take now, `recover` does.
        """
        listed = "SELECT 1 FROM partials WHERE id = ?", (partial.id,)
        with suppress(LocalIOError):
            has_file = self._partial_size(partial.id) is not None
            with self._db.reading() as connection:
                if not has_file and _one(connection, *listed) is None:
                    return  # after a commit, which thus waits for no other writer
            with self._db.writing() as connection:
                if not has_file:
                    connection.execute("DELETE FROM partials WHERE id = ?", (partial.id,))
                    return
                if _one(connection, *listed) is None:
                    files.unlink(self._partial_folder, partial.id)
                    return
                self._drop_older(connection, partial)
                # In the transaction: a later attempt finds it running, or here to be removed.
                fcntl.flock(partial.fileno(), fcntl.LOCK_UN)
                self._drop_surplus(connection, partial.sender_fp)

    def _drop_delivery(self, connection: sqlite3.Connection, sender_fp: bytes, tid: bytes) -> None:
        """No partial item of this delivery stays; the file of one that still runs goes with it (`ended`)."""
        row = _one(connection, "SELECT id FROM partials WHERE sender_fp = ? AND tid = ?", (sender_fp, tid))
        if row is not None:
            _sweep(self._partial_folder, self._checked_id(row[0]))
            connection.execute("DELETE FROM partials WHERE id = ?", row)

    def _drop_older(self, connection: sqlite3.Connection, partial: Partial) -> None:
        """What stopped in the middle for good: of one sender and name, one partial item is enough for a person to see.

        Those that are being received stay.
        """
        alike = connection.execute(
            "SELECT id FROM partials WHERE sender_fp = ? AND app = ? AND name = ? AND id != ?",
            (partial.sender_fp, partial.entry.app, partial.entry.name, partial.id),
        )
        for (item_id,) in alike.fetchall():
            self._drop(connection, item_id)

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

    def _drop(self, connection: sqlite3.Connection, item_id: str) -> _Swept:
        """Remove a partial item, file and row, unless it is being received."""
        swept = _sweep(self._partial_folder, self._checked_id(item_id))
        if swept != "locked":
            connection.execute("DELETE FROM partials WHERE id = ?", (item_id,))
        return swept

    def _partial_size(self, item_id: str) -> int | None:
        """Bytes that have come; None where there is no file of ours."""
        with files.translated("reading the inbox"):
            try:
                found = os.stat(self._checked_id(item_id), dir_fd=self._partial_folder, follow_symlinks=False)
            except FileNotFoundError:
                return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def _partial_item(self, row: tuple[Any, ...]) -> Item | None:
        item = self._item(row)
        size = self._partial_size(item.id)
        return None if size is None else replace(item, size=size, path=self._partial / item.id, state="partial")

    # --- reading ----------------------------------------------------------------------------------------------------

    def items(self) -> list[Item]:
        """All, oldest first."""
        with self._db.reading() as connection:
            return [self._item(row) for row in connection.execute(f"{_SELECT} ORDER BY seq")]

    def find(self, prefix: str) -> Item:
        """The item, whole or partial, whose id begins so. `UsageError`: ``unknown-id``, ``ambiguous-id``."""
        wanted = prefix.lower()
        found: list[Item] = []
        if _PREFIX.fullmatch(wanted):
            where, bounds = "WHERE id >= ? AND id < ? LIMIT 2", (wanted, wanted + "g")
            with self._db.reading() as connection:
                whole = connection.execute(f"{_SELECT} {where}", bounds).fetchall()
                begun = connection.execute(f"{_SELECT_PARTIALS} {where}", bounds).fetchall()
            found = [self._item(row) for row in whole]
            found += [item for row in begun if (item := self._partial_item(row)) is not None]
        if not found:
            raise UsageError(
                f"there is no item {prefix[:40]!r} in the inbox", detail="unknown-id", hint="see zkc inbox"
            )
        if len(found) > 1:
            raise UsageError(
                f"{prefix!r} is the beginning of several ids", detail="ambiguous-id", hint="give more of its digits"
            )
        return found[0]

    def version(self) -> int:
        """A number that grows when the inbox has changed. Cheap: for one who waits."""
        return self._db.version()

    def free_bytes(self) -> int:
        """Bytes that this user can still write here."""
        with files.translated("the inbox"):
            found = os.fstatvfs(self._files_folder)
        return found.f_bavail * found.f_frsize

    # --- leaving ----------------------------------------------------------------------------------------------------

    def take(self, item_id: str) -> Claim | None:
        """A claim on the item that no other process gets while it lives. None: another has it, or it has gone.

        A claim that is let go does not change `version`: who waits for an item asks again from time to time.
        Errors: `LocalIOError` (``missing``) where the item's file was removed by a stranger to zkc.
        """
        if not _ID.fullmatch(item_id):
            return None
        try:
            descriptor = _open_payload(self._files_folder, item_id)
        except FileNotFoundError:
            if not self._has(item_id):
                return None
            raise LocalIOError(
                f"the file of item {item_id} is missing", detail="missing", hint=f"zkc inbox rm {item_id}"
            ) from None
        except OSError as error:
            raise files.local_error(error, f"item {item_id}") from error
        claim: Claim | None = None
        try:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Who had the lock before may have finished: its file is open here, but gone.
                row = self._row(item_id)
                if row is not None:
                    claim = Claim(self, self._item(row), self._files_folder, descriptor)
        finally:
            if claim is None:
                os.close(descriptor)
        return claim

    def take_first(self, matches: Callable[[Item], bool]) -> Claim | None:
        """A claim on the oldest item that ``matches`` and that no other process has."""
        return next((claim for item in self.items() if matches(item) and (claim := self.take(item.id))), None)

    def remove(self, item_id: str) -> bool:
        """Remove an item, also one that is being read, or a partial item. False: there is none.

        The delivery of an item stays done. Errors: `LocalIOError` (``busy``) for one that is being received now.
        """
        if not _ID.fullmatch(item_id):
            return False
        with self._db.writing() as connection:
            gone = connection.execute("DELETE FROM items WHERE id = ?", (item_id,)).rowcount > 0
            if not gone:
                return self._remove_partial(connection, item_id)
        files.unlink(self._files_folder, item_id)  # killed here, `recover` does it
        return True

    def _remove_partial(self, connection: sqlite3.Connection, item_id: str) -> bool:
        if _one(connection, "SELECT 1 FROM partials WHERE id = ?", (item_id,)) is None:
            return False
        swept = self._drop(connection, item_id)
        if swept == "locked":
            raise LocalIOError(
                f"item {item_id} is being received now", detail="busy", hint="run it again when its transfer has ended"
            )
        return swept == "removed"

    # --- rows -------------------------------------------------------------------------------------------------------

    def _row(self, item_id: str) -> tuple[Any, ...] | None:
        with self._db.reading() as connection:
            row: tuple[Any, ...] | None = connection.execute(f"{_SELECT} WHERE id = ?", (item_id,)).fetchone()
            return row

    def _has(self, item_id: str) -> bool:
        return self._row(item_id) is not None

    def _item(self, row: tuple[Any, ...]) -> Item:
        values: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
        if not all(isinstance(values[name], wanted) for name, wanted in _TYPES.items()):
            raise self._db.damaged()
        return Item(**values, path=self._files / self._checked_id(values["id"]))

    def _checked_id(self, item_id: Any) -> str:
        """An id of the index before it names a file: what a damaged index says reaches no other file (attack K03)."""
        if isinstance(item_id, str) and _ID.fullmatch(item_id):
            return item_id
        raise self._db.damaged()

    def _item_of(self, partial: Partial, item_id: str, digest: bytes, now: float) -> Item:
        entry = partial.entry
        return Item(
            id=item_id, sender=entry.sender, sender_fp=partial.sender_fp, app=entry.app, name=entry.name,
            note=entry.note, size=partial.position, digest=digest, key_source=entry.key_source, kind=entry.kind,
            received=now, xid=entry.xid, tid=partial.tid, mode=entry.mode, mtime_ns=entry.mtime_ns,
            path=self._files / item_id,
        )


class Claim:
    """The right to take one item, as long as the object is open and its process lives."""

    def __init__(self, inbox: Inbox, item: Item, folder: int, descriptor: int) -> None:
        self.item = item
        self._inbox = inbox
        self._folder = folder
        self._descriptor: int | None = descriptor

    def open(self) -> BinaryIO:
        """The payload from its first byte. The caller closes it; a child that gets it does not get the claim."""
        if self._descriptor is None:
            raise LocalIOError("this claim has ended")
        with files.translated(f"item {self.item.id}"):
            return open(_open_payload(self._folder, self.item.id), "rb")

    def finish(self) -> bool:
        """The item has been taken: it leaves the inbox. False: somebody removed it meanwhile."""
        gone = self._inbox.remove(self.item.id)
        self.close()
        return gone

    def close(self) -> None:
        """Let go; without `finish` the item stays. Harmless when repeated."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# --- names in a folder ---------------------------------------------------------------------------------------------


def _open_payload(folder: int, name: str) -> int:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def _sweep(folder: int, name: str) -> _Swept:
    """Remove a file of ours that no living process has locked."""
    with files.translated("sweeping the inbox"):
        try:
            descriptor = _open_payload(folder, name)
        except OSError:
            return "nothing"  # no file of ours stands there: left for a person to look at
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            files.unlink(folder, name)
        except BlockingIOError:
            return "locked"
        finally:
            os.close(descriptor)
        return "removed"


# --- rows of a table -----------------------------------------------------------------------------------------------


def _one(connection: sqlite3.Connection, query: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
    row: tuple[Any, ...] | None = connection.execute(query, values).fetchone()
    return row


def _insert(connection: sqlite3.Connection, table: str, columns: tuple[str, ...], values: tuple[Any, ...]) -> None:
    marks = ", ".join("?" * len(columns))
    connection.execute(
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", values  # noqa: S608 - names of ours
    )
