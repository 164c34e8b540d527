"""Where the two ends of a transfer meet: one listens, the other dials, whichever of them sends.

The listening end binds its ports before it tells them, and lets in whoever shows both tokens of one attempt, above all
attempts before. The dialling end counts the attempts, and tries the addresses that it was told. Each connection has
sockets of its own, so that nothing of two is ever mixed. Either end gives its loop one `Pair` after the other::

    pair = meeting.meet(bell, until)      the next connection
    meeting.leave(highest)                it has ended: the next attempt is above `highest`
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import zmq

from zkc.constants import CHUNK_MAX
from zkc.crypto.primitives import Secret, check_mac
from zkc.env import Clock, SystemClock
from zkc.errors import PeerViolation
from zkc.net.monitor import CONNECTION_KINDS, EventKind, SocketEvent, ThreadMonitor
from zkc.net.pipe.link import CONNECT_SECONDS, Bell, LinkLost, attempt_of, login
from zkc.net.sockets import (
    BulkPorts,
    Context,
    Socket,
    connect_bulk,
    context,
    own_endpoint,
    serve_bulk,
    tcp_endpoint,
    unsent,
)
from zkc.net.watch import ACK_BYTES, BULK_BOUNDS, UNREAD_BYTES, Progress, Watch, data_bytes
from zkc.net.zap import ThreadZap, ZapRequest
from zkc.wire.messages import Endpoints

NEXT_ADDRESS_SECONDS: Final = 0.25
"""How long one address is tried alone before the next one is tried beside it (RFC 8305)."""
ADDRESSES_AT_ONCE: Final = 3
"""Addresses of one peer that are tried beside each other: a peer names as many as it likes, and each takes sockets."""
_UNBIND_SECONDS: Final = 5.0
"""Far longer than libzmq's thread takes to close a listener."""
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


class Rung(Exception):
    """The bell rang before the other end was here."""


class Meeting(Protocol):
    """Either end. One thread at a time."""

    def meet(self, bell: Bell, until: float) -> Pair:
        """The next connection, waited for until ``until`` (monotonic seconds), or until nothing is left to try.

        `LinkLost` where there is none; `Rung`; `DescriptorsTaken`; `PeerViolation` for one that was cut off.
        """

    def leave(self, highest: int) -> None:
        """Drop the connection of the last `meet`; the next attempt is above ``highest``. `DescriptorsTaken`."""

    def close(self) -> None:
        """Say what was said last, for a moment, and meet nobody any more. Again: nothing."""


class End(Protocol):
    """What is known of one of the two connections of a pair."""

    events: Socket
    """Polled; readable when something has happened to it."""

    def delivered(self, message: zmq.Frame) -> None:
        """To be told of each whole message that it brought: what is none counts against it (attack P06)."""

    def is_cut(self) -> bool:
        """Whether it brought so much of what is none that it was cut off."""

    def has_come(self) -> bool:
        """Whether its handshake is over."""

    def is_gone(self) -> bool:
        """Whether it stood, and does not any more."""

    def unsent(self) -> int:
        """Bytes that this machine still has, and the other end's does not."""


def _bounds(chunk: int, *, sends: bool) -> tuple[int, int]:
    """How far the other end may be ahead on the data's connection, and on that of the acknowledgements."""
    return (UNREAD_BYTES, ACK_BYTES) if sends else (data_bytes(chunk), UNREAD_BYTES)


@dataclass(frozen=True)
class Pair:
    """One connection for each direction. A listening end may have it before both handshakes are over."""

    attempt: int
    data: Socket
    acks: Socket
    data_end: End
    acks_end: End
    path: Callable[[], str]
    """How the two have met: ``direct`` and the listening end's endpoint for data, or ``relay`` and its name."""
    door: Door | None = None
    """At the end that lets the other one in."""

    @property
    def watched(self) -> tuple[Socket | int, ...]:
        """What to poll beside the two sockets."""
        ends = self.data_end.events, self.acks_end.events
        return ends if self.door is None else (*ends, self.door.bell.fd)

    def is_over(self) -> bool:
        """Whether the other end has begun a later attempt. To be asked whenever something `watched` is ready."""
        return self.door is not None and self.door.is_stale()

    def let_go(self, seconds: float, clock: Clock) -> None:
        """After the last word: libzmq's dialling end drops what it has not read when a connection ends. So the
        listening end lets it go first, and waits so long for that."""
        until = clock.monotonic() + seconds
        while self.door is not None and not self.data_end.is_gone():
            left = until - clock.monotonic()
            if left <= 0:
                return
            self.data_end.events.poll(math.ceil(left * 1000))


# --- the listening end -----------------------------------------------------------------------------------------------


class Door:
    """Who may connect to one pair: one attempt, above all before it, each of its two tokens once (attacks D01, D02).

    A token of a later attempt shows that the other end has given the connection up: it is refused, and the pair made
    anew for the next one, so that nothing of the two is ever mixed.
    """

    def __init__(self) -> None:
        self._k: Secret | None = None
        self._least = 0
        self._admitted: dict[str, int] = {}
        self._lock = threading.Lock()
        self.bell: Final = Bell()
        """Rung when the owner has to look: somebody came."""
        self.stale = False
        """Whether the other end has come with a later attempt."""

    def expect(self, k: Secret | None) -> None:
        """From now on those with tokens of the transfer whose key this is, and of no other; None: nobody."""
        with self._lock:
            self._k, self._least, self.stale = k, 0, False
            self._admitted.clear()

    def admit(self, socket: str, credentials: Sequence[bytes]) -> str | None:
        user, password = credentials
        attempt = attempt_of(user)
        with contextlib.suppress(PeerViolation), self._lock:
            if self._k is None or attempt is None or attempt < self._least:
                return None
            expected = login(self._k, socket, attempt)
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

    def is_stale(self) -> bool:
        """See `stale`; the bell is ready for the next ring."""
        self.bell.hush()
        return self.stale

    def renew(self, least: int) -> None:
        """For the next connection: attempts from ``least`` on."""
        with self._lock:
            self._least = max(self._least, least, *(attempt + 1 for attempt in self._admitted.values()))
            self._admitted.clear()
            self.stale = False

    def close(self) -> None:
        with self._lock:
            self._k = None
            self.bell.close()


class Doors:
    """A context in which ends listen, and the one ZAP handler that all of them share. Any thread."""

    def __init__(self, places: int = 1) -> None:
        """``places``: how many ends may listen, or dial, at once. `DescriptorsTaken`."""
        self.context: Final[Context] = context()
        # A pair is two sockets, each with its monitor's two; libzmq's own bound is 1023, and counts before the first
        # is made. Who dials from here has a pair for each address.
        self.context.set(zmq.MAX_SOCKETS, 6 * ADDRESSES_AT_ONCE * places + 64)
        # Whoever is cut off is told of as any connection that ends, by the loop that finds it gone.
        self.watch: Final = Watch(BULK_BOUNDS, lambda _cut: None)
        self._doors: dict[str, Door] = {}
        self._numbers = iter(range(1, 1 << 62))
        try:
            self._zap = ThreadZap(self.context, self._admit)
        except BaseException:
            self.context.destroy(linger=0)
            raise

    def bind(self, host: str, ports: range | None, *, sends: bool, peer: str) -> Listening:
        """Two ports for one transfer, with ``peer``; ``sends``: whether this end has the bytes. None: any ports.

        `PortsTaken`, `DescriptorsTaken` until a transfer ends; `LocalIOError`.
        """
        domain = f"xfer{next(self._numbers)}"
        door = self._doors[domain] = Door()
        try:
            return Listening(self, domain, door, BulkPorts(host, ports), sends=sends, peer=peer)
        except BaseException:
            self.forget(domain)
            raise

    def forget(self, domain: str) -> None:
        """Nobody is admitted there any more; again: nothing."""
        door = self._doors.pop(domain, None)
        if door is not None:
            door.close()

    def close(self) -> None:
        """After every end in it is closed."""
        self._zap.close()
        self.watch.close()
        self.context.destroy(linger=0)

    def _admit(self, request: ZapRequest) -> str | None:
        domain, _, socket = request.domain.rpartition(".")
        door = self._doors.get(domain)
        return None if door is None or request.mechanism != "PLAIN" else door.admit(socket, request.credentials)


class Listening:
    """One transfer's ports and the pair on them. Made on any thread; from `meet` on it belongs to the calling."""

    def __init__(
        self, doors: Doors, domain: str, door: Door, ports: BulkPorts, *, sends: bool, peer: str,
        clock: Clock | None = None,
    ) -> None:
        self._doors = doors
        self._domain = domain
        self._ports = ports
        self._sends = sends
        self._chunk = CHUNK_MAX
        self._peer = peer
        self._clock = clock or SystemClock()
        self._pair: tuple[Socket, Socket] | None = None
        self._ends: tuple[_Admitted, _Admitted] | None = None
        self.door: Final = door
        self.data_port, self.ack_port = ports.data_port, ports.ack_port

    def refuse(self) -> None:
        """Until `expect` whoever comes is turned away; before this call they wait, in the kernel's queue."""
        self._open()

    def expect(self, k: Secret, chunk: int) -> None:
        """From now on the other end of the transfer with this key may come, from attempt 0 on; for chunks of at most
        ``chunk`` bytes."""
        self._chunk = chunk
        for end, bound in zip(self._ends or (), _bounds(chunk, sends=self._sends), strict=False):
            end.bound(bound)
        self.door.expect(k)
        if self._pair is None:
            self._open()

    def rest(self) -> None:
        """Nobody may come, but the ports stay; who comes waits for the next `expect`."""
        self.door.expect(None)
        self._accept_no_more()
        self._shut(0)

    def at(self, addresses: list[str]) -> Endpoints:
        """What the other end is told."""
        return Endpoints(addresses, self.data_port, self.ack_port, 0, "", b"")

    def meet(self, bell: Bell, until: float) -> Pair:
        while True:
            if self._pair is None:
                self._open()  # there was no descriptor for it
            data, acks = self._here
            ends = self._ends_here
            attempt = self.door.attempt()
            if attempt is not None:
                return Pair(attempt, data, acks, *ends, self._path, self.door)
            now = self._clock.monotonic()
            if now >= until:
                raise LinkLost(
                    f"{self._peer} did not connect to ports {self.data_port} and {self.ack_port} of this client",
                    detail="link", hint="transfer.listen and transfer.advertise must name an address and ports here "
                    f"that a firewall lets {self._peer} connect to",
                )
            poller = zmq.Poller()
            for readable in (bell.fd, self.door.bell.fd, *(end.events for end in ends)):
                poller.register(readable, zmq.POLLIN)
            if bell.fd in dict(poller.poll(None if until == math.inf else math.ceil((until - now) * 1000))):
                raise Rung
            if self.door.is_stale() or ends[0].is_gone() or ends[1].is_gone():
                self.leave(-1)

    def leave(self, highest: int) -> None:
        self._accept_no_more()
        self._shut(0)
        self.door.renew(highest + 1)
        self._open()

    def close(self) -> None:
        self._doors.forget(self._domain)
        # Nobody binds these ports before libzmq's thread has closed them too: there is nothing to wait for.
        self._shut(500)
        self._ports.close()

    @property
    def _here(self) -> tuple[Socket, Socket]:
        if self._pair is None:
            raise ValueError("nobody is expected")
        return self._pair

    @property
    def _ends_here(self) -> tuple[_Admitted, _Admitted]:
        if self._ends is None:
            raise ValueError("nobody is expected")
        return self._ends

    def _open(self) -> None:
        monitors: list[ThreadMonitor] = []

        def watch(sock: Socket) -> None:
            monitors.append(ThreadMonitor(sock, kinds=CONNECTION_KINDS | {EventKind.CLOSED}))

        try:
            self._pair = serve_bulk(
                self._doors.context, self._ports, self._domain.encode(), sends=self._sends, watch=watch
            )
        except BaseException:
            for monitor in monitors:
                monitor.close()
            raise
        watched = zip(monitors, _bounds(self._chunk, sends=self._sends), strict=True)  # the data's first
        data, acks = (_Admitted(monitor, self._doors.watch, bound) for monitor, bound in watched)
        self._ends = data, acks

    def _accept_no_more(self) -> None:
        """Before `_shut`, where the ports stay: the other end may dial again as soon as it sees its connection end, and
        what it shows then is for the sockets that follow on them."""
        for sock, end in zip(self._pair or (), self._ends or (), strict=True):
            end.accept_no_more(sock)

    def _shut(self, linger: int) -> None:
        """Of what this end said last the data's socket is dropped at once where it only receives."""
        for sock, end in zip(self._pair or (), self._ends or (), strict=True):
            end.close()
            sock.close(linger=linger if sock.type == zmq.PUSH else 0)
        self._pair = self._ends = None

    def _path(self) -> str:
        """By which of this machine's addresses it was, as far as the kernel still knows."""
        return f"direct {self._ends_here[0].own_endpoint() or f'tcp://*:{self.data_port}'}"


class _Admitted:
    """Whether the one connection that a bound socket let in still stands. Strangers come and go without harm.

    The end of a handshake names no connection: the admitted one is among those that were open then. It is known where
    it was the only one, or once it has said something; till then nothing that one of these does counts against it. The
    others of these are gone within the handshake's own limit.
    """

    def __init__(self, monitor: ThreadMonitor, watch: Watch, bound: int) -> None:
        self.events = monitor.socket
        self._bound = bound
        self._watch = watch
        self._monitor = monitor
        self._open: dict[int, tuple[int, Progress]] = {}
        """By descriptor: inode, and what came of each."""
        self._candidates: dict[int, Progress] | None = None
        """By descriptor, whether or not they have ended; None: nobody was let in."""
        self._known: Progress | None = None
        """Of the admitted one."""

    def bound(self, bound: int) -> None:
        """How far each connection may be ahead from now on, bytes."""
        self._bound = bound
        for _, progress in self._open.values():
            progress.bound = bound

    def delivered(self, message: zmq.Frame) -> None:
        if self._known is None:
            self._look()  # its handshake was over before it said anything
            self._know(int(message.get(zmq.SRCFD)))
        if self._known is not None:
            self._known.delivered += 1

    def is_cut(self) -> bool:
        return self._known is not None and self._known.is_broken()

    def has_come(self) -> bool:
        self._look()
        return self._candidates is not None

    def is_gone(self) -> bool:
        self._look()
        return self._candidates is not None and not self._standing()

    def own_endpoint(self) -> str | None:
        self._look()
        return next((own_endpoint(fd) for fd, _ in self._standing()), None)

    def unsent(self) -> int:
        self._look()
        return sum(unsent(*each) for each in self._standing())

    def accept_no_more(self, sock: Socket) -> None:
        """Return once libzmq's thread has closed the listener of ``sock``, which this end watches."""
        with contextlib.suppress(zmq.ZMQError):
            sock.unbind(sock.getsockopt_string(zmq.LAST_ENDPOINT))
            self._monitor.wait({EventKind.CLOSED}, _UNBIND_SECONDS)

    def close(self) -> None:
        self._monitor.close()

    def _look(self) -> None:
        for event in self._monitor.drain():
            if event.kind is EventKind.ACCEPTED:
                progress = Progress(self._bound, admitted=False)
                self._open[event.fd] = event.inode, progress
                self._watch.on_event(event, progress)
            elif event.kind is EventKind.HANDSHAKE_SUCCEEDED:
                self._candidates = {fd: progress for fd, (_, progress) in self._open.items()}
                if len(self._candidates) == 1:
                    self._know(*self._candidates)
            elif event.kind is EventKind.DISCONNECTED and event.fd in self._open:
                _, progress = self._open.pop(event.fd)
                self._watch.on_event(event, progress)

    def _standing(self) -> list[tuple[int, int]]:
        """Descriptor and inode of those candidates that have not ended."""
        candidates = self._candidates or {}
        return [(fd, inode) for fd, (inode, progress) in self._open.items() if candidates.get(fd) is progress]

    def _know(self, fd: int) -> None:
        """The admitted one is that."""
        if self._candidates and fd in self._candidates:
            self._known = self._candidates[fd]
            self._known.admitted = True
            self._candidates = {fd: self._known}


# --- the dialling end ------------------------------------------------------------------------------------------------


@functools.cache
def _over_what_is_dialled() -> Watch:
    """One for all that this process dials: a thread for each transfer took a tenth of a small one's time."""
    return Watch(BULK_BOUNDS, lambda _cut: None)


class Dialling:
    """Towards the addresses that ``peer`` has told, best first; one connection for each `meet`."""

    def __init__(
        self, ctx: Context, k: Secret, endpoints: Endpoints, *, chunk: int, sends: bool, peer: str, number: int = 0,
        by: str = "", clock: Clock | None = None,
    ) -> None:
        """``by``: the relay to which the endpoints, this machine's own, lead."""
        self._context = ctx
        self._k = k
        self._endpoints = endpoints
        self._addresses = [each for each in endpoints.addresses if _is_address(each)]
        if not (endpoints.data_port and endpoints.ack_port):
            self._addresses = []
        self._sends = sends
        self._chunk = chunk
        self._watch = _over_what_is_dialled()
        self._peer = peer
        self._by = by
        self._clock = clock or SystemClock()
        self._waiting: dict[Socket, _Candidate] = {}
        self._stand: dict[bool, _Candidate] = {}
        """The connections that stand, by whether they are the data's."""
        self._cut = False
        """Whether one of this `meet` was cut off."""
        self.number = number
        """Of the next attempt."""

    def meet(self, bell: Bell, until: float) -> Pair:
        number, now = self.number, self._clock.monotonic()
        # Tokens that were shown are spent, whatever comes of them.
        self.number += 1
        self._cut = False
        left, due = deque(self._addresses), now
        try:
            while len(self._stand) < 2:
                now = self._clock.monotonic()
                for late in [each for each in self._waiting.values() if now >= each.until]:
                    self._fail(late)
                if left and (not self._waiting or (now >= due and self._has_room())):
                    self._try(left.popleft(), number, now + CONNECT_SECONDS)
                    due = now + NEXT_ADDRESS_SECONDS
                if not self._waiting or now >= until:
                    raise self._nobody()
                self._await_one(bell, min(until, due) if left and self._has_room() else until)
        except BaseException:
            self._drop(0)
            raise
        for other in self._waiting.values():
            other.close(0)
        self._waiting.clear()
        data, acks = self._stand[True], self._stand[False]
        return Pair(number, data.sock, acks.sock, data, acks, lambda: data.path)

    def leave(self, highest: int) -> None:
        self.number = max(self.number, highest + 1)
        self._drop(0)

    def close(self) -> None:
        # The farewell is still on its way; the other end waits for it.
        self._drop(500)

    def _has_room(self) -> bool:
        return len(self._waiting) + len(self._stand) <= 2 * (ADDRESSES_AT_ONCE - 1)

    def _try(self, address: str, number: int, until: float) -> None:
        told, tokens = self._endpoints, (login(self._k, socket, number) for socket in ("data", "ack"))
        path = f"relay {self._by}" if self._by else f"direct {tcp_endpoint(address, told.data_port)}"

        def watch(sock: Socket) -> None:
            is_data = (sock.type == zmq.PUSH) is self._sends
            bound = _bounds(self._chunk, sends=self._sends)[0 if is_data else 1]
            self._waiting[sock] = _Candidate(sock, path, self._watch, bound, until, is_data=is_data)

        connect_bulk(
            self._context, address, told.data_port, told.ack_port, *tokens, sends=self._sends, watch=watch
        )

    def _await_one(self, bell: Bell, until: float) -> None:
        poller = zmq.Poller()
        poller.register(bell.fd, zmq.POLLIN)
        for waiting in self._waiting.values():
            poller.register(waiting.events, zmq.POLLIN)
            until = min(until, waiting.until)
        ready = dict(poller.poll(int(max(until - self._clock.monotonic(), 0) * 1000) + 1))
        if bell.fd in ready:
            raise Rung
        for waiting in [each for each in self._waiting.values() if each.events in ready]:
            if not waiting.has_ended():
                continue
            if waiting.has_come() and waiting.is_data not in self._stand:
                self._stand[waiting.is_data] = self._waiting.pop(waiting.sock)
            else:
                self._fail(waiting)

    def _fail(self, candidate: _Candidate) -> None:
        del self._waiting[candidate.sock]
        self._cut = self._cut or candidate.is_cut()
        candidate.close(0)

    def _nobody(self) -> Exception:
        if self._cut or any(each.is_cut() for each in self._stand.values()):
            return PeerViolation("limit", "a message without an end")
        named = f"the relay {self._by}" if self._by else ", ".join(self._endpoints.addresses)
        return LinkLost(
            f"cannot reach {self._peer} at {named or 'nowhere'}", detail="link",
            hint=f"transfer.listen at {self._peer} must name an address and ports that a firewall lets "
            "this client connect to",
        )

    def _drop(self, linger: int) -> None:
        for each in (*self._waiting.values(), *self._stand.values()):
            each.close(linger)
        self._waiting.clear()
        self._stand.clear()


class _Candidate:
    """One socket towards one address, and what has become of it."""

    def __init__(self, sock: Socket, path: str, watch: Watch, bound: int, until: float, *, is_data: bool) -> None:
        self.sock = sock
        self.until: Final = until
        """By when it has to have come."""
        self.path = path
        self.is_data = is_data
        self._progress = Progress(bound)
        self._watch = watch
        self._connection = -1, 0
        """Descriptor and inode."""
        self._monitor = ThreadMonitor(sock, kinds=(*CONNECTION_KINDS, EventKind.CLOSED))
        self.events = self._monitor.socket
        self._seen: list[SocketEvent] = []

    def delivered(self, _message: zmq.Frame) -> None:
        self._progress.delivered += 1

    def is_cut(self) -> bool:
        return self._progress.is_broken()

    def has_ended(self) -> bool:
        """Whether its handshake is over, one way or the other."""
        return bool(self._kinds())

    def has_come(self) -> bool:
        return self._kinds() == {EventKind.HANDSHAKE_SUCCEEDED}

    def is_gone(self) -> bool:
        return EventKind.DISCONNECTED in self._kinds()

    def close(self, linger: int) -> None:
        self._monitor.close()
        self.sock.close(linger=linger)

    def unsent(self) -> int:
        self._kinds()
        return unsent(*self._connection)

    def _kinds(self) -> set[EventKind]:
        for event in self._monitor.drain():
            self._watch.on_event(event, self._progress)
            if event.kind is EventKind.CONNECTED:
                self._connection = event.fd, event.inode
            self._seen.append(event)
        return {event.kind for event in self._seen if event.kind in _ENDS_OF_CONNECTING}


def _is_address(text: str) -> bool:
    """Whether a peer's word is an IP address: names would be looked up, and endpoints of other kinds opened."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
