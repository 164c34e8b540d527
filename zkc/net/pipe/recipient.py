"""The recipient's end: bound pairs, the tokens that open them, and the loop of one transfer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Final, Protocol

import zmq

from zkc.constants import TRANSFERS_MAX
from zkc.crypto.primitives import check_mac
from zkc.env import Clock, SystemClock
from zkc.errors import Interrupted, PeerViolation, ZkcError
from zkc.net.monitor import EventKind, ThreadMonitor
from zkc.net.pipe.budget import Budget, Share
from zkc.net.pipe.link import (
    CONNECT_SECONDS,
    TELL_SECONDS,
    Bell,
    LinkLost,
    broken_rule,
    given_up,
    login,
    receive_frame,
)
from zkc.net.sockets import Context, Login, Socket, bind_bulk, context
from zkc.net.zap import ThreadZap, ZapRequest
from zkc.protocol.delivery import Stopped
from zkc.protocol.delivery_recipient import Announced, Complete, Data, DeliveryRecipient, Farewell
from zkc.protocol.session import Session
from zkc.wire.messages import Manifest

ARRIVAL_SECONDS: Final = 16 * CONNECT_SECONDS + 10.0
"""How long a sender that has the key may take to come and to say what it sends, whatever patience there is: it tries
each address once, there are at most 16, and after that it makes a new handshake; its place is not held any longer."""
FAREWELL_SECONDS: Final = 10.0
"""How long the recipient keeps a finished link open for a sender that has not said that it has the receipt."""
FRAMES_A_TURN: Final = 16
"""Frames read before the bell, the clock and the acknowledgement have their turn: 8 MiB of usual chunks, 10 ms."""


class Sink(Protocol):
    """Where the recipient's bytes go. Every method may raise a `ZkcError`, which ends the transfer and is told."""

    def announced(self, manifest: Manifest) -> None:
        """Judge name and size before the first byte."""

    def write(self, data: bytes) -> None:
        """Authenticated bytes, in order."""

    def complete(self, size: int, digest: bytes) -> bytes:
        """Make it durable; the receipt."""


class Bulk:
    """One process's receiving half: a context, its ZAP handler, the budget that its transfers share.

    ``held_chunk``: see `bind_bulk`; for sinks that may stand still for as long as they like.
    """

    def __init__(self, held_chunk: int = 0) -> None:
        self.held_chunk: Final = held_chunk
        self.context: Final[Context] = context()
        # A pair is four sockets with its monitor; libzmq's own bound of 1023 would end before our places do.
        self.context.set(zmq.MAX_SOCKETS, 4 * TRANSFERS_MAX + 64)
        self.budget: Final = Budget()
        self._doors: dict[str, _Door] = {}
        self._numbers = iter(range(1, 1 << 62))
        self._zap = ThreadZap(self.context, self._admit)

    def listen(self, host: str, ports: range | None) -> Listener:
        """Bind a pair for one transfer; it refuses everybody until `Listener.admit`.

        `PortsTaken`, `DescriptorsTaken` until a transfer ends; `LocalIOError`.
        """
        domain = f"xfer{next(self._numbers)}"
        door = self._doors[domain] = _Door()
        try:
            return Listener(self, domain, door, host, ports)
        except BaseException:
            self.forget(domain)
            raise

    def close(self) -> None:
        """After every listener is closed."""
        self._zap.close()
        self.context.destroy(linger=0)

    def forget(self, domain: str) -> None:
        """Nobody is admitted there any more; again: nothing."""
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
        monitors: list[ThreadMonitor] = []

        def watch(sock: Socket) -> None:
            """The data alone: where the sender leaves, its last words there outlive its other connection."""
            if sock.type == zmq.PULL:
                monitors.append(ThreadMonitor(sock))

        try:
            self._pull, self._push, self.data_port, self.ack_port = bind_bulk(
                bulk.context, host, ports, domain.encode(), watch=watch, held_chunk=bulk.held_chunk
            )
        except BaseException:
            for monitor in monitors:
                monitor.close()
            raise
        (self._monitor,) = monitors
        self._share = Share(bulk.budget)

    def offer_chunk(self, wanted: int) -> int:
        """The chunk size to agree on, bytes: ``wanted``, or less where many transfers share the process's memory."""
        return self._share.offer(wanted)

    def admit(self, session: Session) -> None:
        """From now on the sender of this session may connect, once."""
        for socket in ("data", "ack"):
            self._door.expect(socket, login(session.k, socket, 0))

    def hold(self) -> None:
        """Before `receive`: no credit until the sink has judged the manifest. Until then a sender has read nothing of
        a pipe, and can turn elsewhere with it."""
        self._share.held = True

    def close(self) -> None:
        """Again: nothing."""
        self._bulk.forget(self._domain)
        self._share.close()
        self._monitor.close()
        self._pull.close(linger=0)
        self._push.close(linger=500)

    def receive(self, session: Session, sink: Sink, bell: Bell, patience: float, clock: Clock | None = None) -> None:
        """The whole delivery into ``sink``: returns once the sender has the receipt (or its time is over).

        `LinkLost` where the sender vanished, or sent no manifest within ``patience`` seconds (or `ARRIVAL_SECONDS`, if
        they are less); `IntegrityError`, `PolicyRefused` (``limit``) for frames that no honest sender makes;
        `Interrupted` when the bell rings; what ``sink`` raises. The sender is told.
        """
        self._share.begin(session.resp.chunk)
        sockets = self._pull, self._push, self._monitor
        _Receiver(sockets, session, sink, bell, clock or SystemClock(), patience, self._share).run()


class _Receiver:
    """The recipient's loop; its state is that of one call."""

    def __init__(
        self, sockets: tuple[Socket, Socket, ThreadMonitor], session: Session, sink: Sink, bell: Bell, clock: Clock,
        patience: float, share: Share,
    ) -> None:
        self._pull, self._push, monitor = sockets
        self._connection = _Admitted(monitor)
        self._machine = DeliveryRecipient(session, credit=share.credit(0))
        self._session = session
        self._sink = sink
        self._bell = bell
        self._clock = clock
        self._share = share
        self._deadline: float | None = clock.monotonic() + min(patience, ARRIVAL_SECONDS)
        self._receipt = b""
        self._word: bytearray | None = None
        """Sealed, and not taken by the socket."""
        self._due = True
        """Whether there is something to acknowledge: the recipient speaks first."""

    def run(self) -> None:
        name = self._session.req.sender
        poller = zmq.Poller()
        for readable in (self._pull, self._bell.fd, self._connection.socket):
            poller.register(readable, zmq.POLLIN)
        more: Farewell | bool = False
        try:
            while True:
                self._acknowledge()
                poller.register(self._push, zmq.POLLOUT if self._due else 0)
                ready = dict(poller.poll(0 if more else self._left()))
                if self._bell.fd in ready:
                    if not self._receipt:
                        raise self._interrupted()
                    # It is done: the sender may still hear so, for a moment.
                    poller.unregister(self._bell.fd)
                    self._deadline = self._clock.monotonic() + TELL_SECONDS
                # Asked before the frames are read: what came before the end of the connection still counts.
                gone = self._connection.is_gone()
                more = self._read()
                if isinstance(more, Farewell):
                    return
                late = self._deadline is not None and self._clock.monotonic() >= self._deadline
                if self._receipt and (gone or late):
                    return
                if gone and not more:
                    raise LinkLost(f"the link from {name} broke off at {self._machine.received} bytes", detail="link")
                if late:
                    raise LinkLost(f"{name} agreed to send and did not begin", detail="link")
        except PeerViolation as violation:
            error = broken_rule(f"the data of {name} did not verify", violation)
            self._tell(error)
            raise error from None
        except LinkLost:
            raise
        except BaseException as error:
            # Told whatever ends it, a signal too, so that nobody waits.
            self._tell(error if isinstance(error, ZkcError) else Interrupted("", detail="signal"))
            raise

    def _read(self) -> Farewell | bool:
        """Consume at most a turn's frames: the last one of all, or whether more may be there."""
        for _ in range(FRAMES_A_TURN):
            frame = receive_frame(self._pull)
            if frame is None:
                return False
            event = self._consume(frame.buffer)
            if event is not None:
                return event
        return True

    def _consume(self, frame: memoryview) -> Farewell | None:
        event = self._machine.receive(frame)
        if isinstance(event, Data):
            self._sink.write(event.data)
            self._due = True
        elif isinstance(event, Announced):
            # From here on a stream may be silent for as long as it likes.
            self._deadline = None
            self._sink.announced(event.manifest)
            self._due = self._due or self._share.held
            self._share.held = False
        elif isinstance(event, Complete):
            if event.data:
                self._sink.write(event.data)
            self._refuse_more()
            self._receipt = self._sink.complete(event.size, event.digest)
            self._due = True
            self._deadline = self._clock.monotonic() + FAREWELL_SECONDS
        elif isinstance(event, Stopped):
            if self._receipt:
                return Farewell()  # it left without the receipt; what it sent is here all the same
            raise given_up(self._session.req.sender, event.code, event.detail)
        return event if isinstance(event, Farewell) else None

    def _refuse_more(self) -> None:
        """Nothing follows the last chunk before the receipt but the sender's word that it gives up (attack D04)."""
        frame = receive_frame(self._pull)
        if frame is not None:
            event = self._machine.receive(frame.buffer)
            if isinstance(event, Stopped):
                raise given_up(self._session.req.sender, event.code, event.detail)

    def _left(self) -> int | None:
        """Milliseconds for poll; while data flows only the connection's own end counts."""
        return None if self._deadline is None else self._until(self._deadline)

    def _acknowledge(self) -> None:
        """Say how far it is, or that it is done, as soon as the socket takes it: sealed only then, for the newest word
        stands for all before it and a sealed frame that is not sent would leave a gap in the stream."""
        if self._due and int(self._push.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
            machine = self._machine
            again = self._word is not None
            if self._word is None and self._receipt:
                self._word = machine.done(self._receipt)
            elif self._word is None:
                self._word = machine.ack(machine.received, self._share.credit(machine.received))
            try:
                self._push.send(self._word, zmq.DONTWAIT)
            except zmq.Again:
                return  # the sender left meanwhile: what is sealed is kept, and the end of the connection will be seen
            self._word, self._due = None, again

    def _interrupted(self) -> Interrupted:
        if self._bell.superseded:
            return Interrupted(f"{self._session.req.sender} has begun this delivery anew", detail="ended")
        return Interrupted("this client ends", detail="shutdown")

    def _tell(self, error: ZkcError) -> None:
        """Give up towards the sender, in bounded time: its data may be here before its other connection stands.

        Then the sender is let go first: libzmq's connecting end drops what it has not read when the connection ends.
        """
        if self._machine.ended:
            return
        until = self._clock.monotonic() + (TELL_SECONDS if self._connection.has_come() else 0.0)
        with contextlib.suppress(zmq.ZMQError):
            if self._push.poll(self._until(until), zmq.POLLOUT):
                self._push.send(self._machine.stop(error.code, error.detail), zmq.DONTWAIT)
                while not self._connection.is_gone() and (left := self._until(until)):
                    self._connection.socket.poll(left)

    def _until(self, time: float) -> int:
        """Milliseconds for poll; 0 where it is over."""
        return math.ceil(max(time - self._clock.monotonic(), 0) * 1000)


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

    def has_come(self) -> bool:
        self._look()
        return self._candidates is not None

    def is_gone(self) -> bool:
        self._look()
        return self._candidates is not None and not self._candidates

    def _look(self) -> None:
        for event in self._monitor.drain():
            if event.kind is EventKind.ACCEPTED:
                self._open.add(event.fd)
            elif event.kind is EventKind.HANDSHAKE_SUCCEEDED:
                self._candidates = set(self._open)
            elif event.kind is EventKind.DISCONNECTED:
                self._open.discard(event.fd)
                if self._candidates is not None:
                    self._candidates.discard(event.fd)
