"""One sound value of every message type, made from the types of its fields: the shortest that the decoder takes."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec


def sample(kind: Any) -> Any:
    """A value of ``kind``: a message class, or the type of a field."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        meta = next(each for each in arguments[1:] if isinstance(each, msgspec.Meta))
        return _least(arguments[0], meta)
    if origin is Literal:
        return arguments[0]
    if origin in {Union, types.UnionType}:
        return sample(arguments[0])
    if inspect.isclass(kind) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind, include_extras=True)
        return kind(*(sample(hints[field]) for field in kind.__struct_fields__))
    return {bool: False, int: 0, str: "", bytes: b"", type(None): None}[kind]


def _least(kind: Any, meta: msgspec.Meta) -> Any:
    if kind is int:
        return int(meta.ge or 0)
    if kind is bytes:
        return b"\x5a" * (meta.min_length or 0)
    if kind is str:
        return "a" * (meta.min_length or 0)
    return [sample(get_args(kind)[0])] * (meta.min_length or 0)
