"""The recipient's end: its places for transfers, and the loop of one transfer over its connections."""

from __future__ import annotations

import contextlib
import math
import select
from typing import Final, NoReturn, Protocol

import zmq
from blake3 import blake3

from zkc.constants import BAD_FRAMES_MAX, TRANSFERS_MAX
from zkc.crypto.chunks import Sealed
from zkc.crypto.stream_cipher import Buffer
from zkc.env import Clock, SystemClock
from zkc.errors import Interrupted, PeerViolation, ZkcError
from zkc.net.descriptors import DescriptorsTaken
from zkc.net.pipe.bell import Bell, LinkLost
from zkc.net.pipe.budget import Budget, Share
from zkc.net.pipe.dialling import Dialling
from zkc.net.pipe.doors import Doors, Listening
from zkc.net.pipe.link import (
    CONNECT_SECONDS,
    PARTING_SECONDS,
    REPEAT_SECONDS,
    TELL_SECONDS,
    broken_rule,
    given_up,
    receive_frame,
)
from zkc.net.pipe.meeting import Meeting, Pair, Rung
from zkc.net.pipe.memory import keep_chunk_memory
from zkc.net.pipe.passage import Passage
from zkc.net.sockets import is_writable
from zkc.protocol.delivery import NotOpened, Stopped
from zkc.protocol.delivery_recipient import Announced, Complete, Data, DeliveryRecipient, Farewell
from zkc.protocol.session import Session
from zkc.wire.messages import Endpoints, Manifest

ARRIVAL_SECONDS: Final = 16 * CONNECT_SECONDS + 10.0
"""How long a sender that has the key may take to come and to say what it sends, whatever patience there is: it tries
each address once, there are at most 16, and after that it makes a new handshake; its place is not held any longer."""
COME_SECONDS: Final = 2 * CONNECT_SECONDS
"""From the agreement to a sender that comes, before its place is another's who waits for one."""
FAREWELL_SECONDS: Final = 10.0
"""How long the recipient keeps a finished link open for a sender that has not said that it has the receipt."""
FRAMES_A_TURN: Final = 16
"""Frames read before the bell, the clock and the acknowledgement have their turn: 8 MiB of usual chunks, 10 ms."""
_LOOPBACK: Final = "127.0.0.1"
_PAUSE_FIRST: Final = 0.02
_PAUSE_MAX: Final = 1.0
"""Between two tries to reach a sender that listens: doubled each time."""


class Sink(Protocol):
    """Where the recipient's bytes go. Every method may raise a `ZkcError`, which ends the transfer and is told."""

    def resume(self) -> tuple[int, blake3]:
        """How many bytes are here from before, and the digest that takes them by the end of `announced`."""

    def announced(self, manifest: Manifest) -> None:
        """Judge name and size before the first byte."""

    def write(self, data: Buffer) -> None:
        """Authenticated bytes, in order; they are there until it returns."""

    def complete(self, size: int, digest: bytes) -> bytes:
        """Make it durable; the receipt."""


class Bulk(Doors):
    """One process's receiving half: the ends that listen in it, the budget that its transfers share."""

    def __init__(self) -> None:
        keep_chunk_memory()
        super().__init__(TRANSFERS_MAX)
        self.budget: Final = Budget()

    def listen(self, host: str, ports: range | None, sender: str = "the sender") -> Incoming:
        """Bind a pair for one transfer from ``sender``; it refuses everybody until `Incoming.admit`.

        `PortsTaken`, `DescriptorsTaken` until a transfer ends; `LocalIOError`.
        """
        return Incoming(self, self._bound(host, ports, sender))

    def _bound(self, host: str, ports: range | None, sender: str) -> Listening:
        listening = self.bind(host, ports, sends=False, peer=sender)
        try:
            listening.refuse()
        except BaseException:
            listening.close()
            raise
        return listening

    def by_relay(self, told: Endpoints, sender: str) -> Incoming:
        """For one transfer by the relay that ``told`` names: it is brought to ports of loopback."""
        listening = self._bound(_LOOPBACK, None, sender)
        return Incoming(self, listening, told)

    def dial(self) -> Incoming:
        """For one transfer whose sender listens."""
        return Incoming(self, None)


class Incoming:
    """One transfer to this process: where it meets its sender, and its share of the memory."""

    def __init__(self, bulk: Bulk, listening: Listening | None, relay: Endpoints | None = None) -> None:
        self._context = bulk.context
        self._relay = relay
        self._passage: Passage | None = None
        self.listening: Final = listening
        """None: the sender listens."""
        self.share: Final = Share(bulk.budget)
        self.lost_since: float | None = None
        """Monotonic seconds; None while the sender is here. One that has the key and does not come has gone when it
        should have been here."""
        self.finished = False
        """Whether all of it is here, durable: the sender's farewell alone is missing."""

    @property
    def ports(self) -> tuple[int, int]:
        """Where the sender comes to, for data and for acknowledgements; zeros where it is the one that listens."""
        return (0, 0) if self.listening is None else (self.listening.data_port, self.listening.ack_port)

    def offer_chunk(self, wanted: int) -> int:
        """The chunk size to agree on, bytes: ``wanted``, or less where many transfers share the process's memory."""
        return self.share.offer(wanted)

    def admit(self, session: Session) -> None:
        """From now on the sender of this session may connect, if it is the one that does."""
        if self.listening is not None:
            self.listening.expect(session.k, session.resp.chunk)
            if self._relay is not None:
                self._passage = Passage(self._relay, "r", (self.listening.data_port, self.listening.ack_port))

    def hold(self) -> None:
        """Before `receive`: no credit until the sink has judged the manifest. Until then a sender has read nothing of
        a pipe, and can turn elsewhere with it."""
        self.share.held = True

    def close(self) -> None:
        """Again: nothing."""
        if self._passage is not None:
            self._passage.close()
        if self.listening is not None:
            self.listening.close()
        self.share.close()

    def receive(self, session: Session, sink: Sink, bell: Bell, patience: float, clock: Clock | None = None) -> None:
        """The whole delivery into ``sink``, over as many connections as it takes.

        Returns once the sender has the receipt (or its time is over). `LinkLost` where the sender vanished and did not
        come back within ``patience`` seconds, or did not begin within them (or `ARRIVAL_SECONDS`, if they are less);
        `IntegrityError`, `PolicyRefused` (``limit``) for frames that no honest sender makes; `Interrupted` when the
        bell rings; what ``sink`` raises. The sender is told.
        """
        self.share.begin(session.resp.chunk)
        with contextlib.closing(self._meeting(session)) as meeting:
            _Receiver(self, meeting, session, sink, bell, clock or SystemClock(), patience).run()

    def _meeting(self, session: Session) -> Meeting:
        if self.listening is not None:
            return self.listening
        if session.endpoints is None:
            raise ValueError("neither end listens")
        return Dialling(
            self._context, session.k, session.endpoints, chunk=session.resp.chunk, sends=False,
            peer=session.req.sender,
        )


class _Receiver:
    """The recipient's loop; its state is that of one call."""

    def __init__(
        self, incoming: Incoming, meeting: Meeting, session: Session, sink: Sink, bell: Bell, clock: Clock,
        patience: float,
    ) -> None:
        self._incoming = incoming
        self._meeting = meeting
        self._session = session
        self._sink = sink
        self._bell = bell
        self._clock = clock
        self._patience = patience
        self._deadline = clock.monotonic() + min(patience, ARRIVAL_SECONDS)
        """By when the sender has to be here, to have begun, or to have left; infinite while data may flow."""
        incoming.lost_since = clock.monotonic() + COME_SECONDS
        # What goes on from one connection to the next.
        self._unready: ZkcError | None = None
        """Why nothing can be received: told as soon as somebody is there to hear it."""
        self._position, self._digest = 0, blake3()
        try:
            self._position, self._digest = sink.resume()
        except ZkcError as error:
            self._unready = error
        self._manifest: Manifest | None = None
        self._receipt = b""
        self._highest = -1
        """Of all attempts."""
        self._bad_frames = 0
        # What belongs to one connection.
        self._pair: Pair | None = None
        self._machine: DeliveryRecipient | None = None
        self._word: Sealed | None = None
        """Sealed, and not taken by the socket."""
        self._due = False
        """Whether there is something to acknowledge."""

    def run(self) -> None:
        try:
            while (pair := self._meet()) is not None and not self._connection(pair):
                self._pair = self._machine = None
                self._meeting.leave(self._highest)
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

    def _meet(self) -> Pair | None:
        """The sender is here: a machine for this attempt, and the first word. None: it may do without."""
        pause = _PAUSE_FIRST
        pair: Pair | None = None
        while pair is None:
            try:
                pair = self._meeting.meet(self._bell, self._deadline, self._clock)
            except Rung:
                self._hurry()
                return None
            except (LinkLost, DescriptorsTaken) as lost:
                left = self._deadline - self._clock.monotonic()
                if left <= 0:
                    if self._receipt:
                        return None
                    if self._manifest is not None:
                        raise LinkLost(self._absence(), detail="link") from None
                    raise LinkLost(f"{self._absence()}: {lost.message}", detail="link", hint=lost.hint) from None
                # Nobody there, at once: it may be a moment late, or on its way back. Or others have all descriptors.
                waiting = select.poll()
                waiting.register(self._bell.fd, select.POLLIN)
                waiting.poll(min(pause, left) * 1000)
                pause = min(2 * pause, _PAUSE_MAX)
        self._machine = DeliveryRecipient(
            self._session, pair.attempt, self._incoming.share.credit(self._position), received=self._position,
            digest=self._digest, manifest=self._manifest, whole=bool(self._receipt),
        )
        self._pair, self._word, self._due = pair, None, True
        self._incoming.lost_since = None
        return pair

    def _connection(self, pair: Pair) -> bool:
        """One connection from its beginning to its end; whether that is the end of the delivery."""
        if self._unready is not None:
            self._refuse(pair, self._unready)
        poller = zmq.Poller()
        for readable in (pair.data, self._bell.fd, *pair.watched):
            poller.register(readable, zmq.POLLIN)
        more: Farewell | bool = False
        parting = math.inf
        again = self._clock.monotonic() + REPEAT_SECONDS
        try:
            while True:
                self._acknowledge(pair)
                poller.register(pair.acks, zmq.POLLOUT if self._due else 0)
                ready = dict(poller.poll(0 if more else self._until(min(parting, again, self._deadline))))
                if self._bell.fd in ready:
                    self._hurry()
                    poller.unregister(self._bell.fd)
                # Asked before the frames are read: what came before the end of the connection still counts.
                gone = pair.data_end.is_gone()
                if parting == math.inf and pair.acks_end.is_gone():
                    parting = self._clock.monotonic() + PARTING_SECONDS
                more = self._read(pair)
                if pair.data_end.is_cut() or pair.acks_end.is_cut():
                    raise PeerViolation("limit", "a message without an end")
                if isinstance(more, Farewell):
                    return True
                now = self._clock.monotonic()
                if pair.data in ready or more:
                    again = now + REPEAT_SECONDS
                elif now >= again:
                    # Nothing comes. A sender that has more to say learns from the same word again that it is lost.
                    self._due, again = self._due or not self._receipt, now + REPEAT_SECONDS
                if self._receipt and now >= self._deadline:
                    return True
                if (gone or now >= parting or pair.is_over()) and not more:
                    self._break_off(now)
                    return False
                if now >= self._deadline:
                    raise LinkLost(self._absence(), detail="link")
        except NotOpened:
            # Whoever stands in between can make such frames: it costs a connection, and no delivery.
            self._bad_frames += 1
            if self._bad_frames >= BAD_FRAMES_MAX:
                raise
            self._break_off(self._clock.monotonic())
            return False

    def _refuse(self, pair: Pair, why: ZkcError) -> NoReturn:
        """Raise ``why`` once the sender can hear it: both its connections stand."""
        until = self._clock.monotonic() + CONNECT_SECONDS
        while not pair.data_end.has_come() and (left := self._until(until)):
            pair.data_end.events.poll(left)
        raise why

    def _break_off(self, now: float) -> None:
        """Keep what the next connection goes on from, and how long it may take to come."""
        machine = self._here()
        self._position, self._highest = machine.received, machine.attempt
        if self._deadline == math.inf:
            self._deadline = now + self._patience
        self._incoming.lost_since = now

    def _absence(self) -> str:
        name = self._session.req.sender
        if self._manifest is None:
            return f"{name} agreed to send and did not begin"
        return f"the link from {name} broke off at {self._position} bytes, and {name} did not come back"

    def _read(self, pair: Pair) -> Farewell | bool:
        """Consume at most a turn's frames: the last one of all, or whether more may be there."""
        for _ in range(FRAMES_A_TURN):
            frame = receive_frame(pair.data)
            if frame is None:
                return False
            pair.data_end.delivered(frame)
            event = self._consume(pair, frame.buffer)
            if event is not None:
                return event
        return True

    def _consume(self, pair: Pair, frame: memoryview) -> Farewell | None:
        event = self._here().receive(frame)
        if isinstance(event, Data):
            self._sink.write(event.data)
            self._due = True
        elif isinstance(event, Announced):
            # From here on a stream may be silent for as long as it likes.
            self._deadline = math.inf
            if self._manifest is None:
                self._sink.announced(event.manifest)
                self._manifest = event.manifest
            self._due = self._due or self._incoming.share.held
            self._incoming.share.held = False
        elif isinstance(event, Complete):
            if event.data:
                self._sink.write(event.data)
            self._refuse_more(pair)
            self._receipt = self._sink.complete(event.size, event.digest)
            self._incoming.finished = True
            self._due = True
            self._deadline = self._clock.monotonic() + FAREWELL_SECONDS
        elif isinstance(event, Stopped):
            if self._receipt:
                return Farewell()  # it left without the receipt; what it sent is here all the same
            raise given_up(self._session.req.sender, event.code, event.detail)
        return event if isinstance(event, Farewell) else None

    def _refuse_more(self, pair: Pair) -> None:
        """Nothing follows the last chunk before the receipt but the sender's word that it gives up (attack D04)."""
        frame = receive_frame(pair.data)
        if frame is not None:
            event = self._here().receive(frame.buffer)
            if isinstance(event, Stopped):
                raise given_up(self._session.req.sender, event.code, event.detail)

    def _here(self) -> DeliveryRecipient:
        if self._machine is None:
            raise ValueError("no connection stands")
        return self._machine

    def _acknowledge(self, pair: Pair) -> None:
        """Say how far it is, or that it is done, as soon as the socket takes it: sealed only then, for the newest word
        stands for all before it and a sealed frame that is not sent would leave a gap in the stream."""
        if self._due and is_writable(pair.acks):
            machine = self._here()
            again = self._word is not None
            if self._word is None and self._receipt:
                self._word = machine.done(self._receipt)
            elif self._word is None:
                self._word = machine.ack(machine.received, self._incoming.share.credit(machine.received))
            try:
                pair.acks.send(self._word, zmq.DONTWAIT)
            except zmq.Again:
                return  # the sender left meanwhile: what is sealed is kept, and the end of the connection will be seen
            self._word, self._due = None, again

    def _hurry(self) -> None:
        """The bell: its reason, unless it is done; then the sender may still hear so, for a moment."""
        if not self._receipt:
            raise self._bell.reason
        self._deadline = self._clock.monotonic() + TELL_SECONDS

    def _tell(self, error: ZkcError) -> None:
        """Give up towards the sender, in bounded time: its data may be here before its other connection stands."""
        machine, pair = self._machine, self._pair
        if machine is None or machine.ended or pair is None:
            return
        until = self._clock.monotonic() + (TELL_SECONDS if pair.data_end.has_come() else 0.0)
        with contextlib.suppress(zmq.ZMQError):
            if pair.acks.poll(self._until(until), zmq.POLLOUT):
                pair.acks.send(machine.stop(error.code, error.detail), zmq.DONTWAIT)
                pair.let_go(until - self._clock.monotonic(), self._clock)

    def _until(self, time: float) -> int:
        """Milliseconds for poll; 0 where it is over."""
        return math.ceil(max(time - self._clock.monotonic(), 0) * 1000)
