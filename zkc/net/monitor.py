"""What happens to a socket's connections, as values.

Events of a handshake are hints: they are not authenticated, and anybody between the ends can cause them.
A monitor that nobody reads grows without bound: read it, or do not open it.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Collection
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import zmq
from msgspec import Struct
from msgspec.structs import replace

from zkc.env import Clock, SystemClock
from zkc.errors import InternalError
from zkc.net.descriptors import descriptors
from zkc.net.sockets import Socket, inode_of, is_readable, new_socket

if TYPE_CHECKING:
    import asyncio


class EventKind(IntEnum):
    """Events of libzmq, by its own numbers."""

    CONNECTED = zmq.Event.CONNECTED.value
    CONNECT_DELAYED = zmq.Event.CONNECT_DELAYED.value
    CONNECT_RETRIED = zmq.Event.CONNECT_RETRIED.value
    LISTENING = zmq.Event.LISTENING.value
    BIND_FAILED = zmq.Event.BIND_FAILED.value
    ACCEPTED = zmq.Event.ACCEPTED.value
    ACCEPT_FAILED = zmq.Event.ACCEPT_FAILED.value
    CLOSED = zmq.Event.CLOSED.value
    CLOSE_FAILED = zmq.Event.CLOSE_FAILED.value
    DISCONNECTED = zmq.Event.DISCONNECTED.value
    MONITOR_STOPPED = zmq.Event.MONITOR_STOPPED.value
    HANDSHAKE_FAILED_NO_DETAIL = zmq.Event.HANDSHAKE_FAILED_NO_DETAIL.value
    """The other end closed: another CURVE key is there, or no zkc; on a server: no ZAP handler answered."""
    HANDSHAKE_SUCCEEDED = zmq.Event.HANDSHAKE_SUCCEEDED.value
    HANDSHAKE_FAILED_PROTOCOL = zmq.Event.HANDSHAKE_FAILED_PROTOCOL.value
    HANDSHAKE_FAILED_AUTH = zmq.Event.HANDSHAKE_FAILED_AUTH.value
    """ZAP refused; `SocketEvent.code` is its status (400 or 500)."""


CONNECTION_KINDS: Final = frozenset(
    {
        EventKind.CONNECTED,
        EventKind.ACCEPTED,
        EventKind.DISCONNECTED,
        EventKind.HANDSHAKE_SUCCEEDED,
        EventKind.HANDSHAKE_FAILED_NO_DETAIL,
        EventKind.HANDSHAKE_FAILED_PROTOCOL,
        EventKind.HANDSHAKE_FAILED_AUTH,
    }
)
"""Watched unless the caller says otherwise; ACCEPT_FAILED comes 60,000 times a second when descriptors run out."""

_CARRIES_FD: Final = frozenset(
    {EventKind.CONNECTED, EventKind.LISTENING, EventKind.ACCEPTED, EventKind.CLOSED, EventKind.DISCONNECTED}
)
_EVENT: Final = struct.Struct("=HI")
_NUMBERS: Final = itertools.count(1)


class SocketEvent(Struct, frozen=True):
    """One event of one socket."""

    kind: EventKind
    endpoint: str
    fd: int = -1
    """Descriptor of the connection, where the event has one."""
    inode: int = 0
    """Its inode for ACCEPTED and CONNECTED, for `shutdown_connection`; 0: closed by now."""
    code: int = 0
    """ZAP's status, an errno or a protocol error of libzmq, where the event has one."""


def parse_event(frames: list[bytes]) -> SocketEvent:
    """The event in a monitor's two frames: u16 kind and u32 value in the machine's order; the endpoint."""
    if len(frames) != 2 or len(frames[0]) != _EVENT.size:
        raise InternalError("libzmq's monitor sent an event of another form")
    number, value = _EVENT.unpack(frames[0])
    kind = EventKind(number)
    endpoint = frames[1].decode("utf-8", "replace")
    if kind not in _CARRIES_FD:
        return SocketEvent(kind, endpoint, code=value)
    fd = value if value < 1 << 31 else -1
    known = kind in (EventKind.CONNECTED, EventKind.ACCEPTED)
    return SocketEvent(kind, endpoint, fd, inode_of(fd) if known else 0)


class AsyncMonitor:
    """Watches ``sock`` on an asyncio loop; open it before the socket connects or binds, close it before the socket."""

    def __init__(
        self,
        sock: Socket,
        on_event: Callable[[SocketEvent], None],
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        kinds: Collection[EventKind] = CONNECTION_KINDS,
    ) -> None:
        from zkc.net.loopsocket import EdgeReader  # noqa: PLC0415 - asyncio costs, and a transfer needs none

        self._watched = sock
        self._pair = pair = _open(sock, kinds)
        self._reader = EdgeReader(
            pair, lambda: pair.recv_multipart(zmq.DONTWAIT), lambda frames: on_event(parse_event(frames)), loop=loop
        )

    def close(self) -> None:
        """Stop watching; again: nothing."""
        self._reader.close()
        _close(self._watched, self._pair)


class ThreadMonitor:
    """Watches ``sock`` from the thread that owns it: poll `socket` with the others, then `drain`; or `wait`."""

    def __init__(
        self, sock: Socket, *, kinds: Collection[EventKind] = CONNECTION_KINDS, clock: Clock | None = None
    ) -> None:
        self._watched = sock
        self._clock = clock or SystemClock()
        self.socket: Final[Socket] = _open(sock, kinds)

    def drain(self) -> list[SocketEvent]:
        """Every event that is there, oldest first."""
        events: list[SocketEvent] = []
        # Asked at every turn of a loop, and mostly there is none: an exception would cost more than this.
        while is_readable(self.socket):
            event = parse_event(self.socket.recv_multipart(zmq.DONTWAIT))
            if event.kind is EventKind.DISCONNECTED:
                # Who is late to hear of a connection may have found another one under its number.
                events = [replace(each, inode=0) if each.fd == event.fd else each for each in events]
            events.append(event)
        return events

    def wait(self, kinds: Collection[EventKind], timeout: float) -> SocketEvent | None:
        """The next event of ``kinds``; None after ``timeout`` seconds. Events of other kinds are dropped."""
        deadline = self._clock.monotonic() + timeout
        while (left := deadline - self._clock.monotonic()) > 0:
            if self.socket.poll(int(left * 1000) + 1):
                event = parse_event(self.socket.recv_multipart(zmq.DONTWAIT))
                if event.kind in kinds:
                    return event
        return None

    def close(self) -> None:
        """Stop watching; before the socket is closed. Again: nothing."""
        _close(self._watched, self.socket)


def _open(sock: Socket, kinds: Collection[EventKind]) -> Socket:
    address = f"inproc://zkc.monitor.{next(_NUMBERS)}"
    pair = new_socket(sock.context, zmq.PAIR)
    pair.setsockopt(zmq.LINGER, 0)
    # libzmq's own thread writes the events, and would wait for a reader while it holds the lock that `_close` needs.
    pair.setsockopt(zmq.RCVHWM, 0)
    try:
        with descriptors():
            sock.monitor(address, sum(kinds))
    except BaseException:
        pair.close()
        raise
    pair.connect(address)
    return pair


def _close(sock: Socket, pair: Socket) -> None:
    if not pair.closed:
        if not sock.closed:
            sock.monitor(None, 0)
        # A monitor left open would hang the end of its context.
        pair.close(linger=0)
