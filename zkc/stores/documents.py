"""Small files of a home that say of which version they are: JSON objects with ``version``.

A file without one is of version 1. One that a later zkc wrote is refused as that, never taken for a damaged one, nor
written over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from zkc.decoders import json_decoder
from zkc.errors import LocalIOError
from zkc.stores import files

T = TypeVar("T")


def read_document(path: Path, kind: type[T], version: int, what: str, hint: str) -> T:
    """``what`` ("the shares") is at ``path``. `VersionMismatch` (``newer``) where it is later than ``version``;
    `LocalIOError` (``damaged``, whose way out is ``hint``; ``permission``, ``io``)."""
    data = files.read_private(path)
    try:
        found: Any = json_decoder(Any).decode(data)
        written = found.get("version", 1) if isinstance(found, dict) else 1
        if isinstance(written, int) and written > version:
            raise files.newer(what, path)
        return json_decoder(kind).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise LocalIOError(f"{path} is damaged", detail="damaged", hint=hint) from None
