"""Bounds and deadlines, on the parts alone: a clock that the test moves, and a way out that only records."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.env import FixedClock, SeededEntropy
from zkc import logs
from zkc.config import CoordinatorConfig
from zkc.constants import (
    HANDSHAKES_MAX,
    ID_BYTES,
    REGISTRATION_SECONDS,
    REGISTRATIONS_MAX,
    REGISTRATIONS_PER_INVITATION_MAX,
    STEP_SECONDS,
)
from zkc.coordinator.clients import Client, Session
from zkc.coordinator.core import Core, Wire
from zkc.coordinator.identity import load_or_create
from zkc.coordinator.invitations import make_invitation
from zkc.coordinator.keypool import KeyPool
from zkc.coordinator.registrations import Registrations
from zkc.coordinator.transfers import Transfers
from zkc.crypto.suites import SUITES
from zkc.errors import PeerViolation, PolicyRefused
from zkc.net.loopsocket import Sent
from zkc.protocol.channel import PeerKeys
from zkc.protocol.transfer_coordinator import KeyWithRecipient, Party
from zkc.stores.keydb import ClientRow, KeyDb
from zkc.wire.codec import decode, encode
from zkc.wire.frames import split_control
from zkc.wire.messages import (
    RegCoordinator,
    RegHello,
    RegMessage,
    Req,
    Resp,
    TransferEnd,
    TransferRequest,
    TransferResponse,
)


class Sink:
    """The way out: what was sent to whom."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bytes]] = []

    def send(self, frame: bytes, routing_id: bytes) -> Sent:
        self.sent.append((routing_id, frame))
        return Sent.OK


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def core(tmp_path: Path, sink: Sink, clock: FixedClock) -> Iterator[Core]:
    entropy = SeededEntropy()
    identity = load_or_create(tmp_path, "x25519", entropy)
    db = KeyDb.open(f"sqlite:///{tmp_path / 'keys.db'}", identity.mac_key, create=True)
    pool = KeyPool(identity.suite, 0)
    repeats = logs.Repeats(clock.monotonic)
    yield Core(
        identity, db, pool, clock, entropy, CoordinatorConfig(), logs.get_logger(), sink.send, lambda *_: None, repeats
    )
    pool.close()
    db.close()


def wire(number: int) -> Wire:
    return Wire(number.to_bytes(5, "big"), number, number)


# --- registrations ----------------------------------------------------------------------


def invited(core: Core, name: str) -> bytes:
    row, _ = make_invitation(
        core.identity, core.entropy, name, "computer", core.clock.wall() + 86400, ["tcp://127.0.0.1:1"]
    )
    core.db.add_invitation(row)
    return row.invite_id


def test_registrations_with_one_invitation_are_bounded_the_oldest_goes(core: Core, sink: Sink) -> None:
    registrations = Registrations(core)
    invite_id = invited(core, "bob")
    for number in range(REGISTRATIONS_PER_INVITATION_MAX + 10):
        registrations.on_message(wire(number), invite_id, encode(RegHello(invite_id)))
    assert len(registrations) == REGISTRATIONS_PER_INVITATION_MAX
    assert len(sink.sent) == REGISTRATIONS_PER_INVITATION_MAX + 10
    assert isinstance(decode(split_control(sink.sent[0][1])[1], RegMessage), RegCoordinator)


def test_registrations_together_are_bounded_a_new_one_waits(core: Core) -> None:
    registrations = Registrations(core)
    ids = [invited(core, f"bob{number}") for number in range(REGISTRATIONS_MAX // REGISTRATIONS_PER_INVITATION_MAX + 1)]
    number = 0
    for invite_id in ids:
        for _ in range(REGISTRATIONS_PER_INVITATION_MAX):
            registrations.on_message(wire(number), invite_id, encode(RegHello(invite_id)))
            number += 1
    assert len(registrations) == REGISTRATIONS_MAX
    assert core.counters["violations.limit"] == REGISTRATIONS_PER_INVITATION_MAX


def test_a_registration_that_takes_too_long_is_erased(core: Core, clock: FixedClock) -> None:
    registrations = Registrations(core)
    invite_id = invited(core, "bob")
    registrations.on_message(wire(1), invite_id, encode(RegHello(invite_id)))
    psk = next(iter(registrations._open.values())).registrar.psk
    registrations.tick(clock.advance(REGISTRATION_SECONDS - 1))
    assert len(registrations) == 1
    registrations.tick(clock.advance(2))
    assert len(registrations) == 0
    assert repr(psk) == "Secret(wiped)"
    assert core.counters["reg.expired"] == 1


def test_an_invitation_cannot_speak_for_another(core: Core) -> None:
    registrations = Registrations(core)
    one, other = invited(core, "one"), invited(core, "other")
    registrations.on_message(wire(1), one, encode(RegHello(other)))
    assert len(registrations) == 0
    assert core.counters["violations.identity"] == 1


# --- transfers ----------------------------------------------------------------------


class Ask:
    """In the place of `Clients`: records what is asked and answered."""

    def __init__(self, *clients: Client) -> None:
        self._by_name = {client.name: client for client in clients}
        self.asked: list[tuple[Session, Any, Any]] = []
        self.told: list[tuple[Session, Any]] = []
        self.answers: list[tuple[Session, bytes, Any]] = []

    def named(self, name: str) -> Client | None:
        return self._by_name.get(name)

    def ask(self, session: Session, body: Any, _within: float, on_reply: Any) -> None:
        self.asked.append((session, body, on_reply))

    def tell(self, session: Session, body: Any) -> None:
        self.told.append((session, body))

    def answer(self, session: Session, call: bytes, body: Any) -> None:
        self.answers.append((session, call, body))

    def fail(self, session: Session, call: bytes, code: int, detail: str) -> None:
        self.answers.append((session, call, (code, detail)))


def client(name: str) -> Client:
    suite = SUITES["x25519"]
    key = suite.generate()
    row = ClientRow(os.urandom(16), name, "computer", b"", b"", b"", b"", b"", b"")
    made = Client(row, PeerKeys(suite, row.uid, key, key.public), Party(name, b"card", b"certificate", key.public))
    made.daemon = Session(made, b"", "daemon", object(), wire(1), 0.0)  # type: ignore[arg-type]
    return made


def request(sender: str, recipient: str, **changes: Any) -> TransferRequest:
    fields: dict[str, Any] = {
        "xid": os.urandom(16), "tid": os.urandom(16), "sender": sender, "recipient": recipient, "pin": b"",
        "key_source": "sender", "key_order": "recipient-first", "cipher": "aes-256-gcm", "presence": "online",
        "wait": 0, "size_class": 255, "can_listen": False, "fresh": False, "card_hash": bytes(32),
        "sender_one_time_key": b"",
    }
    return TransferRequest(encode(Req(**(fields | changes))), bytes(64))


def response(asked: TransferRequest, key: bytes) -> TransferResponse:
    req = decode(asked.request, Req)
    resp = Resp(
        req.xid, "accept", 0, "", "online", 0, key, 65536, 0, False, bytes(32), req.key_source, req.key_order,
        req.sender_one_time_key, b"",
    )
    return TransferResponse(encode(resp), bytes(64))


def test_a_step_that_takes_too_long_ends_the_handshake_and_both_are_told(core: Core, clock: FixedClock) -> None:
    alice, bob = client("alice"), client("bob")
    assert alice.daemon is not None
    assert bob.daemon is not None
    ask = Ask(alice, bob)
    transfers = Transfers(core, ask)  # type: ignore[arg-type]
    message = request("alice", "bob")
    xid = decode(message.request, Req).xid
    transfers.request(alice.daemon, b"call", message)
    clock.advance(STEP_SECONDS - 1)
    transfers.tick(clock.now)
    assert len(transfers) == 1
    transfers.tick(clock.advance(2))
    assert ask.answers == [(alice.daemon, b"call", (30, "expired"))]
    assert ask.told == [(bob.daemon, TransferEnd(xid, 30, "expired"))]
    assert len(transfers) == 0
    assert alice.handshakes == 0
    # What the recipient says later changes nothing.
    ask.asked[0][2](response(message, b""))
    assert len(ask.answers) == 1


def test_a_coordinator_made_key_is_erased_when_its_handshake_ends(core: Core, clock: FixedClock) -> None:
    alice, bob = client("alice"), client("bob")
    assert alice.daemon is not None
    core.config = CoordinatorConfig(transfer=type(core.config.transfer)(key_sources=("sender", "coordinator")))
    ask = Ask(alice, bob)
    transfers = Transfers(core, ask)  # type: ignore[arg-type]
    one_time = SUITES["x25519"].generate_one_time().public.encode()
    message = request("alice", "bob", key_source="coordinator", sender_one_time_key=one_time)
    transfers.request(alice.daemon, b"call", message)
    ask.asked[0][2](response(message, one_time))
    (handshake,) = transfers._open.values()
    assert isinstance(handshake.state, KeyWithRecipient)
    key = handshake.state.k
    assert len(key.reveal()) == 32
    transfers.tick(clock.advance(STEP_SECONDS + 1))
    assert repr(key) == "Secret(wiped)"
    assert repr(handshake.broker.fresh_key) == "Secret(wiped)"


def test_handshakes_of_all_together_are_bounded(core: Core) -> None:
    alice, bob = client("alice"), client("bob")
    assert alice.daemon is not None
    ask = Ask(alice, bob)
    transfers = Transfers(core, ask)  # type: ignore[arg-type]
    for _ in range(HANDSHAKES_MAX):
        alice.handshakes = 0
        alice.requests._count = 0
        transfers.request(alice.daemon, b"call", request("alice", "bob"))
    alice.handshakes = alice.requests._count = 0
    with pytest.raises(PolicyRefused, match="at once"):
        transfers.request(alice.daemon, b"call", request("alice", "bob"))


@pytest.mark.attack("C09")
def test_a_request_in_anothers_name_is_refused(core: Core) -> None:
    alice, bob = client("alice"), client("bob")
    assert alice.daemon is not None
    ask = Ask(alice, bob)
    transfers = Transfers(core, ask)  # type: ignore[arg-type]
    with pytest.raises(PeerViolation, match="identity"):
        transfers.request(alice.daemon, b"call", request("bob", "bob"))
    assert ask.asked == []


def test_one_may_send_to_itself_and_give_up(core: Core) -> None:
    alice = client("alice")
    assert alice.daemon is not None
    command = Session(alice, os.urandom(ID_BYTES), "once", object(), wire(2), 0.0)  # type: ignore[arg-type]
    ask = Ask(alice)
    transfers = Transfers(core, ask)  # type: ignore[arg-type]
    message = request("alice", "alice")
    xid = decode(message.request, Req).xid
    transfers.request(command, b"call", message)
    transfers.end(command, TransferEnd(xid, 31, "interrupted"))
    assert ask.answers == [(command, b"call", (31, "interrupted"))]
    assert ask.told == [(alice.daemon, TransferEnd(xid, 31, "interrupted"))]
