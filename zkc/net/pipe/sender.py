"""The sender's end: the connections of one attempt, and the loop over them."""

from __future__ import annotations

import contextlib
import math
import select
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

import zmq
from msgspec import Struct

from zkc.constants import BAD_FRAMES_MAX, SMALL_MAX
from zkc.crypto.chunks import Sealed, frame_bytes
from zkc.env import Clock, SystemClock
from zkc.errors import Interrupted, PeerViolation, TimedOut, ZkcError
from zkc.net.pipe import together
from zkc.net.pipe.bell import Bell, LinkLost, interrupted
from zkc.net.pipe.dialling import Dialling
from zkc.net.pipe.doors import Listening
from zkc.net.pipe.frames import Frames
from zkc.net.pipe.link import (
    CONNECT_SECONDS,
    PARTING_SECONDS,
    TELL_SECONDS,
    broken_rule,
    flush,
    given_up,
    receive_frame,
)
from zkc.net.pipe.meeting import Meeting, Pair, Rung
from zkc.net.pipe.memory import keep_chunk_memory
from zkc.net.pipe.outgoing import Outgoing
from zkc.net.pipe.passage import Passage
from zkc.net.sockets import Context, context
from zkc.protocol.delivery import NotOpened, Stopped
from zkc.protocol.delivery_sender import Credited, Delivered, DeliverySender
from zkc.protocol.session import Session
from zkc.rules.rates import Pace
from zkc.wire.messages import Manifest

FIRST_WORD_SECONDS: Final = 20.0
"""From the connection to the other end's first frame."""
COME_SECONDS: Final = CONNECT_SECONDS
"""How long a recipient that has the key may take to come, where the sender listens."""
FLUSH_SECONDS: Final = 0.02
"""How long what a source gave may wait for more of it to fill a chunk; then it leaves as it is."""
REPEATS_MAX: Final = 2
"""How often the recipient may say that it waits, while its kernel has everything of ours: then something was lost in
between, such as a length that a damaged byte made longer."""
FRAMES_A_TURN: Final = 16
"""Acknowledgements read, and chunks sent, before the bell, the clock and the other direction have their turn."""


class Told(Struct, frozen=True):
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
                pair = meeting.meet(bell, until if deadline is None else min(until, deadline), self.clock)
            except Rung:
                raise interrupted(self.session.req.recipient, bell) from None
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
                attempt.close()

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
            try:
                with self._context() as ctx:
                    dialling = Dialling(
                        ctx, session.k, session.endpoints if passage is None else passage.here,
                        chunk=session.resp.chunk, sends=True, peer=session.req.recipient, number=self.number, by=relay,
                    )
                    try:
                        yield dialling
                    finally:
                        self.number = max(self.number, dialling.number)
                        dialling.close()
            finally:
                if passage is not None:
                    passage.close(TELL_SECONDS)

    @contextlib.contextmanager
    def _context(self) -> Iterator[Context]:
        size = self.manifest.size
        if size is not None and size <= SMALL_MAX:
            with together.senders.use() as shared:
                yield shared
            return
        own = context()
        try:
            yield own
        finally:
            own.destroy(linger=0)


class _Attempt:
    """The sender's loop over one pair of connections."""

    def __init__(self, pair: Pair, attempts: Attempts, bell: Bell, told: Told, deadline: float | None) -> None:
        self._pair = pair
        self._session = attempts.session
        self._outgoing = attempts.outgoing
        self._frames = Frames(frame_bytes(self._session.resp.chunk))
        self._machine = DeliverySender(
            self._session, attempts.manifest, pair.attempt, self._outgoing.whole, self._frames.allot
        )
        self._bell = bell
        self._told = told
        self._clock = attempts.clock
        self._pace = attempts.pace
        self._poller = zmq.Poller()
        for readable in (pair.acks, bell.fd, *pair.watched):
            self._poller.register(readable, zmq.POLLIN)
        self._queue: deque[Sealed] = deque()
        """Sealed, and not taken by the socket."""
        self._ended = False
        """Whether the source's last bytes are sealed."""
        self._gone = False
        """Whether nothing more will come."""
        # Times; infinite where there is none.
        self._deadline = math.inf if deadline is None else deadline
        self._first_word = self._clock.monotonic() + FIRST_WORD_SECONDS
        self._parting = math.inf
        """Until when the acknowledgements may outlive the other connection."""
        self._flush = math.inf
        """When what was read leaves, whether or not it fills a chunk."""
        self._position = -1
        self._repeats = 0
        """How often the recipient has said that position again, though there is more."""

    @property
    def highest(self) -> int:
        """The highest attempt number that was used."""
        return self._machine.attempt

    def close(self) -> None:
        """What was sealed is not used again."""
        self._frames.close()

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> Delivered:
        """Wait, hear, see whether it is over, send; again and again, until the receipt is here."""
        more = False
        try:
            while True:
                ready = self._wait(at_once=more)
                if self._bell.fd in ready:
                    raise interrupted(self._session.req.recipient, self._bell)
                # Asked before the frames are read: what came before the end of the connection still counts.
                gone = self._is_gone()
                heard = self._read()
                if isinstance(heard, Delivered):
                    self._take_leave(heard)
                    return heard
                more = heard
                self._expired(self._clock.monotonic(), gone=gone and not more)
                self._produce(ready)
        except NotOpened:
            raise
        except PeerViolation as violation:
            error = broken_rule(f"the acknowledgements of {self._session.req.recipient} did not verify", violation)
            self._tell(error)
            raise error from None
        except LinkLost:
            raise
        except BaseException as error:
            # Told whatever ends it, a signal too, so that nobody waits.
            self._tell(error if isinstance(error, ZkcError) else Interrupted("", detail="signal"))
            raise

    def _wait(self, *, at_once: bool) -> dict[Any, int]:
        """Until something is here, or the socket takes what is sealed, or there is something to read, or it is time."""
        now = self._clock.monotonic()
        wake = min(self._first_word, self._parting, self._deadline)
        source, read = self._outgoing.fd, self._may_read_from(now)
        if read > now or source is None:
            wake = min(wake, read)
        elif self._outgoing.chunk:
            wake = min(wake, self._flush)
        self._poller.register(self._pair.data, zmq.POLLOUT if self._queue else 0)
        if source is not None:
            self._poller.register(source, zmq.POLLIN if read <= now else 0)
        timeout = None if wake == math.inf else math.ceil(max(wake - now, 0) * 1000)
        return dict(self._poller.poll(0 if at_once else timeout))

    def _is_gone(self) -> bool:
        pair, now = self._pair, self._clock.monotonic()
        self._gone = self._gone or pair.acks_end.is_gone() or pair.is_over() or now >= self._parting
        if self._parting == math.inf and pair.data_end.is_gone():
            self._parting = now + PARTING_SECONDS
        return self._gone

    def _expired(self, now: float, *, gone: bool) -> None:
        """Raises what ends the attempt, where something does."""
        pair, name = self._pair, self._session.req.recipient
        if now >= self._deadline:
            raise self._out_of_time()
        if pair.data_end.is_cut() or pair.acks_end.is_cut():
            raise PeerViolation("limit", "a message without an end")
        if gone:
            raise LinkLost(f"the link to {name} broke off after {self._machine.sent} bytes", detail="link")
        if now >= self._first_word:
            what = f"{name} took the connection and said nothing for {FIRST_WORD_SECONDS:g} s"
            raise LinkLost(what, detail="link")

    def _take_leave(self, delivered: Delivered) -> None:
        self._told.on_receipt(delivered)
        with contextlib.suppress(zmq.Again):
            self._pair.data.send(self._machine.bye(), zmq.DONTWAIT)
            self._pair.let_go(TELL_SECONDS, self._clock)

    def _tell(self, error: ZkcError) -> None:
        """Give up towards the recipient: behind what is sealed already, since frames are numbered; in bounded time."""
        if self._machine.ended:
            return
        push = self._pair.data
        self._queue.append(self._machine.stop(error.code, error.detail))
        until = self._clock.monotonic() + TELL_SECONDS
        with contextlib.suppress(zmq.ZMQError):
            while self._queue and push.poll(int(max(until - self._clock.monotonic(), 0) * 1000), zmq.POLLOUT):
                flush(push, self._queue)
            self._pair.let_go(until - self._clock.monotonic(), self._clock)

    # --- what is heard ----------------------------------------------------------------------------------------------

    def _read(self) -> Delivered | bool:
        """Consume at most a turn's acknowledgements: the receipt, or whether more may be there."""
        for _ in range(FRAMES_A_TURN):
            frame = receive_frame(self._pair.acks)
            if frame is None:
                return False
            self._pair.acks_end.delivered(frame)
            event = self._consume(frame.buffer)
            if isinstance(event, Delivered):
                return event
        return True

    def _consume(self, frame: memoryview) -> Credited | Delivered:
        event = self._machine.receive(frame)
        if isinstance(event, Stopped):
            raise given_up(self._session.req.recipient, event.code, event.detail)
        if isinstance(event, Credited):
            if self._first_word < math.inf:
                self._first_word = math.inf
                self._told.on_begun(self._pair.path(), event.position)
                digest = self._outgoing.go_to(event.position, self._pause, fresh=self._session.req.fresh)
                self._queue.extend(self._machine.start(digest))
            self._check_stall(event.position)
            self._outgoing.taken(event.position)
            self._frames.taken(event.position)
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

    # --- what is sent -----------------------------------------------------------------------------------------------

    def _may_read_from(self, now: float) -> float:
        """When the source may be read: now, once the pace allows it, or, for lack of room or of bytes, never."""
        if self._queue or self._ended or not self._machine.has_room():
            return math.inf
        return now + self._pace.pause(now)

    def _produce(self, ready: dict[Any, int]) -> None:
        """Read, seal and send, as long as there is credit, something to read, and room in the socket."""
        outgoing = self._outgoing
        size = int(min(self._machine.chunk_size, self._pace.piece))
        flush(self._pair.data, self._queue)
        for _ in range(FRAMES_A_TURN):
            now, source = self._clock.monotonic(), outgoing.fd
            if self._may_read_from(now) > now:
                return
            if source is None or source in ready:
                if not outgoing.chunk:
                    self._flush = now + FLUSH_SECONDS
                self._ended = not outgoing.read(size)
            filled = len(outgoing.chunk)
            if self._ended or filled == size or (filled and now >= self._flush):
                self._seal(last=self._ended)
            if source is not None and not (source in ready and _has_more(source)):
                return

    def _seal(self, *, last: bool) -> None:
        machine, outgoing = self._machine, self._outgoing
        if not machine.sent:
            self._told.on_flowing()
        frames = machine.chunk(outgoing.chunk, last=last)
        self._pace.take(sum(map(len, frames)), self._clock.monotonic())
        self._queue.extend(frames)
        self._frames.sealed(machine.sent, frames)
        outgoing.sealed(machine.sent, machine.digest)
        if last:
            outgoing.whole = machine.whole
        flush(self._pair.data, self._queue)

    def _pause(self) -> None:
        """While a prefix is read again."""
        if self._bell.rung:
            raise interrupted(self._session.req.recipient, self._bell)
        if self._clock.monotonic() >= self._deadline:
            raise self._out_of_time()

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


def _has_more(source: int) -> bool:
    """Whether a source can be read at once: much cheaper to ask than another turn of the loop."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    return bool(poll.poll(0))
