"""Deliveries that have begun and are not receipted: what a later command needs to go on where one was killed.

::

    outbox/under-way/KEY    tid (16 bytes), then for each handshake xid (16) and th (32); appended, never rewritten
    outbox/secret           32 bytes, from which `--id` makes tids

A file is locked by the process that sends it. KEY says what is sent to whom (`key_of`), as 64 hex digits.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from zkc.constants import ID_BYTES
from zkc.crypto.primitives import digest, mac
from zkc.env import Clock, Entropy
from zkc.stores import files
from zkc.stores.home import Home

KEPT_SECONDS: Final = 90 * 86400.0
"""How long: as long as a recipient remembers that it is done."""
_TRY_BYTES: Final = ID_BYTES + 32
_SECRET_BYTES: Final = 32


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


class UnderWay:
    """One delivery's file, locked. Errors: `LocalIOError`."""

    def __init__(self, path: Path, descriptor: int, content: bytes) -> None:
        self._path = path
        self._descriptor = descriptor
        self.tid = content[:ID_BYTES]
        self.tries = {content[at : at + _TRY_BYTES] for at in range(ID_BYTES, len(content), _TRY_BYTES)}
        """xid || th of every handshake of this delivery, of earlier commands too."""

    @classmethod
    def open(cls, home: Home, key: str, tid: bytes, clock: Clock) -> Self | None:
        """The delivery of that key: the one that an earlier command left, else a new one of id ``tid``.

        None while another process sends it.
        """
        folder = _folder(home)
        path = folder / key
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with files.translated(f"delivery {path}"):
            while True:
                descriptor = os.open(path, flags, files.PRIVATE_FILE)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.fstat(descriptor).st_nlink:
                        return cls(path, descriptor, _begun(folder, descriptor, tid, clock))
                except BlockingIOError:
                    os.close(descriptor)
                    return None
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)  # whoever had it has just finished

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

    def close(self, *, forget: bool) -> None:
        """Let go; with ``forget`` nothing of it stays."""
        with suppress(OSError):
            if forget:
                self._path.unlink()
        os.close(self._descriptor)


def sweep(home: Home, clock: Clock) -> int:
    """Remove what is too old; how many went."""
    removed = 0
    folder = home.outbox / "under-way"
    if not folder.is_dir():
        return 0
    with files.translated(f"folder {folder}"):
        for entry in os.scandir(folder):
            if entry.is_file(follow_symlinks=False) and entry.stat().st_mtime < clock.wall() - KEPT_SECONDS:
                with suppress(FileNotFoundError):
                    os.unlink(entry.path)
                removed += 1
    return removed


def _begun(folder: Path, descriptor: int, tid: bytes, clock: Clock) -> bytes:
    """What is known of the delivery whose file this is: of a new one, or one that is too old, ``tid`` alone."""
    found = os.fstat(descriptor)
    content = os.pread(descriptor, found.st_size, 0)
    if len(content) < ID_BYTES or found.st_mtime < clock.wall() - KEPT_SECONDS:
        os.ftruncate(descriptor, 0)
        content = tid
        files.write_all(descriptor, tid)
        os.fsync(descriptor)
        _sync(folder)
    elif half := (len(content) - ID_BYTES) % _TRY_BYTES:
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
