"""Receipts that a client keeps, of what it sent."""

from __future__ import annotations

from pathlib import Path

from zkc.stores import files
from zkc.stores.home import Home


def save_receipt(home: Home, tid: bytes, receipt: bytes) -> Path:
    """Keep the receipt of a delivery that this client sent; its path. Durable when this returns."""
    files.make_folder(home.receipts)
    path = home.receipts / f"{tid.hex()}.receipt"
    files.write_private(path, receipt, replace=True)
    return path
