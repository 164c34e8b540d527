"""Deliveries for which a command of this home waits itself: whoever takes what there is passes over them meanwhile.

``inbox/wanted/NAME``: a file for each, locked by the command for as long as it lives. So one that is killed wants
nothing any more, and what has come for it is anybody's.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zkc.stores import files
from zkc.stores.home import Home


class Wanted:
    """Those of one home. Every method raises `LocalIOError`."""

    def __init__(self, home: Home) -> None:
        self._folder = home.inbox / "wanted"

    @contextmanager
    def waiting(self, sender_fp: bytes, tid: bytes) -> Iterator[None]:
        """Inside the block this process alone takes delivery ``tid`` of the sender with this fingerprint."""
        files.make_folder(self._folder)
        path = self._path(sender_fp, tid)
        with files.translated("the inbox"):
            descriptor = _locked(path)
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)

    def has(self, sender_fp: bytes, tid: bytes) -> bool:
        """Whether a process waits for it."""
        with files.translated("the inbox"):
            return _is_locked(self._path(sender_fp, tid))

    def sweep(self) -> None:
        """Remove what processes that were killed have left."""
        with files.translated("the inbox"), suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                with suppress(FileNotFoundError):
                    _is_locked(path, remove=True)

    def _path(self, sender_fp: bytes, tid: bytes) -> Path:
        return self._folder / f"{sender_fp.hex()}-{tid.hex()}"


def _locked(path: Path) -> int:
    """Its descriptor, with the only lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, files.PRIVATE_FILE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.lstat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was swept between the two steps


def _is_locked(path: Path, *, remove: bool = False) -> bool:
    """``remove`` it where it is not."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if remove else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        if remove:
            path.unlink()
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
