"""The two ends meet, whichever of them listens: the same deliveries, the same cuts, the same strangers."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import socket
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import msgspec
import pytest
import zmq
from blake3 import blake3

from tests.support.descriptors import open_now, spare
from tests.support.evil import COMMAND, LONG, RawPeer, greeting, raw_frame
from tests.support.parties import world
from tests.support.proxy import TcpProxy
from tests.support.relays import Relay
from tests.support.streams import WHAT, Kept, Memory, Slow, persist
from tests.support.talks import terms
from tests.support.waiting import DEADLINE, wait_until
from zkc.constants import CHUNK_MIN, CONTROL_MESSAGE_MAX
from zkc.crypto.chunks import rendezvous
from zkc.errors import Interrupted, PolicyRefused, ZkcError
from zkc.net.monitor import EventKind, SocketEvent, ThreadMonitor
from zkc.net.pipe import Attempts, Bell, Bulk, Doors, Incoming, LinkLost, Outgoing, Source, Told
from zkc.net.pipe.link import CONNECT_SECONDS, login
from zkc.net.pipe.meeting import ADDRESSES_AT_ONCE, Dialling, Listening, Rung
from zkc.net.pipe.passage import Passage
from zkc.net.sockets import BULK_FRAME_MAX, CURVE_OVERHEAD, BulkPorts, DescriptorsTaken, context
from zkc.wire.messages import Endpoints

C: Final = CHUNK_MIN
MIB: Final = 1024 * 1024
HOST: Final = "127.0.0.1"
RV: Final = b"random, in truth"
FORMS: Final = ("recipient listens", "sender listens", "by a relay")


class Meeting:
    """A transfer from alice to bob in one of its forms. The way between them leads through proxies."""

    def __init__(self, form: str) -> None:
        talk = world("x25519").transfer(terms("bob"))
        talk.run()
        self.sender, self.recipient = talk.sessions
        resp = msgspec.structs.replace(self.sender.resp, chunk=C)
        self.sender, self.recipient = (dataclasses.replace(each, resp=resp) for each in talk.sessions)
        self.bulk, self.doors, self.bell, self.ring = Bulk(), Doors(), Bell(), Bell()
        self.here: Listening | None = None
        self.relay: Relay | None = None
        self.proxies: tuple[TcpProxy, ...]
        self.incoming: Incoming
        nowhere = Endpoints([], 0, 0, 0, "", b"")
        if form == "recipient listens":
            self.incoming = self.bulk.listen(HOST, None, "alice")
            assert self.incoming.listening is not None
            self.proxies = self._proxies(self.incoming.listening)
            self.sender = dataclasses.replace(self.sender, endpoints=self.where())
            self.recipient = dataclasses.replace(self.recipient, endpoints=None)
        elif form == "by a relay":
            self.relay, self.proxies = Relay(), ()
            self.relay.announce(rendezvous(RV, "data"), rendezvous(RV, "ack"))
            told = Endpoints([HOST], self.relay.port, self.relay.port, 0, "relay1", RV)
            self.incoming = self.bulk.by_relay(told, "alice")
            self.sender = dataclasses.replace(self.sender, endpoints=told)
            self.recipient = dataclasses.replace(self.recipient, endpoints=None)
        else:
            self.here = self.doors.bind(HOST, None, sends=True, peer="bob")
            self.proxies = self._proxies(self.here)
            self.incoming = self.bulk.dial()
            self.sender = dataclasses.replace(self.sender, endpoints=nowhere)
            self.recipient = dataclasses.replace(self.recipient, endpoints=self.where())
        self.incoming.admit(self.recipient)
        self.sink = Kept(self.recipient)
        self._pool = ThreadPoolExecutor(1)

    def _proxies(self, listening: Listening) -> tuple[TcpProxy, TcpProxy]:
        return TcpProxy((HOST, listening.data_port)), TcpProxy((HOST, listening.ack_port))

    def where(self) -> Endpoints:
        return Endpoints([HOST], self.proxies[0].port, self.proxies[1].port, 0, "", b"")

    def cut(self) -> int:
        if self.relay is not None:
            return self.relay.cut()
        return sum(proxy.cut() for proxy in self.proxies)

    def receive(self, patience: float = DEADLINE) -> Future[None]:
        return self._pool.submit(self.incoming.receive, self.recipient, self.sink, self.bell, patience)

    def attempts(self, data: bytes) -> Attempts:
        return self.attempts_at(Memory(data))

    def attempts_at(self, source: Source) -> Attempts:
        return Attempts(self.sender, WHAT, Outgoing(source), listening=self.here)

    def close(self) -> None:
        self.bell.ring()
        self._pool.shutdown()
        self.incoming.close()
        if self.here is not None:
            self.here.close()
        for proxy in self.proxies:
            proxy.close()
        if self.relay is not None:
            self.relay.__exit__()
        self.bulk.close()
        self.doors.close()
        self.bell.close()
        self.ring.close()


@pytest.fixture(params=FORMS)
def meeting(request: pytest.FixtureRequest) -> Iterator[Meeting]:
    made = Meeting(request.param)
    yield made
    made.close()


@pytest.fixture
def sender_listens() -> Iterator[Meeting]:
    made = Meeting("sender listens")
    yield made
    made.close()


def error_of(ended: Future[Any]) -> ZkcError:
    error = ended.exception(DEADLINE)
    assert isinstance(error, ZkcError), error
    return error


# --- the same in every form ------------------------------------------------------------------------------------------


def test_a_delivery_arrives_and_both_ends_part(meeting: Meeting) -> None:
    """The recipient has the sender's last word and does not wait for its time to be over."""
    data = random.Random(1).randbytes(4 * MIB + 5)
    receiving = meeting.receive()
    delivered = meeting.attempts(data).next(Bell(), Told())
    begun = time.monotonic()
    receiving.result(DEADLINE)
    assert time.monotonic() - begun < 5.0
    assert delivered.body.digest == blake3(data).digest()
    assert meeting.sink.got == data


@pytest.mark.attack("P05")
def test_a_delivery_that_is_cut_again_and_again_goes_on_where_it_was(meeting: Meeting) -> None:
    data = random.Random(2).randbytes(8 * MIB + 17)
    places = sorted(random.Random(3).sample(range(len(data)), 20))

    def cut(got: int) -> None:
        if places and got > places[0]:
            while places and got > places[0]:
                places.pop(0)
            meeting.cut()

    meeting.sink.on_write = cut
    receiving = meeting.receive()
    delivered, lost = persist(meeting.attempts(data))
    receiving.result(DEADLINE)
    assert meeting.sink.got == data
    assert delivered.body.size == len(data)
    assert lost >= 4
    assert meeting.sink.completed == len(meeting.sink.manifests) == 1


def test_what_the_recipient_says_last_reaches_the_sender(meeting: Meeting) -> None:
    def full(_: int) -> None:
        raise PolicyRefused("too much", detail="limit")

    meeting.sink.on_write = full
    receiving = meeting.receive()
    with pytest.raises(PolicyRefused) as told:
        meeting.attempts(bytes(8 * C)).next(Bell(), Told())
    assert (told.value.detail, error_of(receiving).detail) == ("limit", "limit")


def test_what_the_sender_says_last_reaches_the_recipient(meeting: Meeting) -> None:
    bell = Bell()
    meeting.sink.on_write = lambda _: bell.ring()
    receiving = meeting.receive()
    with pytest.raises(Interrupted) as told:
        meeting.attempts(bytes(64 * MIB)).next(bell, Told())
    bell.close()
    assert told.value.detail == "signal"
    error = error_of(receiving)
    assert (type(error), error.detail) == (Interrupted, "signal")


def test_a_recipient_alone_waits_its_patience_and_no_longer(meeting: Meeting) -> None:
    for proxy in meeting.proxies:
        proxy.refuse()
    error = error_of(meeting.receive(patience=0.5))
    assert isinstance(error, LinkLost)
    assert "alice agreed to send and did not begin" in error.message


@pytest.mark.attack("P02")
def test_strangers_at_the_ports_change_nothing(meeting: Meeting) -> None:
    listening = meeting.here or meeting.incoming.listening
    assert listening is not None
    ports = (listening.data_port, listening.ack_port)
    if meeting.relay is not None:
        ports = (*ports, meeting.relay.port)
    data = random.Random(4).randbytes(2 * MIB)
    with contextlib.ExitStack() as strangers:
        for port in 4 * ports:
            strangers.enter_context(socket.create_connection((HOST, port))).sendall(b"GET / HTTP/1.1\r\n\r\n")
        receiving = meeting.receive()
        persist(meeting.attempts(data))
        receiving.result(DEADLINE)
    assert meeting.sink.got == data


def stranger(port: int, size: int) -> RawPeer:
    """Without any token, and with a command of ``size`` bytes of which the last one never comes."""
    made = RawPeer(HOST, port)
    made.send(greeting(mechanism=b"PLAIN") + raw_frame(LONG | COMMAND, size, bytes(size - 1)))
    return made


@pytest.mark.attack("D01", "O03", "P06")
def test_a_stranger_who_says_too_much_is_cut_off_alone(meeting: Meeting) -> None:
    """As much as either socket takes, at either port: the connections of a transfer that flows do not even end."""
    listening = meeting.here or meeting.incoming.listening
    assert listening is not None
    data = random.Random(6).randbytes(2 * MIB)
    receiving = meeting.receive()
    with ThreadPoolExecutor(1) as pool, Slow() as source, contextlib.ExitStack() as closing:
        sending = pool.submit(meeting.attempts_at(source).next, Bell(), Told())
        source.give(data[:MIB])
        wait_until(lambda: len(meeting.sink.got) == MIB)
        strangers = [
            closing.enter_context(stranger(port, size))
            for port in (listening.data_port, listening.ack_port)
            for size in (CONTROL_MESSAGE_MAX + CURVE_OVERHEAD, BULK_FRAME_MAX)
        ]
        for each in strangers:
            each.wait_closed()
        source.give(data[MIB:])
        source.end()
        sending.result(DEADLINE)
        receiving.result(DEADLINE)
    assert meeting.sink.got == data


@pytest.mark.attack("D01", "P06")
def test_strangers_that_were_there_first_are_not_taken_for_the_peer(meeting: Meeting) -> None:
    """Many times what the peer may be ahead arrives, while it is not known which of them it is."""
    listening = meeting.here or meeting.incoming.listening
    assert listening is not None
    data = random.Random(7).randbytes(8 * MIB)
    with contextlib.ExitStack() as closing:
        for port in 3 * (listening.data_port, listening.ack_port):
            closing.enter_context(RawPeer(HOST, port)).send(greeting(mechanism=b"PLAIN"))
        receiving = meeting.receive()
        meeting.attempts(data).next(Bell(), Told())
        receiving.result(DEADLINE)
    assert meeting.sink.got == data


# --- a sender that listens -------------------------------------------------------------------------------------------


def test_who_comes_before_the_key_is_there_waits_and_is_let_in(sender_listens: Meeting) -> None:
    """The process with the bytes gets K only after the recipient has confirmed it, and may be behind it."""
    receiving = sender_listens.receive()
    wait_until(lambda: all(proxy.recorded("up") for proxy in sender_listens.proxies))
    numbers: list[int] = []
    attempts = sender_listens.attempts(b"late")
    delivered = attempts.next(Bell(), Told(on_begun=lambda *_: numbers.append(attempts.number)))
    receiving.result(DEADLINE)
    assert delivered.body.size == 4
    assert len(sender_listens.proxies[0].connections) == 1, "its first attempt stood"


def test_a_sender_to_whom_nobody_comes_says_where_it_was(
    sender_listens: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkc.net.pipe.sender.COME_SECONDS", 0.2)
    here = sender_listens.here
    assert here is not None
    with pytest.raises(LinkLost, match=f"bob did not connect to ports {here.data_port} and {here.ack_port}"):
        sender_listens.attempts(b"x").next(Bell(), Told())


def test_the_ports_of_one_handshake_serve_the_next(sender_listens: Meeting) -> None:
    """A new handshake has another key; with two ports in all there are no others."""
    here = sender_listens.here
    assert here is not None
    talk = world("x25519").transfer(terms("bob", serial=7))
    talk.run()
    older = talk.sessions[0].k
    here.expect(older, C)
    here.rest()
    old = login(older, "data", 0)
    assert here.door.admit("data", (old.user, old.password)) is None
    receiving = sender_listens.receive()
    delivered, _ = persist(sender_listens.attempts(b"again"))
    receiving.result(DEADLINE)
    assert delivered.body.size == 5


def test_a_pair_that_is_renewed_waits_for_its_listeners_and_one_that_is_closed_does_not(
    sender_listens: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon closes the pairs of handshakes that came to nothing on its event loop."""
    here, waits = sender_listens.here, []
    assert here is not None
    wait = ThreadMonitor.wait

    def seen(monitor: ThreadMonitor, kinds: Collection[EventKind], timeout: float) -> SocketEvent | None:
        waits.append(kinds)
        return wait(monitor, kinds, timeout)

    monkeypatch.setattr(ThreadMonitor, "wait", seen)
    here.refuse()
    here.leave(-1)
    assert waits == [{EventKind.CLOSED}] * 2
    here.close()
    assert len(waits) == 2

    def are_free() -> bool:
        with contextlib.suppress(OSError):
            for port in (here.data_port, here.ack_port):
                socket.create_server((HOST, port)).close()
            return True
        return False

    wait_until(are_free)


# --- candidates ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def silent(host: str, *ports: int) -> Iterator[None]:
    """Ports whose queues are full: who connects hears nothing, as from an address behind a firewall."""
    with contextlib.ExitStack() as closing:
        for port in ports:
            listening = closing.enter_context(socket.create_server((host, port), backlog=0))
            for _ in range(4):
                stranger = closing.enter_context(socket.socket())
                stranger.setblocking(False)
                stranger.connect_ex(listening.getsockname())
        yield


def free_ports() -> tuple[int, int]:
    with contextlib.closing(BulkPorts(HOST)) as ports:
        return ports.data_port, ports.ack_port


@pytest.mark.parametrize("family", ["127.0.0.1", "::1"])
def test_an_address_that_is_silent_holds_up_nobody(family: str) -> None:
    """Further candidates are tried beside it, and the one that answers is named."""
    bulk, bell = Bulk(), Bell()
    incoming = bulk.listen(family, None, "alice")
    listening = incoming.listening
    assert listening is not None
    talk = world("x25519").transfer(terms("bob"))
    talk.run()
    sender, recipient = talk.sessions
    incoming.admit(recipient)
    where = listening.at(["127.0.0.9", "192.0.2.1", "not an address", family])
    sink = Kept(recipient)
    reached: list[str] = []
    with silent("127.0.0.9", listening.data_port, listening.ack_port), ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(incoming.receive, recipient, sink, bell, DEADLINE)
        begun = time.monotonic()
        attempts = Attempts(dataclasses.replace(sender, endpoints=where), WHAT, Outgoing(Memory(b"hello")))
        attempts.next(Bell(), Told(on_begun=lambda endpoint, _: reached.append(endpoint)))
        took = time.monotonic() - begun
        receiving.result(DEADLINE)
    shown = f"[{family}]" if ":" in family else family
    assert reached == [f"direct tcp://{shown}:{listening.data_port}"]
    assert took < CONNECT_SECONDS / 2
    incoming.close()
    bulk.close()
    bell.close()


@contextlib.contextmanager
def dialling(addresses: list[str], ports: tuple[int, int], most: int) -> Iterator[Dialling]:
    """From a context that has room for ``most`` sockets."""
    talk = world("x25519").transfer(terms("bob"))
    talk.run()
    ctx = context()
    ctx.set(zmq.MAX_SOCKETS, most)
    made = Dialling(ctx, talk.sessions[0].k, Endpoints(addresses, *ports, 0, "", b""), chunk=C, sends=True, peer="bob")
    try:
        yield made
    finally:
        made.close()
        ctx.destroy(linger=0)


def test_of_many_addresses_that_are_silent_a_few_are_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names them takes no sockets from others; each has its time, and then the next one has its turn."""
    monkeypatch.setattr("zkc.net.pipe.meeting.CONNECT_SECONDS", 0.5)
    monkeypatch.setattr("zkc.net.pipe.meeting.NEXT_ADDRESS_SECONDS", 0.01)
    addresses = [f"127.0.0.{number}" for number in range(10, 19)]
    with contextlib.ExitStack() as closing:
        ports = free_ports()
        for address in addresses:
            closing.enter_context(silent(address, *ports))
        # Twice: libzmq takes a moment to give back those that are closed.
        dials = closing.enter_context(dialling(addresses, ports, 2 * 6 * ADDRESSES_AT_ONCE))
        bell = closing.enter_context(contextlib.closing(Bell()))
        begun = time.monotonic()
        with pytest.raises(LinkLost, match="cannot reach bob at 127.0.0.10, "):
            dials.meet(bell, begun + DEADLINE)
        assert time.monotonic() - begun > math.ceil(len(addresses) / ADDRESSES_AT_ONCE) * 0.5


def test_behind_many_addresses_that_refuse_the_one_that_answers_is_found(sender_listens: Meeting) -> None:
    """Those that have failed make room."""
    where = sender_listens.where()
    addresses = [f"127.0.0.{number}" for number in range(20, 30)]
    sender_listens.recipient = dataclasses.replace(
        sender_listens.recipient, endpoints=msgspec.structs.replace(where, addresses=[*addresses, HOST])
    )
    receiving = sender_listens.receive()
    persist(sender_listens.attempts(b"found"))
    receiving.result(DEADLINE)
    assert sender_listens.sink.got == b"found"


@pytest.mark.attack("D01")
def test_a_stranger_at_one_of_the_addresses_that_says_too_much_is_passed_over(sender_listens: Meeting) -> None:
    where, junk = sender_listens.where(), greeting(mechanism=b"PLAIN", as_server=True)
    with contextlib.ExitStack() as closing, ThreadPoolExecutor(2) as pool:
        for port in (where.data_port, where.ack_port):
            server = closing.enter_context(socket.create_server(("127.0.0.9", port)))

            def flood(server: socket.socket = server) -> None:
                with server.accept()[0] as stranger, contextlib.suppress(OSError):
                    stranger.sendall(junk + raw_frame(LONG | COMMAND, BULK_FRAME_MAX, bytes(BULK_FRAME_MAX - 1)))
                    stranger.recv(1)

            pool.submit(flood)
        sender_listens.recipient = dataclasses.replace(
            sender_listens.recipient, endpoints=msgspec.structs.replace(where, addresses=["127.0.0.9", HOST])
        )
        receiving = sender_listens.receive()
        persist(sender_listens.attempts(b"true"))
        receiving.result(DEADLINE)
    assert sender_listens.sink.got == b"true"


def test_a_recipient_that_finds_no_socket_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other transfers have them all for a while."""
    monkeypatch.setattr("zkc.net.pipe.recipient.TRANSFERS_MAX", 1)
    made, meetings = Meeting("sender listens"), []
    meet = Dialling.meet

    def counted(dialling: Dialling, bell: Bell, until: float) -> Any:
        meetings.append(dialling.number)
        return meet(dialling, bell, until)

    monkeypatch.setattr(Dialling, "meet", counted)
    with contextlib.closing(made), contextlib.ExitStack() as taken, ThreadPoolExecutor(1) as pool:
        with contextlib.suppress(zmq.ZMQError):
            while True:
                taken.enter_context(made.bulk.context.socket(zmq.PAIR))
        receiving = made.receive()
        sending = pool.submit(persist, made.attempts(b"patient"))
        wait_until(lambda: len(meetings) > 2 or receiving.done())
        taken.close()
        sending.result(DEADLINE)
        receiving.result(DEADLINE)
    assert made.sink.got == b"patient"


@pytest.mark.parametrize("left", range(4))
@pytest.mark.parametrize("what", ["ports", "passage"])
def test_what_finds_no_descriptor_says_so_and_leaves_none_behind(
    sender_listens: Meeting, what: str, left: int
) -> None:
    """A recipient waits for its turn then, and a sender is told what its machine lacks."""
    told = Endpoints([HOST], 1, 1, 0, "relay1", RV)

    def make() -> None:
        if what == "ports":
            sender_listens.bulk.bind(HOST, None, sends=False, peer="alice")
        else:
            Passage(told, "s")

    before = open_now()
    with spare(left), pytest.raises(DescriptorsTaken):
        make()
    assert open_now() == before


@pytest.mark.parametrize("left", [0, 1])  # with one more libzmq itself aborts
def test_a_context_that_finds_no_descriptor_says_so(left: int) -> None:
    before = open_now()
    with spare(left), pytest.raises(DescriptorsTaken):
        Doors()
    assert open_now() == before


def test_a_listening_sender_names_the_address_by_which_it_was_reached(sender_listens: Meeting) -> None:
    here = sender_listens.here
    assert here is not None
    reached: list[str] = []
    receiving = sender_listens.receive()
    sender_listens.attempts(b"x").next(Bell(), Told(on_begun=lambda endpoint, _: reached.append(endpoint)))
    receiving.result(DEADLINE)
    assert reached == [f"direct tcp://{HOST}:{here.data_port}"]


def test_a_ring_ends_the_wait_of_either_end(sender_listens: Meeting) -> None:
    here, ring = sender_listens.here, sender_listens.ring
    assert here is not None
    here.expect(sender_listens.sender.k, C)
    ring.ring()
    with pytest.raises(Rung):
        here.meet(ring, time.monotonic() + DEADLINE)
    dialling = Dialling(
        sender_listens.doors.context, sender_listens.sender.k, here.at(["127.0.0.9"]), chunk=C, sends=False,
        peer="x",
    )
    with silent("127.0.0.9", here.data_port, here.ack_port), pytest.raises(Rung):
        dialling.meet(ring, time.monotonic() + DEADLINE)
    assert dialling.number == 1, "its tokens may have been shown"
