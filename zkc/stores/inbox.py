"""What has arrived at a client: whole, verified and on disk, or not there at all.

::

    inbox/partial/ID        what is being received (locked by the process that writes it), or was until a link was lost
    inbox/files/ID          payloads of items; visible only through a row of the index
    inbox/index.db          items, partial items, and the deliveries that are done, with their receipts
    inbox/wanted/NAME       deliveries for which a command waits itself
    inbox/spare             room for reading and changing the index on a full disk

`Inbox.commit` is the one way in: fsync(file), rename without replacing, fsync(folder), one transaction {delivery done,
item, receipt}. Killed anywhere, the old or the new state is there, once `Inbox.recover` has swept (attack P03).

Every name on disk is one that we made: no text of a peer becomes part of a path here (attacks F01, F02).
"""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

from zkc.env import Clock, Entropy, SystemClock, SystemEntropy
from zkc.errors import LocalIOError
from zkc.stores import files
from zkc.stores.home import Home
from zkc.stores.items import (
    COLUMNS,
    ID_BYTES,
    SCHEMA,
    SELECT,
    SELECT_PAGE,
    Item,
    NewItem,
    checked_id,
    is_id,
    item_of,
    the_one,
    upgrade,
    values_of,
)
from zkc.stores.localdb import LocalDb, insert, one
from zkc.stores.partials import Partial, Partials
from zkc.stores.payloads import open_payload, sweep
from zkc.stores.spare import Spare
from zkc.stores.sqlite import NothingChanged
from zkc.stores.wanted import Wanted

DONE_SECONDS: Final = 90 * 86400.0
"""How long a repeated delivery is answered with its receipt (`protocol`: the sender keeps its rows as long)."""

_PAGE: Final = 32
"""Items read at once by who wants the first one: mostly the very first is free, and matches."""
_PREFIX: Final = re.compile(r"[0-9a-f]{1,16}", re.ASCII)


class Inbox:
    """The inbox of a client's home: for the daemon, its threads, and any command beside it.

    Every method raises `LocalIOError` (``no-space``, ``busy``, ``damaged``, ``permission``, ``io``).
    """

    def __init__(
        self, home: Home, db: LocalDb, spare: Spare, folders: tuple[int, int], entropy: Entropy, clock: Clock
    ) -> None:
        self._files = home.inbox / "files"
        self._db = db
        self._spare = spare
        self._partials = Partials(db, home.inbox / "partial", folders[1])
        self.wanted: Final = Wanted(home)
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
        spare = Spare(home.inbox / "spare")
        db = _open_index(home.inbox / "index.db", spare)
        opened: list[int] = []
        try:
            opened += (files.open_folder(home.inbox / name) for name in ("files", "partial"))
        except BaseException:
            db.close()
            for folder_descriptor in opened:
                os.close(folder_descriptor)
            raise
        spare.keep()
        return cls(home, db, spare, (opened[0], opened[1]), entropy or SystemEntropy(), clock or SystemClock())

    def close(self) -> None:
        """Harmless when repeated."""
        if not self._closed:
            self._closed = True
            self._db.close()
            self._spare.keep()
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
        item_id = self._entropy.bytes(ID_BYTES).hex()
        return self._partials.begin(item_id, sender_fp, tid, entry, self._clock.wall())

    def resume(self, sender_fp: bytes, tid: bytes) -> Partial | None:
        """The partial item that an earlier attempt of this delivery left, at its end; None where there is none.

        `LocalIOError` (``busy``) while another attempt writes it.
        """
        found = self._partials.resume(sender_fp, tid)
        if found is None and self._bring_back(sender_fp, tid):
            found = self._partials.resume(sender_fp, tid)
        return found

    def held_bytes(self, sender_fp: bytes, tid: bytes) -> int:
        """How many bytes of this delivery are here already, of a partial item."""
        return self._partials.held_bytes(sender_fp, tid)

    def commit(self, partial: Partial, digest: bytes, receipt: bytes, now: float) -> Item:
        """Make ``partial``, whose every byte has been verified, an item; durable when this returns.

        A delivery that is done already stays as it is: the item that it had is the answer (its file may have been taken
        since), `done` has its receipt, and ``partial`` is discarded. After an error ``partial`` can only be closed; a
        later commit may still do it, of what `resume` finds then.
        """
        with files.translated("finishing an item of the inbox"):
            _sync(partial.fileno())
            files.publish(self._partial_folder, partial.id, self._files_folder, partial.id)
            try:
                os.fsync(self._files_folder)
            except OSError:
                self._take_back(partial)
                raise
        try:
            item = self._record(partial, digest, receipt, now)
        except NothingChanged:
            self._take_back(partial)
            raise
        except LocalIOError:
            partial.let_go()  # it is not certain that nothing was recorded: `resume` will see
            raise
        if item.id == partial.id:
            partial.let_go()  # its file is the item's, and its row has gone with the same step
        else:
            files.unlink(self._files_folder, partial.id)
            partial.close(discard=True)
        return item

    def _take_back(self, partial: Partial) -> None:
        """What was published, and surely not recorded, is a partial item again."""
        try:
            os.rename(partial.id, partial.id, src_dir_fd=self._files_folder, dst_dir_fd=self._partial_folder)
        except OSError:
            partial.let_go()  # nothing is lost where it is: `resume` does it, or `recover`

    def _bring_back(self, sender_fp: bytes, tid: bytes) -> bool:
        """Whether a commit of this delivery had renamed its file, not recorded it, and ended: a partial item again."""
        listed = "SELECT id FROM partials WHERE sender_fp = ? AND tid = ?", (sender_fp, tid)
        with self._db.reading() as connection:
            if one(connection, *listed) is None:
                return False
        with self._db.writing(patient=True) as connection:
            row = one(connection, *listed)
            if row is None or one(connection, "SELECT 1 FROM items WHERE id = ?", row) is not None:
                return False
            return sweep(self._files_folder, checked_id(self._db, row[0]), into=self._partial_folder) == "removed"

    def _record(self, partial: Partial, digest: bytes, receipt: bytes, now: float) -> Item:
        with self._db.writing(patient=True) as connection:
            known = self._known(connection, partial, digest, now)
            if known is not None:
                return known
            item = self._item_of(partial, partial.id, digest, now)
            insert(connection, "items", COLUMNS, values_of(item))
            self._partials.drop_delivery(connection, partial.sender_fp, partial.tid)
            self._partials.drop_older(connection, partial)
            connection.execute("DELETE FROM done WHERE finished < ?", (now - DONE_SECONDS,))
            connection.execute(
                "INSERT INTO done VALUES (?, ?, ?, ?, ?)", (partial.sender_fp, partial.tid, item.id, receipt, now)
            )
            # Once a reader can see the item he can also take it; until then `recover` is kept out by this transaction.
            fcntl.flock(partial.fileno(), fcntl.LOCK_UN)
        return item

    def _known(self, connection: sqlite3.Connection, partial: Partial, digest: bytes, now: float) -> Item | None:
        """The item of a delivery that is done; as it was, where it has left the inbox."""
        row = one(
            connection, "SELECT id FROM done WHERE sender_fp = ? AND tid = ?", (partial.sender_fp, partial.tid)
        )
        if row is None:
            return None
        found = one(connection, f"{SELECT} WHERE id = ?", row)
        return self._item(found) if found is not None else self._item_of(partial, row[0], digest, now)

    def record_live(self, sender_fp: bytes, tid: bytes, receipt: bytes, now: float) -> str:
        """Delivery ``tid`` was taken as a stream: it is done, durably when this returns, and there is no item of it.

        Answers an id for what was taken.
        """
        item_id = self._entropy.bytes(ID_BYTES).hex()
        with self._db.writing(patient=True) as connection:
            connection.execute("DELETE FROM done WHERE finished < ?", (now - DONE_SECONDS,))
            connection.execute(
                "INSERT OR REPLACE INTO done VALUES (?, ?, ?, ?, ?)", (sender_fp, tid, item_id, receipt, now)
            )
        return item_id

    def done(self, sender_fp: bytes, tid: bytes) -> bytes | None:
        """The receipt of a delivery that is done. Kept for 90 days, whatever became of the item."""
        with self._db.reading() as connection:
            row = one(connection, "SELECT receipt FROM done WHERE sender_fp = ? AND tid = ?", (sender_fp, tid))
        return None if row is None else bytes(row[0])

    def recover(self, now: float) -> int:
        """Sweep what killed processes left, files without a row and rows without a file, and what has become too old:
        receipts of 90 days, partial items of 7.

        For the daemon, at its start and daily. What a living process works on is locked and stays; a file that has no
        name of ours is not ours. Answers how many files went.
        """
        self.wanted.sweep()
        with self._db.writing() as connection:
            self._check_ids(connection)
            connection.execute("DELETE FROM done WHERE finished < ?", (now - DONE_SECONDS,))
            self._put_back(connection)
            removed = self._partials.drop_old(connection, now)
            # A commit under way holds its file's lock until it is inside a transaction like this one.
            for folder, table in ((self._partial_folder, "partials"), (self._files_folder, "items")):
                rows = connection.execute(f"SELECT id FROM {table}")  # noqa: S608 - names of ours
                kept = {checked_id(self._db, row[0]) for row in rows}
                orphans = [name for name in self._names(folder) if name not in kept]
                removed += sum(sweep(folder, name) == "removed" for name in orphans)
        return removed

    def drop_pipes(self, before: float) -> int:
        """Remove what came of pipes and was given up before then (seconds since 1970): the commands that read them have
        had the time since to come back, and no other can go on. Answers how many files went."""
        with self._db.reading() as connection:
            if not self._partials.has_pipes(connection, before):
                return 0
        with self._db.writing(patient=True) as connection:
            return self._partials.drop_pipes(connection, before)

    def _put_back(self, connection: sqlite3.Connection) -> None:
        """What a commit had renamed and not recorded is a partial item again: its sender need not send it once more."""
        begun = {checked_id(self._db, row[0]) for row in connection.execute("SELECT id FROM partials")}
        recorded = {row[0] for row in connection.execute("SELECT id FROM items")}
        for name in self._names(self._files_folder):
            if name in begun - recorded:
                sweep(self._files_folder, name, into=self._partial_folder)

    def _check_ids(self, connection: sqlite3.Connection) -> None:
        """A damaged index takes no payload with it (attack K03): each id stands in its row and in an index, alike."""
        for table in ("items", "partials"):
            if connection.execute(f"PRAGMA integrity_check({table})").fetchall() != [("ok",)]:
                raise self._db.damaged()

    @staticmethod
    def _names(folder: int) -> list[str]:
        with files.translated("reading the inbox"):
            return [name for name in os.listdir(folder) if is_id(name)]

    # --- reading ----------------------------------------------------------------------------------------------------

    def items(self) -> list[Item]:
        """All, oldest first."""
        with self._db.reading() as connection:
            return [self._item(row) for row in connection.execute(f"{SELECT} ORDER BY seq")]

    def partials(self) -> list[Item]:
        """What is being received, and what a lost link left; oldest first, each with state ``partial``."""
        with self._db.reading() as connection:
            return self._partials.select(connection, "ORDER BY seq")

    def find(self, prefix: str) -> Item:
        """The item, whole or partial, whose id begins so. `UsageError`: ``unknown-id``, ``ambiguous-id``."""
        wanted = prefix.lower()
        found: list[Item] = []
        if _PREFIX.fullmatch(wanted):
            where, bounds = "WHERE id >= ? AND id < ? LIMIT 2", (wanted, wanted + "g")
            with self._db.reading() as connection:
                found = [self._item(row) for row in connection.execute(f"{SELECT} {where}", bounds)]
                found += self._partials.select(connection, where, *bounds)
        return the_one(found, prefix, "there is no item {} in the inbox")

    def unseen(self) -> frozenset[str]:
        """The ids of items that nobody has looked at yet."""
        with self._db.reading() as connection:
            rows = connection.execute("SELECT id FROM items WHERE id NOT IN (SELECT id FROM seen)")
            return frozenset(row[0] for row in rows)

    def mark_seen(self, item_id: str) -> None:
        """Somebody has looked at it. Harmless when repeated, and for an item that has gone."""
        with self._db.writing() as connection:
            connection.execute("INSERT OR IGNORE INTO seen SELECT id FROM items WHERE id = ?", (item_id,))

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
        if not is_id(item_id):
            return None
        try:
            descriptor = open_payload(self._files_folder, item_id)
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
        return next((claim for item in self._each() if matches(item) and (claim := self.take(item.id))), None)

    def _each(self) -> Iterator[Item]:
        """All items, oldest first, no more of them read at once than are soon looked at."""
        last = 0
        while True:
            with self._db.reading() as connection:
                rows = connection.execute(SELECT_PAGE, (last, _PAGE)).fetchall()
            for _, *row in rows:
                yield self._item(tuple(row))
            if len(rows) < _PAGE:
                return
            last = rows[-1][0]

    def remove(self, item_id: str) -> bool:
        """Remove an item, also one that is being read, or a partial item. False: there is none.

        The delivery of an item stays done. Errors: `LocalIOError` (``busy``) for one that is being received now.
        """
        if not is_id(item_id):
            return False
        try:
            return self._remove(item_id)
        except NothingChanged as error:
            is_whole = self._has(item_id)
            if error.detail != "no-space" or not (self._spare.give_up() or is_whole):
                raise
            if is_whole:
                # Its own bytes are room for the index too; a row without a file can be removed like any other.
                files.unlink(self._files_folder, item_id)
            return self._remove(item_id)

    def _remove(self, item_id: str) -> bool:
        with self._db.writing() as connection:
            gone = connection.execute("DELETE FROM items WHERE id = ?", (item_id,)).rowcount > 0
            if not gone:
                return self._partials.remove(connection, item_id)
            connection.execute("DELETE FROM seen WHERE id = ?", (item_id,))
        files.unlink(self._files_folder, item_id)  # killed here, `recover` does it
        return True

    # --- rows -------------------------------------------------------------------------------------------------------

    def _row(self, item_id: str) -> tuple[Any, ...] | None:
        with self._db.reading() as connection:
            return one(connection, f"{SELECT} WHERE id = ?", (item_id,))

    def _has(self, item_id: str) -> bool:
        return self._row(item_id) is not None

    def _item(self, row: tuple[Any, ...]) -> Item:
        return item_of(self._db, row, self._files)

    def _item_of(self, partial: Partial, item_id: str, digest: bytes, now: float) -> Item:
        entry = partial.entry
        return Item(
            id=item_id, sender=entry.sender, sender_fp=partial.sender_fp, app=entry.app, name=entry.name,
            note=entry.note, size=partial.position, digest=digest, key_source=entry.key_source, kind=entry.kind,
            received=now, xid=entry.xid, tid=partial.tid, mode=entry.mode, mtime_ns=entry.mtime_ns,
            path=self._files / item_id, asked_by=entry.asked_by, asker=entry.asker,
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
            return open(open_payload(self._folder, self.item.id), "rb")

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


def _sync(descriptor: int) -> None:
    """What was written is on disk when this returns."""
    try:
        os.fsync(descriptor)
    except OSError:
        # The kernel takes for clean what it could not write, and the next fsync succeeds: whoever goes on with it must
        # read what the disk really has.
        with suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        raise


def _open_index(path: Path, spare: Spare) -> LocalDb:
    """On a full disk too: SQLite makes files beside the index for as long as anybody has it open."""
    try:
        return LocalDb.open(path, SCHEMA, upgrade=upgrade)
    except NothingChanged as error:
        if error.detail != "no-space" or not spare.give_up():
            raise
        return LocalDb.open(path, SCHEMA, upgrade=upgrade)
