"""What a client's key store holds, as values, and each as the row of a table that it is.

Rows have verified when they are read here: their types are those that were written.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, fields
from typing import Any, Final

from zkc.ids import Kind
from zkc.stores.keylock import LOCK, is_sealed
from zkc.stores.rowmac import Field
from zkc.stores.sealed_tables import Loaded, Row


@dataclass(frozen=True, slots=True)
class Registration:
    """One name of this home at its coordinator, with everything that speaks for it."""

    name: str
    kind: Kind
    uid: bytes
    identity_private: bytes = field(repr=False)
    kem_private: bytes = field(repr=False)
    curve_secret: bytes = field(repr=False)
    card: bytes
    perm_server_public: bytes
    coordinator_card: bytes
    coordinator_fingerprint: bytes
    endpoints: tuple[str, ...]
    suite: str
    owner: str | None

    @property
    def is_locked(self) -> bool:
        """Whether its private keys are not what they are, but sealed: nobody has given the passphrase."""
        return is_sealed(self.identity_private)


@dataclass(frozen=True, slots=True)
class Renewed:
    """The next keys of a registration, from before the coordinator hears of them until it has said that it did."""

    name: str
    uid: bytes
    replaces: bytes
    """The card in whose place ``card`` comes."""
    card: bytes
    identity_private: bytes = field(repr=False)
    kem_private: bytes = field(repr=False)
    curve_secret: bytes = field(repr=False)
    succession: bytes = b""
    """Where the identity is a new one: the word of the present one for it."""


@dataclass(frozen=True, slots=True)
class Pin:
    """The key that a name has had so far. ``alarm``: the fingerprint seen instead of it, empty where none was."""

    name: str
    kind: Kind
    fingerprint: bytes
    card: bytes
    card_hash: bytes
    epoch: int
    first_seen: float
    last_seen: float
    verified: float | None = None
    """When a person compared the safety numbers; None: never. Seconds since 1970, like the other times."""
    alarm: bytes = b""


@dataclass(frozen=True, slots=True)
class KnownLog:
    """How far a registration has followed its coordinator's key log (`zkc.protocol.keylog.LogState`)."""

    size: int
    frontier: tuple[bytes, ...]
    head: bytes
    foreign: bytes


_REGISTRATION: Final = tuple(item.name for item in fields(Registration))
_PIN: Final = tuple(item.name for item in fields(Pin))
_RENEWED: Final = tuple(item.name for item in fields(Renewed))
_LOG: Final = struct.Struct(">QHHH")
"""A `KnownLog` as it is stored: its size, the lengths of hashes, head and ``foreign``, which follow."""
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "registrations": _REGISTRATION,
    "renewed": _RENEWED,
    "aside": (*_REGISTRATION, "put_aside"),
    "pending": ("invite_id", "blob"),
    "pins": _PIN,
    "former": ("name", "fingerprint", "at"),
    "own_cards": ("uid", "card_hash"),
    "lock": LOCK,
}
"""The tables, and what their columns are."""


class Pins:
    """All pins at one moment, verified."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded: Final = loaded
        self._rows = {row[_PIN.index("name")]: row for row, _ in loaded.stored}
        self._names: dict[Field, list[str]] = {}
        for name, row in self._rows.items():
            self._names.setdefault(row[_PIN.index("fingerprint")], []).append(str(name))

    def get(self, name: str) -> Pin | None:
        row = self._rows.get(name)
        return None if row is None else as_pin(row)

    def names_of(self, fingerprint: bytes) -> tuple[str, ...]:
        """Under which names this key is pinned."""
        return tuple(sorted(self._names.get(fingerprint, ())))

    def all(self) -> list[Pin]:
        """By name."""
        return sorted((as_pin(row) for row in self._rows.values()), key=lambda found: found.name)


def registration_row(value: Registration) -> Row:
    row = [getattr(value, column) for column in _REGISTRATION]
    row[_REGISTRATION.index("endpoints")] = "\n".join(value.endpoints)
    return row


def as_registration(row: Row) -> Registration:
    values: dict[str, Any] = dict(zip(_REGISTRATION, row[: len(_REGISTRATION)], strict=True))
    values["endpoints"] = tuple(values["endpoints"].split("\n")) if values["endpoints"] else ()
    return Registration(**values)


def as_renewed(row: Row) -> Renewed:
    values: dict[str, Any] = dict(zip(_RENEWED, row, strict=True))
    return Renewed(**values)


def pin_row(value: Pin) -> Row:
    return [getattr(value, column) for column in _PIN]


def as_pin(row: Row) -> Pin:
    values: dict[str, Any] = dict(zip(_PIN, row, strict=True))
    return Pin(**values)


def renewed_row(value: Renewed) -> Row:
    return [getattr(value, column) for column in _RENEWED]


def log_bytes(value: KnownLog) -> bytes:
    parts = b"".join(value.frontier), value.head, value.foreign
    return _LOG.pack(value.size, *map(len, parts)) + b"".join(parts)


def as_log(stored: bytes) -> KnownLog:
    size, *lengths = _LOG.unpack_from(stored)
    parts, at = [], _LOG.size
    for length in lengths:
        parts.append(stored[at : at + length])
        at += length
    hashes, head, foreign = parts
    return KnownLog(size, tuple(hashes[at : at + 32] for at in range(0, len(hashes), 32)), head, foreign)
