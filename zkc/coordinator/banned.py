"""CURVE keys that the supervisor has barred: their connections ended a coordinator process, again and again.

A text file in the home, one key a line (64 hex digits, then whose it was); who removes a line lets the key in again, at
the next start or SIGHUP.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from zkc.stores import files

FILE_NAME: Final = "banned"
_KEYS_MAX: Final = 1024


def read_banned(home: Path) -> frozenset[bytes]:
    """The barred keys, 32 bytes each. Lines that are none are left out."""
    return frozenset(key for key in map(_key, _lines(home)) if key is not None)


def ban(home: Path, key: bytes, who: str) -> None:
    """Bars ``key``, durably; the oldest of too many goes."""
    lines = [line for line in _lines(home) if _key(line) != key][1 - _KEYS_MAX :]
    text = "".join(f"{line}\n" for line in [*lines, f"{key.hex()} {who}"])
    files.write_private(home / FILE_NAME, text.encode(), replace=True)


def _lines(home: Path) -> list[str]:
    path = home / FILE_NAME
    if not path.exists():
        return []
    return files.read_private(path).decode("ascii", "replace").splitlines()


def _key(line: str) -> bytes | None:
    try:
        key = bytes.fromhex(line.split(" ", 1)[0])
    except ValueError:
        return None
    return key if len(key) == 32 else None
