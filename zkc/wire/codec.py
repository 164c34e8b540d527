"""Canonical MessagePack: what decodes re-encodes to the same bytes, or it is refused.

Every structure on the wire is an array of its fields in order, behind a tag where several may stand in one
place. One reading for each byte string: no duplicate or unknown fields, no longer form of a number, no trailing bytes.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar, overload

import msgspec

from zkc.decoders import msgpack_decoder
from zkc.errors import PeerViolation

T = TypeVar("T")


class _First(msgspec.Struct, array_like=True):
    """An array's first element, whatever follows it."""

    version: int


_ENCODER: Final = msgspec.msgpack.Encoder()


def encode(value: msgspec.Struct) -> bytes:
    """The one encoding of ``value``."""
    return _ENCODER.encode(value)


@overload
def decode(data: bytes, kind: type[T]) -> T: ...
@overload
def decode(data: bytes, kind: Any) -> Any: ...
def decode(data: bytes, kind: Any) -> Any:
    """``data`` as a ``kind`` (a Struct class or a union of tagged ones); `PeerViolation` (``malformed``) otherwise."""
    try:
        value = msgpack_decoder(kind).decode(data)
        if _ENCODER.encode(value) == data:
            return value
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise PeerViolation("malformed", str(error)[:120]) from None
    raise PeerViolation("malformed", "not the canonical encoding")


def version_of(data: bytes) -> int:
    """The number that an array begins with, whatever fields its version has; `PeerViolation` (``malformed``)."""
    try:
        return msgpack_decoder(_First).decode(data).version
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise PeerViolation("malformed", str(error)[:120]) from None
