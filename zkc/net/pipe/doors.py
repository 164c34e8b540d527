"""The end of a transfer that listens: its ports, who is let in there, and the pair of each attempt."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Sequence
from typing import Final

import zmq

from zkc.constants import CHUNK_MAX
from zkc.crypto.primitives import Secret, check_mac
from zkc.env import Clock
from zkc.errors import PeerViolation
from zkc.net.monitor import CONNECTION_KINDS, EventKind, ThreadMonitor
from zkc.net.pipe.bell import Bell, LinkLost
from zkc.net.pipe.link import attempt_of, login
from zkc.net.pipe.meeting import ADDRESSES_AT_ONCE, Pair, Rung, bounds
from zkc.net.sockets import BulkPorts, Context, Socket, bound_loopback, context, own_endpoint, serve_bulk, unsent
from zkc.net.watch import BULK_BOUNDS, Progress, Watch
from zkc.net.zap import ThreadZap, ZapRequest
from zkc.wire.messages import Endpoints

_UNBIND_SECONDS: Final = 5.0
"""Far longer than libzmq's thread takes to close a listener."""


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
        self, doors: Doors, domain: str, door: Door, ports: BulkPorts, *, sends: bool, peer: str
    ) -> None:
        self._doors = doors
        self._domain = domain
        self._ports = ports
        self._sends = sends
        self._chunk = CHUNK_MAX
        self._peer = peer
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
        for end, bound in zip(self._ends or (), bounds(chunk, sends=self._sends), strict=False):
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

    def meet(self, bell: Bell, until: float, clock: Clock) -> Pair:
        while True:
            if self._pair is None:
                self._open()  # there was no descriptor for it
            data, acks = self._here
            ends = self._ends_here
            stale, attempt = self.door.is_stale(), self.door.attempt()
            if attempt is not None and not stale:
                for end in ends:
                    end.has_come()  # like the bell's, this news would wake the loop that follows for nothing
                return Pair(attempt, data, acks, *ends, self._path, self.door.bell.fd, self.door.is_stale)
            if stale:
                self.leave(-1)
                continue
            now = clock.monotonic()
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
            if ends[0].is_gone() or ends[1].is_gone():
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
        watched = zip(monitors, bounds(self._chunk, sends=self._sends), strict=True)  # the data's first
        data, acks = (_Admitted(monitor, self._doors.watch, bound) for monitor, bound in watched)
        data.sends = self._sends
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
        self.sends = False
        """Whether the chunks leave by it."""
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
        return next((own_endpoint(*each) for each in self._standing()), None)

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
                if self.sends:
                    bound_loopback(event.fd, event.inode)
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
