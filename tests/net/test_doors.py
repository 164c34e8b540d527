"""What reaches the ports of zkc that is no client of it: each is disconnected, and the next client is served."""

from __future__ import annotations

import socket

import pytest
import zmq

from tests.net.conftest import Door, served
from tests.support import evil
from tests.support.evil import KeyedPeer, RawPeer
from tests.support.waiting import DEADLINE
from zkc.net.monitor import EventKind, ThreadMonitor
from zkc.net.sockets import Context
from zkc.net.zap import ThreadZap


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
