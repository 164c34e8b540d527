"""The end of a transfer that dials: one attempt after the other, at the addresses that it was told."""

from __future__ import annotations

import functools
from collections import deque
from typing import Final

import zmq

from zkc.crypto.primitives import Secret
from zkc.env import Clock
from zkc.errors import PeerViolation
from zkc.net.addresses import is_address
from zkc.net.monitor import CONNECTION_KINDS, EventKind, ThreadMonitor
from zkc.net.pipe.bell import Bell, LinkLost
from zkc.net.pipe.link import CONNECT_SECONDS, login
from zkc.net.pipe.meeting import ADDRESSES_AT_ONCE, Pair, Rung, bounds
from zkc.net.sockets import Context, Socket, bound_loopback, connect_bulk, tcp_endpoint, unsent
from zkc.net.watch import BULK_BOUNDS, Progress, Watch
from zkc.wire.messages import Endpoints

NEXT_ADDRESS_SECONDS: Final = 0.25
"""How long one address is tried alone before the next one is tried beside it (RFC 8305)."""
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


@functools.cache
def _over_what_is_dialled() -> Watch:
    """One for all that this process dials: a thread for each transfer took a tenth of a small one's time."""
    return Watch(BULK_BOUNDS, lambda _cut: None)


class Dialling:
    """Towards the addresses that ``peer`` has told, best first; one connection for each `meet`."""

    def __init__(
        self, ctx: Context, k: Secret, endpoints: Endpoints, *, chunk: int, sends: bool, peer: str, number: int = 0,
        by: str = "",
    ) -> None:
        """``by``: the relay to which the endpoints, this machine's own, lead."""
        self._context = ctx
        self._k = k
        self._endpoints = endpoints
        self._addresses = [each for each in endpoints.addresses if is_address(each)]
        if not (endpoints.data_port and endpoints.ack_port):
            self._addresses = []
        self._sends = sends
        self._chunk = chunk
        self._watch = _over_what_is_dialled()
        self._peer = peer
        self._by = by
        self._waiting: dict[Socket, _Candidate] = {}
        self._stand: dict[bool, _Candidate] = {}
        """The connections that stand, by whether they are the data's."""
        self._cut = False
        """Whether one of this `meet` was cut off."""
        self.number = number
        """Of the next attempt."""

    def meet(self, bell: Bell, until: float, clock: Clock) -> Pair:
        number, now = self.number, clock.monotonic()
        # Tokens that were shown are spent, whatever comes of them.
        self.number += 1
        self._cut = False
        left, due = deque(self._addresses), now
        try:
            while len(self._stand) < 2:
                now = clock.monotonic()
                for late in [each for each in self._waiting.values() if now >= each.until]:
                    self._fail(late)
                if left and (not self._waiting or (now >= due and self._has_room())):
                    self._try(left.popleft(), number, now + CONNECT_SECONDS)
                    due = now + NEXT_ADDRESS_SECONDS
                if not self._waiting or now >= until:
                    raise self._nobody()
                self._await_one(bell, min(until, due) if left and self._has_room() else until, clock)
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
            bound = bounds(self._chunk, sends=self._sends)[0 if is_data else 1]
            self._waiting[sock] = _Candidate(
                sock, path, self._watch, bound, until, is_data=is_data, sends=is_data and self._sends
            )

        connect_bulk(
            self._context, address, told.data_port, told.ack_port, *tokens, sends=self._sends, watch=watch
        )

    def _await_one(self, bell: Bell, until: float, clock: Clock) -> None:
        poller = zmq.Poller()
        poller.register(bell.fd, zmq.POLLIN)
        for waiting in self._waiting.values():
            poller.register(waiting.events, zmq.POLLIN)
            until = min(until, waiting.until)
        ready = dict(poller.poll(int(max(until - clock.monotonic(), 0) * 1000) + 1))
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

    def __init__(
        self, sock: Socket, path: str, watch: Watch, bound: int, until: float, *, is_data: bool, sends: bool
    ) -> None:
        """``sends``: whether the chunks leave by it."""
        self.sock = sock
        self.until: Final = until
        """By when it has to have come."""
        self.path = path
        self.is_data = is_data
        self._sends = sends
        self._progress = Progress(bound)
        self._watch = watch
        self._connection = -1, 0
        """Descriptor and inode."""
        self._monitor = ThreadMonitor(sock, kinds=(*CONNECTION_KINDS, EventKind.CLOSED))
        self.events = self._monitor.socket
        self._seen: set[EventKind] = set()
        """Of `_ENDS_OF_CONNECTING`."""

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
                if self._sends:
                    bound_loopback(event.fd, event.inode)
            elif event.kind in _ENDS_OF_CONNECTING:
                self._seen.add(event.kind)
        return self._seen
