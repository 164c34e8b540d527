"""The hot path: bulk bytes from one process to another over PUSH/PULL, outside every event loop.

One pair of sockets and one blocking loop, in a thread of its own, for each transfer: `Bulk.listen` and
`Listener.receive` at the recipient, `send` at the sender. What may be said when is decided by the delivery machines;
here are polling, sockets and backpressure. Both ends hold at most the credit window in memory, whatever the length.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

import zmq

from zkc.constants import WINDOW_BUDGET, WINDOW_MAX
from zkc.crypto.chunks import token, xid_tag
from zkc.crypto.primitives import Secret, check_mac
from zkc.env import Clock, SystemClock
from zkc.errors import IntegrityError, Interrupted, PeerViolation, PolicyRefused, ZkcError, error_for
from zkc.net.monitor import CONNECTION_KINDS, EventKind, ThreadMonitor
from zkc.net.sockets import Context, Login, Socket, bind_bulk, connect_bulk, context, tcp_endpoint
from zkc.net.zap import ThreadZap, ZapRequest
from zkc.protocol.delivery_recipient import (
    Announced,
    Complete,
    Data,
    DeliveryRecipient,
    Farewell,
    Started,
)
from zkc.protocol.delivery_recipient import Stopped as SenderStopped
from zkc.protocol.delivery_sender import Credited, Delivered, DeliverySender, Stopped
from zkc.protocol.session import Session
from zkc.wire.messages import Manifest

CONNECT_SECONDS: Final = 5.0
"""For each address of the recipient: TCP and PLAIN on both sockets."""
FIRST_WORD_SECONDS: Final = 20.0
"""From the connection to the other end's first frame."""
FAREWELL_SECONDS: Final = 10.0
"""How long the recipient keeps a finished link open for a sender that has not said that it has the receipt."""
TELL_SECONDS: Final = 0.5
"""How long a sender that gives up tries to tell the recipient so."""
_ENDS_OF_CONNECTING: Final = frozenset(
    {
        EventKind.HANDSHAKE_SUCCEEDED,
        EventKind.HANDSHAKE_FAILED_AUTH,
        EventKind.HANDSHAKE_FAILED_NO_DETAIL,
        EventKind.HANDSHAKE_FAILED_PROTOCOL,
        EventKind.DISCONNECTED,
        EventKind.CLOSED,
    }
)
_STOP_CODES: Final = frozenset({22, 23, 24, 25, 30, 31, 32, 33})
"""With which an end may give a delivery up; any other code of a peer is told as an interruption."""


class LinkLost(Interrupted):
    """The other end vanished in the middle; a new handshake may go on."""


class Bell:
    """Wakes a thread that polls: rung once, from anywhere (a signal handler included)."""

    def __init__(self) -> None:
        self.fd, self._ring = os.pipe()

    def ring(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._ring, b"!")

    def close(self) -> None:
        for fd in (self.fd, self._ring):
            with contextlib.suppress(OSError):
                os.close(fd)


class Source(Protocol):
    """Where the sender's bytes come from."""

    fd: int | None
    """Polled before each read; None: a read never waits."""

    def read(self, n: int) -> bytes:
        """At most ``n`` bytes, one read; empty at the end. `LocalIOError`."""

    def check(self) -> None:
        """At the end: `LocalIOError` (``source-changed``) where it is not what it was at the beginning."""


class Sink(Protocol):
    """Where the recipient's bytes go. Every method may raise a `ZkcError`, which ends the transfer and is told."""

    def announced(self, manifest: Manifest) -> None:
        """Judge name and size before the first byte."""

    def write(self, data: bytes) -> None:
        """Authenticated bytes, in order."""

    def complete(self, size: int, digest: bytes) -> bytes:
        """Make it durable; the receipt."""


def login(k: Secret, socket: str, attempt: int) -> Login:
    """User and password of one connection, derived at both ends."""
    return Login(f"{xid_tag(k).hex()}.{attempt}.{socket}".encode(), token(k, socket, attempt).encode())


# --- the recipient's end -------------------------------------------------------------------------------------------


class Bulk:
    """One process's receiving half: a context, its ZAP handler, the window that its transfers share."""

    def __init__(self) -> None:
        self.context: Final[Context] = context()
        self._doors: dict[str, _Door] = {}
        self._active = 0
        self._lock = threading.Lock()
        self._numbers = iter(range(1, 1 << 62))
        self._zap = ThreadZap(self.context, self._admit)

    def listen(self, host: str, ports: range | None) -> Listener:
        """Bind a pair for one transfer; it refuses everybody until `Listener.admit`. `PortsTaken`, `LocalIOError`."""
        domain = f"xfer{next(self._numbers)}"
        door = self._doors[domain] = _Door()
        try:
            return Listener(self, domain, door, host, ports)
        except BaseException:
            del self._doors[domain]
            raise

    @contextlib.contextmanager
    def window(self, chunk: int) -> Iterator[Callable[[], int]]:
        """A share in the process's credit for the time of one transfer: bytes, at least two chunks."""
        with self._lock:
            self._active += 1
        try:
            yield lambda: max(2 * chunk, min(WINDOW_MAX, WINDOW_BUDGET // self._active) // chunk * chunk)
        finally:
            with self._lock:
                self._active -= 1

    def close(self) -> None:
        """After every listener is closed."""
        self._zap.close()
        self.context.destroy(linger=0)

    def forget(self, domain: str) -> None:
        self._doors.pop(domain, None)

    def _admit(self, request: ZapRequest) -> str | None:
        domain, _, socket = request.domain.rpartition(".")
        door = self._doors.get(domain)
        return None if door is None or request.mechanism != "PLAIN" else door.admit(socket, request.credentials)


class _Door:
    """Who may connect to one pair: each token once, at its own socket."""

    def __init__(self) -> None:
        self._logins: dict[str, Login] = {}

    def expect(self, socket: str, login: Login) -> None:
        self._logins[socket] = login

    def admit(self, socket: str, credentials: Sequence[bytes]) -> str | None:
        user, password = credentials
        expected = self._logins.get(socket)
        if expected is None or expected.user != user:
            return None
        with contextlib.suppress(PeerViolation):
            check_mac(expected.password, password)
            # pop and not del: of two who present it at once one gets in.
            if self._logins.pop(socket, None) is not None:
                return user.decode("ascii", "replace")
        return None


class Listener:
    """One transfer's bound pair. Bind on any thread; from `receive` on it belongs to the calling thread."""

    def __init__(self, bulk: Bulk, domain: str, door: _Door, host: str, ports: range | None) -> None:
        self._bulk = bulk
        self._domain = domain
        self._door = door
        self._monitors: list[ThreadMonitor] = []
        self._pull, self._push, self.data_port, self.ack_port = bind_bulk(
            bulk.context, host, ports, domain.encode(), watch=self._watch
        )

    def _watch(self, sock: Socket) -> None:
        """The data alone: where the sender leaves, its last words there outlive its other connection."""
        if sock.type == zmq.PULL:
            self._monitors.append(ThreadMonitor(sock))

    def admit(self, session: Session) -> None:
        """From now on the sender of this session may connect, once."""
        for socket in ("data", "ack"):
            self._door.expect(socket, login(session.k, socket, 0))

    def close(self) -> None:
        """Again: nothing."""
        self._bulk.forget(self._domain)
        for monitor in self._monitors:
            monitor.close()
        self._pull.close(linger=0)
        self._push.close(linger=500)

    def receive(self, session: Session, sink: Sink, bell: Bell, patience: float, clock: Clock | None = None) -> None:
        """The whole delivery into ``sink``: returns once the sender has the receipt (or its time is over).

        `LinkLost` where the sender vanished or never came within ``patience`` seconds; `IntegrityError`,
        `PolicyRefused` (``limit``) for frames that no honest sender makes; what ``sink`` raises. The sender is told.
        """
        sockets = self._pull, self._push, self._monitors[0]
        receiver = _Receiver(sockets, session, sink, bell, clock or SystemClock(), patience)
        with self._bulk.window(session.resp.chunk) as window:
            receiver.run(window)


class _Receiver:
    """The recipient's loop; its state is that of one call."""

    def __init__(
        self, sockets: tuple[Socket, Socket, ThreadMonitor], session: Session, sink: Sink, bell: Bell,
        clock: Clock, patience: float,
    ) -> None:
        self._pull, self._push, monitor = sockets
        self._connection = _Admitted(monitor)
        self._machine = DeliveryRecipient(session)
        self._session = session
        self._sink = sink
        self._bell = bell
        self._clock = clock
        self._deadline: float | None = clock.monotonic() + patience
        self._receipt = b""
        self._due = True
        """Whether there is something to acknowledge: the recipient speaks first."""

    def run(self, window: Callable[[], int]) -> None:
        name = self._session.req.sender
        poller = zmq.Poller()
        for readable in (self._pull, self._bell.fd, self._connection.socket):
            poller.register(readable, zmq.POLLIN)
        try:
            while True:
                self._acknowledge(window)
                poller.register(self._push, zmq.POLLOUT if self._due else 0)
                ready = dict(poller.poll(self._left()))
                if self._bell.fd in ready:
                    raise Interrupted("this client ends", detail="shutdown")
                # Asked before the frames are read: what came before the end of the connection still counts.
                gone = self._connection.is_gone()
                while (frame := _receive(self._pull)) is not None:
                    if self._consume(frame.buffer):
                        return
                late = self._deadline is not None and self._clock.monotonic() >= self._deadline
                if self._receipt and (gone or late):
                    return
                if gone:
                    raise LinkLost(f"the link from {name} broke off at {self._machine.received} bytes", detail="link")
                if late:
                    raise LinkLost(f"{name} agreed to send and did not come", detail="link")
        except PeerViolation as violation:
            error = _violation(f"the data of {name} did not verify", violation)
            self._tell(error)
            raise error from None
        except LinkLost:
            raise
        except ZkcError as error:
            self._tell(error)
            raise

    def _consume(self, frame: memoryview) -> bool:
        """One frame; whether it was the last."""
        event = self._machine.receive(frame)
        if isinstance(event, Data):
            self._sink.write(event.data)
            self._due = True
        elif isinstance(event, Announced):
            self._sink.announced(event.manifest)
        elif isinstance(event, Complete):
            if event.data:
                self._sink.write(event.data)
            self._refuse_more()
            self._receipt = self._sink.complete(event.size, event.digest)
            self._due = True
            self._deadline = self._clock.monotonic() + FAREWELL_SECONDS
        elif isinstance(event, Started):
            self._deadline = None
        elif isinstance(event, SenderStopped):
            raise _given_up(self._session.req.sender, event)
        return isinstance(event, Farewell)

    def _refuse_more(self) -> None:
        """Nothing follows the last chunk before the receipt but the sender's word that it gives up (attack D04)."""
        while (frame := _receive(self._pull)) is not None:
            event = self._machine.receive(frame.buffer)
            if isinstance(event, SenderStopped):
                raise _given_up(self._session.req.sender, event)

    def _left(self) -> int | None:
        """Milliseconds for poll; while data flows only the connection's own end counts."""
        if self._deadline is None:
            return None
        return self._left_until() + 1

    def _acknowledge(self, window: Callable[[], int]) -> None:
        """Say how far it is, or that it is done, as soon as the socket takes it: sealed only then, for the newest word
        stands for all before it and a sealed frame that is not sent would leave a gap in the stream."""
        if self._due and int(self._push.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
            machine = self._machine
            word = machine.done(self._receipt) if self._receipt else machine.ack(machine.received, window())
            self._push.send(word, zmq.DONTWAIT)
            self._due = False

    def _left_until(self) -> int:
        return int(max((self._deadline or 0) - self._clock.monotonic(), 0) * 1000)

    def _tell(self, error: ZkcError) -> None:
        with contextlib.suppress(zmq.ZMQError):
            self._push.send(self._machine.stop(error.code, error.detail), zmq.DONTWAIT)


class _Admitted:
    """Whether the one connection that a bound socket let in still stands. Strangers come and go without harm.

    The end of a handshake names no connection: the admitted one is among those that were open then, and the others
    of these are gone within the handshake's own limit.
    """

    def __init__(self, monitor: ThreadMonitor) -> None:
        self.socket = monitor.socket
        self._monitor = monitor
        self._open: set[int] = set()
        self._candidates: set[int] | None = None

    def is_gone(self) -> bool:
        for event in self._monitor.drain():
            if event.kind is EventKind.ACCEPTED:
                self._open.add(event.fd)
            elif event.kind is EventKind.HANDSHAKE_SUCCEEDED:
                self._candidates = set(self._open)
            elif event.kind is EventKind.DISCONNECTED:
                self._open.discard(event.fd)
                if self._candidates is not None:
                    self._candidates.discard(event.fd)
        return self._candidates is not None and not self._candidates


# --- the sender's end ----------------------------------------------------------------------------------------------


def send(
    session: Session, manifest: Manifest, source: Source, bell: Bell, *, deadline: float | None = None,
    on_connected: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int], None] = lambda _: None, clock: Clock | None = None,
) -> Delivered:
    """Push ``source`` to the recipient and wait for its receipt, which is held against what was sent.

    ``deadline`` in monotonic seconds. `LinkLost` where no address answers or the link breaks off; `Interrupted` when
    the deadline or the bell ends it; `IntegrityError` for a recipient that lies; what the recipient told;
    `LocalIOError`.
    """
    clock = clock or SystemClock()
    if session.endpoints is None:
        raise ValueError("the sender's session has the recipient's endpoints")
    ctx = context()
    try:
        for address in session.endpoints.addresses:
            with contextlib.closing(_Sender(ctx, session, manifest, source, bell, deadline, clock)) as sender:
                if sender.connect(address):
                    on_connected(tcp_endpoint(address, session.endpoints.data_port))
                    return sender.run(on_progress)
        where = ", ".join(session.endpoints.addresses) or "nowhere"
        raise LinkLost(f"cannot reach {session.req.recipient} at {where}", detail="link")
    finally:
        ctx.destroy(linger=0)


class _Sender:
    """The sender's loop over one connected pair."""

    def __init__(
        self, ctx: Context, session: Session, manifest: Manifest, source: Source, bell: Bell, deadline: float | None,
        clock: Clock,
    ) -> None:
        self._context = ctx
        self._session = session
        self._machine = DeliverySender(session, manifest)
        self._source = source
        self._bell = bell
        self._deadline = deadline
        self._clock = clock
        self._monitors: list[ThreadMonitor] = []
        self._sockets: tuple[Socket, Socket] | None = None
        self._queue: deque[bytearray] = deque()
        self._buffer = bytearray()
        self._ended = False
        self._given_up = False
        """The recipient has said that it gives up."""
        self._first_word = 0.0

    def connect(self, address: str) -> bool:
        """Whether both sockets stand within `CONNECT_SECONDS`."""
        endpoints = self._session.endpoints
        if endpoints is None or not (_is_address(address) and endpoints.data_port and endpoints.ack_port):
            return False
        self._sockets = connect_bulk(
            self._context, address, endpoints.data_port, endpoints.ack_port,
            login(self._session.k, "data", 0), login(self._session.k, "ack", 0),
            watch=lambda sock: self._monitors.append(ThreadMonitor(sock, kinds=(*CONNECTION_KINDS, EventKind.CLOSED))),
        )
        until = self._clock.monotonic() + CONNECT_SECONDS
        if self._deadline is not None:
            until = min(until, self._deadline)
        for monitor in self._monitors:
            left = max(until - self._clock.monotonic(), 0)
            event = monitor.wait(_ENDS_OF_CONNECTING, left)
            if event is None or event.kind is not EventKind.HANDSHAKE_SUCCEEDED:
                return False
        return True

    def close(self) -> None:
        for monitor in self._monitors:
            monitor.close()
        for sock in self._sockets or ():
            # The farewell is still on its way; the recipient waits for it.
            sock.close(linger=500)

    def run(self, on_progress: Callable[[int], None]) -> Delivered:
        if self._sockets is None:
            raise ValueError("connect first")
        push, pull = self._sockets
        self._first_word = self._clock.monotonic() + FIRST_WORD_SECONDS
        try:
            while True:
                ready = self._poll(push, pull)
                if self._bell.fd in ready:
                    raise Interrupted("the transfer was interrupted", detail="signal")
                if self._deadline is not None and self._clock.monotonic() >= self._deadline:
                    raise Interrupted("the time is over and the transfer is not", detail="timeout")
                gone = any(
                    event.kind is EventKind.DISCONNECTED for monitor in self._monitors for event in monitor.drain()
                )
                while (frame := _receive(pull)) is not None:
                    event = self._consume(frame.buffer)
                    if isinstance(event, Delivered):
                        with contextlib.suppress(zmq.Again):
                            push.send(self._machine.bye(), zmq.DONTWAIT)
                        return event
                    on_progress(event.position)
                if gone:
                    raise self._lost("broke off")
                self._produce(ready)
                _flush(push, self._queue)
        except PeerViolation as violation:
            what = f"the acknowledgements of {self._session.req.recipient} did not verify"
            raise _violation(what, violation) from None
        except LinkLost:
            raise
        except BaseException as error:
            # Told whatever ends it, a signal too, so that nobody waits.
            if not self._given_up:
                self._tell(push, error if isinstance(error, ZkcError) else Interrupted("", detail="signal"))
            raise

    def _tell(self, push: Socket, error: ZkcError) -> None:
        """Give up towards the recipient: behind what is sealed already, since frames are numbered; in bounded time."""
        self._queue.append(self._machine.stop(error.code, error.detail))
        until = self._clock.monotonic() + TELL_SECONDS
        with contextlib.suppress(zmq.ZMQError):
            while self._queue and push.poll(int(max(until - self._clock.monotonic(), 0) * 1000), zmq.POLLOUT):
                _flush(push, self._queue)

    def _poll(self, push: Socket, pull: Socket) -> dict[Any, int]:
        poller = zmq.Poller()
        for readable in (pull, self._bell.fd, *(monitor.socket for monitor in self._monitors)):
            poller.register(readable, zmq.POLLIN)
        timeout: float | None = None
        if self._queue:
            poller.register(push, zmq.POLLOUT)
        elif self._machine.has_room() and not self._ended:
            if self._source.fd is None:
                timeout = 0.0
            else:
                poller.register(self._source.fd, zmq.POLLIN)
        now = self._clock.monotonic()
        if self._first_word:
            timeout = max(self._first_word - now, 0) if timeout is None else timeout
            if now >= self._first_word:
                raise self._lost("said nothing")
        if self._deadline is not None:
            timeout = min(max(self._deadline - now, 0), timeout if timeout is not None else 3600.0)
        return dict(poller.poll(None if timeout is None else int(timeout * 1000) + (timeout > 0)))

    def _consume(self, frame: memoryview) -> Credited | Delivered:
        event = self._machine.receive(frame)
        if isinstance(event, Stopped):
            self._given_up = True
            raise _given_up(self._session.req.recipient, event)
        if isinstance(event, Credited) and self._first_word:
            self._first_word = 0.0
            self._queue.extend(self._machine.start())
        return event

    def _produce(self, ready: dict[Any, int]) -> None:
        """Read once if there is credit and something to read; seal a chunk when it is whole or the stream has ended."""
        size = self._machine.chunk_size
        if self._queue or not self._machine.has_room() or self._ended:
            return
        fd = self._source.fd
        if fd is not None and fd not in ready:
            return
        # One byte beyond the chunk tells whether it is the last.
        data = self._source.read(size + 1 - len(self._buffer))
        self._buffer += data
        if not data:
            self._ended = True
            self._source.check()
            self._queue.extend(self._machine.chunk(self._buffer, last=True))
            self._buffer = bytearray()
        elif len(self._buffer) > size:
            chunk, self._buffer = memoryview(self._buffer)[:size], self._buffer[size:]
            self._queue.extend(self._machine.chunk(chunk, last=False))

    def _lost(self, how: str) -> LinkLost:
        return LinkLost(
            f"the link to {self._session.req.recipient} {how} after {self._machine.sent} bytes", detail="link"
        )


def _given_up(peer: str, stop: SenderStopped | Stopped) -> ZkcError:
    code = stop.code if stop.code in _STOP_CODES else Interrupted.code
    return error_for(code, f"{peer} gave the transfer up", detail=stop.detail)


def _is_address(text: str) -> bool:
    """Whether a recipient's word is an IP address: names would be looked up, and endpoints of other kinds opened."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _violation(what: str, violation: PeerViolation) -> ZkcError:
    """A rule broken by the other end, as the user is told: above a limit, or data that did not verify."""
    kind = PolicyRefused if violation.detail == "limit" else IntegrityError
    return kind(f"{what} ({violation})", detail=violation.detail)


def _receive(sock: Socket) -> zmq.Frame | None:
    """The next single-part message that is there; a multipart one is no frame of ours."""
    try:
        frame = sock.recv(zmq.DONTWAIT, copy=False)
    except zmq.Again:
        return None
    if frame.more:
        raise PeerViolation("malformed", "a frame of several parts")
    return frame


def _flush(sock: Socket, queue: deque[bytearray]) -> None:
    """As many frames as the socket takes now."""
    while queue:
        try:
            sock.send(queue[0], zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return
        queue.popleft()
