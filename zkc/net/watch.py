"""A watch over messages without end (attacks O03, P06).

libzmq keeps the parts of a message until the last one is there. No option of its own bounds them: a high-water mark
counts whole messages, MAXMSGSIZE the bytes of one part. What it holds can be told from outside: the bytes that it took
from the kernel since a whole message last reached us. Of an honest peer these are bounded by the high-water mark,
however slowly we read; whoever is beyond is shut down by the descriptor of his connection, and libzmq gives back what
it held. Measured: docs/decisions/0011.

A thread of its own looks, since what reads the messages may be waiting for a disk. It sleeps until bytes arrive
somewhere, so what costs is traffic, not connections.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket as sockets
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct

from zkc.constants import CHUNK_MAX, CONTROL_MESSAGE_MAX, WINDOW_BUDGET
from zkc.env import Clock, SystemClock
from zkc.net.monitor import EventKind, SocketEvent
from zkc.net.sockets import (
    ACK_RCVHWM,
    CHUNK_OVERHEAD,
    CURVE_OVERHEAD,
    DATA_RCVHWM,
    DEALER_RCVHWM,
    ROUTER_RCVHWM,
    inode_of,
    own_connection,
    shutdown_connection,
)

LOOK_SECONDS: Final = 0.02
"""From one look to the next while bytes arrive: a peer of this very machine brings up to 20 MiB in it (measured)."""
LOOKED_AT_ONCE: Final = 4096
"""Connections of one look; those beyond are looked at in the next."""
HEARTBEAT_BYTES: Final = 16
"""Bytes a second that are no part of any message: libzmq's heartbeats take at most 6."""
FRAME_HEADER: Final = 9
"""Bytes of ZMTP before each frame, at most."""
READ_AHEAD: Final = 8192
"""Bytes that libzmq reads at once and has not looked into."""
_BYTES_RECEIVED: Final = struct.Struct("=128xQ")
"""tcpi_bytes_received in the kernel's struct tcp_info (linux/tcp.h; Linux 4.1)."""


def queue_bytes(messages: int, longest: int) -> int:
    """Bytes that an honest peer can be ahead at most, where a queue takes ``messages`` of each peer (RCVHWM), at most
    ``longest`` bytes each on the wire: libzmq stops reading with one more in its hands."""
    return (messages + 1) * (longest + FRAME_HEADER) + READ_AHEAD


def data_bytes(chunk: int) -> int:
    """For a connection that brings data in chunks of at most ``chunk`` bytes."""
    return queue_bytes(DATA_RCVHWM, chunk + CHUNK_OVERHEAD)


class Bounds(Struct, frozen=True):
    """How far bytes may be ahead of whole messages, each in bytes."""

    each: int
    """One connection, unless its `Progress` says otherwise."""
    together: int
    """All connections that are noticed; beyond it whoever is furthest ahead goes, and strangers before others."""
    noticed: int = 0
    """A connection that is less ahead counts for nothing."""


_CONTROL_LONGEST: Final = CONTROL_MESSAGE_MAX + CURVE_OVERHEAD
ROUTER_BOUNDS: Final = Bounds(queue_bytes(ROUTER_RCVHWM, _CONTROL_LONGEST), together=16 << 20, noticed=128 << 10)
"""Honest peers that are noticed are rare: it takes a queue that is full of answers of 8 KiB."""
DEALER_BOUNDS: Final = Bounds(queue_bytes(DEALER_RCVHWM, _CONTROL_LONGEST), together=16 << 20)
BULK_BOUNDS: Final = Bounds(data_bytes(CHUNK_MAX), together=WINDOW_BUDGET + (16 << 20))
"""Together: the credit that all senders of a process have, and some for what is no payload."""
ACK_BYTES: Final = queue_bytes(ACK_RCVHWM, _CONTROL_LONGEST)
"""For a connection that brings acknowledgements."""
UNREAD_BYTES: Final = 64 * 1024
"""For a connection on which nobody has anything to say to us, as on a PUSH socket: its handshake, with room."""


class Cut(Struct, frozen=True):
    """A connection that was shut down."""

    fd: int
    inode: int
    ahead: int
    """Bytes that it was ahead."""


class Progress:
    """How much of what one connection, or those of one socket, brought has reached us: set by the reader, read here."""

    __slots__ = ("admitted", "bound", "cut", "delivered")

    def __init__(self, bound: int, *, admitted: bool = True) -> None:
        self.bound = bound
        """Bytes that each of the connections may be ahead."""
        self.admitted = admitted
        """Whether it is a peer that was let in: where all together are too far ahead, strangers go first."""
        self.delivered = 0
        """Messages or bytes: it rises with each whole message."""
        self.cut: Cut | None = None
        """Set by the watch before the connection ends: why it did."""

    def is_broken(self) -> bool:
        """Whether it was cut off for what it did itself: not for what all together did."""
        return self.cut is not None and self.cut.ahead > self.bound


def bytes_taken(fd: int, inode: int) -> tuple[int, int] | None:
    """Bytes that were read from the TCP connection ``fd`` so far, and bytes that wait in the kernel to be read; None
    where it is no longer the connection with ``inode``."""
    with own_connection(fd, inode) as connection:
        if connection is None:
            return None
        try:
            info = connection.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, _BYTES_RECEIVED.size)
            # In this order: what arrives in between must not count as read.
            waiting = int.from_bytes(fcntl.ioctl(connection, termios.FIONREAD, bytes(4)), sys.byteorder)
            return int(_BYTES_RECEIVED.unpack(info)[0]) - waiting, waiting
        except (OSError, struct.error):
            return None  # an older kernel: nobody is watched


class Ahead:
    """How far one connection is ahead of what it has delivered."""

    def __init__(self, fd: int, inode: int, progress: Progress, now: float) -> None:
        self.fd: Final = fd
        self.inode: Final = inode
        self.progress: Final = progress
        self.settled = True
        """Whether what the last look told stays true until more arrives."""
        self._seen = progress.delivered
        self._base: int | None = 0
        """Bytes that had been taken at a time when as much had been delivered as now; None: not known yet."""
        self._since = now

    def look(self, now: float) -> int | None:
        """Bytes; None where the connection has ended. ``now`` in monotonic seconds, as when it was made."""
        self.settled = False
        delivered = self.progress.delivered
        if delivered != self._seen:
            # Whoever goes on delivering is not looked at more closely: it would cost most where most is done.
            self._seen, self._base, self._since = delivered, None, now
            return 0
        found = bytes_taken(self.fd, self.inode)
        if found is None:
            return None
        taken, waiting = found
        if delivered != self.progress.delivered:
            return 0  # in the middle of it: the next look tells
        self.settled = not waiting
        if self._base is None:
            self._base = taken
        return taken - self._base - int((now - self._since) * HEARTBEAT_BYTES)


class Watch:
    """Over all connections of one socket, or of several: `on_event` with what their monitors tell; any thread.

    ``on_cut`` is called by the watch's own thread, which lives from the first connection to `close`.
    """

    def __init__(self, bounds: Bounds, on_cut: Callable[[Cut], object], *, clock: Clock | None = None) -> None:
        self._bounds = bounds
        self._on_cut = on_cut
        self._clock = clock or SystemClock()
        self._connections: dict[int, Ahead] = {}
        """By descriptor. Read without the lock: a look at it is one step."""
        self._again: set[Ahead] = set()
        """Of the watching thread alone: who is looked at again whether or not more arrives."""
        self._noticed: dict[Ahead, int] = {}
        """Of these: who is noticed, and how far it is ahead."""
        self._lock = threading.Lock()
        """Of who opens and closes; the watching thread never takes it."""
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def on_event(self, event: SocketEvent, progress: Progress | None = None) -> None:
        """Of a monitor that tells of ACCEPTED or CONNECTED, and of DISCONNECTED; others are passed over."""
        if event.kind in (EventKind.ACCEPTED, EventKind.CONNECTED):
            self.opened(event.fd, event.inode, progress)
        elif event.kind is EventKind.DISCONNECTED:
            self.closed(event.fd, progress)

    def opened(self, fd: int, inode: int, progress: Progress | None = None) -> None:
        """A TCP connection stands since just now. ``progress``: of the socket that it belongs to; else its own."""
        with self._lock:
            if not inode or self._closing.is_set() or not self._is_running():
                return
            # One that has ended by now may have left its number to the bell just made, and `closed` would take that
            # out of the epoll. From here on the bell's number is nobody else's.
            if inode_of(fd) != inode:
                return
            progress = progress or Progress(self._bounds.each)
            self._connections[fd] = Ahead(fd, inode, progress, self._clock.monotonic())
            # Edge-triggered: each arrival is told once, whether or not libzmq has read it; and now that it can be
            # written to, for a first look at what came before. The kernel forgets a descriptor that libzmq closes.
            with contextlib.suppress(OSError):
                self._epoll.register(fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def closed(self, fd: int, progress: Progress | None = None) -> None:
        """The connection has ended; again: nothing. ``progress``: as in `opened`, where several threads tell what
        happens: by the time that one hears of an end, the number may be a connection's of which another one has told.
        """
        with self._lock:
            known = self._connections.get(fd)
            if known is None or (progress is not None and known.progress is not progress):
                return
            del self._connections[fd]
            if not self._closing.is_set():
                with contextlib.suppress(OSError):
                    self._epoll.unregister(fd)

    def delivered(self, fd: int) -> None:
        """A whole message of this connection is here."""
        known = self._connections.get(fd)
        if known is not None:
            known.progress.delivered += 1

    def close(self) -> None:
        """Stop watching; again: nothing."""
        with self._lock:
            self._closing.set()
            thread, self._thread = self._thread, None
            if thread is not None:
                os.write(self._ring, b"!")
                thread.join()
                self._epoll.close()
                os.close(self._bell)
                os.close(self._ring)

    def _is_running(self) -> bool:
        """Begins with the first connection. Where no descriptor is left for it, the next connection tries again."""
        if self._thread is None:
            try:
                self._bell, self._ring = os.pipe()
            except OSError:
                return False
            try:
                self._epoll = select.epoll()
            except OSError:
                os.close(self._bell)
                os.close(self._ring)
                return False
            self._epoll.register(self._bell, select.EPOLLIN)
            self._thread = threading.Thread(target=self._run, name="zkc-watch", daemon=True)
            self._thread.start()
        return True

    def _run(self) -> None:
        while not self._closing.is_set():
            ready = self._epoll.poll(0 if self._again else None, LOOKED_AT_ONCE)
            self._look(fd for fd, _ in ready)
            self._closing.wait(LOOK_SECONDS)

    def _look(self, fds: Iterable[int]) -> None:
        now, bounds = self._clock.monotonic(), self._bounds
        active = {known for fd in fds if (known := self._connections.get(fd)) is not None}
        for connection in active | self._again:
            ahead = connection.look(now)
            self._again.discard(connection)
            self._noticed.pop(connection, None)
            if ahead is None:
                continue
            if ahead > connection.progress.bound:
                self._cut(connection, ahead)
                continue
            if ahead > bounds.noticed:
                self._noticed[connection] = ahead
            if ahead > bounds.noticed or not connection.settled:
                self._again.add(connection)
        while self._noticed and sum(self._noticed.values()) > bounds.together:
            furthest = max(self._noticed, key=lambda each: (not each.progress.admitted, self._noticed[each]))
            self._again.discard(furthest)
            self._cut(furthest, self._noticed.pop(furthest))

    def _cut(self, connection: Ahead, ahead: int) -> None:
        connection.progress.cut = cut = Cut(connection.fd, connection.inode, ahead)
        if shutdown_connection(connection.fd, connection.inode):
            self._on_cut(cut)
