"""Every message class, with values made from its own types: nothing of the grammar is malleable."""

from __future__ import annotations

import inspect
import re
import types
import typing
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zkc.errors import PeerViolation
from zkc.wire import messages
from zkc.wire.codec import decode, encode

UNIONS: Final = [messages.Record, messages.RegMessage, messages.ChannelMessage, messages.AckMessage]
CLASSES: Final = [
    thing
    for _, thing in inspect.getmembers(messages, inspect.isclass)
    if issubclass(thing, msgspec.Struct) and thing.__module__ == messages.__name__ and thing is not messages.Message
]
SHORT: Final = 24
"""Most values are short: what is long differs by its length prefix alone, and that is drawn below."""
LONG: Final = st.sampled_from([31, 32, 33, 255, 256, 300, 8 * 1024])


def strategy_for(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, by the same bounds that the decoder checks."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        (meta,) = (a for a in arguments[1:] if isinstance(a, msgspec.Meta))
        return _bounded(arguments[0], meta)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in {Union, types.UnionType}:
        return st.one_of([strategy_for(argument) for argument in arguments])
    if inspect.isclass(kind) and issubclass(kind, msgspec.Struct):
        return values_of(kind)
    return {bool: st.booleans(), type(None): st.none()}[kind]


def _bounded(kind: Any, meta: msgspec.Meta) -> st.SearchStrategy[Any]:
    low, high = meta.min_length or 0, meta.max_length or 0
    if kind is int:
        assert meta.ge is not None
        assert meta.le is not None
        edges = [n for n in (0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32) if meta.ge <= n <= meta.le]
        return st.integers(int(meta.ge), int(meta.le)) | st.sampled_from([*edges, int(meta.ge), int(meta.le)])
    if kind is bytes:
        short = st.binary(min_size=low, max_size=max(low, min(high, SHORT)))
        return short if low == high else short | LONG.map(lambda n: b"\xa5" * min(n, high))
    if kind is str:
        return st.text(max_size=min(high, SHORT)) | LONG.map(lambda n: "\u00e9" * min(n, high))
    assert get_origin(kind) is list
    return st.lists(strategy_for(get_args(kind)[0]), min_size=low, max_size=min(high, 4))


def values_of(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{field: strategy_for(hints[field]) for field in kind.__struct_fields__})


def test_the_classes_are_found() -> None:
    assert len(CLASSES) > 60
    assert {messages.Req, messages.CardBody, messages.Receipt, messages.Request} <= set(CLASSES)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@settings(max_examples=12)
@given(data=st.data())
def test_a_message_decodes_to_what_was_encoded(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    goes_through(kind, data)


@pytest.mark.attack("C11", "C12")
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@settings(max_examples=12)
@given(data=st.data())
def test_what_decodes_re_encodes_to_the_same_bytes(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    """A sound message damaged in a few places: refused, or it is the one encoding of another message."""
    has_one_encoding(kind, data)


@pytest.mark.soak
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@settings(max_examples=500)
@given(data=st.data())
def test_many_more_of_each_message(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    goes_through(kind, data)
    has_one_encoding(kind, data)


def goes_through(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    value = data.draw(values_of(kind))
    encoded = encode(value)
    assert decode(encoded, kind) == value
    assert encode(decode(encoded, kind)) == encoded


def has_one_encoding(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    damaged = bytearray(encode(data.draw(values_of(kind))))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1) if damaged else st.just(0))
        damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        value = decode(bytes(damaged), kind)
    except PeerViolation as error:
        assert error.detail == "malformed"
    else:
        assert encode(value) == damaged


@pytest.mark.attack("C11", "C12")
@given(data=st.binary(max_size=120), kind=st.sampled_from([*UNIONS, *CLASSES]))
def test_any_bytes_are_refused_or_are_one_message(data: bytes, kind: Any) -> None:
    try:
        value = decode(data, kind)
    except PeerViolation as error:
        assert error.detail == "malformed"
    else:
        assert encode(value) == data


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_message_is_frozen_array_like_and_closed(kind: type[msgspec.Struct]) -> None:
    config = kind.__struct_config__
    assert config.frozen
    assert config.array_like
    assert config.forbid_unknown_fields
    assert not kind.__struct_defaults__, "a default would be a second encoding"


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_field_is_bounded(kind: type[msgspec.Struct]) -> None:
    """A peer decides no length: bytes, text, lists and numbers all have their bounds in the grammar."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in kind.__struct_fields__:
        for name in re.findall(r"\b(bytes|str|int|list|dict|Any|float)\b", str(_unbounded(hints[field]))):
            pytest.fail(f"{kind.__name__}.{field} has an unbounded {name}")


def _unbounded(kind: Any) -> list[Any]:
    """The parts of a type that carry no bound."""
    if get_origin(kind) is Annotated:
        inner = get_args(kind)[0]
        meta = get_args(kind)[1]
        bounded = meta.le is not None or meta.max_length is not None
        rest = _unbounded(get_args(inner)[0]) if get_origin(inner) is list else []
        return rest if bounded else [inner]
    if get_origin(kind) is Literal or (inspect.isclass(kind) and issubclass(kind, msgspec.Struct)):
        return []
    if get_origin(kind) in {Union, types.UnionType}:
        return [part for argument in get_args(kind) for part in _unbounded(argument)]
    return [] if kind in {bool, type(None)} else [kind]
