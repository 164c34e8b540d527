"""A ZeroMQ socket on an asyncio loop.

libzmq's descriptor is a bell, not a state: it rings once for any number of messages, and every call on the socket
(a send too) may consume the ring. So after a ring and after each send the socket is read until it is empty; only then
may we wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, TypeVar

import zmq

from zkc.net.sockets import Socket, inode_of

T = TypeVar("T")

BATCH: Final = 64
"""Messages handled before the loop's other work has its turn."""
DISCARD_BATCH: Final = 1024
"""Surplus parts of one message thrown away before the loop's other work has its turn."""


class Sent(Enum):
    """What became of a message handed to a socket; true only where the socket took it."""

    OK = "ok"
    FULL = "full"
    """The peer's queue is full, or no connection stands: try again later."""
    GONE = "gone"
    """No peer of that routing id is connected."""

    def __bool__(self) -> bool:
        return self is Sent.OK


@dataclass(frozen=True, slots=True)
class Received:
    """One message of one part, and what libzmq knows of its origin."""

    payload: bytes
    routing_id: bytes
    """Where an answer goes (ROUTER; else empty). It says nothing about who the peer is."""
    user_id: str
    """What ZAP said of the connection: the peer's proved identity; empty without ZAP."""
    fd: int
    """Descriptor of the connection (-1: not TCP)."""
    inode: int
    """Its inode, for `shutdown_connection`; 0: closed by now."""

    @property
    def claimed(self) -> bool:
        """Whether the peer chose its routing id itself, as no client of zkc does: libzmq's are 0x00 and four bytes.

        A peer that claims one of exactly this form cannot be told apart.
        """
        return bool(self.routing_id) and (len(self.routing_id) != 5 or self.routing_id[0] != 0)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A message of several parts: no peer of ours sends one."""

    routing_id: bytes
    user_id: str
    fd: int
    inode: int
    parts: int
    """Parts after the routing id."""


class EdgeReader(Generic[T]):
    """Reads a socket whenever it has something, at most `BATCH` messages a turn.

    ``receive`` takes one message without blocking (`zmq.Again`: none there); ``deliver`` handles it. An exception of
    ``deliver`` goes to the loop's exception handler and stops nothing.
    """

    def __init__(
        self,
        sock: Socket,
        receive: Callable[[], T],
        deliver: Callable[[T], None],
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        batch: int = BATCH,
    ) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._receive = receive
        self._deliver = deliver
        self._batch = batch
        self._turn: asyncio.Handle | None = None
        self._closed = False
        self._fd = _number(sock, zmq.FD)
        self._loop.add_reader(self._fd, self._read)
        self.poke()

    def poke(self) -> None:
        """Read soon, though the descriptor may stay silent: call it after each call on the socket."""
        if self._turn is None and not self._closed:
            self._turn = self._loop.call_soon(self._read)

    def close(self) -> None:
        """Stop reading; before the socket is closed."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            if self._turn is not None:
                self._turn.cancel()

    def _read(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        for _ in range(self._batch):
            if self._closed:
                return
            try:
                message = self._receive()
            except zmq.Again:
                return
            except zmq.ZMQError as error:
                # The socket or its context is gone: reading on would spin.
                self.close()
                if not isinstance(error, zmq.ContextTerminated):
                    self._report(error)
                return
            try:
                self._deliver(message)
            except Exception as error:  # noqa: BLE001  (whatever a handler does, the socket is read on)
                self._report(error)
        self.poke()

    def _report(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": "a ZeroMQ message was not handled", "exception": error})


class LoopSocket:
    """A ROUTER or DEALER whose messages have one part (after the routing id).

    ``on_message`` gets each `Received`; ``on_dropped`` each `Dropped`. The socket belongs to the loop from then on,
    and is closed with it.
    """

    def __init__(
        self,
        sock: Socket,
        on_message: Callable[[Received], None],
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        on_dropped: Callable[[Dropped], None] | None = None,
        batch: int = BATCH,
    ) -> None:
        self._sock = sock
        self._on_message = on_message
        self._on_dropped = on_dropped
        self._routed = sock.getsockopt(zmq.TYPE) == zmq.ROUTER
        self._surplus: Dropped | None = None
        self._reader: EdgeReader[Received | Dropped | None] = EdgeReader(
            sock, self._receive, self._deliver, loop=loop, batch=batch
        )

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return bool(self._sock.closed)

    def send(self, payload: bytes, routing_id: bytes = b"") -> Sent:
        """Hand ``payload`` to the socket, for a ROUTER to the peer ``routing_id``; never waits."""
        try:
            if self._routed:
                self._sock.send_multipart((routing_id, payload), zmq.DONTWAIT)
            else:
                self._sock.send(payload, zmq.DONTWAIT)
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return Sent.GONE
            raise
        finally:
            self._reader.poke()
        return Sent.OK

    def close(self) -> None:
        """Stop and close the socket; what it had not sent is lost. Again: nothing."""
        self._reader.close()
        self._sock.close(linger=0)

    def _receive(self) -> Received | Dropped | None:
        """One whole message; None while the surplus of a long one is being thrown away."""
        if self._surplus is not None:
            return self._discard(self._surplus)
        frame = self._sock.recv(zmq.DONTWAIT, copy=False)
        routing_id = b""
        if self._routed:
            routing_id = frame.bytes
            frame = self._sock.recv(zmq.DONTWAIT, copy=False)
        user_id = _user_id(frame)
        fd = _source(frame)
        if frame.more:
            return self._discard(Dropped(routing_id, user_id, fd, inode_of(fd), 1))
        return Received(frame.bytes, routing_id, user_id, fd, inode_of(fd))

    def _discard(self, surplus: Dropped) -> Dropped | None:
        """Throw away the rest of a message (libzmq hands out whole messages only, so it is all there)."""
        for parts in range(surplus.parts + 1, surplus.parts + 1 + DISCARD_BATCH):
            more = self._sock.recv(zmq.DONTWAIT, copy=False).more
            surplus = Dropped(surplus.routing_id, surplus.user_id, surplus.fd, surplus.inode, parts)
            if not more:
                self._surplus = None
                return surplus
        self._surplus = surplus
        return None

    def _deliver(self, message: Received | Dropped | None) -> None:
        if isinstance(message, Received):
            self._on_message(message)
        elif message is not None and self._on_dropped is not None:
            self._on_dropped(message)


def _number(sock: Socket, option: int) -> int:
    value = sock.getsockopt(option)
    assert isinstance(value, int)
    return value


def _user_id(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


def _source(frame: zmq.Frame) -> int:
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return -1
