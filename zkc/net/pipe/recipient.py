"""The recipient's end: bound pairs, the tokens that open them, and the loop of one transfer over its connections."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import zmq
from blake3 import blake3

from zkc.constants import BAD_FRAMES_MAX, TRANSFERS_MAX
from zkc.crypto.primitives import check_mac
from zkc.env import Clock, SystemClock
from zkc.errors import Interrupted, PeerViolation, ZkcError
from zkc.net.monitor import EventKind, ThreadMonitor
from zkc.net.pipe.budget import Budget, Share
from zkc.net.pipe.link import (
    CONNECT_SECONDS,
    REPEAT_SECONDS,
    TELL_SECONDS,
    Bell,
    LinkLost,
    attempt_of,
    broken_rule,
    given_up,
    login,
    receive_frame,
)
from zkc.net.pipe.memory import keep_chunk_memory
from zkc.net.sockets import BulkPorts, Context, Socket, context, serve_bulk
from zkc.net.watch import BULK_BOUNDS, UNREAD_BYTES, Progress, Watch, data_bytes
from zkc.net.zap import ThreadZap, ZapRequest
from zkc.protocol.delivery import NotOpened, Stopped
from zkc.protocol.delivery_recipient import Announced, Complete, Data, DeliveryRecipient, Farewell
from zkc.protocol.session import Session
from zkc.wire.messages import Manifest

ARRIVAL_SECONDS: Final = 16 * CONNECT_SECONDS + 10.0
"""How long a sender that has the key may take to come and to say what it sends, whatever patience there is: it tries
each address once, there are at most 16, and after that it makes a new handshake; its place is not held any longer."""
FAREWELL_SECONDS: Final = 10.0
"""How long the recipient keeps a finished link open for a sender that has not said that it has the receipt."""
PARTING_SECONDS: Final = 1.0
"""How long the data may outlive the acknowledgements, whose connection has ended: the sender's last words are there."""
FRAMES_A_TURN: Final = 16
"""Frames read before the bell, the clock and the acknowledgement have their turn: 8 MiB of usual chunks, 10 ms."""


class Sink(Protocol):
    """Where the recipient's bytes go. Every method may raise a `ZkcError`, which ends the transfer and is told."""

    def resume(self) -> tuple[int, blake3]:
        """How many bytes are here from before, and the digest that takes them by the end of `announced`."""

    def announced(self, manifest: Manifest) -> None:
        """Judge name and size before the first byte."""

    def write(self, data: bytes) -> None:
        """Authenticated bytes, in order."""

    def complete(self, size: int, digest: bytes) -> bytes:
        """Make it durable; the receipt."""


class Bulk:
    """One process's receiving half: a context, its ZAP handler, the budget that its transfers share."""

    def __init__(self) -> None:
        keep_chunk_memory()
        self.context: Final[Context] = context()
        # A pair is four sockets with their monitors; libzmq's own bound of 1023 would end before our places do.
        self.context.set(zmq.MAX_SOCKETS, 6 * TRANSFERS_MAX + 64)
        self.budget: Final = Budget()
        # Whoever is cut off is told of as any connection that ends, by the loop that finds it gone.
        self.watch: Final = Watch(BULK_BOUNDS, lambda _cut: None)
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
        self.watch.close()
        self.context.destroy(linger=0)

    def forget(self, domain: str) -> None:
        """Nobody is admitted there any more; again: nothing."""
        door = self._doors.pop(domain, None)
        if door is not None:
            door.close()

    def _admit(self, request: ZapRequest) -> str | None:
        domain, _, socket = request.domain.rpartition(".")
        door = self._doors.get(domain)
        return None if door is None or request.mechanism != "PLAIN" else door.admit(socket, request.credentials)


class _Door:
    """Who may connect to one pair: one attempt, above all before it, each of its two tokens once (attacks D01, D02).

    A token of a later attempt shows that the sender has given the connection up: it is refused, and the pair made anew
    for the next one, so that nothing of the two is ever mixed.
    """

    def __init__(self) -> None:
        self._session: Session | None = None
        self._least = 0
        self._admitted: dict[str, int] = {}
        self._lock = threading.Lock()
        self.bell: Final = Bell()
        """Rung when the owner has to look: somebody came."""
        self.stale = False
        """Whether the sender has come with a later attempt."""

    def expect(self, session: Session) -> None:
        self._session = session

    def admit(self, socket: str, credentials: Sequence[bytes]) -> str | None:
        user, password = credentials
        attempt = attempt_of(user)
        with contextlib.suppress(PeerViolation), self._lock:
            if self._session is None or attempt is None or attempt < self._least:
                return None
            expected = login(self._session.k, socket, attempt)
            if expected.user != user:
                return None
            check_mac(expected.password, password)
            current = max(self._admitted.values(), default=attempt)
            if attempt < current or (attempt == current and socket in self._admitted):
                return None
            self.stale = attempt > current
            if not self.stale:
                self._admitted[socket] = attempt
            self.bell.ring()
            return None if self.stale else user.decode("ascii", "replace")
        return None

    def attempt(self) -> int | None:
        """The attempt whose two tokens have both been shown."""
        with self._lock:
            return next(iter(self._admitted.values())) if len(self._admitted) == 2 else None

    def renew(self, least: int) -> None:
        """For the next connection: attempts from ``least`` on."""
        with self._lock:
            self._least = max(self._least, least, *(attempt + 1 for attempt in self._admitted.values()))
            self._admitted.clear()
            self.stale = False

    def close(self) -> None:
        with self._lock:
            self._session = None
            self.bell.close()


class Listener:
    """One transfer's ports and the pair on them. Made on any thread; from `receive` on it belongs to the calling."""

    def __init__(self, bulk: Bulk, domain: str, door: _Door, host: str, ports: range | None) -> None:
        self._bulk = bulk
        self._domain = domain
        self.door = door
        self._ports = BulkPorts(host, ports)
        self.data_port, self.ack_port = self._ports.data_port, self._ports.ack_port
        try:
            self._open()
        except BaseException:
            self._ports.close()
            raise
        self.share: Final = Share(bulk.budget)
        self.lost_since: float | None = None
        """Monotonic seconds; None while the sender is here, or has not been here yet."""
        self.finished = False
        """Whether all of it is here, durable: the sender's farewell alone is missing."""

    def _open(self) -> None:
        monitors: list[ThreadMonitor] = []

        def watch(sock: Socket) -> None:
            monitors.append(ThreadMonitor(sock))

        try:
            self._pull, self._push = serve_bulk(
                self._bulk.context, self._ports, self._domain.encode(), watch=watch
            )
        except BaseException:
            for monitor in monitors:
                monitor.close()
            raise
        self._monitors = monitors[0], monitors[1]  # the data's first

    def _shut(self, linger: int) -> None:
        for monitor in self._monitors:
            monitor.close()
        self._pull.close(linger=0)
        self._push.close(linger=linger)

    def pair(self, chunk: int) -> _Pair:
        """The sockets of the connection that stands, or comes, for chunks of at most ``chunk`` bytes."""
        watch, (data, acks) = self._bulk.watch, self._monitors
        return _Pair(
            self._pull, self._push, _Admitted(data, watch, data_bytes(chunk)),
            _Admitted(acks, watch, UNREAD_BYTES),
        )

    def renew(self, least: int) -> None:
        """Drop the connections; new sockets on the same ports, for attempts from ``least`` on. `DescriptorsTaken`."""
        self._shut(0)
        self.door.renew(least)
        self._open()

    def offer_chunk(self, wanted: int) -> int:
        """The chunk size to agree on, bytes: ``wanted``, or less where many transfers share the process's memory."""
        return self.share.offer(wanted)

    def admit(self, session: Session) -> None:
        """From now on the sender of this session may connect."""
        self.door.expect(session)

    def hold(self) -> None:
        """Before `receive`: no credit until the sink has judged the manifest. Until then a sender has read nothing of
        a pipe, and can turn elsewhere with it."""
        self.share.held = True

    def close(self) -> None:
        """Again: nothing."""
        self._bulk.forget(self._domain)
        self.share.close()
        self._shut(500)
        self._ports.close()

    def receive(self, session: Session, sink: Sink, bell: Bell, patience: float, clock: Clock | None = None) -> None:
        """The whole delivery into ``sink``, over as many connections as it takes.

        Returns once the sender has the receipt (or its time is over). `LinkLost` where the sender vanished and did not
        come back within ``patience`` seconds, or did not begin within them (or `ARRIVAL_SECONDS`, if they are less);
        `IntegrityError`, `PolicyRefused` (``limit``) for frames that no honest sender makes; `Interrupted` when the
        bell rings; what ``sink`` raises. The sender is told.
        """
        self.share.begin(session.resp.chunk)
        _Receiver(self, session, sink, bell, clock or SystemClock(), patience).run()


class _Receiver:
    """The recipient's loop; its state is that of one call."""

    def __init__(
        self, listener: Listener, session: Session, sink: Sink, bell: Bell, clock: Clock, patience: float
    ) -> None:
        self._listener = listener
        self._session = session
        self._sink = sink
        self._bell = bell
        self._clock = clock
        self._patience = patience
        self._deadline: float | None = clock.monotonic() + min(patience, ARRIVAL_SECONDS)
        # What goes on from one connection to the next.
        self._position, self._digest = sink.resume()
        self._manifest: Manifest | None = None
        self._receipt = b""
        self._highest = -1
        """Of all attempts."""
        self._bad_frames = 0
        # What belongs to one connection.
        self._pair = listener.pair(session.resp.chunk)
        self._machine: DeliveryRecipient | None = None
        self._word: bytearray | None = None
        """Sealed, and not taken by the socket."""
        self._due = False
        """Whether there is something to acknowledge."""

    def run(self) -> None:
        try:
            while not self._connection():
                self._machine, self._word, self._due = None, None, False
                self._listener.renew(self._highest + 1)
                self._pair = self._listener.pair(self._session.resp.chunk)
        except PeerViolation as violation:
            error = broken_rule(f"the data of {self._session.req.sender} did not verify", violation)
            self._tell(error)
            raise error from None
        except LinkLost:
            raise
        except BaseException as error:
            # Told whatever ends it, a signal too, so that nobody waits.
            self._tell(error if isinstance(error, ZkcError) else Interrupted("", detail="signal"))
            raise

    def _connection(self) -> bool:
        """One connection from its beginning to its end; whether that is the end of the delivery."""
        pair, door = self._pair, self._listener.door
        poller = zmq.Poller()
        for readable in (pair.pull, self._bell.fd, door.bell.fd, pair.data.socket, pair.acks.socket):
            poller.register(readable, zmq.POLLIN)
        more: Farewell | bool = False
        parting = math.inf
        again = self._clock.monotonic() + REPEAT_SECONDS
        try:
            while True:
                if self._machine is None:
                    self._welcome(door.attempt())
                self._acknowledge()
                poller.register(pair.push, zmq.POLLOUT if self._due else 0)
                ready = dict(poller.poll(0 if more else self._left(min(parting, again))))
                if door.bell.fd in ready:
                    door.bell.hush()
                if self._bell.fd in ready:
                    self._hurry()
                    poller.unregister(self._bell.fd)
                # Asked before the frames are read: what came before the end of the connection still counts.
                gone = pair.data.is_gone()
                if parting == math.inf and pair.acks.is_gone():
                    parting = self._clock.monotonic() + PARTING_SECONDS
                more = self._machine is not None and self._read()
                if pair.data.progress.cut or pair.acks.progress.cut:
                    raise PeerViolation("limit", "a message without an end")
                if isinstance(more, Farewell):
                    return True
                now = self._clock.monotonic()
                if pair.pull in ready or more:
                    again = now + REPEAT_SECONDS
                elif now >= again:
                    # Nothing comes. A sender that has more to say learns from the same word again that it is lost.
                    self._due, again = self._due or self._may_repeat(), now + REPEAT_SECONDS
                late = self._deadline is not None and now >= self._deadline
                if self._receipt and late:
                    return True
                if (gone or now >= parting or door.stale) and not more:
                    self._break_off(now)
                    return False
                if late:
                    raise LinkLost(self._absence(), detail="link")
        except NotOpened:
            # Whoever stands in between can make such frames: it costs a connection, and no delivery.
            self._bad_frames += 1
            if self._bad_frames >= BAD_FRAMES_MAX:
                raise
            self._break_off(self._clock.monotonic())
            return False

    def _welcome(self, attempt: int | None) -> None:
        """The sender is here, with both tokens of one attempt: a machine for it, and the first word."""
        if attempt is not None:
            self._machine = DeliveryRecipient(
                self._session, attempt, self._listener.share.credit(self._position), received=self._position,
                digest=self._digest, manifest=self._manifest, whole=bool(self._receipt),
            )
            self._due = True
            self._listener.lost_since = None

    def _may_repeat(self) -> bool:
        return self._machine is not None and not self._receipt

    def _break_off(self, now: float) -> None:
        """Keep what the next connection goes on from, and how long it may take to come."""
        if self._machine is not None:
            self._position, self._highest = self._machine.received, self._machine.attempt
        if self._deadline is None:
            self._deadline = now + self._patience
        if self._listener.lost_since is None:
            self._listener.lost_since = now

    def _absence(self) -> str:
        name = self._session.req.sender
        if self._manifest is None:
            return f"{name} agreed to send and did not begin"
        return f"the link from {name} broke off at {self._position} bytes, and {name} did not come back"

    def _read(self) -> Farewell | bool:
        """Consume at most a turn's frames: the last one of all, or whether more may be there."""
        for _ in range(FRAMES_A_TURN):
            frame = receive_frame(self._pair.pull)
            if frame is None:
                return False
            event = self._consume(frame.buffer)
            if event is not None:
                return event
        return True

    def _consume(self, frame: memoryview) -> Farewell | None:
        self._pair.data.progress.delivered += 1
        machine = self._here()
        event = machine.receive(frame)
        if isinstance(event, Data):
            self._sink.write(event.data)
            self._due = True
        elif isinstance(event, Announced):
            # From here on a stream may be silent for as long as it likes.
            self._deadline = None
            if self._manifest is None:
                self._sink.announced(event.manifest)
                self._manifest = event.manifest
            self._due = self._due or self._listener.share.held
            self._listener.share.held = False
        elif isinstance(event, Complete):
            if event.data:
                self._sink.write(event.data)
            self._refuse_more()
            self._receipt = self._sink.complete(event.size, event.digest)
            self._listener.finished = True
            self._due = True
            self._deadline = self._clock.monotonic() + FAREWELL_SECONDS
        elif isinstance(event, Stopped):
            if self._receipt:
                return Farewell()  # it left without the receipt; what it sent is here all the same
            raise given_up(self._session.req.sender, event.code, event.detail)
        return event if isinstance(event, Farewell) else None

    def _refuse_more(self) -> None:
        """Nothing follows the last chunk before the receipt but the sender's word that it gives up (attack D04)."""
        frame = receive_frame(self._pair.pull)
        if frame is not None:
            event = self._here().receive(frame.buffer)
            if isinstance(event, Stopped):
                raise given_up(self._session.req.sender, event.code, event.detail)

    def _here(self) -> DeliveryRecipient:
        if self._machine is None:
            raise PeerViolation("unexpected", "a frame before the connection stands")
        return self._machine

    def _left(self, end: float) -> int:
        """Milliseconds for poll."""
        return self._until(end if self._deadline is None else min(end, self._deadline))

    def _acknowledge(self) -> None:
        """Say how far it is, or that it is done, as soon as the socket takes it: sealed only then, for the newest word
        stands for all before it and a sealed frame that is not sent would leave a gap in the stream."""
        if self._due and int(self._pair.push.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
            machine = self._here()
            again = self._word is not None
            if self._word is None and self._receipt:
                self._word = machine.done(self._receipt)
            elif self._word is None:
                self._word = machine.ack(machine.received, self._listener.share.credit(machine.received))
            try:
                self._pair.push.send(self._word, zmq.DONTWAIT)
            except zmq.Again:
                return  # the sender left meanwhile: what is sealed is kept, and the end of the connection will be seen
            self._word, self._due = None, again

    def _hurry(self) -> None:
        """The bell: `Interrupted`, unless it is done; then the sender may still hear so, for a moment."""
        if not self._receipt:
            if self._bell.superseded:
                raise Interrupted(f"{self._session.req.sender} has begun this delivery anew", detail="ended")
            raise Interrupted("this client ends", detail="shutdown")
        self._deadline = self._clock.monotonic() + TELL_SECONDS

    def _tell(self, error: ZkcError) -> None:
        """Give up towards the sender, in bounded time: its data may be here before its other connection stands.

        Then the sender is let go first: libzmq's connecting end drops what it has not read when the connection ends.
        """
        machine, (_, push, data, _) = self._machine, self._pair
        if machine is None or machine.ended:
            return
        until = self._clock.monotonic() + (TELL_SECONDS if data.has_come() else 0.0)
        with contextlib.suppress(zmq.ZMQError):
            if push.poll(self._until(until), zmq.POLLOUT):
                push.send(machine.stop(error.code, error.detail), zmq.DONTWAIT)
                while not data.is_gone() and (left := self._until(until)):
                    data.socket.poll(left)

    def _until(self, time: float) -> int:
        """Milliseconds for poll; 0 where it is over."""
        return math.ceil(max(time - self._clock.monotonic(), 0) * 1000)


class _Admitted:
    """Whether the one connection that a bound socket let in still stands. Strangers come and go without harm.

    The end of a handshake names no connection: the admitted one is among those that were open then, and the others
    of these are gone within the handshake's own limit.
    """

    def __init__(self, monitor: ThreadMonitor, watch: Watch, bound: int) -> None:
        self.socket = monitor.socket
        self.progress: Final = Progress(bound)
        self._watch = watch
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
            self._watch.on_event(event, self.progress)
            if event.kind is EventKind.ACCEPTED:
                self._open.add(event.fd)
            elif event.kind is EventKind.HANDSHAKE_SUCCEEDED:
                self._candidates = set(self._open)
            elif event.kind is EventKind.DISCONNECTED:
                self._open.discard(event.fd)
                if self._candidates is not None:
                    self._candidates.discard(event.fd)


class _Pair(NamedTuple):
    """What one connection needs."""

    pull: Socket
    push: Socket
    data: _Admitted
    acks: _Admitted
