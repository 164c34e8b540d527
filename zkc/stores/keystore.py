"""A client's keys: its registrations, and what it knows of others' keys (pins).

One file, ``keys.db``. What is read is what was written, or it is refused (attack K03): each row carries a MAC
(`rowmac`), and each table a seal over the MACs of all its rows, so that damage neither changes a key nor hides a pin;
without the seal a peer whose row has vanished would be a first contact again. The MAC's key lies in the file:
this is against damage, not against somebody who can write the file.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from zkc.env import Entropy, SystemEntropy
from zkc.errors import PeerViolation, UsageError
from zkc.ids import Kind
from zkc.stores import keylock
from zkc.stores.home import Home
from zkc.stores.keylock import LOCK, Row, is_sealed
from zkc.stores.localdb import LocalDb, Schema
from zkc.stores.rowmac import Field, mac, verifies

if TYPE_CHECKING:
    from zkc.crypto.primitives import Secret


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


_MAC_BYTES: Final = 32
_LOG_ROW: Final = struct.Struct(">QHHH")
"""A `KnownLog` as it is stored: its size, the lengths of hashes, head and ``foreign``, which follow; then a MAC."""
_REGISTRATION: Final = tuple(item.name for item in fields(Registration))
_PIN: Final = tuple(item.name for item in fields(Pin))
_RENEWED: Final = tuple(item.name for item in fields(Renewed))
_OWN_CARDS_MAX: Final = 256
"""Former cards of a registration that are told from another's in the key log; it is read to its end every hour."""
_SEALED: Final[dict[str, tuple[str, ...]]] = {
    "registrations": _REGISTRATION,
    "renewed": _RENEWED,
    "aside": (*_REGISTRATION, "put_aside"),
    "pending": ("invite_id", "blob"),
    "pins": _PIN,
    "former": ("name", "fingerprint", "at"),
    "own_cards": ("uid", "card_hash"),
    "lock": LOCK,
}
"""Tables that are read as a whole. They have no index: a damaged one would hide a row without a word."""

_SCHEMA: Final = Schema(
    what="the key store",
    application_id=0x7A6B6331,
    version=2,
    statements=(
        "CREATE TABLE meta (name, value)",
        *(f"CREATE TABLE {table} ({', '.join(columns)}, mac BLOB NOT NULL)" for table, columns in _SEALED.items()),
    ),
)


class KeyStore:
    """The open key store of a client's home. Every change is durable when its method returns.

    Each method raises `LocalIOError`: ``damaged`` where the file is not what was written, ``no-space``, ``busy``,
    ``io``.
    """

    def __init__(
        self, db: LocalDb, mac_key: bytes, passphrase: Callable[[], bytes] | None, entropy: Entropy,
        master: Secret | None,
    ) -> None:
        self._db = db
        self._key = mac_key
        self._passphrase = passphrase
        self._entropy = entropy
        self.master = master
        """What the passphrase has unlocked."""
        self._pins: Pins | None = None
        """As they were last verified or written."""

    @property
    def folder(self) -> Path:
        """That of the home's data."""
        return self._db.path.parent

    @classmethod
    def open(
        cls, home: Home, entropy: Entropy | None = None, *, passphrase: Callable[[], bytes] | None = None,
        master: Secret | None = None,
    ) -> Self:
        """The key store of ``home``, made where there is none. ``entropy`` makes the MAC key of a new one,
        ``passphrase`` is asked by `unlock`, but where ``master`` is that of another opening.

        Errors: `LocalIOError`, with ``permission`` and the command that mends it where others could read or write the
        file (attack K01).
        """
        def fill(connection: sqlite3.Connection) -> None:
            key = (entropy or SystemEntropy()).bytes(32)
            connection.execute("INSERT INTO meta VALUES ('mac-key', ?)", (key + _key_check(key),))
            for table in _SEALED:
                connection.execute("INSERT INTO meta VALUES (?, ?)", (f"seal-{table}", _seal(key, table, ())))

        def upgrade(connection: sqlite3.Connection) -> None:
            """Version 2 has more tables."""
            have = connection.execute("SELECT name FROM sqlite_master").fetchall()
            if (key := _mac_key(connection)) is None:
                return  # told below
            for table, made in zip(_SEALED, _SCHEMA.statements[1:], strict=True):
                if (table,) not in have:
                    connection.execute(made)
                    connection.execute("INSERT INTO meta VALUES (?, ?)", (f"seal-{table}", _seal(key, table, ())))

        db = LocalDb.open(home.keys_db, _SCHEMA, fill, upgrade)
        try:
            with db.reading() as connection:
                key = _mac_key(connection)
            if key is None:
                raise db.damaged()
            return cls(db, key, passphrase, entropy or SystemEntropy(), master)
        except BaseException:
            db.close()
            raise

    def close(self) -> None:
        """Harmless when repeated."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def version(self) -> int:
        """A number that grows whenever this or another process has changed the store."""
        return self._db.version()

    # --- the passphrase ---------------------------------------------------------------------------------------------

    def unlock(self) -> None:
        """From here on private keys are read as they are. Asks for the passphrase once, where there is one.

        `LocalIOError` (``locked``): a wrong one, which is always told alike, or none to be had.
        """
        lock = self._rows("lock")
        if lock and self.master is None:
            self.master = keylock.unlocked(lock[0], self._passphrase)

    @property
    def has_passphrase(self) -> bool:
        return bool(self._rows("lock"))

    def set_passphrase(self, passphrase: bytes | None) -> None:
        """``passphrase`` locks the private keys from now on, in one step; None: nothing does.

        Whoever has the store open and unlocked goes on with another passphrase, and not where the first one comes.
        Errors: as `unlock`, which comes first.
        """
        old = self._sealer()
        new, master = (None, None) if passphrase is None else keylock.made(passphrase, old, self._entropy)
        names = [name for name, columns in _SEALED.items() if keylock.PRIVATE.intersection(columns)]
        with self._changing("lock", *names) as (lock, *tables):
            for row in lock.rows():
                lock.delete(row[0])
            if new is not None:
                lock.insert(new)
            for table in tables if master is not old else ():
                rows = [self._opened(table.name, row, old) for row in table.rows()]
                for row in rows:
                    table.delete(row[0])
                for row in rows:
                    table.insert(self._closed(table.name, row, master))
        self.master = master

    def _sealer(self) -> Secret | None:
        """By which new rows are sealed; asked for before a transaction."""
        self.unlock()
        return self.master if self.has_passphrase else None

    def _opened(self, table: str, row: Row, master: Secret | None) -> Row:
        try:
            return keylock.opened(_SEALED[table], row, master)
        except PeerViolation:
            raise self._db.damaged() from None

    def _closed(self, table: str, row: Row, master: Secret | None) -> Row:
        return keylock.closed(_SEALED[table], row, master, self._entropy)

    # --- registrations ----------------------------------------------------------------------------------------------

    def save_pending(self, invite_id: bytes, blob: bytes) -> None:
        """Keep what a registration under way needs to be taken up again (before R5 leaves)."""
        master = self._sealer()
        with self._changing("pending") as (table,):
            table.delete(invite_id)
            table.insert(self._closed("pending", (invite_id, blob), master))

    def pending(self, invite_id: bytes) -> bytes | None:
        """What `save_pending` kept for this invitation."""
        for row in self._rows("pending"):
            if row[0] == invite_id:
                if is_sealed(row[1]):
                    self.unlock()
                blob = self._opened("pending", row, self.master)[1]
                return blob if isinstance(blob, bytes) else None
        return None

    def drop_pending(self, invite_id: bytes) -> None:
        """Give a registration up for good."""
        with self._changing("pending") as (table,):
            table.delete(invite_id)

    def complete(
        self, registration: Registration, invite_id: bytes = b"", *, put_aside: float | None = None
    ) -> None:
        """R6 has come: the registration is there and its pending state is not, in one step. Harmless when repeated.

        ``put_aside`` (`join --force`): the time at which what this home was registered as goes out of use; it is kept
        in the file. All of it, but for an application only what had its name. Pins stay. Without it `UsageError`
        (``already-registered``) where the name is another's, or this home has another name of its own already.
        """
        tables, master = ("registrations", "pending", "aside", "renewed"), self._sealer()
        with self._changing(*tables) as (registered, pending, aside, renewed):
            if put_aside is not None:
                for row in registered.rows():
                    if registration.owner is None or row[0] == registration.name:
                        aside.insert((*row, put_aside))
                        registered.delete(row[0])
                        renewed.delete(row[0])
            for row in registered.rows():
                known = _registration(row)
                second = known.name != registration.name and known.owner is None and registration.owner is None
                if second or (known.name == registration.name and known.uid != registration.uid):
                    raise UsageError(
                        f"this home is registered as {known.name} already", detail="already-registered",
                        hint="use --force to put that registration aside",
                    )
            registered.delete(registration.name)
            registered.insert(self._closed("registrations", _registration_row(registration), master))
            if registration.owner is None:
                for key, _ in list(pending.rows()):  # tries with other invitations are of no use any more
                    pending.delete(key)
            else:
                pending.delete(invite_id)

    def update_coordinator(self, wanted: Registration) -> None:
        """What ``wanted`` says of its coordinator's card and fingerprint; the rest stays."""
        columns = [_REGISTRATION.index(each) for each in ("coordinator_card", "coordinator_fingerprint")]
        new = _registration_row(wanted)
        with self._changing("registrations") as (table,):
            for row in table.rows():
                if _registration(row).uid == wanted.uid:
                    table.delete(row[0])
                    table.insert([new[i] if i in columns else value for i, value in enumerate(row)])

    def registrations(self) -> list[Registration]:
        """All of this home, the owner before its applications."""
        rows = [self._opened("registrations", row, self.master) for row in self._rows("registrations")]
        return sorted(map(_registration, rows), key=lambda found: found.name)

    def registration(self, name: str) -> Registration | None:
        return next((found for found in self.registrations() if found.name == name), None)

    def remove(self, name: str) -> bool:
        """End a registration here (`leave`): its keys leave the file, and those of its applications that were put
        aside. False: there is none."""
        with self._changing("registrations", "aside", "renewed") as (table, aside, renewed):
            renewed.delete(name)
            for row in aside.rows():
                if _registration(row).owner == name:
                    aside.delete(row[0])
            return table.delete(name)

    def revoked(self, registration: Registration, now: float) -> bool:
        """The coordinator has ended this one: it goes out of use, and is kept in the file. False: another, or none, has
        its name by now. ``now`` in seconds since 1970."""
        with self._changing("registrations", "aside", "renewed") as (registered, aside, renewed):
            row = next((row for row in registered.rows() if _registration(row).uid == registration.uid), None)
            if row is None:
                return False
            aside.insert((*row, now))
            renewed.delete(row[0])
            return registered.delete(row[0])

    def was_revoked(self, name: str) -> bool:
        """Whether the last that was heard of the application ``name`` of this home's present owner is `revoked`."""
        when = _SEALED["aside"].index("put_aside")
        rows = [(_registration(row), float(row[when] or 0)) for row in self._rows("aside")]
        last = max((at for known, at in rows if known.name == name), default=0.0)
        # `join --force` puts an owner aside together with its applications.
        owner = max((at for known, at in rows if known.owner is None), default=0.0)
        return self.registration(name) is None and last > owner

    # --- new keys for a registration --------------------------------------------------------------------------------

    def renewed(self, name: str) -> Renewed | None:
        """The keys that are to come for ``name``, of which the coordinator may have heard."""
        rows = (self._opened("renewed", row, self.master) for row in self._rows("renewed"))
        return next((found for row in rows if (found := _renewed(row)).name == name), None)

    def begin_renewal(self, wanted: Renewed) -> Renewed:
        """Keep ``wanted`` before anybody hears of it; or what was kept before for the same card, by any process."""
        master = self._sealer()
        with self._changing("renewed") as (table,):
            for row in table.rows():
                known = _renewed(self._opened("renewed", row, master))
                if known.name == wanted.name and known.replaces == wanted.replaces:
                    return known
            table.delete(wanted.name)
            table.insert(self._closed("renewed", [getattr(wanted, column) for column in _RENEWED], master))
        return wanted

    def complete_renewal(self, renewed: Renewed, registration: Registration, former: bytes) -> None:
        """The coordinator has them: ``registration`` takes the place of the one that had the former keys, which leave
        the file, in one step; of its card ``former`` is kept, H(card). Nothing, where another process was first."""
        master = self._sealer()
        with self._changing("registrations", "renewed", "own_cards") as (registered, table, cards):
            for known in map(_registration, registered.rows()):
                if known.name == renewed.name and known.uid == renewed.uid and known.card == renewed.replaces:
                    registered.delete(known.name)
                    registered.insert(self._closed("registrations", _registration_row(registration), master))
                    past = [row for row in cards.rows() if row[0] == known.uid][1 - _OWN_CARDS_MAX :]
                    cards.delete(known.uid)
                    for row in (*past, (known.uid, former)):
                        cards.insert(row)
            self._drop_renewed(table, renewed)

    def own_cards(self, uid: bytes) -> tuple[list[bytes], list[bytes]]:
        """Of the registration ``uid``: H(card) of those that it had lately; cards that it has or may come to have."""
        with self._db.reading() as connection:
            past, present, coming = (
                [row for row, _ in self._load(connection, table)] for table in ("own_cards", "registrations", "renewed")
            )
        known: list[Registration | Renewed] = [*map(_registration, present), *map(_renewed, coming)]
        hashes = [hashed for owner, hashed in past if owner == uid and isinstance(hashed, bytes)]
        return hashes, [each.card for each in known if each.uid == uid]

    def drop_renewal(self, renewed: Renewed) -> None:
        """The coordinator never takes them."""
        with self._changing("renewed") as (table,):
            self._drop_renewed(table, renewed)

    @staticmethod
    def _drop_renewed(table: _Table, renewed: Renewed) -> None:
        if any(_renewed(row).card == renewed.card for row in table.rows()):
            table.delete(renewed.name)

    # --- pins -------------------------------------------------------------------------------------------------------

    def pinned(self) -> Pins:
        """The pins as they stand now. As long as nobody changes one they are verified once: a daemon asks for each
        transfer, and there may be thousands."""
        with self._db.reading() as connection:
            return self._load_pins(connection)

    def pin(self, name: str) -> Pin | None:
        return self.pinned().get(name)

    def pins(self) -> list[Pin]:
        """All, by name."""
        return self.pinned().all()

    def update_pin(self, name: str, change: Callable[[Pin | None], Pin | None]) -> Pin | None:
        """Set the pin of ``name`` to what ``change`` makes of the present one; the result (None: forgotten).

        One step: no other process's alarm or verification is lost in between. What ``change`` raises changes nothing;
        it may be asked twice. Where it changes nothing this waits for no other writer.
        """
        known = self.pin(name)
        if change(known) == known:
            return known
        with self._changing("pins", "former") as (table, former):
            known = next((_pin(row) for row in table.rows() if row[0] == name), None)
            wanted = change(known)
            if wanted != known:
                table.delete(name)
                if wanted is not None:
                    table.insert(_pin_row(wanted))
                if known is None or wanted is None or wanted.fingerprint != known.fingerprint:
                    former.delete(name)  # another beginning
            return wanted

    def succeed(self, pin: Pin, pinned: bytes, behind: Sequence[bytes], now: float) -> bool:
        """``pin`` in the place of the one of its name, if that still has the fingerprint ``pinned``; ``behind``: the
        fingerprints that it has left. Whether it is so."""
        with self._changing("pins", "former") as (table, former):
            if not any(row[0] == pin.name and _pin(row).fingerprint == pinned for row in table.rows()):
                return False
            table.delete(pin.name)
            table.insert(_pin_row(pin))
            for fingerprint in behind:
                former.insert((pin.name, fingerprint, now))
            return True

    def former(self, name: str) -> tuple[bytes, ...]:
        """The fingerprints that ``name`` was pinned under, before successions led to that of today."""
        rows = self._rows("former")
        return tuple(print_ for found, print_, _ in rows if found == name and isinstance(print_, bytes))

    def forget(self, name: str) -> bool:
        """Remove the pin of ``name``. False: there is none."""
        with self._changing("pins", "former") as (table, former):
            former.delete(name)
            return table.delete(name)

    # --- the coordinator's key log ----------------------------------------------------------------------------------

    def known_log(self, uid: bytes) -> KnownLog | None:
        """How far the registration ``uid`` has followed it; None: not yet."""
        with self._db.reading() as connection:
            return self._known_log(connection, uid)

    def keep_log(self, uid: bytes, known: KnownLog) -> None:
        """It was followed so far. Another process may have come further: it never goes back (attack K05)."""
        parts = b"".join(known.frontier), known.head, known.foreign
        row = _LOG_ROW.pack(known.size, *map(len, parts)) + b"".join(parts)
        value = row + mac(self._key, "log", (uid, row))
        with self._db.writing() as connection:
            before = self._known_log(connection, uid)
            if before is None or before.size < known.size:
                connection.execute("DELETE FROM meta WHERE name = ?", (_log_name(uid),))
                connection.execute("INSERT INTO meta VALUES (?, ?)", (_log_name(uid), value))
        self._db.checkpoint()

    def _known_log(self, connection: sqlite3.Connection, uid: bytes) -> KnownLog | None:
        found = connection.execute("SELECT value FROM meta WHERE name = ?", (_log_name(uid),)).fetchall()
        if not found:
            return None
        value = found[0][0] if isinstance(found[0][0], bytes) else b""
        row, made = value[:-_MAC_BYTES], value[-_MAC_BYTES:]
        if not verifies(self._key, "log", (uid, row), made):
            raise self._db.damaged()
        size, *lengths = _LOG_ROW.unpack_from(row)
        parts, at = [], _LOG_ROW.size
        for length in lengths:
            parts.append(row[at : at + length])
            at += length
        hashes, head, foreign = parts
        return KnownLog(size, tuple(hashes[at : at + 32] for at in range(0, len(hashes), 32)), head, foreign)

    # --- sealed tables ----------------------------------------------------------------------------------------------

    def _rows(self, table: str) -> list[Row]:
        with self._db.reading() as connection:
            return [row for row, _ in self._load(connection, table)]

    def _load(self, connection: sqlite3.Connection, table: str) -> Sequence[_Stored]:
        if table == "pins":
            return self._load_pins(connection).stored
        return self._verified(connection, table, self._seal_of(connection, table))

    def _load_pins(self, connection: sqlite3.Connection) -> Pins:
        known, seal = self._pins, self._seal_of(connection, "pins")
        if known is None or known.seal != seal:
            known = self._pins = Pins(seal, self._verified(connection, "pins", seal))
        return known

    def _seal_of(self, connection: sqlite3.Connection, table: str) -> bytes:
        seals = connection.execute("SELECT value FROM meta WHERE name = ?", (f"seal-{table}",)).fetchall()
        if len(seals) != 1 or not isinstance(seals[0][0], bytes):
            raise self._db.damaged()
        return bytes(seals[0][0])

    def _verified(self, connection: sqlite3.Connection, table: str, seal: bytes) -> Sequence[_Stored]:
        columns = ", ".join(_SEALED[table])
        found = connection.execute(f"SELECT mac, {columns} FROM {table} ORDER BY rowid")  # noqa: S608 - names of ours
        stored: list[_Stored] = [(row, made) for made, *row in found]
        whole = all(verifies(self._key, table, row, made) for row, made in stored)
        if not whole or not _same(seal, _seal(self._key, table, (made for _, made in stored))):
            raise self._db.damaged()
        return stored

    @contextmanager
    def _changing(self, *names: str) -> Iterator[tuple[_Table, ...]]:
        """The tables ``names``, verified; what the block does to them is one durable step."""
        with self._db.writing() as connection:
            tables = tuple(_Table(name, self._load(connection, name)) for name in names)
            yield tables
            written = [self._apply(connection, table) for table in tables if table.gone or table.new]
        self._pins = next((pins for pins in written if pins is not None), self._pins)
        # What was committed leaves the log, whose damage SQLite takes for the log's end, without a word.
        self._db.checkpoint()

    def _apply(self, connection: sqlite3.Connection, table: _Table) -> Pins | None:
        """Write what is new of ``table``, and its seal; how the pins stand then, if it is theirs."""
        first, marks = _SEALED[table.name][0], ", ".join("?" * (len(_SEALED[table.name]) + 1))
        for value, count in table.gone:
            done = connection.execute(f"DELETE FROM {table.name} WHERE {first} = ?", (value,))  # noqa: S608 - ours
            if done.rowcount != count:
                raise self._db.damaged()
        new = [(row, mac(self._key, table.name, row)) for row in table.new]
        for row, made in new:
            connection.execute(f"INSERT INTO {table.name} VALUES ({marks})", (*row, made))  # noqa: S608 - ours
        stored = [*table.stored, *new]
        seal = _seal(self._key, table.name, (made for _, made in stored))
        done = connection.execute("UPDATE meta SET value = ? WHERE name = ?", (seal, f"seal-{table.name}"))
        if done.rowcount != 1:
            raise self._db.damaged()
        return Pins(seal, stored) if table.name == "pins" else None


_Stored = tuple[Row, bytes]
"""A row and its MAC."""


class Pins:
    """All pins at one moment, verified."""

    def __init__(self, seal: bytes, stored: Sequence[_Stored]) -> None:
        self.seal: Final = seal
        """Names what is in the table: the same seal, the same pins."""
        self.stored: Final = stored
        self._rows = {row[_PIN.index("name")]: row for row, _ in stored}
        self._names: dict[Field, list[str]] = {}
        for name, row in self._rows.items():
            self._names.setdefault(row[_PIN.index("fingerprint")], []).append(str(name))

    def get(self, name: str) -> Pin | None:
        row = self._rows.get(name)
        return None if row is None else _pin(row)

    def names_of(self, fingerprint: bytes) -> tuple[str, ...]:
        """Under which names this key is pinned."""
        return tuple(sorted(self._names.get(fingerprint, ())))

    def all(self) -> list[Pin]:
        """By name."""
        return sorted((_pin(row) for row in self._rows.values()), key=lambda found: found.name)


class _Table:
    """A sealed table inside a transaction: what stands there, what goes, what comes."""

    def __init__(self, name: str, stored: Sequence[_Stored]) -> None:
        self.name = name
        self.stored = stored
        self.gone: list[tuple[Field, int]] = []
        """First columns, and how many rows have each."""
        self.new: list[Row] = []

    def rows(self) -> list[Row]:
        return [row for row, _ in self.stored]

    def delete(self, first: Field) -> bool:
        """The rows whose first column is ``first``. Whether there was one."""
        kept = [stored for stored in self.stored if stored[0][0] != first]
        count = len(self.stored) - len(kept)
        if count:
            self.gone.append((first, count))
            self.stored = kept
        return count > 0

    def insert(self, row: Row) -> None:
        self.new.append(row)


def _log_name(uid: bytes) -> str:
    return f"log-{uid.hex()}"


def _seal(key: bytes, table: str, macs: Iterable[bytes]) -> bytes:
    return mac(key, f"seal {table}", sorted(macs))


def _key_check(key: bytes) -> bytes:
    return hashlib.sha256(b"zkc key store\0" + key).digest()


def _mac_key(connection: sqlite3.Connection) -> bytes | None:
    """None where it is damaged."""
    rows = connection.execute("SELECT value FROM meta WHERE name = 'mac-key'").fetchall()
    value = rows[0][0] if len(rows) == 1 else None
    if not isinstance(value, bytes) or len(value) != 64 or not _same(value[32:], _key_check(value[:32])):
        return None
    return value[:32]


def _same(stored: object, expected: bytes) -> bool:
    return isinstance(stored, bytes) and hmac.compare_digest(stored, expected)


# Rows have verified when these read them: their types are those that were written.


def _registration_row(value: Registration) -> Row:
    row = [getattr(value, column) for column in _REGISTRATION]
    row[_REGISTRATION.index("endpoints")] = "\n".join(value.endpoints)
    return row


def _registration(row: Row) -> Registration:
    values: dict[str, Any] = dict(zip(_REGISTRATION, row[: len(_REGISTRATION)], strict=True))
    values["endpoints"] = tuple(values["endpoints"].split("\n")) if values["endpoints"] else ()
    return Registration(**values)


def _renewed(row: Row) -> Renewed:
    values: dict[str, Any] = dict(zip(_RENEWED, row, strict=True))
    return Renewed(**values)


def _pin_row(value: Pin) -> Row:
    return [getattr(value, column) for column in _PIN]


def _pin(row: Row) -> Pin:
    values: dict[str, Any] = dict(zip(_PIN, row, strict=True))
    return Pin(**values)
