"""Peers that break the rules: one made of raw bytes, one a real DEALER with any key and any frames.

`RawPeer` speaks ZMTP by hand (greeting, NULL, PLAIN; https://rfc.zeromq.org/spec/23/ and /37/): every version, every
command, frames with any flags and lengths, messages that never end. `KeyedPeer` completes CURVE with whatever key it is
given and then sends what no client of zkc would.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Sequence

import zmq

from tests.support.waiting import DEADLINE
from zkc.net.monitor import EventKind, SocketEvent, ThreadMonitor
from zkc.net.sockets import CURVE_OVERHEAD, CurveKeys, generate_curve, to_z85

GREETING_BYTES = 64

MORE, LONG, COMMAND = 0x01, 0x02, 0x04
"""Flags of a ZMTP 3 frame."""


def greeting(version: tuple[int, int] = (3, 1), mechanism: bytes = b"NULL", *, as_server: bool = False) -> bytes:
    """The first bytes of a ZMTP peer: 64 for version 3, for 1 and 2 what the older ones sent.

    Version 1 has no greeting: a routing id of no bytes, as a frame. Version 2: signature, revision 1, socket type
    DEALER, and the routing id as a frame.
    """
    if version[0] == 1:
        return bytes((1, 0))
    signature = b"\xff" + bytes(8) + b"\x7f"
    if version[0] == 2:
        return signature + bytes((1, 5)) + bytes((0, 0))
    return signature + bytes(version) + mechanism.ljust(20, b"\0") + bytes((as_server,)) + bytes(31)


def frame(body: bytes, *, more: bool = False, command: bool = False, long: bool | None = None) -> bytes:
    """One honest ZMTP 3 frame."""
    is_long = len(body) > 255 if long is None else long
    flags = MORE * more | LONG * is_long | COMMAND * command
    return raw_frame(flags, len(body), body)


def raw_frame(flags: int, length: int, body: bytes) -> bytes:
    """A frame with any flags and any claimed length (u64 where LONG is set, else its lowest byte)."""
    size = (length & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big") if flags & LONG else bytes((length & 0xFF,))
    return bytes((flags,)) + size + body


def command(name: bytes, data: bytes = b"") -> bytes:
    """A ZMTP command: READY, HELLO, ERROR, PING, or one that nobody knows."""
    return frame(bytes((len(name),)) + name + data, command=True)


def prop(name: bytes, value: bytes) -> bytes:
    """One property of a READY or INITIATE."""
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value


def ready(socket_type: bytes = b"DEALER", routing_id: bytes = b"") -> bytes:
    """The whole handshake of the NULL mechanism."""
    return command(b"READY", prop(b"Socket-Type", socket_type) + prop(b"Identity", routing_id))


def hello(user: bytes, password: bytes) -> bytes:
    """PLAIN's first command."""
    return command(b"HELLO", bytes((len(user),)) + user + bytes((len(password),)) + password)


def initiate(socket_type: bytes = b"PUSH", routing_id: bytes = b"") -> bytes:
    """PLAIN's second command, after WELCOME."""
    return command(b"INITIATE", prop(b"Socket-Type", socket_type) + prop(b"Identity", routing_id))


JUNK = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(range(200)),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "random": os.urandom(4096),
    "half-greeting-then-junk": greeting()[:40] + b"\xa5" * 64,
    "zmtp1": greeting((1, 0)) + b"\x06\0hello",
    "zmtp2": greeting((2, 0)) + b"\0\5hello",
    "null": greeting() + ready() + frame(b"hello"),
    "null-3.0": greeting((3, 0)) + ready() + frame(b"hello"),
    "future": greeting((255, 255)) + ready() + frame(b"hello"),
    "unknown-mechanism": greeting(mechanism=b"ZZZZZZZZZZZZZZZZZZZZ"),
    "as-server": greeting(mechanism=b"CURVE", as_server=True) + bytes(64),
    "curve-then-null": greeting(mechanism=b"CURVE") + ready() + frame(b"hello"),
    "curve-short-hello": greeting(mechanism=b"CURVE") + command(b"HELLO", bytes(10)),
    "curve-zero-hello": greeting(mechanism=b"CURVE") + command(b"HELLO", b"\1\0" + bytes(192)),
    "curve-initiate-first": greeting(mechanism=b"CURVE") + command(b"INITIATE", bytes(400)),
    "curve-frame-first": greeting(mechanism=b"CURVE") + frame(b"hello"),
    "curve-huge-length": greeting(mechanism=b"CURVE") + raw_frame(LONG | COMMAND, 2**63, b""),
    "plain-stranger": greeting(mechanism=b"PLAIN") + hello(b"somebody", b"else") + initiate(),
    "plain-initiate-first": greeting(mechanism=b"PLAIN") + initiate(),
    "plain-short-hello": greeting(mechanism=b"PLAIN") + command(b"HELLO", b"\xff"),
    "plain-frame-first": greeting(mechanism=b"PLAIN") + frame(b"hello"),
}  # fmt: skip
"""First words of what is no client of zkc."""


class RawPeer:
    """A TCP connection that says anything; every wait has a deadline. Use as a context manager."""

    def __init__(self, host: str, port: int, *, within: float = DEADLINE) -> None:
        self._sock = socket.create_connection((host, port), timeout=within)
        self.received = bytearray()
        """All that the other side sent and `read_frame` has not taken."""

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def send(self, data: bytes) -> bool:
        """Whether the other side was still there to be sent to."""
        try:
            self._sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def finish(self) -> None:
        """Say that nothing more will be sent (the other direction stays open)."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def handshake_null(self, socket_type: bytes = b"DEALER", routing_id: bytes = b"") -> None:
        """Greeting and READY of the NULL mechanism."""
        self.send(greeting())
        self.read_exactly(GREETING_BYTES)
        self.send(ready(socket_type, routing_id))

    def handshake_plain(
        self, user: bytes, password: bytes, socket_type: bytes = b"PUSH", routing_id: bytes = b""
    ) -> bool:
        """Greeting, HELLO and INITIATE; whether the other side answered READY, so that frames may follow."""
        self.send(greeting(mechanism=b"PLAIN"))
        self.read_exactly(GREETING_BYTES)
        self.send(hello(user, password))
        if b"WELCOME" not in (self.read_frame() or (0, b""))[1]:
            return False
        self.send(initiate(socket_type, routing_id))
        return b"READY" in (self.read_frame() or (0, b""))[1]

    def send_endless(self, part: bytes, limit: int) -> int:
        """Parts of one endless message, until ``limit`` bytes are sent or the other side has closed; bytes sent."""
        piece = frame(part, more=True)
        poller = select.poll()
        poller.register(self._sock, select.POLLOUT | select.POLLRDHUP)
        sent = 0
        # Who is told that the other side has closed need not wait for a window that never opens again.
        while sent < limit and poller.poll(DEADLINE * 1000) == [(self._sock.fileno(), select.POLLOUT)]:
            try:
                sent += self._sock.send(piece[sent % len(piece) :], socket.MSG_DONTWAIT)
            except (BrokenPipeError, ConnectionResetError):
                break
        return sent

    def read_exactly(self, count: int) -> bytes:
        """``count`` bytes; `EOFError` if the other side closes before."""
        while len(self.received) < count:
            self._read_some()
        taken = bytes(self.received[:count])
        del self.received[:count]
        return taken

    def read_frame(self) -> tuple[int, bytes] | None:
        """Flags and body of the next frame; None if the other side has closed."""
        try:
            flags = self.read_exactly(1)[0]
            length = int.from_bytes(self.read_exactly(8 if flags & LONG else 1), "big")
            return flags, self.read_exactly(length)
        except (EOFError, ConnectionResetError):
            return None

    def wait_closed(self) -> bytes:
        """What still came until the other side closed; `TimeoutError` if it stays open."""
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                self._read_some()
        return bytes(self.received)

    def _read_some(self) -> None:
        data = self._sock.recv(64 * 1024)
        if not data:
            raise EOFError
        self.received += data


def throw(address: tuple[str, int], junk: bytes) -> None:
    """Say ``junk``, end the sentence, and wait until the other side hangs up."""
    with RawPeer(*address) as peer:
        if peer.send(junk):
            peer.finish()
        peer.wait_closed()


class KeyedPeer:
    """A DEALER with any CURVE key, any routing id and any frames. Use as a context manager."""

    def __init__(
        self, endpoint: str, server_key: bytes, keys: CurveKeys | None = None, *, routing_id: bytes | None = None
    ) -> None:
        self.keys = keys or generate_curve()
        self._ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._ctx.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.IPV6, 1)
        self.socket.setsockopt(zmq.CURVE_SERVERKEY, to_z85(server_key))
        self.socket.setsockopt(zmq.CURVE_PUBLICKEY, self.keys.public)
        self.socket.setsockopt(zmq.CURVE_SECRETKEY, self.keys.secret)
        if routing_id is not None:
            self.socket.setsockopt(zmq.ROUTING_ID, routing_id)
        self.monitor = ThreadMonitor(self.socket)
        self.socket.connect(endpoint)

    def __enter__(self) -> KeyedPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.monitor.close()
        self.socket.close(linger=0)
        self._ctx.term()

    def verdict(self, within: float = DEADLINE) -> EventKind:
        """How the handshake ended: HANDSHAKE_SUCCEEDED, or in which way not."""
        event = self.wait(
            within,
            EventKind.HANDSHAKE_SUCCEEDED,
            EventKind.HANDSHAKE_FAILED_AUTH,
            EventKind.HANDSHAKE_FAILED_NO_DETAIL,
            EventKind.HANDSHAKE_FAILED_PROTOCOL,
        )
        return event.kind

    def wait(self, within: float, *kinds: EventKind) -> SocketEvent:
        """The next event of ``kinds``; `AssertionError` if there is none in time."""
        event = self.monitor.wait(kinds, within)
        assert event is not None, f"none of {[kind.name for kind in kinds]} within {within:g} s"
        return event

    def wait_dropped(self, within: float = DEADLINE) -> None:
        """Return once the other side has closed the connection."""
        self.wait(within, EventKind.DISCONNECTED)

    def send(self, *frames: bytes) -> None:
        """One message of these parts."""
        self.socket.send_multipart(frames)

    def receive(self, within: float = DEADLINE) -> Sequence[bytes] | None:
        """The next message; None if none comes in time."""
        return self.socket.recv_multipart() if self.socket.poll(int(within * 1000)) else None


def send_long(sock: zmq.Socket[bytes], part: bytes, total: int) -> None:
    """One message of ``total`` bytes on the wire. libzmq sends its first part once it has the last: it cannot be
    endless, but nobody learns that before all of it has come. Its parts share one buffer."""
    shared = zmq.Frame(part)
    for _ in range(total // (len(part) + CURVE_OVERHEAD + 2)):
        sock.send(shared, zmq.SNDMORE, copy=False)
    sock.send(b"")
