"""The coordinator's key database (Figure 3, 329): invitations, clients with keys and certificates, the log of both.

Each public method is one transaction and is durable when it returns. Several processes use a database at once (the
running coordinator, administration commands), each with a `KeyDb` of its own; `KeyDb.version` tells one of them that
another wrote.

Every row carries a MAC (`zkc.stores.rowmac`), so a value that is read is the value that was stored, or
`LocalIOError` (``damaged``) says that it is not (attack K03). Any method can raise `LocalIOError`: ``damaged``,
``no-space``, ``busy`` (another process held the database for as long as this one would wait), ``permission``, ``io``,
``unreachable`` (a server does not answer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Self, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    TableClause,
    column,
    delete,
    func,
    insert,
    select,
    table,
    true,
    update,
)

from zkc.constants import FORMER_KEYS_SECONDS, INVITATIONS_KEPT_SECONDS, SUCCESSIONS_KEPT_MAX
from zkc.crypto.audit import Entry, Note, verify
from zkc.crypto.heads import log_leaf
from zkc.crypto.merkle import Frontier, frontier_of, inclusion_path, leaf_hash, new_nodes
from zkc.errors import IdentityError, InternalError, LocalIOError, NotRegistered, PolicyRefused
from zkc.ids import Kind, owner_of
from zkc.stores import audit
from zkc.stores.backends import BUSY_SECONDS, Backend, open_backend, shown
from zkc.stores.rowmac import mac, verifies

T = TypeVar("T")
_PRUNED_MAX: Final = 1000
_COPIED_AT_ONCE: Final = 1000


class InviteUsed(NotRegistered):
    """Another card has used the invitation, or what was registered with it is revoked."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the invitation for {name} was used", detail="invite-used", hint="ask for a new invitation")


class InviteExpired(NotRegistered):
    """The invitation's time is over."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the invitation for {name} has expired", detail="expired", hint="ask for a new invitation")


class InviteUnknown(NotRegistered):
    """There is no such invitation (any more)."""

    def __init__(self) -> None:
        super().__init__("the invitation is unknown", detail="invite-unknown", hint="ask for a new invitation")


class NameTaken(NotRegistered):
    """A client that is registered, and not revoked, has the name."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the name {name} is taken", detail="name-taken", hint=f"revoke {name} first, or choose another name"
        )


class TooManyInvited(PolicyRefused):
    """The owner holds as many open invitations for its applications as one may."""

    def __init__(self, owner: str) -> None:
        super().__init__(f"{owner} holds too many open invitations", detail="limit", hint="let some of them expire")


class Outrun(IdentityError):
    """Another card has taken the place that this one would take."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} has another card by now", detail="epoch", hint="another copy of this registration renewed its keys"
        )


class CurveKeyTaken(IdentityError):
    """Somebody else connects with this CURVE key."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the CURVE key of {name} is another's", detail="bad-key", hint="run it again")


class TooManySuccessions(PolicyRefused):
    """The client has had as many identities as are kept."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} has had too many identities", detail="identities", hint="revoke it, and invite it anew"
        )


class OwnerGone(NotRegistered):
    """An application's owner is not registered (any more)."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the owner of {name} is not registered", detail="owner-gone", hint="register the owner first")


@dataclass(frozen=True, slots=True)
class InvitationRow:
    """One single-use invitation."""

    invite_id: bytes
    name: str
    kind: Kind
    psk: bytes = field(repr=False)
    """32 bytes, secret: what the newcomer proves to hold."""
    curve_public: bytes
    """32 bytes: the CURVE key with which the newcomer connects."""
    expires: float
    """Seconds since 1970; from then on it registers nobody."""
    owner_uid: bytes | None = None
    """The client that vouched, for an application."""
    uid: bytes | None = None
    """The identifier reserved for the newcomer."""
    psk_private: bytes | None = field(default=None, repr=False)
    """The permanent server key made for the newcomer alone, secret; none before it is reserved, nor once retired."""
    used_by: bytes | None = None
    """The uid that was registered with it."""
    retired: bool = False
    """Nobody connects with it any more."""


@dataclass(frozen=True, slots=True)
class ClientRow:
    """One registration, for as long as it lives and after."""

    uid: bytes
    name: str
    kind: Kind
    card: bytes
    card_hash: bytes
    certificate: bytes
    curve_public: bytes
    perm_server_private: bytes = field(repr=False)
    """The permanent server key for this client alone, secret."""
    fingerprint: bytes
    owner_uid: bytes | None = None
    registered: float = 0.0
    """Seconds since 1970."""
    last_seen: float = 0.0
    """Seconds since 1970."""
    revoked: float | None = None
    """Seconds since 1970, or None while it lives."""
    reason: str = ""
    """Why it was revoked."""
    log_index: int = -1
    """Of its ``registered`` entry in the log."""


@dataclass(frozen=True, slots=True)
class FormerKeys:
    """What a client had before its keys rotated, until it has a channel under the new ones."""

    uid: bytes
    card: bytes
    certificate: bytes
    curve_public: bytes
    perm_server_private: bytes = field(repr=False)
    until: float
    """Seconds since 1970; from then on they are of no use."""


@dataclass(frozen=True, slots=True)
class SuccessionRow:
    """One identity of a client in the place of another."""

    log_index: int
    """Of its ``succeeded`` entry in the log."""
    uid: bytes
    former: bytes
    """Fingerprint of the identity that went."""
    encoded: bytes


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One thing that happened to a registration."""

    log_index: int
    """From 0, without gaps."""
    at: float
    """Seconds since 1970."""
    event: str
    """``registered``, ``rotated``, ``succeeded`` (new keys with a new identity) or ``revoked``."""
    name: str
    uid: bytes
    card_hash: bytes
    reason: str


def _columns_of(kind: type[Any], *without: str) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind) if each.name not in without)


def _table(name: str, names: Iterable[str]) -> TableClause:
    # Untyped: a damaged column must reach the MAC as it is, not through a type's conversion that trips over it.
    return table(name, *(column(each) for each in names), column("mac"))


_INVITATION_FIELDS: Final = _columns_of(InvitationRow)
_CLIENT_FIELDS: Final = _columns_of(ClientRow, "last_seen")
_SIGHTING_FIELDS: Final = ("uid", "last_seen")
_LOG_FIELDS: Final = _columns_of(LogEntry)
_FORMER_FIELDS: Final = _columns_of(FormerKeys)
_SUCCESSION_FIELDS: Final = _columns_of(SuccessionRow)

_NODE_FIELDS: Final = ("level", "position", "hash")

_INVITATIONS: Final = _table("invitations", _INVITATION_FIELDS)
_CLIENTS: Final = _table("clients", _CLIENT_FIELDS)
_SIGHTINGS: Final = _table("sightings", _SIGHTING_FIELDS)
_LOG: Final = _table("log", _LOG_FIELDS)
_NODES: Final = _table("log_nodes", _NODE_FIELDS)
_FORMER: Final = _table("former_keys", _FORMER_FIELDS)
_SUCCESSIONS: Final = _table("successions", _SUCCESSION_FIELDS)

TABLES: Final[tuple[TableClause, ...]] = (
    _INVITATIONS, _CLIENTS, _SIGHTINGS, _LOG, _NODES, _FORMER, _SUCCESSIONS, audit.ENTRIES, audit.START,
)  # fmt: skip
"""What this module expects of the latest schema."""

_CLIENT_SELECT: Final = select(
    *_CLIENTS.c, _SIGHTINGS.c.last_seen, _SIGHTINGS.c.mac.label("sighting_mac")
).select_from(_CLIENTS.outerjoin(_SIGHTINGS, _SIGHTINGS.c.uid == _CLIENTS.c.uid))


class KeyDb:
    """An open key database, for the thread that opened it."""

    def __init__(self, backend: Backend, mac_key: bytes) -> None:
        self._backend = backend
        self._mac_key = mac_key
        self.log_written = 0
        """Entries of the log when this last appended to it; 0: it never has."""
        self._appended = 0

    @classmethod
    def open(
        cls, url: str, mac_key: bytes, *, create: bool, patience: float = BUSY_SECONDS, alone: bool = False
    ) -> Self:
        """The database at ``url``, with its schema brought up to date; made if there is none and ``create`` is set.

        A transaction waits ``patience`` seconds for another process's: an event loop that must not stand for long
        gives fewer than a command. ``alone``: as the one coordinator that runs on it. (A file is in a home, whose own
        lock says that already.)

        Errors: `UsageError` (the URL, or a package that it needs), `VersionMismatch` (a newer zkc made it),
        `LocalIOError` with ``missing``, ``permission`` (its file is open to others, a symbolic link, or somebody
        else's: attack K01), ``damaged`` (also when ``mac_key`` is another database's), ``no-space``, ``busy``, ``io``,
        ``unreachable``; `DaemonError` (``already-running``).
        """
        return cls(open_backend(url, mac_key, create=create, patience=patience, alone=alone), mac_key)

    def close(self) -> None:
        """Let go of the database. Harmless when repeated."""
        self._backend.close()

    def version(self) -> int:
        """A number that has changed since the last call if another process or `KeyDb` has written."""
        return self._backend.change_counter()

    def copy_to(self, url: str) -> None:
        """A new database at ``url`` with every row of this one, as it is at one moment: whole, or none.

        Errors: as `open`; `LocalIOError` (``busy``) where there is one already.
        """
        made = False

        def fill(target: Connection) -> None:
            nonlocal made
            made = True
            for each in TABLES:
                rows = source.execution_options(yield_per=_COPIED_AT_ONCE).execute(select(*each.c))
                for some in rows.mappings().partitions():
                    target.execute(insert(each), [dict(row) for row in some])

        with self._backend.reading() as source:
            open_backend(
                url, self._mac_key, create=True, patience=BUSY_SECONDS, alone=False, fill=fill
            ).close()
        if not made:
            raise LocalIOError(
                f"there is a key database {shown(url)} already", detail="busy", hint="run it again, with an empty place"
            )

    # --- invitations ------------------------------------------------------------------------------------------------

    def add_invitation(self, row: InvitationRow, note: Note | None = None) -> None:
        """Store a new invitation, and ``note`` with it. `NameTaken` if a live client has its name, `OwnerGone` if its
        owner is none."""
        with self._backend.writing() as connection:
            self._check_name_and_owner(connection, row)
            self._insert(connection, _INVITATIONS, _values(row, _INVITATION_FIELDS))
            audit.append(connection, self._mac_key, [note] if note else [])

    def add_application_invitation(self, row: InvitationRow, now: float, at_most: int) -> None:
        """Store a new invitation for an application, in the place of the unused ones for its name.

        `TooManyInvited` if its owner then held more than ``at_most`` that can still be used at ``now`` (seconds since
        1970); `NameTaken`, `OwnerGone`. Refused, it changes nothing.
        """
        owner = owner_of(row.name) or ""
        with self._backend.writing() as connection:
            self._check_name_and_owner(connection, row)
            self._cancel(connection, _INVITATIONS.c.name == row.name)
            if self._open_invitations(connection, owner, now) >= at_most:
                raise TooManyInvited(owner)
            self._insert(connection, _INVITATIONS, _values(row, _INVITATION_FIELDS))
            audit.append(connection, self._mac_key, [_note(now, "invited", owner, row.name)])
            self._prune(connection, now)

    def prune_invitations(self, now: float) -> int:
        """Delete invitations whose end was `INVITATIONS_KEPT_SECONDS` before ``now``, used or not; how many.

        Nobody connects with them since their end, so nobody registers with them, not even once more. A thousand at a
        time, since the caller may be an event loop.
        """
        with self._backend.writing() as connection:
            return self._prune(connection, now)

    def invitation(self, invite_id: bytes) -> InvitationRow | None:
        """The invitation, in whatever state it is; None if it never was or was cancelled."""
        with self._backend.reading() as connection:
            return self._invitation(connection, invite_id)

    def invitation_with_key(self, curve_public: bytes) -> InvitationRow | None:
        """The invitation whose newcomer connects with this CURVE key (32 bytes)."""
        query = select(*_INVITATIONS.c).where(_INVITATIONS.c.curve_public == curve_public).limit(1)
        with self._backend.reading() as connection:
            found = connection.execute(query).mappings().one_or_none()
            row = None if found is None else self._to_invitation(found)
            return _asked_for(row, row is None or row.curve_public == curve_public)

    def invitations(self) -> list[InvitationRow]:
        """All that were neither cancelled nor pruned, by name and then by end."""
        query = select(*_INVITATIONS.c).order_by(_INVITATIONS.c.name, _INVITATIONS.c.expires, _INVITATIONS.c.invite_id)
        with self._backend.reading() as connection:
            return [self._to_invitation(row) for row in connection.execute(query).mappings()]

    def unretired_invitations(self) -> list[InvitationRow]:
        """Those that somebody has registered with, whose client has had no channel of its own yet."""
        query = select(*_INVITATIONS.c).where(_INVITATIONS.c.used_by.is_not(None), _INVITATIONS.c.retired == 0)
        with self._backend.reading() as connection:
            return [self._to_invitation(row) for row in connection.execute(query).mappings()]

    def cancel_invitations(self, name: str, note: Note | None = None) -> int:
        """Delete the unused invitations for ``name``; how many there were. Where there were any, ``note`` is kept."""
        with self._backend.writing() as connection:
            count = self._cancel(connection, _INVITATIONS.c.name == name)
            audit.append(connection, self._mac_key, [note] if note and count else [])
            return count

    def reserve(self, invite_id: bytes, make: Callable[[], tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
        """The uid and the permanent server key's private half for this newcomer, durable before they are used (701).

        ``make`` is called, outside of any transaction, if there are none yet; every later call returns the same.
        `InviteUnknown` if there is no such invitation, `InviteUsed` once it is retired.
        """
        row = _existing(self.invitation(invite_id))
        if row.uid is None:
            uid, private = make()
            with self._backend.writing() as connection:
                row = _existing(self._invitation(connection, invite_id))
                if row.uid is None and not row.retired:
                    row = replace(row, uid=uid, psk_private=private)
                    self._update(connection, _INVITATIONS, _values(row, _INVITATION_FIELDS), "invite_id")
        if row.uid is None or row.psk_private is None:
            raise InviteUsed(row.name)
        return row.uid, row.psk_private

    def register(self, invite_id: bytes, client: ClientRow, now: float) -> ClientRow:
        """Register ``client``: invitation used, client row and log entry in one transaction (601-603, attack R03).

        ``now`` (seconds since 1970) becomes ``registered`` and ``last_seen``; the log gives ``log_index``; the row
        as stored is returned. The same card on the invitation that it used: the row as stored before, whatever the
        time. Errors: `InviteUnknown`, `InviteUsed`, `InviteExpired`, `NameTaken`, `OwnerGone`; `InternalError` if
        ``client`` is not the one whom the invitation and `reserve` named.
        """
        with self._appending() as connection:
            invitation = _existing(self._invitation(connection, invite_id))
            if invitation.used_by is not None:
                return self._registered_before(connection, invitation, client)
            if invitation.retired:
                raise InviteUsed(invitation.name)
            if now >= invitation.expires:
                raise InviteExpired(invitation.name)
            self._check_name_and_owner(connection, invitation)
            _check_same(invitation, client)
            index = self._append(connection, "registered", client, now)
            stored = replace(client, registered=now, last_seen=now, revoked=None, reason="", log_index=index)
            self._insert(connection, _CLIENTS, _values(stored, _CLIENT_FIELDS))
            self._insert(connection, _SIGHTINGS, _values(stored, _SIGHTING_FIELDS))
            used = replace(invitation, used_by=stored.uid)
            self._update(connection, _INVITATIONS, _values(used, _INVITATION_FIELDS), "invite_id")
            audit.append(connection, self._mac_key, [_note(now, "registered", stored.name)])
            return stored

    def retire_invitation(self, invite_id: bytes) -> None:
        """Nobody connects with this invitation again: its client has its own channel. Harmless when repeated.

        Its copy of the permanent server key is erased.
        """
        with self._backend.writing() as connection:
            row = self._invitation(connection, invite_id)
            if row is not None and not row.retired:
                self._retire(connection, row)

    # --- clients ----------------------------------------------------------------------------------------------------

    def client(self, uid: bytes) -> ClientRow | None:
        """The client with this uid, revoked or not."""
        with self._backend.reading() as connection:
            return self._client(connection, uid)

    def client_named(self, name: str) -> ClientRow | None:
        """The live client with this name."""
        with self._backend.reading() as connection:
            return self._client_named(connection, name)

    def client_with_key(self, curve_public: bytes) -> ClientRow | None:
        """The live client that connects with this CURVE key (32 bytes); of several the one that registered first."""
        which = (_CLIENTS.c.curve_public == curve_public) & _CLIENTS.c.revoked.is_(None)
        query = _CLIENT_SELECT.where(which).order_by(_CLIENTS.c.log_index).limit(1)
        with self._backend.reading() as connection:
            found = connection.execute(query).mappings().one_or_none()
            row = None if found is None else self._to_client(found)
            return _asked_for(row, row is None or (row.curve_public == curve_public and row.revoked is None))

    def live_clients(self) -> int:
        """How many clients are registered and not revoked."""
        with self._backend.reading() as connection:
            query = select(func.count()).select_from(_CLIENTS).where(_CLIENTS.c.revoked.is_(None))
            return int(connection.execute(query).scalar_one())

    def clients(self, after: str = "", limit: int = 256, *, live: bool = False) -> list[ClientRow]:
        """Clients, live and revoked or ``live`` alone, of the first ``limit`` names behind ``after``: by name, then
        oldest first.

        ``limit`` counts names, so all that ever had a name stand on one page; the next page is the one
        after the last row's name.
        """
        which = _CLIENTS.c.revoked.is_(None) if live else true()
        names = (
            select(_CLIENTS.c.name).where(_CLIENTS.c.name > after, which).distinct().order_by(_CLIENTS.c.name)
            .limit(limit)
        )  # fmt: skip
        query = _CLIENT_SELECT.where(_CLIENTS.c.name.in_(names), which)
        query = query.order_by(_CLIENTS.c.name, _CLIENTS.c.log_index)
        with self._backend.reading() as connection:
            return [self._to_client(row) for row in connection.execute(query).mappings()]

    def rotate(
        self, replaced: bytes, client: ClientRow, make: Callable[[], bytes], now: float, succession: bytes = b""
    ) -> ClientRow:
        """``client`` with its next card in place of the one whose hash is ``replaced``, and a log entry; as stored.

        ``succession``, encoded, where the card is of a new identity: it is what `successions` gives from now on.
        ``make`` makes the private half of its next permanent server key. What it had before stays as `FormerKeys` for
        `FORMER_KEYS_SECONDS`. The card that it has already: the row as stored before. Errors: `Outrun`, where it has
        any other card by now; `CurveKeyTaken`; `TooManySuccessions`; `NotRegistered` (``revoked``).
        """
        stored = self.client(client.uid)
        private = make() if stored is not None and stored.card_hash == replaced else b""
        with self._appending() as connection:
            stored = self._client(connection, client.uid)
            if stored is None or stored.revoked is not None:
                raise NotRegistered(f"{client.name} is not registered any more", detail="revoked")
            if stored.card_hash == client.card_hash:
                return stored
            if stored.card_hash != replaced or not private:
                raise Outrun(client.name)
            if client.curve_public != stored.curve_public and self._key_in_use(connection, client.curve_public):
                raise CurveKeyTaken(client.name)
            self._forget_former(connection, client.uid)
            former = FormerKeys(
                stored.uid, stored.card, stored.certificate, stored.curve_public, stored.perm_server_private,
                now + FORMER_KEYS_SECONDS,
            )
            self._insert(connection, _FORMER, _values(former, _FORMER_FIELDS))
            renewed = replace(
                stored, card=client.card, card_hash=client.card_hash, certificate=client.certificate,
                curve_public=client.curve_public, fingerprint=client.fingerprint, perm_server_private=private,
            )
            event = "succeeded" if succession else "rotated"
            index = self._append(connection, event, renewed, now)
            renewed = replace(renewed, log_index=index)
            self._update(connection, _CLIENTS, _values(renewed, _CLIENT_FIELDS), "uid")
            if succession:
                if self._successions_of(connection, stored.uid) >= SUCCESSIONS_KEPT_MAX:
                    raise TooManySuccessions(stored.name)
                row = SuccessionRow(index, stored.uid, stored.fingerprint, succession)
                self._insert(connection, _SUCCESSIONS, _values(row, _SUCCESSION_FIELDS))
            audit.append(connection, self._mac_key, [_note(now, event, renewed.name)])
            return renewed

    def successions(self, uid: bytes, since: bytes, limit: int) -> list[bytes]:
        """At most ``limit`` successions of that client, the oldest first, from the one of the identity ``since``."""
        query = select(*_SUCCESSIONS.c).where(_SUCCESSIONS.c.uid == uid).order_by(_SUCCESSIONS.c.log_index)
        with self._backend.reading() as connection:
            rows = [self._to_succession(row) for row in connection.execute(query).mappings()]
        first = next((i for i, row in enumerate(rows) if row.former == since), len(rows))
        return [row.encoded for row in rows[first : first + limit]]

    def recertify(self, uid: bytes, card_hash: bytes, certificate: bytes) -> None:
        """Another certificate for that client's card, if it still has that one."""
        with self._backend.writing() as connection:
            row = self._client(connection, uid)
            if row is not None and row.card_hash == card_hash:
                values = _values(replace(row, certificate=certificate), _CLIENT_FIELDS)
                self._update(connection, _CLIENTS, values, "uid")

    def former_keys(self, uid: bytes, now: float) -> FormerKeys | None:
        """What that client had before its keys rotated, if it may still use them."""
        query = select(*_FORMER.c).where(_FORMER.c.uid == uid)
        with self._backend.reading() as connection:
            found = connection.execute(query).mappings().one_or_none()
            row = None if found is None else self._to_former(found)
            row = _asked_for(row, row is None or row.uid == uid)
            return row if row is not None and now < row.until else None

    def former_with_key(self, curve_public: bytes, now: float) -> FormerKeys | None:
        """The same, of the client that connects with this CURVE key (32 bytes)."""
        query = select(*_FORMER.c).where(_FORMER.c.curve_public == curve_public).limit(1)
        with self._backend.reading() as connection:
            found = connection.execute(query).mappings().one_or_none()
            row = None if found is None else self._to_former(found)
            return row if row is not None and now < row.until else None

    def forget_former(self, uid: bytes) -> None:
        """That client has a channel under its new keys: the former ones are erased. Harmless when repeated."""
        with self._backend.writing() as connection:
            self._forget_former(connection, uid)
        self._backend.erase_deleted()

    def expire_former(self, now: float) -> list[bytes]:
        """Erase the former keys whose time is over; whose they were. Keys that were deleted before leave the disk."""
        query = select(*_FORMER.c).where(_FORMER.c.until <= now)
        with self._backend.reading() as connection:
            over = [self._to_former(row).uid for row in connection.execute(query).mappings()]
        if over:
            with self._backend.writing() as connection:
                for uid in over:
                    self._forget_former(connection, uid)
        self._backend.erase_deleted()
        return over

    def revoke(self, name: str, reason: str, now: float, event: str = "revoked") -> list[ClientRow]:
        """End the live registrations of ``name`` and of its applications; the rows as they are now, owner first.

        Their unused invitations are deleted too: one that was left over would let its holder take the name. An empty
        list if nobody live has the name. The permanent server keys are erased. ``event``: the audit log's word.
        """
        with self._appending() as connection:
            query = _CLIENT_SELECT.where(_of(_CLIENTS, name), _CLIENTS.c.revoked.is_(None)).order_by(_CLIENTS.c.name)
            rows = [self._to_client(row) for row in connection.execute(query).mappings().all()]
            # Nobody opens a channel with the permanent server key of a client that has none any more.
            revoked = [replace(row, perm_server_private=b"", revoked=now, reason=reason) for row in rows]
            for row in revoked:
                self._update(connection, _CLIENTS, _values(row, _CLIENT_FIELDS), "uid")
                self._append(connection, "revoked", row, now)
                self._forget_former(connection, row.uid)
            self._cancel(connection, _of(_INVITATIONS, name))
            left = select(*_INVITATIONS.c).where(_of(_INVITATIONS, name), _INVITATIONS.c.retired == 0)
            for invitation in connection.execute(left).mappings().all():
                self._retire(connection, self._to_invitation(invitation))
            audit.append(connection, self._mac_key, [_note(now, event, row.name) for row in revoked])
            return revoked

    def touch_all(self, last_seen: Mapping[bytes, float]) -> None:
        """Note when clients were last seen (uid -> seconds since 1970); nothing happens for an unknown uid."""
        with self._backend.writing() as connection:
            for uid, seen in last_seen.items():
                self._update(connection, _SIGHTINGS, {"uid": uid, "last_seen": float(seen)}, "uid")

    # --- the log ----------------------------------------------------------------------------------------------------

    def log_size(self) -> int:
        """The number of log entries; the next one's index."""
        with self._backend.reading() as connection:
            return self._next_index(connection)

    def log_entries(self, first: int = 0, limit: int = 256) -> list[LogEntry]:
        """At most ``limit`` log entries from index ``first`` on."""
        query = select(*_LOG.c).where(_LOG.c.log_index >= first).order_by(_LOG.c.log_index).limit(limit)
        with self._backend.reading() as connection:
            return [self._to_entry(row) for row in connection.execute(query).mappings()]

    def log_frontier(self, size: int) -> Frontier:
        """The tree over the first ``size`` entries, which must be there."""
        with self._backend.reading() as connection:
            return frontier_of(size, lambda level, position: self._node(connection, (level, position)))

    def log_inclusion(self, index: int, size: int) -> list[bytes]:
        """The proof that entry ``index`` is among the first ``size``, which must be there."""
        with self._backend.reading() as connection:
            return inclusion_path(index, size, lambda level, position: self._node(connection, (level, position)))

    def log_index_of(self, uid: bytes, card_hash: bytes) -> int | None:
        """The entry that gave the client ``uid`` that card."""
        which = (_LOG.c.uid == uid) & (_LOG.c.card_hash == card_hash) & (_LOG.c.event != "revoked")
        with self._backend.reading() as connection:
            found = connection.execute(select(*_LOG.c).where(which).limit(1)).mappings().one_or_none()
            return None if found is None else self._to_entry(found).log_index

    def check_log(self) -> None:
        """`LocalIOError` (``damaged``) where log and tree do not go together, or a client is not in the log (attack
        K04)."""
        with self._backend.reading() as connection:
            size = self._next_index(connection)
            leaves = select(func.count()).select_from(_NODES).where(_NODES.c.level == 0)
            beyond = select(func.count()).select_from(_CLIENTS).where(_CLIENTS.c.log_index >= size)
            if connection.execute(leaves).scalar_one() != size or connection.execute(beyond).scalar_one():
                raise _damaged(_NODES.name)
            last = select(*_LOG.c).where(_LOG.c.log_index == size - 1)
            for row in connection.execute(last).mappings():
                if self._node(connection, (0, size - 1)) != _leaf_of(self._to_entry(row)):
                    raise _damaged(_NODES.name)

    # --- the audit log ----------------------------------------------------------------------------------------------

    def audit(self, notes: Sequence[Note]) -> None:
        """Append ``notes``."""
        with self._backend.writing() as connection:
            audit.append(connection, self._mac_key, notes)

    def audit_size(self) -> int:
        """The number of the last entry of the audit log."""
        with self._backend.reading() as connection:
            return audit.newest(connection)

    def audit_entries(self, after: int = 0, limit: int = 256) -> list[Entry]:
        """At most ``limit`` entries behind the number ``after``. `IdentityError` (``audit-chain``): one was changed."""
        with self._backend.reading() as connection:
            return list(audit.entries(connection, self._mac_key, after, limit))

    def verify_audit(self, noted: bytes | None = None) -> tuple[int, bytes]:
        """Number and hash of the last entry, once every one is found in order. Errors: `zkc.crypto.audit.verify`."""
        with self._backend.reading() as connection:
            seq, previous = audit.start(connection, self._mac_key)
            last = verify(audit.entries(connection, self._mac_key), seq, previous, noted)
            return (seq, previous) if last is None else (last.seq, last.hash)

    def prune_audit(self, before: float, at_most: int, step: int) -> int:
        """Remove entries of before ``before`` (seconds since 1970), and all but the newest ``at_most``, ``step`` at
        once; how many."""
        with self._backend.writing() as connection:
            return audit.prune(connection, self._mac_key, int(before * 1000), at_most, step)

    # --- inside a transaction ---------------------------------------------------------------------------------------

    @contextmanager
    def _appending(self) -> Iterator[Connection]:
        """A transaction that may append to the log."""
        self._appended = self.log_written
        with self._backend.writing() as connection:
            yield connection
        self.log_written = self._appended

    def _invitation(self, connection: Connection, invite_id: bytes) -> InvitationRow | None:
        query = select(*_INVITATIONS.c).where(_INVITATIONS.c.invite_id == invite_id)
        found = connection.execute(query).mappings().one_or_none()
        row = None if found is None else self._to_invitation(found)
        return _asked_for(row, row is None or row.invite_id == invite_id)

    def _client(self, connection: Connection, uid: bytes) -> ClientRow | None:
        found = connection.execute(_CLIENT_SELECT.where(_CLIENTS.c.uid == uid)).mappings().one_or_none()
        row = None if found is None else self._to_client(found)
        return _asked_for(row, row is None or row.uid == uid)

    def _client_named(self, connection: Connection, name: str) -> ClientRow | None:
        query = _CLIENT_SELECT.where(_CLIENTS.c.name == name, _CLIENTS.c.revoked.is_(None))
        found = connection.execute(query).mappings().one_or_none()
        row = None if found is None else self._to_client(found)
        return _asked_for(row, row is None or (row.name == name and row.revoked is None))

    def _check_name_and_owner(self, connection: Connection, invitation: InvitationRow) -> None:
        if self._client_named(connection, invitation.name) is not None:
            raise NameTaken(invitation.name)
        if invitation.owner_uid is not None:
            owner = self._client(connection, invitation.owner_uid)
            if owner is None or owner.revoked is not None or owner.name != owner_of(invitation.name):
                raise OwnerGone(invitation.name)

    def _registered_before(self, connection: Connection, invitation: InvitationRow, client: ClientRow) -> ClientRow:
        """The answer to a repeated R5: the same card gets what it got before, any other nothing."""
        stored = self._client(connection, invitation.used_by or b"")
        if stored is None or stored.revoked is not None or stored.card_hash != client.card_hash:
            raise InviteUsed(invitation.name)
        return stored

    def _key_in_use(self, connection: Connection, curve_public: bytes) -> bool:
        """Whether another connects with this CURVE key: who claimed it would be taken for its owner, or its owner for
        him."""
        live = (_CLIENTS.c.curve_public == curve_public) & _CLIENTS.c.revoked.is_(None)
        invited = (_INVITATIONS.c.curve_public == curve_public) & (_INVITATIONS.c.retired == 0)
        of_old = _FORMER.c.curve_public == curve_public
        which = ((_CLIENTS.c.uid, live), (_INVITATIONS.c.invite_id, invited), (_FORMER.c.uid, of_old))
        return any(connection.execute(select(one).where(where).limit(1)).first() for one, where in which)

    def _forget_former(self, connection: Connection, uid: bytes) -> None:
        connection.execute(delete(_FORMER).where(_FORMER.c.uid == uid))

    def _successions_of(self, connection: Connection, uid: bytes) -> int:
        query = select(func.count()).select_from(_SUCCESSIONS).where(_SUCCESSIONS.c.uid == uid)
        return int(connection.execute(query).scalar_one())

    def _next_index(self, connection: Connection) -> int:
        query = select(*_LOG.c).order_by(_LOG.c.log_index.desc()).limit(1)
        last = connection.execute(query).mappings().one_or_none()
        return 0 if last is None else self._to_entry(last).log_index + 1

    def _append(self, connection: Connection, event: str, client: ClientRow, now: float) -> int:
        """Log what happened to ``client``, in the transaction in which it happens; the entry's index."""
        index = self._next_index(connection)
        entry = LogEntry(index, float(now), event, client.name, client.uid, client.card_hash, client.reason)
        self._insert(connection, _LOG, _values(entry, _LOG_FIELDS))
        made = new_nodes(index, _leaf_of(entry), lambda place: self._node(connection, place))
        for (level, position), hashed in made.items():
            self._insert(connection, _NODES, {"level": level, "position": position, "hash": hashed})
        self._appended = index + 1
        return index

    def _node(self, connection: Connection, place: tuple[int, int]) -> bytes:
        """The root of a complete subtree of the log's tree, by (level, position)."""
        level, position = place
        query = select(*_NODES.c).where(_NODES.c.level == level, _NODES.c.position == position)
        found = connection.execute(query).mappings().one_or_none()
        if found is None:
            raise _damaged(_NODES.name)
        values = self._verified(_NODES, found, _NODE_FIELDS)
        hashed: bytes = _asked_for(values["hash"], (values["level"], values["position"]) == place)
        return hashed

    def _cancel(self, connection: Connection, which: ColumnElement[bool]) -> int:
        unused = delete(_INVITATIONS).where(which, _INVITATIONS.c.used_by.is_(None), _INVITATIONS.c.retired == 0)
        return connection.execute(unused).rowcount

    def _prune(self, connection: Connection, now: float) -> int:
        ended = _INVITATIONS.c.expires <= now - INVITATIONS_KEPT_SECONDS
        some = select(_INVITATIONS.c.invite_id).where(ended).limit(_PRUNED_MAX)
        return connection.execute(delete(_INVITATIONS).where(_INVITATIONS.c.invite_id.in_(some))).rowcount

    def _open_invitations(self, connection: Connection, owner: str, now: float) -> int:
        """How many invitations for applications of ``owner`` could still be used."""
        which = (
            _applications_of(_INVITATIONS, owner), _INVITATIONS.c.expires > now, _INVITATIONS.c.used_by.is_(None),
            _INVITATIONS.c.retired == 0,
        )  # fmt: skip
        query = select(func.count()).select_from(_INVITATIONS).where(*which)
        return int(connection.execute(query).scalar_one())

    def _retire(self, connection: Connection, row: InvitationRow) -> None:
        values = _values(replace(row, retired=True, psk_private=None), _INVITATION_FIELDS)
        self._update(connection, _INVITATIONS, values, "invite_id")

    # --- rows and their MACs ----------------------------------------------------------------------------------------

    def _insert(self, connection: Connection, into: TableClause, values: dict[str, Any]) -> None:
        connection.execute(insert(into).values(**values, mac=mac(self._mac_key, into.name, values.values())))

    def _update(self, connection: Connection, where: TableClause, values: dict[str, Any], key: str) -> None:
        sealed = {**values, "mac": mac(self._mac_key, where.name, values.values())}
        connection.execute(update(where).where(where.c[key] == values[key]).values(**sealed))

    def _to_invitation(self, row: Mapping[Any, Any]) -> InvitationRow:
        values = self._verified(_INVITATIONS, row, _INVITATION_FIELDS)
        return InvitationRow(**{**values, "retired": bool(values["retired"])})

    def _to_former(self, row: Mapping[Any, Any]) -> FormerKeys:
        return FormerKeys(**self._verified(_FORMER, row, _FORMER_FIELDS))

    def _to_succession(self, row: Mapping[Any, Any]) -> SuccessionRow:
        return SuccessionRow(**self._verified(_SUCCESSIONS, row, _SUCCESSION_FIELDS))

    def _to_entry(self, row: Mapping[Any, Any]) -> LogEntry:
        return LogEntry(**self._verified(_LOG, row, _LOG_FIELDS))

    def _to_client(self, row: Mapping[Any, Any]) -> ClientRow:
        values = self._verified(_CLIENTS, row, _CLIENT_FIELDS)
        seen = {"uid": values["uid"], "last_seen": row["last_seen"], "mac": row["sighting_mac"]}
        return ClientRow(**values, last_seen=self._verified(_SIGHTINGS, seen, _SIGHTING_FIELDS)["last_seen"])

    def _verified(self, source: TableClause, row: Mapping[Any, Any], names: tuple[str, ...]) -> dict[str, Any]:
        values = {name: row[name] for name in names}
        if not verifies(self._mac_key, source.name, values.values(), row["mac"]):
            raise _damaged(source.name)
        return values


def _values(
    row: InvitationRow | ClientRow | LogEntry | FormerKeys | SuccessionRow, names: tuple[str, ...]
) -> dict[str, Any]:
    """The columns ``names`` of ``row``, each of the type in which it will be read back (the MAC tells types apart)."""
    return {name: _plain(getattr(row, name), name in _REALS) for name in names}


def _note(now: float, event: str, sender: str, recipient: str = "") -> Note:
    return Note(int(now * 1000), event, sender, recipient)


_REALS: Final = frozenset({"expires", "registered", "last_seen", "revoked", "at", "until"})


def _leaf_of(entry: LogEntry) -> bytes:
    return leaf_hash(log_leaf(entry.event, entry.name, entry.card_hash, entry.reason))


def _plain(value: Any, real: bool) -> Any:
    if real and value is not None:
        return float(value)
    return int(value) if isinstance(value, bool) else value


def _of(source: TableClause, name: str) -> ColumnElement[bool]:
    """``name`` itself and its applications."""
    return (source.c.name == name) | _applications_of(source, name)


def _applications_of(source: TableClause, name: str) -> ColumnElement[bool]:
    """``name/...``; '0' is what follows '/'."""
    return (source.c.name > f"{name}/") & (source.c.name < f"{name}0")


def _existing(row: InvitationRow | None) -> InvitationRow:
    if row is None:
        raise InviteUnknown
    return row


def _check_same(invitation: InvitationRow, client: ClientRow) -> None:
    """What the invitation and its reservation say of the newcomer is not the newcomer's to change."""
    told = (invitation.name, invitation.kind, invitation.owner_uid, invitation.uid, invitation.psk_private)
    if told != (client.name, client.kind, client.owner_uid, client.uid, client.perm_server_private):
        raise InternalError(f"registration of {client.name} differs from its invitation")


def _asked_for(row: T, same: bool) -> T:
    """``row`` if it is the one asked for: a damaged index can lead to another one, whose MAC is in order."""
    if not same:
        raise _damaged("index")
    return row


def _damaged(where: str) -> LocalIOError:
    return LocalIOError(f"the key database is damaged ({where})", detail="damaged", hint="restore it from a backup")
