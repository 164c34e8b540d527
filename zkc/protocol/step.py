"""The one dispatcher: what is legal stands in a machine's table, and everything else is `unexpected`.

A machine is a module with frozen state types, ``create_x`` and ``consume_x`` functions and a table
``(state, message) -> consume_x``. A step verifies into locals and returns the next state and the effects; the shell
performs the effects in their order (store first, send second) and keeps the state.

The types of the hot path's machines are Structs: thirty more dataclasses would cost each command 9 ms of its start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from msgspec import Struct

from zkc.crypto.primitives import Secret
from zkc.crypto.suites import KemPrivateKey
from zkc.errors import PeerViolation


class Step(Struct, frozen=True):
    """The next state, and what to do now, in this order."""

    state: Any
    effects: tuple[Any, ...] = ()


class Send(Struct, frozen=True):
    """Effect: this message goes to the peer of the conversation."""

    message: Any


Table = Mapping[tuple[type, type], Callable[[Any, Any, Any], Step]]


def step(table: Table, context: Any, state: Any, message: Any) -> Step:
    """The step that ``table`` allows for ``message`` in ``state``; `PeerViolation` (``unexpected``) for any other."""
    consume = table.get((type(state), type(message)))
    if consume is None:
        raise PeerViolation("unexpected", f"{type(message).__name__} in {type(state).__name__}")
    return consume(context, state, message)


def erase(state: Any) -> None:
    """Wipes every temporary key and secret that a state holds, at any depth (Figure 1: both sides destroy them)."""
    names = state.__struct_fields__ if isinstance(state, Struct) else [field.name for field in fields(state)]
    for value in (getattr(state, name) for name in names):
        if isinstance(value, Secret | KemPrivateKey):
            value.wipe()
        elif isinstance(value, Struct) or is_dataclass(value):
            erase(value)
