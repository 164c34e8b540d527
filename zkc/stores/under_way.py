"""Deliveries that have begun and are not receipted: what a later command needs to go on where one was killed.

::

    outbox/under-way/KEY    tid (16 bytes), then for each handshake xid (16) and th (32); appended, never rewritten.
                            16 zero bytes and a KEY instead: from there on it is the delivery of that KEY
    outbox/secret           32 bytes, from which `--id` makes tids

A file is locked by the process that sends it. KEY says what is sent to whom (`key_of`), as 64 hex digits: a source, or
a key of `--id`. A delivery of both is one file with two names, so that whoever comes by either finds it, with one lock.
It belongs to the name that was written last: who finds under his own name what has come to belong to another one has
a new delivery.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from zkc.constants import ID_BYTES
from zkc.crypto.primitives import digest, mac
from zkc.env import Clock, Entropy
from zkc.stores import files
from zkc.stores.home import Home
from zkc.stores.receipts import has_receipt

KEPT_SECONDS: Final = 90 * 86400.0
"""How long: as long as a recipient remembers that it is done."""
_TRY_BYTES: Final = ID_BYTES + 32
_SECRET_BYTES: Final = 32
_OWNER: Final = bytes(ID_BYTES)
"""In the place of an xid."""


def key_of(*what: bytes) -> str:
    """The name of a delivery of ``what``: fields of any length."""
    return digest(b"zkc/1 under way\0", *(len(field).to_bytes(8, "big") + field for field in what)).hex()


def tid_of(home: Home, key: str, recipient: str, entropy: Entropy) -> bytes:
    """The tid of ``--id KEY`` towards ``recipient``: the same in every command of this home, and of no other."""
    folder = _folder(home)
    path = folder.parent / "secret"
    if not os.path.lexists(path):
        files.write_private(path, entropy.bytes(_SECRET_BYTES), replace=False)
    return mac(files.read_private(path, _SECRET_BYTES), recipient.encode() + b"\0" + key.encode())[:ID_BYTES]


def of_source(home: Home, source: str, tid: bytes, clock: Clock, *, adopts: bool) -> UnderWay | None:
    """The delivery of that source; where ``adopts``, whoever has begun it, else a new one of id ``tid``. None while
    another process sends it."""
    while (record := UnderWay.open(home, source, tid, clock)) is not None:
        if adopts and record.mine:
            break
        if adopts and record.begun and not has_receipt(home, record.tid):
            with record.closed_at_error():
                record.take_over()
            break
        # One that is not wanted; or that of a key whose command was killed at its first moment, or its last.
        record.close(forget=True)
        adopts = True
    return record


def of_key(
    home: Home, key: str, source: str, tid: bytes, other: bytes, clock: Clock, *, adopts: bool
) -> UnderWay | None:
    """The delivery of that key; where there is none yet and ``adopts``, the unfinished one of its ``source``, of which
    another command has begun to send; else a new one of id ``tid``, or ``other`` where the key had one that has gone
    over to another command. None while another process sends it. ``source`` is empty where nothing tells it again."""
    record = UnderWay.open(home, key, tid, clock)
    if record is None:
        return None
    with record.closed_at_error():
        if not record.mine:
            record.begin_anew(other)
        if not source or has_receipt(home, record.tid):
            return record
        left = UnderWay.find(home, source, clock)
        if left is None:
            record.name_too(source)
            return record
        with left.closed_at_error():
            done = has_receipt(home, left.tid)
            if adopts and left.begun and not done and not record.begun and left.move_to(record):
                return left
            # What a command without a key has delivered, and does not know of, is for its repeat.
            left.close(forget=not left.mine and (done or not left.begun))
        record.name_too(source)
        return record


class UnderWay:
    """One delivery's file, locked. Errors: `LocalIOError`."""

    def __init__(self, path: Path, descriptor: int, content: bytes) -> None:
        self._path = path
        self._source: Path | None = None
        """Its second name: what is sent, where ``path`` is a key."""
        self._descriptor = descriptor
        self.tid = content[:ID_BYTES]
        rows = _rows(content)
        self.tries = {row for row in rows if not row.startswith(_OWNER)}
        """xid || th of every handshake of this delivery, of earlier commands too."""
        self._owner = next((row[ID_BYTES:].hex() for row in reversed(rows) if row.startswith(_OWNER)), None)

    @classmethod
    def open(cls, home: Home, key: str, tid: bytes, clock: Clock) -> Self | None:
        """The delivery of that key: the one that an earlier command left, else a new one of id ``tid``.

        None while another process sends it.
        """
        return cls._open(_folder(home) / key, os.O_CREAT, lambda found: _begun(home, found, tid, clock))

    @classmethod
    def find(cls, home: Home, key: str, clock: Clock) -> Self | None:
        """The delivery of that key, where there is one that no other process sends, and that is not too old."""
        found = cls._open(_folder(home) / key, 0, lambda found: _rest(home, found, clock))
        if found is not None and not found.tid:
            found.close(forget=True)
            return None
        return found

    @classmethod
    def _open(cls, path: Path, how: int, read: Callable[[int], bytes]) -> Self | None:
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | how
        with files.translated(f"delivery {path}"):
            while True:
                try:
                    descriptor = os.open(path, flags, files.PRIVATE_FILE)
                except FileNotFoundError:
                    if how:
                        raise
                    return None
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _is_at(path, descriptor):
                        return cls(path, descriptor, read(descriptor))
                except BlockingIOError:
                    os.close(descriptor)
                    return None
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)  # whoever had it has just finished

    @property
    def mine(self) -> bool:
        """Whether it belongs to the name by which it was opened."""
        return self._owner in (None, self._path.name)

    def take_over(self) -> None:
        """From here on it belongs to that name; durable when this returns."""
        with files.translated(f"delivery {self._path}"):
            files.write_all(self._descriptor, self._owned())
            os.fsync(self._descriptor)
        self._owner = self._path.name

    def _owned(self) -> bytes:
        return _OWNER + bytes.fromhex(self._path.name)

    def begin_anew(self, tid: bytes) -> None:
        """Another delivery under this name; what was here stays with whom it belongs to."""
        fresh = self._path.with_suffix(".new")
        with files.translated(f"delivery {self._path}"):
            fresh.unlink(missing_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            descriptor = os.open(fresh, flags, files.PRIVATE_FILE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                files.write_all(descriptor, tid + self._owned())
                os.fsync(descriptor)
                fresh.rename(self._path)
                _sync(self._path.parent)
            except BaseException:
                os.close(descriptor)
                raise
        os.close(self._descriptor)
        self._descriptor, self.tid, self.tries, self._owner = descriptor, tid, set(), self._path.name

    def move_to(self, other: UnderWay) -> bool:
        """Be the delivery of ``other``'s name, which has not begun one; durable when this returns. A kill before leaves
        it with whom it belongs to. False where the file system has no hard links."""
        link = other._path.with_suffix(".new")
        if self._owner is None:
            self.take_over()  # with two names it has to be said whose it is
        with files.translated(f"delivery {other._path}"):
            link.unlink(missing_ok=True)
            try:
                os.link(self._path, link)
            except OSError as error:
                if error.errno in files.NO_HARD_LINKS:
                    return False
                raise
            link.rename(other._path)
            _sync(self._path.parent)
        self._path, self._source = other._path, self._path
        self.take_over()
        other.close(forget=False)
        return True

    def name_too(self, source: str) -> None:
        """Whoever sends ``source`` finds it too, unless there is another delivery of that."""
        path = self._path.with_name(source)
        if self._owner is None:
            self.take_over()
        with suppress(OSError):  # it is there; or no such links are, and another key begins anew
            os.link(self._path, path)
        if _is_at(path, self._descriptor):
            self._source = path

    @property
    def begun(self) -> bool:
        """Whether there has been a handshake of it."""
        return bool(self.tries)

    def add(self, xid: bytes, th: bytes) -> None:
        """A handshake of it has been agreed; durable when this returns."""
        with files.translated(f"delivery {self._path}"):
            files.write_all(self._descriptor, xid + th)
            os.fsync(self._descriptor)
        self.tries.add(xid + th)

    def close(self, *, forget: bool, done: bool = False) -> None:
        """Let go; with ``forget`` nothing of it stays under this name, and once it is ``done`` no other command is to
        find it by its source."""
        with suppress(OSError):
            if (forget or done) and self._source is not None and _is_at(self._source, self._descriptor):
                self._source.unlink()
            if forget:
                self._path.unlink()
        os.close(self._descriptor)

    @contextmanager
    def closed_at_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close(forget=False)
            raise


def sweep(home: Home, clock: Clock) -> int:
    """Remove what is too old; how many went. What a key has delivered is known as long as its receipt is kept."""
    removed = 0
    folder = home.outbox / "under-way"
    if not folder.is_dir():
        return 0
    with files.translated(f"folder {folder}"):
        for entry in os.scandir(folder):
            if entry.is_file(follow_symlinks=False) and entry.stat().st_mtime < clock.wall() - KEPT_SECONDS:
                with suppress(FileNotFoundError):
                    if not _is_known(home, Path(entry.path).read_bytes()):
                        os.unlink(entry.path)
                        removed += 1
    return removed


def _is_known(home: Home, content: bytes) -> bool:
    """Whether that is what a key has delivered whose id cannot be made from it."""
    return any(row.startswith(_OWNER) for row in _rows(content)) and has_receipt(home, content[:ID_BYTES])


def _rows(content: bytes) -> list[bytes]:
    return [content[at : at + _TRY_BYTES] for at in range(ID_BYTES, len(content), _TRY_BYTES)]


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _begun(home: Home, descriptor: int, tid: bytes, clock: Clock) -> bytes:
    """What is known of the delivery whose file this is: of a new one, or one that is too old, ``tid`` alone."""
    if not (content := _rest(home, descriptor, clock)):
        os.ftruncate(descriptor, 0)
        content = tid
        files.write_all(descriptor, tid)
        os.fsync(descriptor)
        _sync(_folder(home))
    return content


def _rest(home: Home, descriptor: int, clock: Clock) -> bytes:
    """What is known of it; nothing where it is too old."""
    found = os.fstat(descriptor)
    content = os.pread(descriptor, found.st_size, 0)
    if len(content) < ID_BYTES:
        return b""
    if found.st_mtime < clock.wall() - KEPT_SECONDS and not _is_known(home, content):
        return b""
    if half := (len(content) - ID_BYTES) % _TRY_BYTES:
        # Killed in the middle of a row: what is appended must not stand behind it.
        content = content[:-half]
        os.ftruncate(descriptor, len(content))
    return content


def _folder(home: Home) -> Path:
    folder = home.outbox / "under-way"
    files.make_folder(home.outbox)
    files.make_folder(folder)
    return folder


def _sync(folder: Path) -> None:
    descriptor = files.open_folder(folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
