"""Receipts that a client keeps, of what it sent."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from zkc.errors import LocalIOError
from zkc.stores import files
from zkc.stores.home import Home


def check_receipts(home: Home) -> None:
    """Whether receipts can be kept, asked before anything is sent. `LocalIOError`."""
    files.make_folder(home.receipts)
    if not os.access(home.receipts, os.W_OK | os.X_OK):
        raise LocalIOError(
            f"receipts cannot be written to {home.receipts}", detail="permission", hint="whose is it? ls -ld tells"
        )


def save_receipt(home: Home, tid: bytes, receipt: bytes) -> Path:
    """Keep the receipt of a delivery that this client sent; its path. Durable when this returns."""
    files.make_folder(home.receipts)
    path = receipt_path(home, tid)
    files.write_private(path, receipt, replace=True)
    return path


def find_receipt(home: Home, tid: bytes) -> bytes | None:
    """The receipt of a delivery, where one is kept. `LocalIOError`."""
    path = receipt_path(home, tid)
    return files.read_private(path) if os.path.lexists(path) else None


def has_receipt(home: Home, tid: bytes) -> bool:
    """Whether one is kept, whatever it says."""
    return os.path.lexists(receipt_path(home, tid))


def receipt_path(home: Home, tid: bytes) -> Path:
    """Where the receipt of a delivery is kept."""
    return home.receipts / f"{tid.hex()}.receipt"


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
