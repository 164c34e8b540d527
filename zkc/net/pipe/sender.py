"""The sender's end: the connections of one attempt, and the loop over them."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import zmq

from zkc.constants import BAD_FRAMES_MAX
from zkc.env import Clock, SystemClock
from zkc.errors import Interrupted, PeerViolation, TimedOut, ZkcError
from zkc.net.pipe.link import (
    CONNECT_SECONDS,
    PARTING_SECONDS,
    TELL_SECONDS,
    Bell,
    LinkLost,
    broken_rule,
    flush,
    given_up,
    receive_frame,
)
from zkc.net.pipe.meeting import Dialling, Listening, Meeting, Pair, Rung
from zkc.net.pipe.memory import keep_chunk_memory
from zkc.net.pipe.outgoing import Outgoing
from zkc.net.pipe.passage import Passage
from zkc.net.sockets import Socket, context
from zkc.protocol.delivery import NotOpened, Stopped
from zkc.protocol.delivery_sender import Credited, Delivered, DeliverySender
from zkc.protocol.session import Session
from zkc.rules.rates import Pace
from zkc.wire.messages import Manifest

FIRST_WORD_SECONDS: Final = 20.0
"""From the connection to the other end's first frame."""
COME_SECONDS: Final = CONNECT_SECONDS
"""How long a recipient that has the key may take to come, where the sender listens."""
FLUSH_MS: Final = 20
"""How long a source may pause before what it gave leaves as a chunk of its own."""
REPEATS_MAX: Final = 2
"""How often the recipient may say that it waits, while its kernel has everything of ours: then something was lost in
between, such as a length that a damaged byte made longer."""
FRAMES_A_TURN: Final = 16
"""Acknowledgements read, and chunks sent, before the bell, the clock and the other direction have their turn."""


@dataclass(frozen=True)
class Told:
    """Who hears what of a delivery on its way. Each is called in the sending thread, and may raise."""

    on_begun: Callable[[str, int], None] = lambda _path, _position: None
    """The recipient is there, reached by ``path``, and stands at ``position``."""
    on_flowing: Callable[[], None] = lambda: None
    """Before the first data leaves."""
    on_progress: Callable[[int], None] = lambda _: None
    on_receipt: Callable[[Delivered], None] = lambda _: None
    """Before the recipient hears that the receipt is here: makes it durable."""


class Attempts:
    """One session's attempts: each is a connection of its own, under tokens and keys of its own."""

    def __init__(
        self, session: Session, manifest: Manifest, outgoing: Outgoing, clock: Clock | None = None,
        pace: Pace | None = None, listening: Listening | None = None,
    ) -> None:
        """``listening``: where the recipient comes to, if it is not the sender that connects."""
        if session.endpoints is None:
            raise ValueError("the sender's session has the recipient's endpoints")
        keep_chunk_memory()
        self.session: Final = session
        self.manifest: Final = manifest
        self.outgoing: Final = outgoing
        self.clock: Final = clock or SystemClock()
        self.pace: Final = pace or Pace()
        self.number = 0
        """Of the next attempt."""
        self._listening = listening
        self._bad_frames = 0
        if listening is not None:
            listening.expect(session.k, session.resp.chunk)

    def next(self, bell: Bell, told: Told, *, deadline: float | None = None) -> Delivered:
        """Push to the recipient, from where it stands, and wait for its receipt, which is held against what was sent.

        ``deadline`` in monotonic seconds. `LinkLost` where no address answers or the connection breaks off: another
        attempt may go on; `TimedOut` when the deadline ends it before data flowed, `Interrupted` when it does after
        that or the bell at any time; `IntegrityError` for a recipient that lies; what the recipient told;
        `LocalIOError`.
        """
        with self._meeting() as meeting:
            until = self.clock.monotonic() + COME_SECONDS if self._listening is not None else math.inf
            try:
                pair = meeting.meet(bell, until if deadline is None else min(until, deadline))
            except Rung:
                raise interrupted(self.session) from None
            except PeerViolation as violation:
                raise broken_rule(f"{self.session.req.recipient} broke the rules of the link", violation) from None
            attempt = _Attempt(pair, self, bell, told, deadline)
            try:
                return attempt.run()
            except NotOpened as bad:
                # Whoever stands in between can make such frames: it costs a connection, and no delivery.
                self._bad_frames += 1
                what = f"the acknowledgements of {self.session.req.recipient} did not verify"
                if self._bad_frames >= BAD_FRAMES_MAX:
                    raise broken_rule(what, bad) from None
                raise LinkLost(f"{what} ({bad})", detail="link") from None
            finally:
                self.number = attempt.highest + 1

    @contextlib.contextmanager
    def _meeting(self) -> Iterator[Meeting]:
        """Where one attempt meets the recipient; what was said last is still on its way at the end."""
        session = self.session
        if self._listening is not None:
            try:
                yield self._listening
            finally:
                self._listening.leave(self.number - 1)
        elif session.endpoints is not None:
            relay = session.endpoints.relay
            passage = Passage(session.endpoints, "s") if relay else None
            ctx = context()
            dialling = Dialling(
                ctx, session.k, session.endpoints if passage is None else passage.here, chunk=session.resp.chunk,
                sends=True, peer=session.req.recipient, number=self.number, by=relay, clock=self.clock,
            )
            try:
                yield dialling
            finally:
                self.number = max(self.number, dialling.number)
                dialling.close()
                ctx.destroy(linger=0)
                if passage is not None:
                    passage.close(TELL_SECONDS)


class _Attempt:
    """The sender's loop over one pair of connections."""

    def __init__(self, pair: Pair, attempts: Attempts, bell: Bell, told: Told, deadline: float | None) -> None:
        self._pair = pair
        self._session = attempts.session
        self._outgoing = attempts.outgoing
        self._machine = DeliverySender(self._session, attempts.manifest, pair.attempt, self._outgoing.whole)
        self._bell = bell
        self._told = told
        self._deadline = deadline
        self._clock = attempts.clock
        self._pace = attempts.pace
        self._queue: deque[bytearray] = deque()
        self._ended = False
        self._first_word = 0.0
        self._position = -1
        self._repeats = 0
        """How often the recipient has said that position again, though there is more."""

    @property
    def highest(self) -> int:
        """The highest attempt number that was used."""
        return self._machine.attempt

    # --- sending ----------------------------------------------------------------------------------------------------

    def run(self) -> Delivered:
        pair = self._pair
        push, pull = pair.data, pair.acks
        self._first_word = self._clock.monotonic() + FIRST_WORD_SECONDS
        gone = more = False
        parting = math.inf
        try:
            while True:
                ready = self._poll(push, pull, parting, at_once=more)
                if self._bell.fd in ready:
                    raise interrupted(self._session)
                if self._deadline is not None and self._clock.monotonic() >= self._deadline:
                    raise self._out_of_time()
                # Asked before the frames are read: what came before the end of the connection still counts.
                gone = gone or pair.acks_end.is_gone() or pair.is_over() or self._clock.monotonic() >= parting
                if parting == math.inf and pair.data_end.is_gone():
                    parting = self._clock.monotonic() + PARTING_SECONDS
                if pair.data_end.progress.cut or pair.acks_end.progress.cut:
                    raise PeerViolation("limit", "a message without an end")
                heard = self._read(pull)
                if isinstance(heard, Delivered):
                    self._told.on_receipt(heard)
                    with contextlib.suppress(zmq.Again):
                        push.send(self._machine.bye(), zmq.DONTWAIT)
                        pair.let_go(TELL_SECONDS, self._clock)
                    return heard
                more = heard
                if gone and not more:
                    raise LinkLost(
                        f"the link to {self._session.req.recipient} broke off after {self._machine.sent} bytes",
                        detail="link",
                    )
                self._produce(push, ready)
        except NotOpened:
            raise
        except PeerViolation as violation:
            what = f"the acknowledgements of {self._session.req.recipient} did not verify"
            raise broken_rule(what, violation) from None
        except LinkLost:
            raise
        except BaseException as error:
            # Told whatever ends it, a signal too, so that nobody waits.
            if not self._machine.ended:
                self._tell(push, error if isinstance(error, ZkcError) else Interrupted("", detail="signal"))
            raise

    def _tell(self, push: Socket, error: ZkcError) -> None:
        """Give up towards the recipient: behind what is sealed already, since frames are numbered; in bounded time."""
        self._queue.append(self._machine.stop(error.code, error.detail))
        until = self._clock.monotonic() + TELL_SECONDS
        with contextlib.suppress(zmq.ZMQError):
            while self._queue and push.poll(int(max(until - self._clock.monotonic(), 0) * 1000), zmq.POLLOUT):
                flush(push, self._queue)
            self._pair.let_go(until - self._clock.monotonic(), self._clock)

    def _poll(self, push: Socket, pull: Socket, parting: float, *, at_once: bool) -> dict[Any, int]:
        poller = zmq.Poller()
        for readable in (pull, self._bell.fd, *self._pair.watched):
            poller.register(readable, zmq.POLLIN)
        timeout: float | None = 0.0 if at_once else None
        now = self._clock.monotonic()
        if self._queue:
            poller.register(push, zmq.POLLOUT)
        elif self._machine.has_room() and not self._ended:
            pause = self._pace.pause(now)
            if pause or self._outgoing.fd is None:
                timeout = pause if timeout is None else timeout
            else:
                poller.register(self._outgoing.fd, zmq.POLLIN)
                if self._outgoing.chunk:
                    timeout = FLUSH_MS / 1000 if timeout is None else timeout
        if self._first_word:
            timeout = max(self._first_word - now, 0) if timeout is None else timeout
            if now >= self._first_word:
                raise LinkLost(
                    f"{self._session.req.recipient} took the connection and said nothing for {FIRST_WORD_SECONDS:g} s",
                    detail="link",
                )
        end = min(parting, math.inf if self._deadline is None else self._deadline)
        if end != math.inf:
            timeout = min(max(end - now, 0), timeout if timeout is not None else 3600.0)
        return dict(poller.poll(None if timeout is None else int(timeout * 1000) + (timeout > 0)))

    def _read(self, pull: Socket) -> Delivered | bool:
        """Consume at most a turn's acknowledgements: the receipt, or whether more may be there."""
        for _ in range(FRAMES_A_TURN):
            frame = receive_frame(pull)
            if frame is None:
                return False
            self._pair.acks_end.progress.delivered += 1
            event = self._consume(frame.buffer)
            if isinstance(event, Delivered):
                return event
        return True

    def _consume(self, frame: memoryview) -> Credited | Delivered:
        event = self._machine.receive(frame)
        if isinstance(event, Stopped):
            raise given_up(self._session.req.recipient, event.code, event.detail)
        if isinstance(event, Credited):
            if self._first_word:
                self._first_word = 0.0
                self._told.on_begun(self._pair.path(), event.position)
                self._queue.extend(self._machine.start(self._outgoing.go_to(event.position, self._pause)))
            self._check_stall(event.position)
            self._outgoing.taken(event.position)
            self._told.on_progress(event.position)
        return event

    def _check_stall(self, position: int) -> None:
        """`LinkLost` where the recipient waits for what it will never get. By a relay nobody can tell."""
        waits = position == self._position and position < self._machine.sent and not self._queue
        self._position, self._repeats = position, self._repeats + 1 if waits else 0
        by_relay = self._session.endpoints is not None and self._session.endpoints.relay
        if self._repeats >= REPEATS_MAX and not by_relay and not self._pair.data_end.unsent():
            name = self._session.req.recipient
            raise LinkLost(f"the link to {name} stands still after {position} bytes", detail="link")

    def _produce(self, push: Socket, ready: dict[Any, int]) -> None:
        """Read, seal and send, as long as there is credit, something to read, and room in the socket."""
        outgoing, machine = self._outgoing, self._machine
        size = int(min(machine.chunk_size, self._pace.piece))
        flush(push, self._queue)
        for _ in range(FRAMES_A_TURN):
            if self._queue or self._ended or not machine.has_room() or self._pace.pause(self._clock.monotonic()):
                return
            waits = outgoing.fd is not None
            if waits and outgoing.fd not in ready:
                if outgoing.chunk and not ready:
                    self._seal(push, last=False)  # the source pauses: what it gave goes
                return
            self._ended = not outgoing.read(size)
            if self._ended or len(outgoing.chunk) == size:
                self._seal(push, last=self._ended)
            if waits:
                return

    def _seal(self, push: Socket, *, last: bool) -> None:
        machine, outgoing = self._machine, self._outgoing
        if not machine.sent:
            self._told.on_flowing()
        frames = machine.chunk(outgoing.chunk, last=last)
        self._pace.take(sum(map(len, frames)), self._clock.monotonic())
        self._queue.extend(frames)
        outgoing.sealed(machine.sent, machine.digest)
        if last:
            outgoing.whole = machine.whole
        flush(push, self._queue)

    def _pause(self) -> None:
        """While a prefix is read again."""
        if self._bell.rung:
            raise interrupted(self._session)

    def _out_of_time(self) -> ZkcError:
        name, sent, whole = self._session.req.recipient, self._machine.sent, self._machine.whole
        if whole is not None:
            return Interrupted(
                f"the transfer to {name} timed out before {name} had confirmed it", detail="timeout",
                hint=f"ask {name} whether it has arrived, before you send it again",
            )
        what, hint = f"the transfer to {name} timed out after {sent} bytes", "give it a longer timeout"
        if not sent and self._outgoing.fd is not None and not self._outgoing.chunk and self._machine.has_room():
            what = f"the transfer to {name} timed out before the pipe gave anything to send"
            hint = "does what is before the pipe still run? else give it a longer timeout"
        return Interrupted(what, detail="timeout", hint=hint) if sent else TimedOut(what, detail="timeout", hint=hint)


def interrupted(session: Session) -> Interrupted:
    return Interrupted(f"the transfer to {session.req.recipient} was interrupted", detail="signal")
