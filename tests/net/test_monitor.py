from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading

import pytest
import zmq

from tests.net.conftest import Door
from tests.support.evil import JUNK, throw
from tests.support.waiting import DEADLINE, until, wait_until
from zkc.errors import InternalError
from zkc.net.monitor import AsyncMonitor, EventKind, SocketEvent, ThreadMonitor, parse_event
from zkc.net.sockets import Context, connect_dealer, shutdown_connection, split_endpoint


def test_an_event_is_read_with_its_descriptor_or_its_code() -> None:
    refused = parse_event([struct.pack("=HI", zmq.EVENT_HANDSHAKE_FAILED_AUTH, 400), b"tcp://127.0.0.1:1"])
    assert refused == SocketEvent(EventKind.HANDSHAKE_FAILED_AUTH, "tcp://127.0.0.1:1", code=400)
    gone = parse_event([struct.pack("=HI", zmq.EVENT_DISCONNECTED, 7), b"\xff"])
    assert (gone.kind, gone.fd, gone.inode) == (EventKind.DISCONNECTED, 7, 0)


@pytest.mark.parametrize("frames", [[], [b"x", b""], [bytes(6)], [bytes(6), b"", b""]])
def test_another_form_is_a_defect(frames: list[bytes]) -> None:
    with pytest.raises(InternalError):
        parse_event(frames)


def test_a_monitor_that_is_not_read_stops_neither_the_socket_nor_its_own_end(ctx: Context, door: Door) -> None:
    """libzmq's thread writes the events, and closing waits for it: strangers must not be able to hold both."""
    monitor = ThreadMonitor(door.socket)
    host, port = split_endpoint(door.endpoint)
    for _ in range(2000):
        with socket.create_connection((host, port), DEADLINE):
            pass
    with socket.create_connection((host, port), DEADLINE) as last:
        assert last.recv(1) == b"\xff", "libzmq's greeting: everything before has been accepted"
    closing = threading.Thread(target=monitor.close, daemon=True)
    closing.start()
    closing.join(DEADLINE)
    assert not closing.is_alive()


def test_who_hears_late_takes_nobody_for_a_connection_that_has_ended(door: Door) -> None:
    """By then its number may be another socket's of this process: that one's inode is not the connection's."""
    monitor = ThreadMonitor(door.socket)
    throw(door.address, JUNK["http"])
    with contextlib.ExitStack() as closing:
        others = [closing.enter_context(each) for _ in range(8) for each in socket.socketpair()]
        events = monitor.drain()
        assert [event.kind for event in events if event.fd >= 0] == [EventKind.ACCEPTED, EventKind.DISCONNECTED]
        assert events[0].fd in [each.fileno() for each in others], "the lowest free numbers are given first"
        assert events[0].inode == 0
    monitor.close()


def test_a_thread_sees_the_life_of_a_connection_from_both_ends(ctx: Context, door: Door) -> None:
    seen: list[ThreadMonitor] = []
    at_server = ThreadMonitor(door.socket)
    dealer = connect_dealer(
        ctx,
        door.endpoint,
        door.server.public,
        door.guest.public,
        door.guest.secret,
        watch=lambda sock: seen.append(ThreadMonitor(sock)),
    )
    (at_client,) = seen
    accepted = at_server.wait({EventKind.ACCEPTED}, DEADLINE)
    assert accepted is not None
    assert accepted.inode
    assert at_client.wait({EventKind.CONNECTED}, DEADLINE) is not None
    for monitor in (at_server, at_client):
        assert monitor.wait({EventKind.HANDSHAKE_SUCCEEDED}, DEADLINE) is not None
    assert shutdown_connection(accepted.fd, accepted.inode)
    gone = at_server.wait({EventKind.DISCONNECTED}, DEADLINE)
    assert gone is not None
    assert gone.fd == accepted.fd
    collected: list[SocketEvent] = []

    def something_came() -> bool:
        collected.extend(at_client.drain())
        return bool(collected)

    wait_until(something_came)
    assert collected[0].kind is EventKind.DISCONNECTED
    for monitor in (at_server, at_client):
        monitor.close()
        monitor.close()
    dealer.close(linger=0)


def test_a_wait_in_vain_ends(ctx: Context) -> None:
    sock = ctx.socket(zmq.DEALER)
    monitor = ThreadMonitor(sock)
    assert monitor.wait({EventKind.CONNECTED}, 0.01) is None
    assert monitor.drain() == []
    sock.close(linger=0)
    monitor.close()


def test_a_loop_sees_a_refusal(ctx: Context, door: Door) -> None:
    async def scene() -> list[EventKind]:
        seen: list[SocketEvent] = []
        monitors: list[AsyncMonitor] = []
        dealer = connect_dealer(
            ctx,
            door.endpoint,
            door.server.public,
            door.server.public,
            door.server.secret,
            watch=lambda sock: monitors.append(AsyncMonitor(sock, seen.append)),
        )
        await until(lambda: seen and seen[-1].kind is EventKind.DISCONNECTED)
        monitors[0].close()
        monitors[0].close()
        dealer.close(linger=0)
        return [event.kind for event in seen]

    assert asyncio.run(scene()) == [
        EventKind.CONNECTED,
        EventKind.HANDSHAKE_FAILED_AUTH,
        EventKind.DISCONNECTED,
    ]
