"""Decoders of msgspec, each made once, and one at a time.

msgspec (0.22) lays open what it learns of a Struct class before it has learnt all of it: another thread that makes a
decoder with that class in it then has one with holes, and the process is gone when it decodes. Decoders that are whole
are safe in any thread; so whoever decodes into a type has the decoder from here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar, overload

import msgspec

T = TypeVar("T")
D = TypeVar("D")

_MAKING: Final = threading.Lock()
_JSON: Final[dict[Any, msgspec.json.Decoder[Any]]] = {}
_MSGPACK: Final[dict[Any, msgspec.msgpack.Decoder[Any]]] = {}


@overload
def json_decoder(kind: type[T]) -> msgspec.json.Decoder[T]: ...
@overload
def json_decoder(kind: Any) -> msgspec.json.Decoder[Any]: ...
def json_decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """For a ``kind``: a class, or a union of tagged Structs."""
    return _JSON.get(kind) or _made(_JSON, kind, msgspec.json.Decoder)


@overload
def msgpack_decoder(kind: type[T]) -> msgspec.msgpack.Decoder[T]: ...
@overload
def msgpack_decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]: ...
def msgpack_decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    """For a ``kind``: a Struct class, or a union of tagged ones."""
    return _MSGPACK.get(kind) or _made(_MSGPACK, kind, msgspec.msgpack.Decoder)


def convert(value: Any, kind: type[T]) -> T:
    """``value``, of builtin types, as a ``kind``; `msgspec.ValidationError`."""
    json_decoder(kind)  # learns the class
    return msgspec.convert(value, kind)


def _made(known: dict[Any, D], kind: Any, make: Callable[[Any], D]) -> D:
    with _MAKING:
        if kind not in known:
            known[kind] = make(kind)
        return known[kind]
