"""A client's keys: its registrations, and what it knows of others' keys (pins), in one file, ``keys.db``.

What is read is what was written, or it is refused (`zkc.stores.sealed_tables`, attack K03): without the seal of the
pins a peer whose row has vanished would be a first contact again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from zkc.env import Entropy, SystemEntropy
from zkc.errors import PeerViolation, UsageError
from zkc.stores import keylock
from zkc.stores.home import Home
from zkc.stores.key_rows import (
    COLUMNS,
    KnownLog,
    Pin,
    Pins,
    Registration,
    Renewed,
    as_log,
    as_pin,
    as_registration,
    as_renewed,
    log_bytes,
    pin_row,
    registration_row,
    renewed_row,
)
from zkc.stores.keylock import is_sealed
from zkc.stores.sealed_tables import Row, SealedTables, Table

if TYPE_CHECKING:
    from zkc.crypto.primitives import Secret

_OWN_CARDS_MAX: Final = 256
"""Former cards of a registration that are told from another's in the key log; it is read to its end every hour."""


class KeyStore:
    """The open key store of a client's home. Every change is durable when its method returns.

    Each method raises `LocalIOError`: ``damaged`` where the file is not what was written, ``no-space``, ``busy``,
    ``io``.
    """

    def __init__(
        self, tables: SealedTables, passphrase: Callable[[], bytes] | None, entropy: Entropy, master: Secret | None
    ) -> None:
        self._tables = tables
        self._passphrase = passphrase
        self._entropy = entropy
        self.master = master
        """What the passphrase has unlocked."""
        self._pins: Pins | None = None
        """As they were last verified or written."""

    @property
    def folder(self) -> Path:
        """That of the home's data."""
        return self._tables.path.parent

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
        tables = SealedTables.open(
            home.keys_db, what="the key store", application_id=0x7A6B6331, version=3, columns=COLUMNS,
            kept=frozenset({"pins"}), entropy=entropy,
        )
        return cls(tables, passphrase, entropy or SystemEntropy(), master)

    def close(self) -> None:
        """Harmless when repeated."""
        self._tables.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def version(self) -> int:
        """A number that grows whenever this or another process has changed the store."""
        return self._tables.version()

    # --- the passphrase ---------------------------------------------------------------------------------------------

    def unlock(self) -> None:
        """From here on private keys are read as they are. Asks for the passphrase once, where there is one.

        `LocalIOError` (``locked``): a wrong one, which is always told alike, or none to be had.
        """
        lock = self._tables.rows("lock")
        if lock and self.master is None:
            self.master = keylock.unlocked(lock[0], self._passphrase)

    @property
    def has_passphrase(self) -> bool:
        return bool(self._tables.rows("lock"))

    def set_passphrase(self, passphrase: bytes | None) -> None:
        """``passphrase`` locks the private keys from now on, in one step; None: nothing does.

        Whoever has the store open and unlocked goes on with another passphrase, and not where the first one comes.
        Errors: as `unlock`, which comes first.
        """
        old = self._sealer()
        new, master = (None, None) if passphrase is None else keylock.made(passphrase, old, self._entropy)
        names = [name for name, columns in COLUMNS.items() if keylock.PRIVATE.intersection(columns)]
        with self._tables.changing("lock", *names) as (lock, *tables):
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
            return keylock.opened(COLUMNS[table], row, master)
        except PeerViolation:
            raise self._tables.damaged() from None

    def _closed(self, table: str, row: Row, master: Secret | None) -> Row:
        return keylock.closed(COLUMNS[table], row, master, self._entropy)

    # --- registrations ----------------------------------------------------------------------------------------------

    def save_pending(self, invite_id: bytes, blob: bytes) -> None:
        """Keep what a registration under way needs to be taken up again (before R5 leaves)."""
        master = self._sealer()
        with self._tables.changing("pending") as (table,):
            table.delete(invite_id)
            table.insert(self._closed("pending", (invite_id, blob), master))

    def pending(self, invite_id: bytes) -> bytes | None:
        """What `save_pending` kept for this invitation."""
        for row in self._tables.rows("pending"):
            if row[0] == invite_id:
                if is_sealed(row[1]):
                    self.unlock()
                blob = self._opened("pending", row, self.master)[1]
                return blob if isinstance(blob, bytes) else None
        return None

    def drop_pending(self, invite_id: bytes) -> None:
        """Give a registration up for good."""
        with self._tables.changing("pending") as (table,):
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
        with self._tables.changing(*tables) as (registered, pending, aside, renewed):
            if put_aside is not None:
                for row in registered.rows():
                    if registration.owner is None or row[0] == registration.name:
                        aside.insert((*row, put_aside))
                        registered.delete(row[0])
                        renewed.delete(row[0])
            for row in registered.rows():
                known = as_registration(row)
                second = known.name != registration.name and known.owner is None and registration.owner is None
                if second or (known.name == registration.name and known.uid != registration.uid):
                    raise UsageError(
                        f"this home is registered as {known.name} already", detail="already-registered",
                        hint="use --force to put that registration aside",
                    )
            registered.delete(registration.name)
            registered.insert(self._closed("registrations", registration_row(registration), master))
            if registration.owner is None:
                for key, _ in list(pending.rows()):  # tries with other invitations are of no use any more
                    pending.delete(key)
            else:
                pending.delete(invite_id)

    def update_coordinator(self, wanted: Registration) -> None:
        """What ``wanted`` says of its coordinator's card and fingerprint; the rest stays."""
        columns = [COLUMNS["registrations"].index(each) for each in ("coordinator_card", "coordinator_fingerprint")]
        new = registration_row(wanted)
        with self._tables.changing("registrations") as (table,):
            for row in table.rows():
                if as_registration(row).uid == wanted.uid:
                    table.delete(row[0])
                    table.insert([new[i] if i in columns else value for i, value in enumerate(row)])

    def registrations(self) -> list[Registration]:
        """All of this home, the owner before its applications."""
        rows = [self._opened("registrations", row, self.master) for row in self._tables.rows("registrations")]
        return sorted(map(as_registration, rows), key=lambda found: found.name)

    def registration(self, name: str) -> Registration | None:
        return next((found for found in self.registrations() if found.name == name), None)

    def remove(self, name: str) -> bool:
        """End a registration here (`leave`): its keys leave the file, and those of its applications that were put
        aside. False: there is none."""
        with self._tables.changing("registrations", "aside", "renewed") as (table, aside, renewed):
            renewed.delete(name)
            for row in aside.rows():
                if as_registration(row).owner == name:
                    aside.delete(row[0])
            return table.delete(name)

    def revoked(self, registration: Registration, now: float) -> bool:
        """The coordinator has ended this one: it goes out of use, and is kept in the file. False: another, or none, has
        its name by now. ``now`` in seconds since 1970."""
        with self._tables.changing("registrations", "aside", "renewed") as (registered, aside, renewed):
            row = next((row for row in registered.rows() if as_registration(row).uid == registration.uid), None)
            if row is None:
                return False
            aside.insert((*row, now))
            renewed.delete(row[0])
            return registered.delete(row[0])

    def was_revoked(self, name: str) -> bool:
        """Whether the last that was heard of the application ``name`` of this home's present owner is `revoked`."""
        when = COLUMNS["aside"].index("put_aside")
        rows = [(as_registration(row), float(row[when] or 0)) for row in self._tables.rows("aside")]
        last = max((at for known, at in rows if known.name == name), default=0.0)
        # `join --force` puts an owner aside together with its applications.
        owner = max((at for known, at in rows if known.owner is None), default=0.0)
        return self.registration(name) is None and last > owner

    # --- new keys for a registration --------------------------------------------------------------------------------

    def renewed(self, name: str) -> Renewed | None:
        """The keys that are to come for ``name``, of which the coordinator may have heard."""
        rows = (self._opened("renewed", row, self.master) for row in self._tables.rows("renewed"))
        return next((found for row in rows if (found := as_renewed(row)).name == name), None)

    def begin_renewal(self, wanted: Renewed) -> Renewed:
        """Keep ``wanted`` before anybody hears of it; or what was kept before for the same card, by any process."""
        master = self._sealer()
        with self._tables.changing("renewed") as (table,):
            for row in table.rows():
                known = as_renewed(self._opened("renewed", row, master))
                if known.name == wanted.name and known.replaces == wanted.replaces:
                    return known
            table.delete(wanted.name)
            table.insert(self._closed("renewed", renewed_row(wanted), master))
        return wanted

    def complete_renewal(self, renewed: Renewed, registration: Registration, former: bytes) -> None:
        """The coordinator has them: ``registration`` takes the place of the one that had the former keys, which leave
        the file, in one step; of its card ``former`` is kept, H(card). Nothing, where another process was first."""
        master = self._sealer()
        with self._tables.changing("registrations", "renewed", "own_cards") as (registered, table, cards):
            for known in map(as_registration, registered.rows()):
                if known.name == renewed.name and known.uid == renewed.uid and known.card == renewed.replaces:
                    registered.delete(known.name)
                    registered.insert(self._closed("registrations", registration_row(registration), master))
                    past = [row for row in cards.rows() if row[0] == known.uid][1 - _OWN_CARDS_MAX :]
                    cards.delete(known.uid)
                    for row in (*past, (known.uid, former)):
                        cards.insert(row)
            self._drop_renewed(table, renewed)

    def own_cards(self, uid: bytes) -> tuple[list[bytes], list[bytes]]:
        """Of the registration ``uid``: H(card) of those that it had lately; cards that it has or may come to have."""
        past, present, coming = self._tables.rows_of("own_cards", "registrations", "renewed")
        known: list[Registration | Renewed] = [*map(as_registration, present), *map(as_renewed, coming)]
        hashes = [hashed for owner, hashed in past if owner == uid and isinstance(hashed, bytes)]
        return hashes, [each.card for each in known if each.uid == uid]

    def drop_renewal(self, renewed: Renewed) -> None:
        """The coordinator never takes them."""
        with self._tables.changing("renewed") as (table,):
            self._drop_renewed(table, renewed)

    @staticmethod
    def _drop_renewed(table: Table, renewed: Renewed) -> None:
        if any(as_renewed(row).card == renewed.card for row in table.rows()):
            table.delete(renewed.name)

    # --- pins -------------------------------------------------------------------------------------------------------

    def pinned(self) -> Pins:
        """The pins as they stand now. As long as nobody changes one they are verified once: a daemon asks for each
        transfer, and there may be thousands."""
        loaded = self._tables.load("pins")
        if self._pins is None or self._pins.loaded is not loaded:
            self._pins = Pins(loaded)
        return self._pins

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
        with self._tables.changing("pins", "former") as (table, former):
            known = next((as_pin(row) for row in table.rows() if row[0] == name), None)
            wanted = change(known)
            if wanted != known:
                table.delete(name)
                if wanted is not None:
                    table.insert(pin_row(wanted))
                if known is None or wanted is None or wanted.fingerprint != known.fingerprint:
                    former.delete(name)  # another beginning
            return wanted

    def succeed(self, pin: Pin, pinned: bytes, behind: Sequence[bytes], now: float) -> bool:
        """``pin`` in the place of the one of its name, if that still has the fingerprint ``pinned``; ``behind``: the
        fingerprints that it has left. Whether it is so."""
        with self._tables.changing("pins", "former") as (table, former):
            if not any(row[0] == pin.name and as_pin(row).fingerprint == pinned for row in table.rows()):
                return False
            table.delete(pin.name)
            table.insert(pin_row(pin))
            for fingerprint in behind:
                former.insert((pin.name, fingerprint, now))
            return True

    def former(self, name: str) -> tuple[bytes, ...]:
        """The fingerprints that ``name`` was pinned under, before successions led to that of today."""
        rows = self._tables.rows("former")
        return tuple(print_ for found, print_, _ in rows if found == name and isinstance(print_, bytes))

    def forget(self, name: str) -> bool:
        """Remove the pin of ``name``. False: there is none."""
        with self._tables.changing("pins", "former") as (table, former):
            former.delete(name)
            return table.delete(name)

    # --- the coordinator's key log ----------------------------------------------------------------------------------

    def known_log(self, uid: bytes) -> KnownLog | None:
        """How far the registration ``uid`` has followed it; None: not yet."""
        stored = self._tables.value("log", uid)
        return None if stored is None else as_log(stored)

    def keep_log(self, uid: bytes, known: KnownLog) -> None:
        """It was followed so far. Another process may have come further: it never goes back (attack K05)."""
        def further(before: bytes | None) -> bytes | None:
            return log_bytes(known) if before is None or as_log(before).size < known.size else None

        self._tables.change_value("log", uid, further)
