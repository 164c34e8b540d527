"""Registrations under way (Figures 1, 4 to 7): one conversation for each connection, bounded in number, rate and time,
erased at its end.

Before R1's MAC has verified a failure is silent; after it the newcomer gets a `RegError` whose MAC only the
coordinator can make.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from zkc.constants import (
    ID_BYTES,
    REGISTRATION_SECONDS,
    REGISTRATIONS_MAX,
    REGISTRATIONS_PER_INVITATION_MAX,
    REGISTRATIONS_PER_INVITATION_PER_SECOND,
)
from zkc.coordinator.core import Core, Wire, as_told, code_of
from zkc.crypto.primitives import Secret
from zkc.crypto.suites import KemPrivateKey, read_private
from zkc.errors import InternalError, PeerViolation, ZkcError
from zkc.protocol.registration import error_mac
from zkc.protocol.registration_coordinator import (
    TABLE,
    Commit,
    Committed,
    Greeted,
    MakePair,
    Nothing,
    PairMade,
    Registered,
    Registrar,
    Reserve,
    Reserved,
)
from zkc.protocol.step import Send, Step, erase, step
from zkc.rules.rates import Bucket, Rate
from zkc.stores.keydb import ClientRow, InvitationRow, InviteUsed
from zkc.wire.codec import decode, encode
from zkc.wire.frames import ControlKind, control_frame
from zkc.wire.messages import RegError, RegHello, RegMessage

_RATE: Final = Rate(REGISTRATIONS_PER_INVITATION_MAX, REGISTRATIONS_PER_INVITATION_PER_SECOND)
"""R0 with one invitation: each may take a pair of keys."""
_TIDY_SECONDS: Final = 600.0


@dataclass
class _Conversation:
    wire: Wire
    invite_id: bytes
    registrar: Registrar
    owner_uid: bytes | None
    state: Any
    deadline: float
    heard: bytes = b""
    """The newcomer's last message."""
    perm_server: KemPrivateKey | None = None


class Registrations:
    """All of them, by routing id, oldest first."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._open: dict[bytes, _Conversation] = {}
        self._begun: dict[bytes, Bucket] = {}
        """Invitation -> how much of its rate is left."""
        self._unretired = {row.used_by: row.invite_id for row in core.db.unretired_invitations()}
        self._tidy_at = 0.0

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
        talk.heard = body
        self._step(talk, message)

    def tick(self, now: float) -> None:
        """Ends what has taken too long, and forgets what ended long ago."""
        for routing_id, talk in list(self._open.items()):
            if talk.deadline <= now:
                self._core.count("reg.expired")
                self._end(routing_id)
        if now >= self._tidy_at:
            self._tidy_at = now + _TIDY_SECONDS
            self._begun = {each: left for each, left in self._begun.items() if not left.is_unused(_RATE, now)}
            self._core.db.prune_invitations(self._core.clock.wall())

    def look(self, fd: int, inode: int) -> None:
        """A connection with descriptor ``fd`` has ended; ``inode`` is what is behind it now. What ran over it ends."""
        for talk in list(self._open.values()):
            if talk.wire.fd == fd and talk.wire.inode != inode:
                self._core.count("reg.broken-off")
                self._end(talk.wire.routing_id)

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
        core, now = self._core, self._core.clock.monotonic()
        if not self._begun.setdefault(invite_id, Bucket()).take(_RATE, now):
            raise PeerViolation("limit", "too many registrations with one invitation")
        row = core.db.invitation(invite_id)
        if row is None or row.retired:
            raise PeerViolation("identity", "the invitation is gone")
        same = [routing_id for routing_id, talk in self._open.items() if talk.invite_id == invite_id]
        if len(same) >= REGISTRATIONS_PER_INVITATION_MAX:
            self._end(same[0])
        if len(self._open) >= REGISTRATIONS_MAX:
            self._make_room()
        self._open[wire.routing_id] = _Conversation(
            wire, invite_id, self._registrar(row), row.owner_uid, Nothing(), now + REGISTRATION_SECONDS
        )
        core.count("reg.begun")

    def _make_room(self) -> None:
        """Whoever has most registrations under way loses the oldest: all applications of a client count as its own."""
        holders = Counter(talk.owner_uid or talk.invite_id for talk in self._open.values())
        ((most, _),) = holders.most_common(1)
        self._core.violated("registration", PeerViolation("limit", "too many registrations at once"))
        self._end(next(id for id, talk in self._open.items() if (talk.owner_uid or talk.invite_id) == most))

    def _registrar(self, row: InvitationRow) -> Registrar:
        identity = self._core.identity
        owner = self._core.db.client(row.owner_uid) if row.owner_uid is not None else None
        return Registrar(
            identity.signing, identity.general_key, identity.suite, identity.card, identity.card_signature,
            row.invite_id, row.name, row.kind, Secret(row.psk),
            owner.fingerprint if owner is not None else None,
        )

    def _step(self, talk: _Conversation, message: Any) -> None:
        """One step of the machine, by a message or an event."""
        self._core.log.debug("registration-step", name=talk.registrar.name, step=type(message).__name__)
        self._within(talk, lambda: self._advance(talk, step(TABLE, talk.registrar, talk.state, message)))

    def _within(self, talk: _Conversation, what: Callable[[], None]) -> None:
        """Does it; what goes wrong ends the conversation, and is told to one who may know."""
        try:
            what()
        except PeerViolation as violation:
            self._core.violated("registration", violation, name=talk.registrar.name)
            self._fail(talk, code_of(violation), violation.detail)
        except ZkcError as error:
            self._log_refusal(talk, error)
            self._fail(talk, *as_told(error))

    def _advance(self, talk: _Conversation, taken: Step) -> None:
        """Takes over the state and performs the effects in their order."""
        talk.state = taken.state
        for effect in taken.effects:
            match effect:
                case Send(message=message):
                    self._send(talk.wire, message)
                case MakePair():
                    self._with_pair(talk, lambda pair: self._step(talk, PairMade(pair)))
                case Reserve():
                    self._reserve(talk)
                case Commit():
                    self._advance(talk, self._commit(talk, effect))
                case _:
                    raise AssertionError(f"unexpected effect {type(effect).__name__}")
        if isinstance(talk.state, Registered):
            self._end(talk.wire.routing_id)

    def _with_pair(self, talk: _Conversation, then: Callable[[KemPrivateKey], None]) -> None:
        """``then`` with a pair that nobody else gets (claims A8): now, or once the pool's thread has made one."""
        pair = self._core.pool.take()
        if pair is not None:
            then(pair)
            return
        come = partial(self._pair_came, talk, then)
        self._core.pool.order(partial(asyncio.get_running_loop().call_soon_threadsafe, come))

    def _pair_came(
        self, talk: _Conversation, then: Callable[[KemPrivateKey], None], pair: KemPrivateKey
    ) -> None:
        if self._open.get(talk.wire.routing_id) is not talk:
            pair.wipe()
            return
        then(pair)

    def _reserve(self, talk: _Conversation) -> None:
        """uid and permanent pair of this newcomer, durable before they are used (Figure 7, blocks 701 and 703)."""
        row = self._core.db.invitation(talk.invite_id)
        if row is None or row.uid is not None or row.retired:
            self._reserved(talk, None)
        else:
            self._with_pair(talk, partial(self._reserved, talk))

    def _reserved(self, talk: _Conversation, pair: KemPrivateKey | None) -> None:
        def reserve() -> None:
            uid, private = self._core.db.reserve(talk.invite_id, make)
            talk.perm_server = read_private(private)
            self._step(talk, Reserved(uid, talk.perm_server))

        def make() -> tuple[bytes, bytes]:
            if pair is None:
                raise InternalError("a reservation that was there is gone")
            return self._core.entropy.bytes(ID_BYTES), pair.encode()

        self._within(talk, reserve)
        if pair is not None:
            pair.wipe()

    def _commit(self, talk: _Conversation, commit: Commit) -> Step:
        """One transaction {invitation used, client row, log entry}; the answer to R6 (Figure 6, block 603)."""
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
                "used-invitation-offered", name=card.name, uid=card.body.uid.hex(),
                fingerprint=card.fingerprint.hex(),
            )
            raise
        self._unretired[stored.uid] = talk.invite_id
        core.count("reg.done")
        core.durations["registration"].add(core.clock.monotonic() - talk.deadline + REGISTRATION_SECONDS)
        core.log.info(
            "registered", name=stored.name, kind=stored.kind, uid=stored.uid.hex(),
            fingerprint=stored.fingerprint.hex(), log_index=stored.log_index,
        )
        return step(TABLE, talk.registrar, talk.state, Committed(stored.certificate, stored.log_index))

    def _fail(self, talk: _Conversation, code: int, detail: str) -> None:
        """Ends it; tells why only to one who has proved to hold the invitation."""
        self._core.count("reg.refused")
        if not isinstance(talk.state, Nothing | Greeted):
            mac = error_mac(talk.registrar.psk, talk.heard, code, detail)
            self._send(talk.wire, RegError(code, detail, mac))
        self._end(talk.wire.routing_id)

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
        self._core.audit.note("registration", talk.registrar.name, code=error.code, detail=error.detail)
        self._core.warn(
            f"registration.{error.detail}", "registration-refused", name=talk.registrar.name, code=error.code,
            detail=error.detail, why=error.message,
        )
