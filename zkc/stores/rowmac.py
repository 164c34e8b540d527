"""A MAC over one database row: what was stored is what is read, or nothing is.

Plain SQLite notices damage to its pages' structure, not to the values inside them: a flipped bit of a key is
read back as another key (attack K03). So each row carries HMAC-SHA256 over its table and all its fields.

Each field is one type byte, its length as u64 and its bytes, so no two rows have the same input and a value never
passes for one of another type: ``None`` is not ``b""``, ``1`` is not ``1.0``, ``"a"`` is not ``b"a"``.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable
from typing import Final

Field = bytes | str | int | float | bool | None
"""What a column may hold."""

MAC_BYTES: Final = 32
_HEAD: Final = struct.Struct(">cQ")


def mac(key: bytes, table: str, fields: Iterable[Field]) -> bytes:
    """HMAC-SHA256 (32 bytes) with ``key`` over ``table`` and ``fields`` in the order given.

    A ``bool`` counts as the integer that SQLite stores for it. `TypeError` for any other type.
    """
    parts = bytearray()
    for field in (table, *fields):
        tag, body = _bytes_of(field)
        parts += _HEAD.pack(tag, len(body)) + body
    return hmac.digest(key, parts, "sha256")


def verifies(key: bytes, table: str, fields: Iterable[Field], stored: object) -> bool:
    """Whether ``stored`` (a column as it was read, so of any type) is the MAC of these fields. Constant time.

    A field of a type that no column holds does not verify; it never raises.
    """
    try:
        expected = mac(key, table, fields)
    except TypeError:
        return False
    return isinstance(stored, bytes) and hmac.compare_digest(expected, stored)


def _bytes_of(field: object) -> tuple[bytes, bytes]:
    match field:
        case None:
            return b"n", b""
        case bytes():
            return b"b", field
        case str():
            # A damaged file can hold text that is no UTF-8; a reader that lets it through must still get a MAC.
            return b"s", field.encode("utf-8", "surrogateescape")
        case int():
            return b"i", str(int(field)).encode()
        case float():
            return b"f", struct.pack(">d", field)
        case _:
            raise TypeError(f"no column holds a {type(field).__name__}")
