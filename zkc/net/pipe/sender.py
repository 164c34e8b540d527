"""The sender's end: one connected pair, and the loop of one transfer."""

from __future__ import annotations

import contextlib
import ipaddress
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import zmq

from zkc.env import Clock, SystemClock
from zkc.errors import Interrupted, PeerViolation, TimedOut, ZkcError
from zkc.net.monitor import CONNECTION_KINDS, EventKind, ThreadMonitor
from zkc.net.pipe.link import (
    CONNECT_SECONDS,
    TELL_SECONDS,
    Bell,
    LinkLost,
    broken_rule,
    flush,
    given_up,
    login,
    receive_frame,
)
from zkc.net.sockets import Context, Socket, connect_bulk, context, tcp_endpoint
from zkc.protocol.delivery import Stopped
from zkc.protocol.delivery_sender import Credited, Delivered, DeliverySender
from zkc.protocol.session import Session
from zkc.wire.messages import Manifest

FIRST_WORD_SECONDS: Final = 20.0
"""From the connection to the other end's first frame."""
FRAMES_A_TURN: Final = 16
"""Acknowledgements read before the bell, the clock and the data have their turn."""
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


class Source(Protocol):
    """Where the sender's bytes come from."""

    fd: int | None
    """Polled before each read; None: a read never waits."""

    def read(self, n: int) -> bytes:
        """At most ``n`` bytes, one read; empty at the end. `LocalIOError`."""

    def check(self) -> None:
        """At the end: `LocalIOError` (``source-changed``) where it is not what it was at the beginning."""


def send(
    session: Session, manifest: Manifest, source: Source, bell: Bell, *, deadline: float | None = None,
    on_connected: Callable[[str], None] = lambda _: None, on_flowing: Callable[[], None] = lambda: None,
    on_progress: Callable[[int], None] = lambda _: None, on_receipt: Callable[[Delivered], None] = lambda _: None,
    clock: Clock | None = None,
) -> Delivered:
    """Push ``source`` to the recipient and wait for its receipt, which is held against what was sent.

    ``deadline`` in monotonic seconds; ``on_flowing`` is called before the first data leaves, ``on_receipt``
    before the recipient hears that the receipt is here: it makes it durable. `LinkLost` where no address answers or
    the link breaks off; `TimedOut` when the deadline ends it before data flowed, `Interrupted`
    when it does after that or the bell at any time; `IntegrityError` for a recipient that lies; what the recipient
    told; `LocalIOError`.
    """
    clock = clock or SystemClock()
    if session.endpoints is None:
        raise ValueError("the sender's session has the recipient's endpoints")
    ctx = context()
    try:
        for address in session.endpoints.addresses:
            with contextlib.closing(
                _Sender(ctx, session, manifest, source, bell, deadline, on_flowing, clock)
            ) as sender:
                if sender.connect(address):
                    on_connected(tcp_endpoint(address, session.endpoints.data_port))
                    return sender.run(on_progress, on_receipt)
        where = ", ".join(session.endpoints.addresses) or "nowhere"
        raise LinkLost(
            f"cannot reach {session.req.recipient} at {where}", detail="link",
            hint=f"transfer.listen at {session.req.recipient} must name an address and ports that a firewall lets "
            "this client connect to",
        )
    finally:
        ctx.destroy(linger=0)


class _Sender:
    """The sender's loop over one connected pair."""

    def __init__(
        self, ctx: Context, session: Session, manifest: Manifest, source: Source, bell: Bell, deadline: float | None,
        on_flowing: Callable[[], None], clock: Clock,
    ) -> None:
        self._context = ctx
        self._session = session
        self._machine = DeliverySender(session, manifest)
        self._source = source
        self._bell = bell
        self._deadline = deadline
        self._on_flowing = on_flowing
        self._clock = clock
        self._monitors: list[ThreadMonitor] = []
        self._sockets: tuple[Socket, Socket] | None = None
        self._queue: deque[bytearray] = deque()
        self._buffer = bytearray()
        self._ended = False
        self._first_word = 0.0

    def connect(self, address: str) -> bool:
        """Whether both sockets stand within `CONNECT_SECONDS`; `Interrupted` as soon as the bell rings."""
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
        waiting = {monitor.socket: monitor for monitor in self._monitors}
        poller = zmq.Poller()
        for readable in (self._bell.fd, *waiting):
            poller.register(readable, zmq.POLLIN)
        while waiting:
            left = until - self._clock.monotonic()
            ready = dict(poller.poll(int(max(left, 0) * 1000) + 1))
            if self._bell.fd in ready:
                raise self._interrupted()
            if left <= 0:
                return False
            for sock in [sock for sock in waiting if sock in ready]:
                ends = [event.kind for event in waiting[sock].drain() if event.kind in _ENDS_OF_CONNECTING]
                if any(kind is not EventKind.HANDSHAKE_SUCCEEDED for kind in ends):
                    return False
                if ends:
                    poller.unregister(sock)
                    del waiting[sock]
        return True

    def close(self) -> None:
        for monitor in self._monitors:
            monitor.close()
        for sock in self._sockets or ():
            # The farewell is still on its way; the recipient waits for it.
            sock.close(linger=500)

    def run(self, on_progress: Callable[[int], None], on_receipt: Callable[[Delivered], None]) -> Delivered:
        if self._sockets is None:
            raise ValueError("connect first")
        push, pull = self._sockets
        self._first_word = self._clock.monotonic() + FIRST_WORD_SECONDS
        gone = more = False
        try:
            while True:
                ready = self._poll(push, pull, at_once=more)
                if self._bell.fd in ready:
                    raise self._interrupted()
                if self._deadline is not None and self._clock.monotonic() >= self._deadline:
                    raise self._out_of_time()
                # Asked before the frames are read: what came before the end of the connection still counts.
                gone = gone or any(
                    event.kind is EventKind.DISCONNECTED for monitor in self._monitors for event in monitor.drain()
                )
                heard = self._read(pull, on_progress)
                if isinstance(heard, Delivered):
                    on_receipt(heard)
                    with contextlib.suppress(zmq.Again):
                        push.send(self._machine.bye(), zmq.DONTWAIT)
                    return heard
                more = heard
                if gone and not more:
                    raise self._lost(
                        f"the link to {self._session.req.recipient} broke off after {self._machine.sent} bytes"
                    )
                self._produce(ready)
                flush(push, self._queue)
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

    def _poll(self, push: Socket, pull: Socket, *, at_once: bool) -> dict[Any, int]:
        poller = zmq.Poller()
        for readable in (pull, self._bell.fd, *(monitor.socket for monitor in self._monitors)):
            poller.register(readable, zmq.POLLIN)
        timeout: float | None = 0.0 if at_once else None
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
                raise self._lost(
                    f"{self._session.req.recipient} took the connection and said nothing for {FIRST_WORD_SECONDS:g} s"
                )
        if self._deadline is not None:
            timeout = min(max(self._deadline - now, 0), timeout if timeout is not None else 3600.0)
        return dict(poller.poll(None if timeout is None else int(timeout * 1000) + (timeout > 0)))

    def _read(self, pull: Socket, on_progress: Callable[[int], None]) -> Delivered | bool:
        """Consume at most a turn's acknowledgements: the receipt, or whether more may be there."""
        for _ in range(FRAMES_A_TURN):
            frame = receive_frame(pull)
            if frame is None:
                return False
            event = self._consume(frame.buffer)
            if isinstance(event, Delivered):
                return event
            on_progress(event.position)
        return True

    def _consume(self, frame: memoryview) -> Credited | Delivered:
        event = self._machine.receive(frame)
        if isinstance(event, Stopped):
            raise given_up(self._session.req.recipient, event.code, event.detail)
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
            self._flow()
            self._queue.extend(self._machine.chunk(self._buffer, last=True))
            self._buffer = bytearray()
        elif len(self._buffer) > size:
            chunk, self._buffer = memoryview(self._buffer)[:size], self._buffer[size:]
            self._flow()
            self._queue.extend(self._machine.chunk(chunk, last=False))

    def _flow(self) -> None:
        if not self._machine.sent:
            self._on_flowing()

    def _out_of_time(self) -> ZkcError:
        name, sent, whole = self._session.req.recipient, self._machine.sent, self._machine.whole
        if whole is not None:
            return Interrupted(
                f"the transfer to {name} timed out before {name} had confirmed it", detail="timeout",
                hint=f"ask {name} whether it has arrived, before you send it again",
            )
        what, hint = f"the transfer to {name} timed out after {sent} bytes", "give it a longer timeout"
        return Interrupted(what, detail="timeout", hint=hint) if sent else TimedOut(what, detail="timeout", hint=hint)

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"the transfer to {self._session.req.recipient} was interrupted", detail="signal")

    def _lost(self, how: str) -> LinkLost:
        # What still waits here has never reached the link.
        return LinkLost(how, detail="link", finished=None if self._queue else self._machine.whole)


def _is_address(text: str) -> bool:
    """Whether a recipient's word is an IP address: names would be looked up, and endpoints of other kinds opened."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
