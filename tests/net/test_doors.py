"""Ports: what reaches them that is no client of zkc is disconnected, and the next client is served; a transfer's ports
while its pairs come and go, and where there is nothing left to make them of."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection

import pytest
import zmq

from tests.net.conftest import Door, served
from tests.support import evil
from tests.support.descriptors import open_now, spare
from tests.support.evil import KeyedPeer, RawPeer
from tests.support.meetings import HOST, RV, C, Meeting
from tests.support.parties import world
from tests.support.streams import persist
from tests.support.talks import terms
from tests.support.waiting import DEADLINE, wait_until
from zkc.net.descriptors import DescriptorsTaken
from zkc.net.monitor import EventKind, SocketEvent, ThreadMonitor
from zkc.net.pipe.bell import Bell, LinkLost
from zkc.net.pipe.doors import Doors
from zkc.net.pipe.link import login
from zkc.net.pipe.passage import Passage
from zkc.net.pipe.sender import Told
from zkc.net.sockets import Context
from zkc.net.zap import ThreadZap
from zkc.wire.messages import Endpoints


@pytest.mark.attack("C13")
@pytest.mark.parametrize("kind", evil.JUNK)
def test_junk_on_the_control_port_is_disconnected_and_disturbs_nobody(door: Door, kind: str) -> None:
    with KeyedPeer(door.endpoint, door.server.public, door.guest) as bystander:
        assert bystander.verdict() is EventKind.HANDSHAKE_SUCCEEDED
        evil.throw(door.address, evil.JUNK[kind])
        bystander.send(b"still here")
        assert door.receive()[1] == b"still here"
        assert door.is_silent()
    assert len(door.asked) == 1


@pytest.mark.attack("C13")
@pytest.mark.parametrize("kind", evil.JUNK)
def test_junk_on_both_bulk_ports_is_disconnected_and_disturbs_nobody(ctx: Context, kind: str) -> None:
    with ThreadZap(ctx, lambda request: "ok" if request.credentials == (b"u", b"p") else None):
        pull, push, data, ack = served(ctx)
        for port in (data, ack):
            evil.throw(("127.0.0.1", port), evil.JUNK[kind])
        with RawPeer("127.0.0.1", data) as sender, RawPeer("127.0.0.1", ack) as listener:
            assert sender.handshake_plain(b"u", b"p")
            sender.send(evil.frame(b"data"))
            assert pull.poll(int(DEADLINE * 1000))
            assert pull.recv() == b"data"
            assert listener.handshake_plain(b"u", b"p", b"PULL")
            assert push.poll(int(DEADLINE * 1000), zmq.POLLOUT)
            push.send(b"ack", zmq.DONTWAIT)
            assert listener.read_frame() == (0, b"ack")
        assert not pull.poll(0)
        pull.close(linger=0)
        push.close(linger=0)


@pytest.mark.attack("C13")
@pytest.mark.parametrize("mechanism", ["NULL", "PLAIN"])
def test_a_real_peer_with_a_weaker_mechanism_is_refused_by_the_control_port(
    ctx: Context, door: Door, mechanism: str
) -> None:
    at_door = ThreadMonitor(door.socket)
    dealer = ctx.socket(zmq.DEALER)
    if mechanism == "PLAIN":
        dealer.setsockopt(zmq.PLAIN_USERNAME, b"u")
        dealer.setsockopt(zmq.PLAIN_PASSWORD, b"p")
    dealer.connect(door.endpoint)
    dealer.send(b"hello")
    failed = at_door.wait({EventKind.HANDSHAKE_FAILED_PROTOCOL, EventKind.HANDSHAKE_SUCCEEDED}, DEADLINE)
    assert failed is not None
    assert failed.kind is EventKind.HANDSHAKE_FAILED_PROTOCOL
    assert door.is_silent()
    assert not door.asked
    at_door.close()
    dealer.close(linger=0)


def test_a_silent_connection_is_closed_when_its_handshake_is_overdue(ctx: Context) -> None:
    """Bulk sockets: 2 s; a stranger cannot keep descriptors by saying nothing."""
    pull, push, data, _ = served(ctx)
    with RawPeer("127.0.0.1", data) as idle, RawPeer("127.0.0.1", data) as half:
        half.send(evil.greeting()[:20])
        idle.wait_closed()
        half.wait_closed()
    pull.close(linger=0)
    push.close(linger=0)


def test_a_hundred_silent_connections_leave_a_client_its_service(door: Door) -> None:
    with_greeting = evil.greeting(mechanism=b"CURVE")
    idle = [socket.create_connection(door.address, timeout=DEADLINE) for _ in range(100)]
    for one in idle[::2]:
        one.sendall(with_greeting)
    with KeyedPeer(door.endpoint, door.server.public, door.guest) as client:
        client.send(b"hello")
        assert door.receive()[1] == b"hello"
    for one in idle:
        one.close()


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


def test_a_listening_sender_names_the_address_by_which_it_was_reached(sender_listens: Meeting) -> None:
    here = sender_listens.here
    assert here is not None
    reached: list[str] = []
    receiving = sender_listens.receive()
    sender_listens.attempts(b"x").next(Bell(), Told(on_begun=lambda endpoint, _: reached.append(endpoint)))
    receiving.result(DEADLINE)
    assert reached == [f"direct tcp://{HOST}:{here.data_port}"]


# --- nothing left ----------------------------------------------------------------------------------------------------


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
