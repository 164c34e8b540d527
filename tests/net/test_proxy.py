"""The proxy of the test support does what other tests rely on."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.net.conftest import Door
from tests.support.evil import KeyedPeer
from tests.support.proxy import TcpProxy
from tests.support.waiting import DEADLINE, wait_until
from zkc.net.monitor import EventKind


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    """A proxy before a server that echoes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def echo(sock: socket.socket) -> None:
        with sock:
            try:
                while data := sock.recv(65536):
                    sock.sendall(data)
            except OSError:
                return

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            echoing = threading.Thread(target=echo, args=(sock,))
            threads.append(echoing)
            echoing.start()

    threads: list[threading.Thread] = []
    server = threading.Thread(target=serve)
    server.start()
    with TcpProxy(listener.getsockname()) as made:
        yield made
    listener.shutdown(socket.SHUT_RDWR)
    server.join()
    listener.close()
    for thread in threads:
        thread.join()


def connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=DEADLINE)


def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def test_it_carries_and_records_both_ways(proxy: TcpProxy) -> None:
    with connect(proxy) as sock:
        sock.sendall(b"hello")
        assert exactly(sock, 5) == b"hello"
    wait_until(lambda: not proxy.open_connections)
    assert proxy.recorded("up") == proxy.recorded("down") == b"hello"
    assert len(proxy.connections) == 1


def test_it_damages_the_byte_that_it_is_told_to(proxy: TcpProxy) -> None:
    with connect(proxy) as sock:
        proxy.flip("up", at=3, mask=0xFF)
        sock.sendall(b"\0\0")
        assert exactly(sock, 2) == b"\0\0"
        sock.sendall(b"\0\0")
        assert exactly(sock, 2) == b"\0\xff"
        proxy.flip("down")
        sock.sendall(b"\0\0")
        assert exactly(sock, 2) == b"\1\0"
        assert proxy.damaged
    assert proxy.recorded("up") == bytes(6)


def test_it_stalls_and_resumes(proxy: TcpProxy) -> None:
    with connect(proxy) as sock:
        sock.sendall(b"a")
        assert exactly(sock, 1) == b"a"
        proxy.stall()
        sock.sendall(b"b")
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(DEADLINE)
        proxy.resume()
        assert exactly(sock, 1) == b"b"


def test_what_is_late_is_under_way_together(proxy: TcpProxy) -> None:
    """Each way takes its time, however many pieces there are; the end comes behind them."""
    proxy.latency(0.1)
    with connect(proxy) as sock:
        began = time.monotonic()
        for _ in range(50):
            sock.sendall(b"x")
            wait_until(lambda: proxy.open_connections)
        sock.shutdown(socket.SHUT_WR)
        assert exactly(sock, 50) == b"x" * 50
        assert sock.recv(1) == b""
        assert 0.2 <= time.monotonic() - began < 50 * 0.2


def test_it_cuts_and_refuses(proxy: TcpProxy) -> None:
    with connect(proxy) as sock:
        sock.sendall(b"a")
        assert exactly(sock, 1) == b"a"
        assert proxy.cut() == 1
        with pytest.raises((EOFError, ConnectionResetError)):
            exactly(sock, 1)
    proxy.refuse()
    with connect(proxy) as sock, pytest.raises((EOFError, ConnectionError)):
        exactly(sock, 1)
    proxy.refuse(False)
    with connect(proxy) as sock:
        sock.sendall(b"a")
        assert exactly(sock, 1) == b"a"


@pytest.mark.attack("C01", "R08")
def test_a_curve_connection_through_it_shows_nothing_and_survives_no_damage(door: Door) -> None:
    with TcpProxy(door.address) as proxy, KeyedPeer(proxy.endpoint, door.server.public, door.guest) as peer:
        assert peer.verdict() is EventKind.HANDSHAKE_SUCCEEDED
        peer.send(b"a secret line")
        assert door.receive()[1] == b"a secret line"
        assert b"secret" not in proxy.recorded()
        seen = len(proxy.recorded("up"))
        proxy.flip("up", at=seen + 40)
        peer.send(b"a secret line that is damaged on its way")
        peer.wait_dropped()
        assert proxy.damaged
        assert door.is_silent()
