"""Bounds and deadlines, on the parts alone: a clock that the test moves, and a way out that only records."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import msgspec
import pytest
from structlog.testing import capture_logs

from tests.support.env import FixedClock, SeededEntropy
from tests.support.talks import only
from tests.support.waiting import DEADLINE, until
from zkc import logs
from zkc.config import CoordinatorConfig
from zkc.constants import (
    HANDSHAKES_MAX,
    HEARTBEAT_SECONDS,
    ID_BYTES,
    REGISTRATION_SECONDS,
    REGISTRATIONS_MAX,
    REGISTRATIONS_PER_INVITATION_MAX,
    REGISTRATIONS_PER_INVITATION_PER_SECOND,
    STEP_SECONDS,
    TERMS_VERSION,
)
from zkc.coordinator.clients import SEEN_FLUSH_ROWS, Clients
from zkc.coordinator.core import Core, Wire
from zkc.coordinator.engine import Engine, Settings
from zkc.coordinator.identity import load_or_create
from zkc.coordinator.invitations import make_invitation
from zkc.coordinator.keypool import KeyPool
from zkc.coordinator.registrations import Registrations
from zkc.coordinator.services import Services
from zkc.coordinator.sessions import Client, Session
from zkc.coordinator.transfers import Transfers
from zkc.crypto.invitations import parse_invitation
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import SUITES
from zkc.errors import LocalIOError, PeerViolation, PolicyRefused, TimedOut
from zkc.ids import PersonState
from zkc.net.loopsocket import Sent
from zkc.protocol import registration_client
from zkc.protocol.calls import Asked
from zkc.protocol.channel import PeerKeys
from zkc.protocol.step import Send, step
from zkc.protocol.transfer_coordinator import KeyWithRecipient, Party
from zkc.rules.rates import Bucket, Rate
from zkc.stores.home import Home
from zkc.stores.keydb import ClientRow, KeyDb
from zkc.stores.noting import AuditWriter
from zkc.wire.codec import decode, encode
from zkc.wire.frames import split_control
from zkc.wire.messages import (
    Conf,
    DeliverKey,
    Failure,
    Heartbeat,
    Invitation,
    InviteApplication,
    Key,
    Leave,
    ListPeers,
    LookUp,
    Notify,
    Ok,
    RegCoordinator,
    RegHello,
    RegMessage,
    RegName,
    RegTempClient,
    Req,
    RequestBody,
    Resp,
    TransferConfirm,
    TransferEnd,
    TransferGrant,
    TransferKey,
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
        identity, db, pool, clock, entropy, CoordinatorConfig(), logs.get_logger(), sink.send, lambda *_: None, repeats,
        AuditWriter(db, clock, lambda _: None, lambda: (1e9, 1000)),
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


def invited_newcomer(core: Core, name: str) -> tuple[bytes, registration_client.Newcomer]:
    """An invitation, and who answers it."""
    expires = core.clock.wall() + 86400
    row, text = make_invitation(core.identity, core.entropy, name, "computer", expires, ["tcp://127.0.0.1:1"])
    core.db.add_invitation(row)
    identity = IdentityKey.from_seed(os.urandom(64))
    kem_key = core.identity.suite.generate()
    return row.invite_id, registration_client.Newcomer(
        parse_invitation(text), identity, kem_key, os.urandom(32), int(expires)
    )


def test_registrations_with_one_invitation_are_bounded_the_oldest_goes(
    core: Core, sink: Sink, clock: FixedClock
) -> None:
    registrations = Registrations(core)
    invite_id = invited(core, "bob")
    for number in range(REGISTRATIONS_PER_INVITATION_MAX + 10):
        registrations.on_message(wire(number), invite_id, encode(RegHello(invite_id)))
        clock.advance(0.2)
    assert len(registrations) == REGISTRATIONS_PER_INVITATION_MAX
    assert len(sink.sent) == REGISTRATIONS_PER_INVITATION_MAX + 10
    assert isinstance(decode(split_control(sink.sent[0][1])[1], RegMessage), RegCoordinator)


def test_registrations_with_one_invitation_in_a_time_are_bounded_and_those_of_another_are_not(
    core: Core, clock: FixedClock
) -> None:
    """One connection may begin anew again and again: what it costs is a pair of keys each time."""
    registrations = Registrations(core)
    one, other = invited(core, "bob"), invited(core, "carol")

    def begin(invite_id: bytes, times: int) -> int:
        before = core.counters["reg.begun"]
        for _ in range(times):
            registrations.on_message(wire(1), invite_id, encode(RegHello(invite_id)))
        return core.counters["reg.begun"] - before

    assert begin(one, 10 * REGISTRATIONS_PER_INVITATION_MAX) == REGISTRATIONS_PER_INVITATION_MAX
    assert core.counters["violations.limit"] == 9 * REGISTRATIONS_PER_INVITATION_MAX
    assert begin(other, 1) == 1
    clock.advance(2 / REGISTRATIONS_PER_INVITATION_PER_SECOND)
    assert begin(one, 10) == 2
    registrations.tick(clock.advance(REGISTRATIONS_PER_INVITATION_MAX / REGISTRATIONS_PER_INVITATION_PER_SECOND + 600))
    assert registrations._begun == {}, "what nobody has used lately is forgotten"


def test_the_loop_goes_on_while_a_registration_waits_for_its_pairs(core: Core, sink: Sink) -> None:
    """The pool is empty, and its thread takes its time (an RSA pair: 180 ms) for R2, and for R4 again."""
    invite_id, newcomer = invited_newcomer(core, "bob")
    loops, may_make = threading.get_ident(), threading.Semaphore(0)

    def slow() -> Any:
        assert threading.get_ident() != loops, "made on the loop"
        assert may_make.acquire(timeout=DEADLINE)
        return core.identity.suite.generate()

    core.pool._suite = SimpleNamespace(generate=slow)  # type: ignore[assignment]

    async def register() -> None:
        registrations = Registrations(core)
        taken, answered = registration_client.create_hello(newcomer), 0
        while not isinstance(taken.state, registration_client.Registered):
            (said,) = (effect.message for effect in taken.effects if isinstance(effect, Send))
            registrations.on_message(wire(1), invite_id, encode(said))
            if isinstance(said, RegName | RegTempClient):
                assert len(sink.sent) == answered, "it waits"
                may_make.release()
            await until(lambda answered=answered: len(sink.sent) > answered)  # type: ignore[misc]
            message = decode(split_control(sink.sent[answered][1])[1], RegMessage)
            taken, answered = step(registration_client.TABLE, newcomer, taken.state, message), answered + 1

    asyncio.run(register())
    assert core.pool.counts.made_late == 2
    assert core.counters["reg.done"] == 1


def test_a_pair_that_comes_too_late_is_wiped(core: Core, sink: Sink, clock: FixedClock) -> None:
    invite_id, newcomer = invited_newcomer(core, "bob")
    ordered: list[Any] = []
    core.pool.order = ordered.append  # type: ignore[method-assign, assignment]

    async def begin_and_give_up() -> None:
        registrations = Registrations(core)
        first = registration_client.create_hello(newcomer)
        registrations.on_message(wire(1), invite_id, encode(only(first)))
        hello = decode(split_control(sink.sent[0][1])[1], RegMessage)
        named = step(registration_client.TABLE, newcomer, first.state, hello)
        registrations.on_message(wire(1), invite_id, encode(only(named)))
        (to,) = ordered
        registrations.tick(clock.advance(REGISTRATION_SECONDS + 1))
        pair = core.identity.suite.generate()
        to(pair)
        await until(lambda: repr(pair.secret) == "Secret(wiped)")

    asyncio.run(begin_and_give_up())
    assert len(sink.sent) == 1


def test_registrations_together_are_bounded_and_whoever_has_most_makes_room(core: Core) -> None:
    """One peer with all the invitations that a client can have keeps nobody else from registering."""
    registrations = Registrations(core)
    ids = [invited(core, f"bob{number}") for number in range(REGISTRATIONS_MAX // REGISTRATIONS_PER_INVITATION_MAX)]
    number = 0
    for invite_id in ids:
        for _ in range(REGISTRATIONS_PER_INVITATION_MAX):
            registrations.on_message(wire(number), invite_id, encode(RegHello(invite_id)))
            number += 1
    assert (len(registrations), core.counters["violations.limit"]) == (REGISTRATIONS_MAX, 0)
    carol = invited(core, "carol")
    registrations.on_message(wire(number), carol, encode(RegHello(carol)))
    assert (len(registrations), core.counters["violations.limit"]) == (REGISTRATIONS_MAX, 1)
    under_way = Counter(talk.invite_id for talk in registrations._open.values())
    assert under_way[carol] == 1
    assert sorted(under_way[invite_id] for invite_id in ids)[:2] == [
        REGISTRATIONS_PER_INVITATION_MAX - 1, REGISTRATIONS_PER_INVITATION_MAX,
    ]


def test_the_applications_of_a_client_count_as_its_own_when_room_is_made(core: Core) -> None:
    registrations = Registrations(core)
    mallory, carol = invited(core, "mallory"), invited(core, "carol")
    registrations.on_message(wire(0), carol, encode(RegHello(carol)))
    for number in (1, 2):
        registrations.on_message(wire(number), mallory, encode(RegHello(mallory)))
    for number, talk in enumerate(registrations._open.values()):
        if number:
            talk.owner_uid, talk.invite_id = b"m" * 16, os.urandom(16)
    registrations._make_room()
    assert [talk.invite_id == carol for talk in registrations._open.values()] == [True, False]


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


# --- what a client asks ----------------------------------------------------------------------


class Asking:
    """A registered client with a session, and the services that answer it."""

    def __init__(self, core: Core, name: str = "alice") -> None:
        self.core = core
        self.client = client(name)
        invitation = invited(core, name)
        uid, private = core.db.reserve(invitation, lambda: (self.client.uid, b"private"))
        row = replace(self.client.row, perm_server_private=private, card_hash=bytes(32), uid=uid)
        self.client.row = core.db.register(invitation, row, core.clock.wall())
        self.talk = Ask(self.client)
        self.ended: list[bool] = []
        transfers = Transfers(core, self.talk)  # type: ignore[arg-type]
        relays: Any = SimpleNamespace(announce=None, want=None)
        self.services = Services(
            core, self.talk, transfers, relays, lambda: self.ended.append(self.is_registered)  # type: ignore[arg-type]
        )
        self._serial = 0

    @property
    def is_registered(self) -> bool:
        return self.core.db.client_named(self.client.name) is not None

    def ask(self, body: RequestBody) -> Any:
        """What it is answered."""
        assert self.client.daemon is not None
        self._serial += 1
        before = len(self.talk.answers)
        self.services.on_request(self.client.daemon, Asked(self._serial.to_bytes(16, "big"), body))
        ((_, _, answer),) = self.talk.answers[before:]
        return answer


EVERY_KIND: Final[dict[type, Callable[[], RequestBody]]] = {
    Heartbeat: Heartbeat,
    ListPeers: lambda: ListPeers(""),
    LookUp: lambda: LookUp("nobody"),
    InviteApplication: lambda: InviteApplication("backup"),
    TransferRequest: lambda: request("alice", "nobody"),
    TransferKey: lambda: TransferKey(encode(Key(os.urandom(16), b"", b"", b"")), bytes(64)),
    TransferEnd: lambda: TransferEnd(os.urandom(16), 31, ""),
    Notify: lambda: Notify(b"", bytes(64), b"", b"", "online"),
}


@pytest.mark.attack("O05")
@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.__name__)
def test_every_kind_of_request_of_one_client_is_bounded_and_the_others_go_on(
    core: Core, clock: FixedClock, kind: type
) -> None:
    """Well above what a client of ours asks, well below what would keep the loop busy for long."""
    asking = Asking(core)
    answers = [asking.ask(EVERY_KIND[kind]()) for _ in range(1500)]
    served = answers.index((25, "limit"))
    assert served > 16
    assert set(map(str, answers[served:])) == {"(25, 'limit')"}
    other = next(each for each in EVERY_KIND if each not in {kind, InviteApplication})
    assert asking.ask(EVERY_KIND[other]()) != (25, "limit")
    clock.advance(10.0)
    assert asking.ask(EVERY_KIND[kind]()) != (25, "limit")


def test_the_steps_of_as_many_transfers_as_may_begin_are_within_their_bound(core: Core) -> None:
    """A client that began all that it may is not refused when all of them are answered at once."""
    asking = Asking(core)
    core.config = replace_limits(core.config, per_second=3, handshakes_per_client=40)
    answers = [asking.ask(EVERY_KIND[TransferKey]()) for _ in range(40)]
    assert set(answers) == {(31, "unknown-transfer")}


def replace_limits(config: CoordinatorConfig, **changes: int) -> CoordinatorConfig:
    return msgspec.structs.replace(config, limits=msgspec.structs.replace(config.limits, **changes))


def test_the_loop_waits_for_another_process_for_less_than_a_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an administration command that is slow makes clients count the coordinator lost."""
    asked: list[float] = []

    def refuse(*_: object, patience: float, **__: object) -> Any:
        asked.append(patience)
        raise LocalIOError("held", detail="busy")

    monkeypatch.setattr(KeyDb, "open", refuse)
    home = Home.resolve("coordinator", str(tmp_path / "home"))
    with pytest.raises(LocalIOError), home.prepare().lock() as lock:
        asyncio.run(Engine(Settings(home, {"coordinator.suite": "x25519"}), lock).run())
    assert asked[0] < HEARTBEAT_SECONDS


def test_a_rate_allows_so_many_at_once_and_so_many_a_second_for_long() -> None:
    bucket, rate = Bucket(), Rate(3, 0.5)
    assert [bucket.take(rate, 10.0) for _ in range(5)] == [True, True, True, False, False]
    assert [bucket.take(rate, at) for at in (11.0, 12.0, 12.1, 14.0, 15.0)] == [False, True, False, True, False]
    assert not bucket.is_unused(rate, 19.0)
    assert bucket.is_unused(rate, 20.1)


def test_an_invitation_for_an_application_is_one_transaction_that_reads_no_other(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = Asking(core)
    monkeypatch.setattr(KeyDb, "invitations", None)
    writing, transactions = core.db._backend.writing, 0

    def counted() -> Any:
        nonlocal transactions
        transactions += 1
        return writing()

    monkeypatch.setattr(core.db._backend, "writing", counted)
    assert isinstance(asking.ask(InviteApplication("backup")), Invitation)
    assert transactions == 1


def test_a_page_of_peers_is_one_query_however_many_were_revoked(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(core)
    for number in range(130):
        Asking(core, f"aa-{number}")
        core.db.revoke(f"aa-{number}", "", core.clock.wall())
    reading, transactions = core.db._backend.reading, 0

    def counted() -> Any:
        nonlocal transactions
        transactions += 1
        return reading()

    monkeypatch.setattr(core.db._backend, "reading", counted)
    page = asking.ask(ListPeers(""))
    assert ([peer.name for peer in page.peers], page.more) == ([asking.client.name], False)
    assert transactions == 1


def test_what_ten_thousand_that_went_at_once_leave_is_written_down_bit_by_bit(
    core: Core, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients, written = Clients(core, lambda *_: None, lambda _: None), list[list[bytes]]()
    touch_all = core.db.touch_all

    def touched(seen: Mapping[bytes, float]) -> None:
        written.append(list(seen))
        touch_all(seen)

    monkeypatch.setattr(core.db, "touch_all", touched)
    gone = [number.to_bytes(ID_BYTES, "big") for number in range(3 * SEEN_FLUSH_ROWS)]
    clients._seen = dict.fromkeys(gone, clock.wall())
    for _ in range(2):
        clients.tick(clock.advance(0.25))
    assert written == [gone[:SEEN_FLUSH_ROWS], gone[SEEN_FLUSH_ROWS : 2 * SEEN_FLUSH_ROWS]]
    clients.close()
    assert written[2:] == [gone[2 * SEEN_FLUSH_ROWS :]]


def test_a_log_that_could_not_be_read_is_read_again(
    core: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a revocation would wait until somebody else writes."""
    Asking(core, "bob")
    home = Home.resolve("coordinator", str(tmp_path / "home")).prepare()
    ended: list[str] = []
    with home.lock() as lock:
        engine = Engine(Settings(home), lock, clock=core.clock, entropy=core.entropy)
        engine._make_parts(core.identity, core.db, core.pool, core.config)
        monkeypatch.setattr(engine, "_end_registration", lambda _uid, name, _reason: ended.append(name))
        other = KeyDb.open(f"sqlite:///{tmp_path / 'keys.db'}", core.identity.mac_key, create=False)
        with closing(other):
            other.revoke("bob", "", core.clock.wall())
        with monkeypatch.context() as failing:
            failing.setattr(core.db, "log_entries", busy)
            with pytest.raises(LocalIOError):
                engine._look_again()
        engine._look_again()
        assert ended == ["bob"]
        engine._look_again()
        assert ended == ["bob"]
        engine._close_parts()


def busy(_first: int) -> Any:
    raise LocalIOError("held", detail="busy")


def test_a_leave_is_stored_before_it_is_acknowledged(core: Core) -> None:
    asking = Asking(core)
    states: list[bool] = []
    answer = asking.talk.answer

    def watched(session: Session, call: bytes, body: Any) -> None:
        states.append(asking.is_registered)
        answer(session, call, body)

    asking.talk.answer = watched  # type: ignore[method-assign]
    assert asking.ask(Leave()) == Ok()
    assert states == [False], "it was told too early"
    assert asking.ended == [False], "its channels end after that"


def test_a_leave_that_cannot_be_stored_is_not_acknowledged(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(core)

    def full(*_: object) -> Any:
        raise LocalIOError("no space", detail="no-space")

    with monkeypatch.context() as patch:
        patch.setattr(KeyDb, "revoke", full)
        assert asking.ask(Leave()) == (10, "keydb"), "it is not the client's disk that is full"
    assert asking.is_registered
    assert asking.ended == []
    assert asking.ask(Leave()) == Ok()


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

    def is_online(self, _uid: bytes) -> bool:
        return True

    def person(self, _uid: bytes) -> tuple[PersonState, int]:
        return "unknown", 0

    def last_seen(self, row: ClientRow) -> float:
        return row.last_seen

    def ask(self, session: Session, body: Any, _within: float, on_reply: Any) -> None:
        self.asked.append((session, body, on_reply))

    def tell(self, session: Session, body: Any) -> None:
        self.told.append((session, body))

    def party(self, client: Client) -> Party:
        return client.party

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
        "version": TERMS_VERSION, "xid": os.urandom(16), "tid": os.urandom(16), "sender": sender,
        "recipient": recipient, "pin": b"",
        "key_source": "sender", "key_order": "recipient-first", "cipher": "aes-256-gcm",
        "compression": "none", "acknowledgement": "session", "presence": "online",
        "wait": 0, "size_class": 255, "can_listen": False, "fresh": False, "card_hash": bytes(32),
        "sender_one_time_key": b"", "preview": b"", "asker": b"", "asked_by": "", "ask": b"", "head": b"",
    }
    return TransferRequest(encode(Req(**(fields | changes))), bytes(64))


def response(asked: TransferRequest, key: bytes) -> TransferResponse:
    req = decode(asked.request, Req)
    resp = Resp(
        TERMS_VERSION, req.xid, "accept", 0, "", "online", 0, key, 65536, 0, False, bytes(32), req.key_source,
        req.key_order, req.sender_one_time_key, b"", b"",
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
def test_a_request_in_anothers_name_is_refused_and_not_noted_under_it(core: Core) -> None:
    alice, bob = client("alice"), client("bob")
    assert alice.daemon is not None
    ask = Ask(alice, bob)
    transfers = Transfers(core, ask)  # type: ignore[arg-type]
    for changes in ({}, {"cipher": "3des"}):  # which policy refuses
        with pytest.raises(PeerViolation, match="identity"):
            transfers.request(alice.daemon, b"call", request("bob", "bob", **changes))
    assert ask.asked == []
    core.audit.close()
    assert core.db.audit_entries() == []


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


# --- the same again ----------------------------------------------------------------------


class Handshake:
    """Alice asks bob, through `Transfers` alone."""

    def __init__(self, core: Core) -> None:
        self.alice, self.bob = client("alice"), client("bob")
        assert self.alice.daemon is not None
        self.session = self.alice.daemon
        self.talk = Ask(self.alice, self.bob)
        self.transfers = Transfers(core, self.talk)  # type: ignore[arg-type]
        self.message = request("alice", "bob")
        self.xid = decode(self.message.request, Req).xid
        self.key = TransferKey(encode(Key(self.xid, b"ct1", b"ct2", b"")), bytes(64))
        self.confirm = TransferConfirm(encode(Conf(self.xid, bytes(32))))

    def say(self, message: Any, call: bytes) -> Any:
        """What the sender's request ``call`` is answered, at once."""
        before = len(self.talk.answers)
        if isinstance(message, TransferRequest):
            self.transfers.request(self.session, call, message)
        else:
            self.transfers.go_on(self.session, call, message)
        return self.given(before)

    def recipient_says(self, body: Any) -> Any:
        """To the last question; what the sender's requests are answered with that."""
        before = len(self.talk.answers)
        self.talk.asked[-1][2](body)
        return self.given(before)

    def given(self, before: int) -> list[tuple[bytes, Any]]:
        return [(call, body) for _, call, body in self.talk.answers[before:]]


def test_each_step_once_more_is_answered_with_the_same_and_asks_the_recipient_nothing(core: Core) -> None:
    """Whether its answer is still to come, was given and lost, or was the last one; under the same call or another."""
    talk = Handshake(core)
    assert talk.say(talk.message, b"x1") == []
    assert talk.say(talk.message, b"x1 again") == []
    (one, grant), other = talk.recipient_says(response(talk.message, b"e"))
    assert (one, other) == (b"x1", (b"x1 again", grant))
    assert isinstance(grant, TransferGrant)
    assert talk.say(talk.message, b"x1") == [(b"x1", grant)]
    assert talk.say(talk.key, b"x5") == []
    assert talk.say(talk.key, b"x5 again") == []
    assert talk.recipient_says(talk.confirm) == [(b"x5", talk.confirm), (b"x5 again", talk.confirm)]
    assert len(talk.transfers) == 0
    assert talk.say(talk.key, b"x5") == [(b"x5", talk.confirm)]
    assert [type(body) for _, body, _ in talk.talk.asked] == [Notify, DeliverKey]
    assert talk.alice.handshakes == 0


def test_another_request_or_key_on_the_same_transfer_is_refused(core: Core) -> None:
    talk = Handshake(core)
    talk.say(talk.message, b"x1")
    other = TransferRequest(talk.message.request, b"s" * 64)
    with pytest.raises(PeerViolation, match="replay"):
        talk.say(other, b"other")
    talk.recipient_says(response(talk.message, b"e"))
    talk.say(talk.key, b"x5")
    changed = TransferKey(encode(Key(talk.xid, b"another", b"ct2", b"")), bytes(64))
    with pytest.raises(PeerViolation, match="replay"):
        talk.say(changed, b"changed")
    talk.recipient_says(talk.confirm)
    for message in (talk.message, other):
        with pytest.raises(PeerViolation, match="replay"):
            talk.say(message, b"late")
    with pytest.raises(TimedOut):
        talk.say(changed, b"late")
    assert [type(body) for _, body, _ in talk.talk.asked] == [Notify, DeliverKey]


def test_a_refusal_once_more_is_the_same_refusal(core: Core) -> None:
    talk = Handshake(core)
    talk.say(talk.message, b"x1")
    assert talk.recipient_says("offline") == [(b"x1", (21, "offline"))]
    assert talk.say(talk.message, b"x1") == [(b"x1", (21, "offline"))]


def test_a_sender_that_is_refused_again_and_again_is_one_line_of_the_log(core: Core) -> None:
    with capture_logs() as events:
        for detail in ["limit"] * 20 + ["accept"] * 20:
            talk = Handshake(core)
            talk.say(talk.message, b"x1")
            talk.recipient_says(Failure(b"", 25, detail))
    told = [event for event in events if event["log_level"] == "info"]
    assert [(event["event"], event["sender"], event["code"], event["detail"]) for event in told] == [
        ("transfer-refused", "alice", 25, "limit"), ("transfer-refused", "alice", 25, "accept"),
    ]


def test_what_is_only_repeated_wins_no_time_and_is_bounded(core: Core, clock: FixedClock) -> None:
    talk = Handshake(core)
    talk.say(talk.message, b"x1")
    clock.advance(STEP_SECONDS - 1)
    for _ in range(7):
        talk.say(talk.message, b"again")
    with pytest.raises(PeerViolation, match="limit"):
        talk.say(talk.message, b"again")
    talk.transfers.tick(clock.advance(2))
    assert len(talk.transfers) == 0
    assert [answer for _, _, answer in talk.talk.answers] == [(30, "expired")] * 8


def test_last_answers_are_kept_for_a_while_and_within_bounds(
    core: Core, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Handshake(core)
    talk.say(talk.message, b"x1")
    talk.recipient_says("offline")
    talk.transfers.tick(clock.advance(STEP_SECONDS + 1))
    assert (talk.transfers._ended, talk.transfers._ended_bytes) == ({}, 0)
    with pytest.raises(PeerViolation, match="replay"):
        talk.say(talk.message, b"x1")
    monkeypatch.setattr("zkc.coordinator.transfers.ENDED_BYTES_MAX", 200)
    for _ in range(50):
        talk.say(request("alice", "bob"), b"x1")
        talk.recipient_says("offline")
    assert 1 <= len(talk.transfers._ended) < 10
    assert talk.transfers._ended_bytes <= 200
