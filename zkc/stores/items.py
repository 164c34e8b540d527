"""What the inbox knows of an item, and the rows of its index that it is kept in."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from zkc.errors import UsageError
from zkc.ids import KeySource
from zkc.stores.localdb import LocalDb, Schema

ItemKind = Literal["file", "stream", "message", "tree"]
ItemState = Literal["ready", "partial"]

ID_BYTES: Final = 8
_ID: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)


@dataclass(frozen=True, slots=True)
class NewItem:
    """What is known of an item before its first byte. All text is the peer's, as it came."""

    sender: str
    app: str
    """The registration that it came to, where that is an application; else empty."""
    name: str
    note: str
    kind: ItemKind
    key_source: KeySource
    xid: bytes
    mode: int = 0o600
    """Permissions as sent."""
    mtime_ns: int = 0
    """Time of change as sent, nanoseconds since 1970; 0: not told."""
    asked_by: str = ""
    asker: bytes = b""
    """By whose request it was sent, as its sender says: name and fingerprint; empty: nobody's."""
    announced: int = -1
    """Bytes of the whole, as its sender says; -1: of a pipe."""


@dataclass(frozen=True, slots=True)
class Item:
    """An item of the inbox. ``sender``, ``name`` and ``note`` are the peer's text: escape them before printing.

    Of one whose ``state`` is ``partial`` the sender stopped, or still sends: ``size`` is what came so far, ``digest``
    is empty, ``received`` is when it began.
    """

    id: str
    sender: str
    sender_fp: bytes
    app: str
    name: str
    note: str
    size: int
    digest: bytes
    """BLAKE3 of the whole payload."""
    key_source: KeySource
    kind: ItemKind
    received: float
    """Seconds since 1970."""
    xid: bytes
    tid: bytes
    mode: int
    mtime_ns: int
    path: Path
    state: ItemState = "ready"
    asked_by: str = ""
    asker: bytes = b""
    announced: int = -1
    """As of `NewItem`."""

    @property
    def transfer(self) -> str:
        return self.xid.hex()


_SQL_TYPES: Final[dict[str, tuple[type, ...]]] = {"int": (int,), "float": (int, float), "bytes": (bytes,)}
_TYPES: Final = {
    item.name: _SQL_TYPES.get(str(item.type), (str,))
    for item in fields(Item) if item.name not in {"path", "state"}
}
COLUMNS: Final = tuple(_TYPES)
values_of: Final = attrgetter(*COLUMNS)
"""What stands in them, of an `Item`."""
SELECT: Final = f"SELECT {', '.join(COLUMNS)} FROM items"  # noqa: S608 - names of ours
SELECT_PAGE: Final = (
    f"SELECT seq, {', '.join(COLUMNS)} FROM items WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608 - names of ours
)

NEW_COLUMNS: Final = tuple(item.name for item in fields(NewItem))
new_values_of: Final = attrgetter(*NEW_COLUMNS)
"""What stands in them, of a `NewItem`."""
PARTIAL_COLUMNS: Final = ("id", "sender_fp", "tid", *NEW_COLUMNS, "began")
_NOT_YET: Final = {"size": "0", "digest": "x''", "received": "began"}
SELECT_PARTIALS: Final = (
    f"SELECT {', '.join(_NOT_YET.get(name, name) for name in COLUMNS)} FROM partials"  # noqa: S608 - names of ours
)
"""The same columns."""

_SINCE_2: Final = {"asked_by": "''", "asker": "x''", "announced": "-1"}
"""Columns that version 1 did not have, and what stands in them where its programs still write."""


def _defined(columns: tuple[str, ...]) -> str:
    return ", ".join(f"{name} DEFAULT {_SINCE_2[name]}" if name in _SINCE_2 else name for name in columns)


_SEEN: Final = "CREATE TABLE seen (id PRIMARY KEY) WITHOUT ROWID"


def upgrade(connection: sqlite3.Connection) -> None:
    """An index of version 1 or 2: what is in it has been there for a while, and is not new."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for table in ("items", "partials") if version < 2 else ():
        for name, default in _SINCE_2.items():
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} DEFAULT {default}")
    connection.execute(_SEEN)
    connection.execute("INSERT INTO seen SELECT id FROM items")


SCHEMA: Final = Schema(
    what="the index of the inbox",
    application_id=0x7A6B6332,
    version=3,
    statements=(
        f"CREATE TABLE items (seq INTEGER PRIMARY KEY AUTOINCREMENT, {_defined(COLUMNS)}, UNIQUE (id))",
        "CREATE TABLE done (sender_fp, tid, id, receipt, finished, PRIMARY KEY (sender_fp, tid)) WITHOUT ROWID",
        "CREATE INDEX done_finished ON done (finished)",
        f"CREATE TABLE partials (seq INTEGER PRIMARY KEY AUTOINCREMENT, {_defined(PARTIAL_COLUMNS)}, UNIQUE (id))",
        "CREATE UNIQUE INDEX partials_delivery ON partials (sender_fp, tid)",
        _SEEN,
    ),
)


def is_id(text: str) -> bool:
    """Whether an item may be called so: then it is the name of a file that we made."""
    return _ID.fullmatch(text) is not None


T = TypeVar("T")


def the_one(found: Sequence[T], prefix: str, missing: str) -> T:
    """What a person meant by the beginning of an id; ``missing`` says that nothing has it. `UsageError`:
    ``unknown-id``, ``ambiguous-id``."""
    if not found:
        raise UsageError(missing.format(repr(prefix[:40])), detail="unknown-id", hint="see zkc inbox")
    if len(found) > 1:
        raise UsageError(
            f"{prefix!r} is the beginning of several ids", detail="ambiguous-id", hint="give more of its digits"
        )
    return found[0]


def checked_id(db: LocalDb, value: Any) -> str:
    """An id of the index before it names a file: what a damaged index says reaches no other file (attack K03)."""
    if isinstance(value, str) and is_id(value):
        return value
    raise db.damaged()


def item_of(db: LocalDb, row: tuple[Any, ...], folder: Path) -> Item:
    """The item of a row of `SELECT` or `SELECT_PARTIALS`, with its file in ``folder``. `LocalIOError` (``damaged``)."""
    values: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
    if not all(isinstance(values[name], wanted) for name, wanted in _TYPES.items()):
        raise db.damaged()
    return Item(**values, path=folder / checked_id(db, values["id"]))
