"""The coordinator's program against strangers at its port, and against registered clients that keep no rule."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import pytest
import zmq

from tests.support import evil
from tests.support.bystander import transfer_meanwhile
from tests.support.coordinator import Member, Newcomer, NoAnswerError, Peer
from tests.support.evil import KeyedPeer
from tests.support.link import flipped
from tests.support.looking import family, log_of, memory, stopped
from tests.support.program import TOP
from tests.support.proxy import TcpProxy
from tests.support.samples import sample
from tests.support.waiting import DEADLINE, wait_until
from zkc.constants import CONTROL_MESSAGE_MAX
from zkc.coordinator import admin
from zkc.coordinator.banned import read_banned
from zkc.coordinator.control import Status
from zkc.crypto.invitations import parse_invitation
from zkc.net.monitor import EventKind
from zkc.net.sockets import CurveKeys, generate_curve, split_endpoint, to_raw, to_z85
from zkc.stores.home import Home
from zkc.testing import Done, Fleet
from zkc.wire import messages
from zkc.wire.codec import encode
from zkc.wire.frames import ControlKind, control_frame, split_control
from zkc.wire.messages import Answer, Goodbye, Heartbeat, InviteApplication, Ok, Request

MIB: Final = 1 << 20
TEN_TIMES: Final = 10
"""A test's deadline for what should take a second."""
SILENCE: Final = 0.5
"""Seconds in which an answer would long have come."""
ENDED: Final = "process-ended"
BARRED: Final = "key-barred"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """alice and bob with daemons, carol without."""
    with Fleet("alice", "bob") as running:
        running.join("carol")
        yield running


@pytest.fixture
def bystanders(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet; afterwards the same process serves, alice's MiB arrives, and a new link is answered."""
    before = status(fleet).pid
    yield fleet
    finish(fleet)
    assert status(fleet).pid == before
    assert not [event for event in log_of(fleet, "coordinator") if event["event"] == "defect"]


def finish(fleet: Fleet) -> None:
    payload = os.urandom(MIB)
    fleet.client("alice").send("bob", payload, name="after", timeout=60)
    with fleet.client("bob").receive(sender="alice", name="after") as item:
        assert item.read() == payload
    assert fleet.zkc("carol", "peers").code == 0


def status(fleet: Fleet) -> Status:
    return admin.status(Home.resolve("coordinator", str(fleet.home("coordinator"))), DEADLINE)


def counted(fleet: Fleet, name: str) -> int:
    return status(fleet).counters.get(name, 0)


def member(fleet: Fleet, name: str) -> Member:
    """A registered client in evil hands."""
    return Newcomer(parse_invitation(fleet.invite(name)), fleet.coordinator.endpoint).register()


def server_key(fleet: Fleet) -> bytes:
    """The coordinator's CURVE key, which every invitation tells."""
    return parse_invitation(fleet.invite("nobody")).curve_key


# --- O01: peers that choose their routing ids -----------------------------------------------------------------------

ABORTS: Final = zmq.zmq_version_info() == (4, 3, 5)
"""Whether this libzmq is known to abort; with another nobody has to be barred."""
CLAIMS: Final = 64
FIRST_ID: Final = """
from sitecustomize import Known
import zmq
from zkc.net import sockets
sockets.seed_c_rng(Known())
with zmq.Context() as ctx, ctx.socket(zmq.REP), ctx.socket(zmq.ROUTER) as router, ctx.socket(zmq.DEALER) as dealer:
    router.bind("inproc://first")
    dealer.connect("inproc://first")
    dealer.send(b"")
    print(router.recv_multipart()[0].hex())
"""
"""A program that tells the id of a coordinator's first peer: its ROUTER is the second socket that draws a number."""


class GuessedFleet(Fleet):
    """A fleet whose coordinator numbers its peers in a way that the attacker knows."""

    known: Final = {"PYTHONPATH": f"{TOP}{os.pathsep}{TOP / 'tests' / 'support' / 'known_seed'}"}

    def environment(self, name: str) -> dict[str, str]:
        return super().environment(name) | (self.known if name == "coordinator" else {})

    def ids(self) -> list[bytes]:
        """Those that its first peers get."""
        done = subprocess.run(
            [sys.executable, "-c", FIRST_ID], env=self.environment("coordinator"), capture_output=True, check=True
        )
        first = int(done.stdout, 16)
        return [(first + number).to_bytes(5, "big") for number in range(CLAIMS)]


class Claimants:
    """DEALERs with one CURVE key, each of which claims a routing id; they come back when they are cut off."""

    def __init__(self, fleet: Fleet, keys: CurveKeys, ids: list[bytes]) -> None:
        self._ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.sockets = []
        server = to_z85(server_key(fleet))
        for routing_id in ids:
            claimant = self._ctx.socket(zmq.DEALER)
            for option, value in (
                (zmq.LINGER, 0), (zmq.ROUTING_ID, routing_id), (zmq.CURVE_SERVERKEY, server),
                (zmq.CURVE_PUBLICKEY, keys.public), (zmq.CURVE_SECRETKEY, keys.secret),
            ):
                claimant.setsockopt(option, value)
            claimant.connect(fleet.coordinator.endpoint)
            self.sockets.append(claimant)

    def __enter__(self) -> Claimants:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.sockets:
            each.close(linger=0)
        self._ctx.term()

    def got_nothing(self) -> bool:
        return not any(each.poll(0) for each in self.sockets)


@pytest.mark.attack("O01", "C09")
def test_who_claims_the_ids_of_others_is_named_and_barred_and_bystanders_finish() -> None:
    """libzmq aborts when it gives a peer an id that another has claimed. The claimants say nothing: who is admitted
    last, and brings it about, is always somebody else."""
    with GuessedFleet("alice", "bob") as fleet:
        fleet.join("carol")
        ids, mallory = fleet.ids(), member(fleet, "mallory")
        key, home = mallory.newcomer.curve, fleet.home("coordinator")
        child = status(fleet).pid

        # Of a stranger nothing gets as far as the ids.
        refused = counted(fleet, "zap.refused")
        with Claimants(fleet, generate_curve(), ids) as strangers:
            wait_until(lambda: counted(fleet, "zap.refused") >= refused + CLAIMS)
            finish(fleet)
            assert strangers.got_nothing()
        assert status(fleet).pid == child

        before = counted(fleet, "zap.admitted")
        sending = fleet.popen("alice", "send", "bob", "--name", "during", stdin=subprocess.PIPE)
        assert sending.stdin is not None
        sending.stdin.write(bytes(MIB // 2))
        sending.stdin.flush()
        with Claimants(fleet, key, ids) as claimants:
            wait_until(lambda: counted(fleet, "zap.admitted") >= before + CLAIMS)
            # Among them are the ids that alice's and bob's daemons have: theirs they stay.
            fleet.client("alice").send("bob", b"still mine", name="meanwhile")
            assert claimants.got_nothing()
            # And those that newcomers would get.
            if ABORTS:
                wait_until(lambda: is_barred(fleet), within=120)
            else:
                finish(fleet)
        sending.stdin.write(bytes(MIB // 2))
        sending.stdin.close()
        assert sending.wait(60) == 0
        if not ABORTS:
            return

        ends = [event for event in log_of(fleet, "coordinator") if event["event"] == ENDED]
        named = Counter(event["key_id"] for event in ends)
        assert named.pop(to_raw(key.public).hex()) >= 2
        # A bystander whose connection happened to come last is named once, and nobody is barred for that.
        assert all(times == 1 for times in named.values())
        (barred,) = [event for event in log_of(fleet, "coordinator") if event["event"] == BARRED]
        assert (barred["key_id"], barred["who"]) == (to_raw(key.public).hex(), f"u:{mallory.uid.hex()}")
        assert read_banned(home) == {to_raw(key.public)}
        assert max(outages(fleet)) < 2.0 * TEN_TIMES
        for name in ("alice", "bob"):
            fleet.wait_linked(name)
        finish(fleet)
        with mallory.connect() as wire:
            assert wire.verdict() is EventKind.HANDSHAKE_FAILED_AUTH
        wait_until(lambda: ("connection", "mallory", "barred") in [
            (each["kind"], each["from"], each["detail"])
            for each in fleet.zkc("coordinator", "coordinator", "audit", "--json").events
        ])  # fmt: skip
        assert fleet.zkc("coordinator", "coordinator", "audit", "--verify").code == 0


def is_barred(fleet: Fleet) -> bool:
    """Whether a key is barred; a bystander links meanwhile, whatever comes of it."""
    fleet.zkc("carol", "peers")
    return any(event["event"] == BARRED for event in log_of(fleet, "coordinator"))


def outages(fleet: Fleet) -> list[float]:
    """Seconds from the end of each process that served until the next one did."""
    at = [
        (event["event"], datetime.fromisoformat(event["timestamp"])) for event in log_of(fleet, "coordinator")
        if event["event"] in (ENDED, "ready")
    ]
    return [
        (then - ended).total_seconds()
        for (what, ended), (_, then) in itertools.pairwise(at) if what == ENDED
    ]


# --- O02, C13: strangers at the port --------------------------------------------------------------------------------

IDLE: Final = 300
IDLE_OF_SOAK: Final = 5000
HANDSHAKE_SECONDS: Final = 5.0
ASKS: Final = 100


def curve_opening(fleet: Fleet) -> bytes:
    """Greeting and HELLO of a true CURVE client: recorded, since its HELLO is as good for any other connection."""
    with TcpProxy(split_endpoint(fleet.coordinator.endpoint)) as proxy:
        with KeyedPeer(proxy.endpoint, server_key(fleet)) as peer:
            peer.verdict()
        said = proxy.recorded("up")
    length = evil.GREETING_BYTES + 2 + 200
    assert said[evil.GREETING_BYTES + 2 :][1:6] == b"HELLO", "another opening than RFC 26's"
    return said[:length]


def slowest_of(peer: Peer) -> float:
    """Seconds of the answer that 99 of a hundred beat."""
    took = []
    for _ in range(ASKS):
        began = time.monotonic()
        assert peer.ask(Heartbeat()) == Ok()
        took.append(time.monotonic() - began)
    return sorted(took)[ASKS * 99 // 100 - 1]


def closed_after(strangers: list[socket.socket], within: float) -> list[float]:
    """For each connection the seconds until the other side has closed it."""
    began, took = time.monotonic(), []
    with selectors.DefaultSelector() as selector:
        for each in strangers:
            selector.register(each, selectors.EVENT_READ)
        while selector.get_map():
            left = began + within - time.monotonic()
            assert left > 0, f"{len(selector.get_map())} of {len(strangers)} still stand"
            for ready, _ in selector.select(left):
                assert isinstance(ready.fileobj, socket.socket)
                data = b""
                with contextlib.suppress(ConnectionResetError):
                    data = ready.fileobj.recv(4096)
                if not data:
                    took.append(time.monotonic() - began)
                    selector.unregister(ready.fileobj)
    return took


def crowd(fleet: Fleet, name: str, count: int) -> None:
    """``count`` strangers open connections and do not go on; a bystander is served, and they are closed."""
    opening = curve_opening(fleet)
    beginnings = [b"", opening[:1], opening[:11], opening[:40], opening[:64], opening[:100], opening]
    address = split_endpoint(fleet.coordinator.endpoint)
    open_before = counted(fleet, "connections.open")
    with member(fleet, name).open("once") as peer, contextlib.ExitStack() as standing:
        calm = slowest_of(peer)
        strangers = []
        for number in range(count):
            stranger = standing.enter_context(socket.create_connection(address, timeout=DEADLINE))
            stranger.sendall(beginnings[number % len(beginnings)])
            strangers.append(stranger)
        busy = slowest_of(peer)
        assert busy < max(2.0 * TEN_TIMES * calm, 1.0), (calm, busy)
        finish(fleet)
        took = closed_after(strangers, HANDSHAKE_SECONDS * TEN_TIMES)
        assert len(took) == count
        wait_until(lambda: counted(fleet, "connections.open") <= open_before + 1)


@pytest.mark.attack("O02")
def test_hundreds_of_connections_that_do_not_go_on_are_closed_and_bystanders_served(bystanders: Fleet) -> None:
    crowd(bystanders, "calm", IDLE)


@pytest.mark.soak
@pytest.mark.attack("O02")
def test_thousands_of_connections_that_do_not_go_on_are_closed_and_bystanders_served(bystanders: Fleet) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        crowd(bystanders, "patient", IDLE_OF_SOAK)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.attack("C13")
def test_what_speaks_no_curve_is_disconnected_and_never_heard(bystanders: Fleet) -> None:
    address, bystander = split_endpoint(bystanders.coordinator.endpoint), member(bystanders, "served")
    with bystander.open("once") as peer, transfer_meanwhile(bystanders):
        before = status(bystanders).counters
        for what, junk in evil.JUNK.items():
            evil.throw(address, junk)
            assert peer.ask(Heartbeat()) == Ok(), what
            after = status(bystanders).counters
            assert after["zap.admitted"] == before["zap.admitted"], what
            assert after.get("reg.bytes", 0) == before.get("reg.bytes", 0), what


@pytest.mark.attack("O12")
def test_no_program_runs_on_a_libzmq_with_known_faults(fleet: Fleet) -> None:
    old = {"PYTHONPATH": f"{TOP}{os.pathsep}{TOP / 'tests' / 'support' / 'old_libzmq'}"}
    for name, *words in (
        ("new", "coordinator", "run", "--listen", "tcp://127.0.0.1:0"), ("carol", "daemon"),
        ("carol", "send", "bob", "-m", "x"),
    ):
        error = fleet.zkc(name, *words, "--json", env=old).events[-1]
        assert (error["code"], error["detail"]) == (40, "libzmq"), words
        assert "4.3.5" in error["message"]


# --- C15: a recipient that goes away ---------------------------------------------------------------------------------


@pytest.mark.claims("D1", 62, 86)
@pytest.mark.attack("C15")
def test_a_recipient_that_is_gone_while_it_is_asked_is_offline_and_not_silent(fleet: Fleet) -> None:
    """It stands still when the coordinator asks it, so it has not answered, and is killed then."""
    fleet.join("dave")
    daemon = fleet.start_daemon("dave")
    with stopped(daemon.process.pid):
        asking = fleet.popen("alice", "send", "dave", "-m", "x", "--json", stdout=subprocess.PIPE)
        wait_until(lambda: counted(fleet, "transfers.open") == 1)
        daemon.kill()
        began = time.monotonic()
        out, _ = asking.communicate(timeout=60)
    assert time.monotonic() - began < 2.0 * TEN_TIMES
    assert (asking.returncode, Done(21, out, b"").events[-1]["detail"]) == (21, "offline")


# --- C01, C02, C10, C11: a registered client that keeps no rule ------------------------------------------------------


def silent(peer: Peer) -> bool:
    """Whether nothing has been said to that client that is still to be read, once a question was answered."""
    try:
        peer.wire.receive(0)
    except NoAnswerError:
        return True
    return False


@pytest.mark.attack("C01", "C02")
def test_a_greeting_with_any_bit_turned_over_opens_nothing_and_is_not_told_why(bystanders: Fleet) -> None:
    """Samples of C1, with its version byte; each byte in memory in tests/protocol. Another User-Id than its own is
    refused for that; of the rest nobody learns which part was wrong."""
    mallory = member(bystanders, "mallory-c1")
    with Peer(mallory, "daemon", os.urandom(16)) as peer:
        peer.greet()
        true = peer.hello
        before = status(bystanders).counters
        for place in (0, 1, *range(2, len(true), len(true) // 24), len(true) - 1):
            wait_until(lambda place=place: is_judged(bystanders, peer, flipped(true, place, 1 << place % 8)))
        after = status(bystanders).counters
        assert silent(peer), "no word to whoever cannot greet"
        assert after.get("channel.confirmed", 0) == before.get("channel.confirmed", 0)
        assert after.get("channel.hellos", 0) == before.get("channel.hellos", 0)
        assert after.get("violations.version", 0) == before.get("violations.version", 0) + 1
        peer.greet()
        assert peer.ask(Heartbeat()) == Ok()


@pytest.mark.attack("C03", "C07")
def test_a_replayed_greeting_of_an_offline_client_gets_nothing_that_is_meant_for_it(bystanders: Fleet) -> None:
    """Even on the client's own CURVE key: a sender is told that it is offline, and the attacker hears of no sender."""
    victim = member(bystanders, "victim")
    with victim.open() as peer:
        assert peer.ask(Goodbye()) == Ok()
        recorded = peer.hello
    with victim.connect() as wire:
        wire.send(recorded)
        kind, _ = split_control(wire.receive())
        assert kind is ControlKind.CHANNEL
        done = bystanders.zkc("alice", "send", "victim", "-m", "for the victim", "--json")
        assert (done.code, done.events[-1]["detail"]) == (21, "offline")
        with pytest.raises(NoAnswerError):
            wire.receive(0)
    (row,) = [row for row in admin.clients(home(bystanders)) if row.name == "victim"]
    assert not row.online


@pytest.mark.attack("C04")
def test_records_in_another_order_or_twice_have_one_effect_and_end_the_channel(bystanders: Fleet) -> None:
    """The effect is an invitation for an application: the coordinator lists how many there are."""
    mallory = member(bystanders, "mallory-c04")
    for number, order in enumerate(([1, 0], [0, 0])):
        with mallory.open("once") as peer:
            asked = [InviteApplication(f"c04-{number}-{each}") for each in range(2)]
            frames = [peer.seal(Request(os.urandom(16), each)) for each in asked]
            before = counted(bystanders, "violations.replay")
            for each in order:
                peer.wire.send(frames[each])
            wait_until(lambda before=before: counted(bystanders, "violations.replay") == before + 1)
            with pytest.raises(NoAnswerError):
                peer.ask(Heartbeat(), SILENCE)
        names = [row.name for row in admin.list_invitations(home(bystanders)) if f"/c04-{number}" in row.name]
        assert names == [f"mallory-c04/{asked[order[0]].app}"]


def is_judged(fleet: Fleet, peer: Peer, frame: bytes) -> bool:
    """Whether what was sent broke a rule by itself; False where there were too many greetings in this second."""
    before = status(fleet).counters
    peer.wire.send(frame)
    wait_until(lambda: violations(fleet) != violations(fleet, before))
    return counted(fleet, "violations.limit") == before.get("violations.limit", 0)


def violations(fleet: Fleet, counters: dict[str, int] | None = None) -> dict[str, int]:
    """How often which rule was broken, by now or then."""
    counters = status(fleet).counters if counters is None else counters
    return {name: count for name, count in counters.items() if name.startswith("violations.")}


def every_message() -> list[tuple[str, ControlKind, bytes]]:
    """One of each type that may stand in a control frame, unknown ones included: name, kind of frame, body."""
    found = [
        (kind.__name__, frame, encode(sample(kind)))
        for union, frame in (
            (messages.RegMessage, ControlKind.REGISTRATION), (messages.ChannelMessage, ControlKind.CHANNEL),
        )
        for kind in get_args(union)
    ]
    unknown = msgspec.msgpack.encode(["R99", b""])
    return [*found, ("unknown", ControlKind.REGISTRATION, unknown), ("unknown", ControlKind.CHANNEL, unknown)]


@pytest.mark.attack("C10")
def test_any_message_in_any_state_of_a_registration_acts_only_where_it_belongs(bystanders: Fleet) -> None:
    """A newcomer says everything at every point of its registration, and then registers."""
    wanted = {"R0": 0, "R1": 1, "R3": 2, "R5": 3}
    for state in range(4):
        newcomer = Newcomer(
            parse_invitation(bystanders.invite(f"c10-{state}")), bystanders.coordinator.endpoint
        )

        def tap(when: str, message: Any, body: bytes, state: int = state) -> bytes:
            if when == "sending" and wanted[tag(message)] == state:
                raise BrokenPipeError
            return body

        for _, frame, body in every_message():
            with newcomer.connect() as wire:
                begun = counted(bystanders, "messages")
                with contextlib.suppress(BrokenPipeError):
                    progress(newcomer, wire, tap)
                wire.send(control_frame(frame, body))
                wait_until(lambda begun=begun, state=state: counted(bystanders, "messages") >= begun + state + 1)
        assert newcomer.register().name == f"c10-{state}"


def tag(message: Any) -> str:
    return str(type(message).__struct_config__.tag)


def progress(newcomer: Newcomer, wire: Any, tap: Any) -> None:
    """As far as ``tap`` lets the newcomer go, on this connection."""
    connect = newcomer.connect
    newcomer.connect = lambda: contextlib.nullcontext(wire)  # type: ignore[method-assign,assignment,return-value]
    try:
        newcomer.register(tap)
    finally:
        newcomer.connect = connect  # type: ignore[method-assign]


@pytest.mark.attack("C10")
def test_any_message_of_a_registered_client_acts_only_where_it_belongs(bystanders: Fleet) -> None:
    """Before its channel, and inside it: requests, answers that nobody waits for, failures, and what is unknown."""
    mallory = member(bystanders, "mallory-c10")
    with Peer(mallory, "once", os.urandom(16)) as peer:
        for _, frame, body in every_message():
            peer.wire.send(control_frame(frame, body))
        peer.greet()
        assert peer.ask(Heartbeat()) == Ok()
        harmless = {"Goodbye", "Leave"}  # they end the session, as they should
        for kind in get_args(messages.RequestBody):
            if kind.__name__ not in harmless:
                answer = peer.ask(sample(kind))
                assert answer is not None, kind
        for kind in get_args(messages.AnswerBody):
            peer.wire.send(peer.seal(Answer(os.urandom(16), sample(kind))))
        for record in (sample(messages.Failure), Request(bytes(16), Heartbeat())):
            peer.wire.send(peer.seal(record))
        for _, frame, body in every_message():
            if frame is ControlKind.REGISTRATION:
                peer.wire.send(control_frame(frame, body))
        assert peer.ask(Heartbeat()) == Ok()
    assert [row.revoked for row in admin.clients(home(bystanders)) if row.name == "mallory-c10"] == [None]


def home(fleet: Fleet) -> Home:
    return Home.resolve("coordinator", str(fleet.home("coordinator")))


REQUEST: Final = b"\x93\xa1q\xc4\x10" + bytes(16)
"""The beginning of a request, up to its body."""
HOSTILE: Final = {
    "empty": b"", "nil": b"\xc0", "2^32-1 items": b"\xdd\xff\xff\xff\xff", "2^31 bytes": b"\xc6\x80\0\0\0",
    "2^32-1 bytes of text": b"\xdb\xff\xff\xff\xff", "nested": b"\x91" * 60_000, "a map": b"\x81\xa1a\xa1b",
    "a key twice": b"\x82\xa1a\x01\xa1a\x02", "NaN": REQUEST + b"\xcb" + struct.pack(">d", float("nan")),
    "-1": REQUEST + b"\xff", "2^63": REQUEST + b"\xcf" + (1 << 63).to_bytes(8, "big"),
    "bad UTF-8": REQUEST + b"\x92\xa6lookup\xa2\xff\xfe", "60,000 nil": b"\xdc\xea\x60" + b"\xc0" * 60_000,
    "trailing": encode(Request(bytes(16), Heartbeat())) + b"\0",
    "a longer form": b"\xdc\0\3" + REQUEST[1:] + b"\x91\xa9heartbeat",
}
ROUNDS: Final = 10


@pytest.mark.attack("C11")
def test_hostile_encodings_inside_a_true_channel_cost_no_memory_and_no_time(bystanders: Fleet) -> None:
    """Sealed as records are, and as messages of a registration."""
    mallory, child = member(bystanders, "mallory-c11"), status(bystanders).pid
    newcomer = Newcomer(parse_invitation(bystanders.invite("c11")), bystanders.coordinator.endpoint)
    with mallory.open("once") as peer, newcomer.connect() as wire:
        assert peer.channel is not None
        before, spent = memory(child), cpu(child)
        refused = counted(bystanders, "violations.malformed")
        for _ in range(ROUNDS):
            for body in HOSTILE.values():
                peer.wire.send(peer.channel.seal(body))
                wire.send(control_frame(ControlKind.REGISTRATION, body))
        count = ROUNDS * len(HOSTILE) * 2
        wait_until(lambda: counted(bystanders, "violations.malformed") >= refused + count)
        assert memory(child) - before < 16 * MIB
        assert cpu(child) - spent < 0.01 * TEN_TIMES * count
        assert peer.ask(Heartbeat()) == Ok()


def cpu(pid: int) -> float:
    """Seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.attack("C11")
def test_a_frame_above_the_limit_ends_the_connection_of_its_sender_alone(bystanders: Fleet) -> None:
    mallory = member(bystanders, "mallory-long")
    pids = family(bystanders.coordinator.process.pid)
    before = sum(memory(pid) for pid in pids)
    for size in (CONTROL_MESSAGE_MAX + 1024, 16 * MIB):
        with mallory.connect() as wire:
            assert wire.verdict() is EventKind.HANDSHAKE_SUCCEEDED
            wire.send(control_frame(ControlKind.RECORD, bytes(size)))
            wire.wait_event(EventKind.DISCONNECTED)
    assert sum(memory(pid) for pid in pids) - before < 16 * MIB
    with mallory.open("once") as peer:
        assert peer.ask(Heartbeat()) == Ok()


# --- O03, P06: messages without an end --------------------------------------------------------------------------------

PROCESS_MAX: Final = 150 * 1000**2
"""Bytes: what any process of zkc may take at most, whatever is done to it."""
LONG: Final = 300 * MIB
"""Bytes on the wire of one message; far more than that."""


def cut_off(fleet: Fleet) -> int:
    """Connections that were ended over a message of several parts: before it was whole, or because it was."""
    counters = status(fleet).counters
    return counters.get("violations.limit", 0) + counters.get("violations.malformed", 0)


@pytest.mark.attack("O03", "P06")
@pytest.mark.parametrize(("part", "connections"), [(60_000, 1), (100, 1), (60_000, 16), (0, 4)])
def test_a_registered_client_s_message_without_end_costs_its_connection_alone(
    bystanders: Fleet, part: int, connections: int
) -> None:
    """Of large parts and of small ones, which cost libzmq most; over one connection and over many of one key."""
    mallory = member(bystanders, f"mallory-endless-{part}-{connections}")
    before = cut_off(bystanders)
    total = LONG if part > 1000 else LONG // 10
    with transfer_meanwhile(bystanders), contextlib.ExitStack() as wires:
        opened = [wires.enter_context(mallory.connect()) for _ in range(connections)]
        for wire in opened:
            assert wire.verdict() is EventKind.HANDSHAKE_SUCCEEDED
            wire.send(control_frame(ControlKind.RECORD, bytes(40)))
        for wire in opened:
            evil.send_long(wire.socket, bytes(part), total // connections)
        for wire in opened:
            wire.wait_event(EventKind.DISCONNECTED)
    wait_until(lambda: cut_off(bystanders) >= before + connections)
    top = [memory(pid, "VmHWM") for pid in family(bystanders.coordinator.process.pid)]
    assert max(top) < PROCESS_MAX, top
    with mallory.open("once") as peer:
        assert peer.ask(Heartbeat()) == Ok(), "its key is no worse than before"


@pytest.mark.attack("O03", "P06")
def test_the_log_says_who_sent_a_message_without_end(bystanders: Fleet) -> None:
    """One line of its kind in ten seconds: it is tried until it is there."""
    mallory = member(bystanders, "mallory-told")

    def is_told() -> bool:
        with mallory.open("once") as peer:
            evil.send_long(peer.wire.socket, bytes(60_000), LONG)
            peer.wire.wait_event(EventKind.DISCONNECTED)
        return any(
            event["event"] == "rule-broken" and "without an end" in event["why"]
            and event["user"] == f"u:{mallory.uid.hex()}"
            for event in log_of(bystanders, "coordinator")
        )

    wait_until(is_told)
