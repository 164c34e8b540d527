"""Registrations under way: one conversation for each connection, bounded in number and time, erased at its end.

Before R1's MAC has verified a failure is silent; after it the newcomer gets a `RegError` whose MAC only the
coordinator can make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zkc.constants import ID_BYTES, REGISTRATION_SECONDS, REGISTRATIONS_MAX, REGISTRATIONS_PER_INVITATION_MAX
from zkc.coordinator.core import Core, Wire, code_of
from zkc.crypto.primitives import Secret
from zkc.crypto.suites import KemPrivateKey, read_private
from zkc.errors import PeerViolation, ZkcError
from zkc.ids import Kind
from zkc.protocol.registration_client import error_mac
from zkc.protocol.registration_coordinator import (
    TABLE,
    Commit,
    Committed,
    Greeted,
    Nothing,
    Registered,
    Registrar,
    Reserve,
    Reserved,
)
from zkc.protocol.step import Send, Step, erase, step
from zkc.stores.keydb import ClientRow, InvitationRow, InviteUsed
from zkc.wire.codec import decode, encode
from zkc.wire.frames import ControlKind, control_frame
from zkc.wire.messages import RegError, RegHello, RegMessage


@dataclass
class _Conversation:
    wire: Wire
    invite_id: bytes
    registrar: Registrar
    owner_uid: bytes | None
    state: Any
    deadline: float
    perm_server: KemPrivateKey | None = None


class Registrations:
    """All of them, by routing id, oldest first."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._open: dict[bytes, _Conversation] = {}
        self._unretired = {
            row.used_by: row.invite_id for row in core.db.invitations() if row.used_by is not None and not row.retired
        }

    def __len__(self) -> int:
        return len(self._open)

    def on_message(self, wire: Wire, invite_id: bytes, body: bytes) -> None:
        """A registration frame of the peer that ZAP admitted with ``invite_id``."""
        self._core.count("reg.bytes", len(body))
        try:
            message: Any = decode(body, RegMessage)
            if isinstance(message, RegHello):
                self._begin(wire, invite_id)
        except PeerViolation as violation:
            self._core.violated("registration", violation, invitation_id=invite_id.hex())
            return
        talk = self._open.get(wire.routing_id)
        if talk is None or talk.invite_id != invite_id:
            self._core.count("reg.stray")
            return
        try:
            self._advance(wire, talk, step(TABLE, talk.registrar, talk.state, message))
        except PeerViolation as violation:
            self._core.violated("registration", violation, name=talk.registrar.name)
            self._fail(wire, talk, body, code_of(violation), violation.detail)
        except ZkcError as error:
            self._log_refusal(talk, error)
            self._fail(wire, talk, body, error.code, error.detail)

    def tick(self, now: float) -> None:
        """Ends what has taken too long."""
        for routing_id, talk in list(self._open.items()):
            if talk.deadline > now:
                break
            self._core.count("reg.expired")
            self._end(routing_id)

    def look(self, fd: int, inode: int) -> bool:
        """A connection with descriptor ``fd`` has ended; ``inode`` is what is behind it now. What ran over it ends.

        Whether something still runs over it.
        """
        there = [talk for talk in self._open.values() if talk.wire.fd == fd]
        for talk in there:
            if talk.wire.inode != inode:
                self._core.count("reg.broken-off")
                self._end(talk.wire.routing_id)
        return any(talk.wire.inode == inode for talk in there)

    def close(self) -> None:
        """Ends and erases all of them."""
        for routing_id in list(self._open):
            self._end(routing_id)

    def first_channel(self, uid: bytes) -> None:
        """The client ``uid`` has a channel of its own: its invitation admits nobody any more."""
        invite_id = self._unretired.get(uid)
        if invite_id is not None:
            self._core.db.retire_invitation(invite_id)
            del self._unretired[uid]

    # --- one conversation -------------------------------------------------------------------------------------------

    def _begin(self, wire: Wire, invite_id: bytes) -> None:
        """R0: a new conversation on this connection, in place of whatever was there."""
        self._end(wire.routing_id)
        core = self._core
        row = core.db.invitation(invite_id)
        if row is None or row.retired:
            raise PeerViolation("identity", "the invitation is gone")
        same = [routing_id for routing_id, talk in self._open.items() if talk.invite_id == invite_id]
        if len(same) >= REGISTRATIONS_PER_INVITATION_MAX:
            self._end(same[0])
        if len(self._open) >= REGISTRATIONS_MAX:
            raise PeerViolation("limit", "too many registrations at once")
        deadline = core.clock.monotonic() + REGISTRATION_SECONDS
        self._open[wire.routing_id] = _Conversation(
            wire, invite_id, self._registrar(row), row.owner_uid, Nothing(), deadline
        )
        core.count("reg.begun")

    def _registrar(self, row: InvitationRow) -> Registrar:
        identity = self._core.identity
        owner = self._core.db.client(row.owner_uid) if row.owner_uid is not None else None
        return Registrar(
            identity.signing, identity.general_key, identity.suite, identity.card, identity.card_signature,
            self._core.pool.take, row.invite_id, row.name, _kind(row.kind), Secret(row.psk),
            owner.fingerprint if owner is not None else None,
        )

    def _advance(self, wire: Wire, talk: _Conversation, taken: Step) -> None:
        """Takes over the state and performs the effects in their order."""
        talk.state = taken.state
        for effect in taken.effects:
            match effect:
                case Send(message=message):
                    self._send(wire, message)
                case Reserve():
                    uid, private = self._core.db.reserve(talk.invite_id, self._make_permanent)
                    talk.perm_server = read_private(private)
                    reserved = Reserved(uid, talk.perm_server)
                    self._advance(wire, talk, step(TABLE, talk.registrar, talk.state, reserved))
                case Commit():
                    self._advance(wire, talk, self._commit(talk, effect))
                case _:
                    raise AssertionError(f"unexpected effect {type(effect).__name__}")
        if isinstance(talk.state, Registered):
            self._end(wire.routing_id)

    def _make_permanent(self) -> tuple[bytes, bytes]:
        return self._core.entropy.bytes(ID_BYTES), self._core.pool.take().encode()

    def _commit(self, talk: _Conversation, commit: Commit) -> Step:
        """One transaction {invitation used, client row, log entry}; the answer to R6."""
        core, card = self._core, commit.card
        if talk.perm_server is None:
            raise AssertionError("a commit before a reservation")
        row = ClientRow(
            card.body.uid, card.name, card.body.kind, card.encoded, card.hash, commit.certificate, commit.curve_public,
            talk.perm_server.encode(), card.fingerprint, talk.owner_uid,
        )
        try:
            stored = core.db.register(talk.invite_id, row, core.clock.wall())
        except InviteUsed:
            core.count("reg.invite-used")
            core.log.warning(
                "a used invitation was offered with another card", name=card.name, uid=card.body.uid.hex(),
                fingerprint=card.fingerprint.hex(),
            )
            raise
        self._unretired[stored.uid] = talk.invite_id
        core.count("reg.done")
        core.log.info(
            "registered", name=stored.name, kind=stored.kind, uid=stored.uid.hex(),
            fingerprint=stored.fingerprint.hex(), log_index=stored.log_index,
        )
        return step(TABLE, talk.registrar, talk.state, Committed(stored.certificate, stored.log_index))

    def _fail(self, wire: Wire, talk: _Conversation, answered: bytes, code: int, detail: str) -> None:
        """Ends it; tells why only to one who has proved to hold the invitation."""
        if not isinstance(talk.state, Nothing | Greeted):
            mac = error_mac(talk.registrar.psk, answered, code, detail)
            self._send(wire, RegError(code, detail, mac))
        self._end(wire.routing_id)

    def _end(self, routing_id: bytes) -> None:
        talk = self._open.pop(routing_id, None)
        if talk is not None:
            erase(talk.state)
            talk.registrar.psk.wipe()
            if talk.perm_server is not None:
                talk.perm_server.wipe()

    def _send(self, wire: Wire, message: Any) -> None:
        self._core.send(control_frame(ControlKind.REGISTRATION, encode(message)), wire.routing_id)

    def _log_refusal(self, talk: _Conversation, error: ZkcError) -> None:
        self._core.warn(
            f"registration.{error.detail}", "registration refused", name=talk.registrar.name, code=error.code,
            detail=error.detail, why=error.message,
        )


def _kind(kind: str) -> Kind:
    match kind:
        case "computer" | "user" | "application":
            return kind
        case _:
            raise AssertionError(f"a kind of client that no command makes: {kind}")
