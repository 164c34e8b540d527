"""Receipts that a client keeps, of what it sent."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from zkc.errors import LocalIOError
from zkc.stores import files
from zkc.stores.home import Home

_RECEIPT: Final = ".receipt"
_NAME: Final = ".name"


def check_receipts(home: Home) -> None:
    """Whether receipts can be kept, asked before anything is sent. `LocalIOError`."""
    folder = home.receipts
    files.make_folder(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise LocalIOError(
            f"receipts cannot be written to {folder}", detail="permission", hint="whose is it? ls -ld tells"
        )


def save_receipt(home: Home, tid: bytes, receipt: bytes, name: str = "") -> Path:
    """Keep the receipt of a delivery that this client sent; its path. Durable when this returns.

    A receipt has the digest of ``name`` alone: for a person's list of what was sent it is kept beside it, as it comes.
    """
    path = receipt_path(home, tid)
    files.make_folder(path.parent)
    if name:
        _keep_name(path.with_suffix(_NAME), name)
    files.write_private(path, receipt, replace=True)
    return path


def _keep_name(path: Path, name: str) -> None:
    """Not synced, and no failure: it is there for convenience."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        descriptor = os.open(path, flags, files.PRIVATE_FILE)
        try:
            os.write(descriptor, name.encode("utf-8", "surrogateescape"))
        finally:
            os.close(descriptor)


def sent(home: Home, at_most: int) -> list[tuple[Path, str]]:
    """The newest receipts and the names of what they are of, as far as they are known; the newest first."""
    found: list[tuple[float, Path]] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(home.receipts) as entries:
        found = [(entry.stat().st_mtime, Path(entry.path)) for entry in entries if entry.name.endswith(_RECEIPT)]
    newest = [path for _, path in sorted(found, reverse=True)[:at_most]]
    return [(path, _name_beside(path)) for path in newest]


def _name_beside(receipt: Path) -> str:
    try:
        return receipt.with_suffix(_NAME).read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return ""


def find_receipt(home: Home, tid: bytes) -> bytes | None:
    """The receipt of a delivery, where one is kept. `LocalIOError`."""
    path = receipt_path(home, tid)
    return files.read_private(path) if os.path.lexists(path) else None


def has_receipt(home: Home, tid: bytes) -> bool:
    """Whether one is kept, whatever it says."""
    return os.path.lexists(receipt_path(home, tid))


def receipt_path(home: Home, tid: bytes) -> Path:
    """Where the receipt of a delivery is kept."""
    return home.receipts / f"{tid.hex()}{_RECEIPT}"


def write_copy(receipt: Path, file: Path) -> None:
    """A copy of a kept receipt where its owner wants one: whole, or none. `OSError`."""
    data = receipt.read_bytes()
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        files.write_all(descriptor, data)
    except OSError:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):  # a device, or a pipe, may be meant
            os.unlink(os.path.realpath(file))
        raise
    finally:
        os.close(descriptor)
