"""The audit log's tables: entries of `zkc.crypto.audit` as rows with a MAC, in a key database's transactions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from sqlalchemy import Connection, column, delete, func, insert, select, table

from zkc.crypto.audit import GENESIS, Entry, Note, broken, entry_after
from zkc.stores.rowmac import mac, verifies

_FIELDS: Final = ("seq", "at", "event", "sender", "recipient", "code", "detail", "rule", "times", "previous", "hash")
_START_FIELDS: Final = ("seq", "hash")
ENTRIES: Final = table("audit", *(column(each) for each in _FIELDS), column("mac"))
START: Final = table("audit_start", *(column(each) for each in _START_FIELDS), column("mac"))
"""One row, once entries were removed: number and hash of the last one that was."""
_LAST: Final = select(ENTRIES.c.seq, ENTRIES.c.hash).order_by(ENTRIES.c.seq.desc()).limit(1)
_INSERT: Final = insert(ENTRIES)
"""Made once: what SQLAlchemy has found out about a statement it keeps in that."""


def append(connection: Connection, key: bytes, notes: Iterable[Note]) -> None:
    """``notes`` as the next entries, in their order.

    What they follow is not verified: a log that was damaged goes on, and `zkc.crypto.audit.verify` says where it was.
    """
    last = connection.execute(_LAST).one_or_none() or connection.execute(select(*START.c)).one_or_none()
    seq, previous = (0, GENESIS) if last is None else (last.seq, last.hash)
    rows = []
    for note in notes:
        entry = entry_after(seq, previous, note)
        seq, previous = entry.seq, entry.hash
        values = _values(entry)
        rows.append({**values, "mac": mac(key, ENTRIES.name, values.values())})
    if rows:
        connection.execute(_INSERT, rows)


def start(connection: Connection, key: bytes) -> tuple[int, bytes]:
    """Number and hash of what the oldest entry follows. `IdentityError` where they are not what was stored."""
    row = connection.execute(select(*START.c)).mappings().one_or_none()
    if row is None:
        return 0, GENESIS
    if not verifies(key, START.name, [row[each] for each in _START_FIELDS], row["mac"]):
        raise broken(1)
    return row["seq"], row["hash"]


def newest(connection: Connection) -> int:
    """The number of the last entry; 0: there was none yet."""
    return int(connection.execute(select(func.max(ENTRIES.c.seq))).scalar_one() or 0)


def entries(connection: Connection, key: bytes, after: int = 0, limit: int | None = None) -> Iterator[Entry]:
    """The entries behind the number ``after``. `IdentityError` at the first that is not what was stored."""
    query = select(*ENTRIES.c).where(ENTRIES.c.seq > after).order_by(ENTRIES.c.seq).limit(limit)
    for row in connection.execute(query).mappings():
        yield _to_entry(row, key)


def prune(connection: Connection, key: bytes, before: int, at_most: int, step: int) -> int:
    """Remove entries of before ``before`` (milliseconds since 1970) from the oldest on, and all but the newest
    ``at_most``, but no more than ``step``; how many. The newest one stays. Where the chain begins now is written
    down."""
    # Each by itself is found without a look at the others.
    oldest, newest = (connection.execute(select(end(ENTRIES.c.seq))).scalar_one() for end in (func.min, func.max))
    if oldest is None:
        return 0
    at_once = select(ENTRIES.c.seq).where(ENTRIES.c.seq < oldest + step, ENTRIES.c.at >= before)
    young = connection.execute(at_once.order_by(ENTRIES.c.seq).limit(1)).scalar_one_or_none()
    first = max(oldest + step if young is None else young, newest - at_most + 1)
    first = min(first, oldest + step, newest)
    query = select(ENTRIES.c.seq, ENTRIES.c.hash).where(ENTRIES.c.seq < first).order_by(ENTRIES.c.seq.desc()).limit(1)
    gone = connection.execute(query).one_or_none()
    if gone is None:
        return 0
    values = {"seq": gone.seq, "hash": gone.hash}
    connection.execute(delete(START))
    connection.execute(insert(START).values(**values, mac=mac(key, START.name, values.values())))
    return connection.execute(delete(ENTRIES).where(ENTRIES.c.seq < first)).rowcount


def _values(entry: Entry) -> dict[str, Any]:
    note = {each: getattr(entry.note, each) for each in Note.__struct_fields__}
    values = {**note, "seq": entry.seq, "previous": entry.previous, "hash": entry.hash}
    return {each: values[each] for each in _FIELDS}


def _to_entry(row: Mapping[Any, Any], key: bytes) -> Entry:
    if not verifies(key, ENTRIES.name, [row[each] for each in _FIELDS], row["mac"]):
        raise broken(row["seq"])
    note = Note(**{each: row[each] for each in Note.__struct_fields__})
    return Entry(row["seq"], note, row["previous"], row["hash"])
