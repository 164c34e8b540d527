"""An end's way to a relay: what connects to, or listens on, this machine's loopback goes on over there.

The sockets of a transfer know nothing of relays: the recipient's listen on loopback, the sender's dial to loopback, and
a passage carries their bytes. libzmq has a way of its own through SOCKS5 proxies, which is not used: 4.3.5 aborts the
process when a proxy cannot be reached or refuses, and the socket is closed then (measured).
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, Literal

from zkc.crypto.chunks import rendezvous
from zkc.env import Clock, SystemClock
from zkc.net.descriptors import descriptors
from zkc.net.pipe.bell import Bell
from zkc.net.pipe.link import CONNECT_SECONDS
from zkc.wire.messages import Endpoints

_LOOPBACK: Final = "127.0.0.1"
_DATA_BYTES: Final = 64 * 1024
_ACK_BYTES: Final = 4 * 1024
"""Read of each direction before they are written: a process may have 256 passages, whose ends may all be slow."""
_HELD_SECONDS: Final = 15.0
"""How long a relay's answer is waited for: longer than it holds one end alone."""
_PARTING_SECONDS: Final = 2.0
"""How long one direction may go on when the other has ended."""
_PAUSE_FIRST: Final = 0.05
_PAUSE_MAX: Final = 1.0
"""Between two tries to reach a relay that cannot be reached, or refuses: doubled each time."""
_ACCEPTED: Final = b"\x05\x00"
_JOINED_BYTES: Final = 10


class Passage:
    """Both connections of one end, each in a thread of its own; `close` it."""

    def __init__(
        self, told: Endpoints, side: Literal["s", "r"], ports: tuple[int, int] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """``told``: the relay, and the meeting there. With ``ports`` of a listening end: again and again the other end
        is awaited at the relay, and brought there. Without: what connects to `here`, once, is brought to the relay.
        `DescriptorsTaken`.
        """
        self._relay = told.addresses[0], told.data_port
        self._clock = clock or SystemClock()
        self._left = 2
        self._lock = threading.Lock()
        self.here = Endpoints([], 0, 0, 0, "", b"")
        names = [f"{rendezvous(told.rv, socket).hex()}-{side}".encode() for socket in ("data", "ack")]
        sizes = _DATA_BYTES, _ACK_BYTES
        with contextlib.ExitStack() as made, descriptors():
            self._bell = made.enter_context(contextlib.closing(Bell()))
            servers = () if ports is not None else names
            doors = [made.enter_context(socket.create_server((_LOOPBACK, 0), backlog=1)) for _ in servers]
            made.pop_all()
        if ports is None:
            self.here = Endpoints([_LOOPBACK], doors[0].getsockname()[1], doors[1].getsockname()[1], 0, "", b"")
            work = [partial(self._bring_once, *each) for each in zip(names, doors, sizes, strict=True)]
        else:
            work = [partial(self._bring_back, *each) for each in zip(names, ports, sizes, strict=True)]
        self._threads = [threading.Thread(target=self._run, args=(each,), daemon=True) for each in work]
        for thread in self._threads:
            thread.start()

    def close(self, seconds: float = 0.0) -> None:
        """End; what is on its way to the other end may take so many seconds. Again: nothing."""
        until = self._clock.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(until - self._clock.monotonic(), 0.0))
        with self._lock:
            if self._left:
                self._bell.ring()

    # --- one connection ---------------------------------------------------------------------------------------------

    def _run(self, work: Callable[[], None]) -> None:
        try:
            with contextlib.suppress(OSError):
                work()
        finally:
            with self._lock:
                self._left -= 1
                if not self._left:
                    self._bell.close()

    def _bring_once(self, name: bytes, door: socket.socket, size: int) -> None:
        with door:
            if not self._wait(door, select.POLLIN, None):
                return
            near, _ = door.accept()
        with near:
            far = self._reach(name)
            if far is not None:
                with far:
                    self._carry(near, far, size)

    def _bring_back(self, name: bytes, port: int, size: int) -> None:
        pause = _PAUSE_FIRST
        while not self._bell.rung:
            far = self._reach(name)
            if far is None:
                self._wait(None, 0, pause)
                pause = min(2 * pause, _PAUSE_MAX)
                continue
            pause = _PAUSE_FIRST
            with far, contextlib.suppress(OSError), socket.create_connection((_LOOPBACK, port)) as near:
                self._carry(near, far, size)

    def _reach(self, name: bytes) -> socket.socket | None:
        """A connection to the other end, once it is there; None: no relay, or it refused, or nobody came."""
        try:
            family = socket.AF_INET6 if ":" in self._relay[0] else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            return None
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.connect_ex(self._relay)
            if self._wait(sock, select.POLLOUT, CONNECT_SECONDS) and not sock.getsockopt(
                socket.SOL_SOCKET, socket.SO_ERROR
            ):
                sock.send(b"\x05\x01\x00")
                if self._hear(sock, 2, CONNECT_SECONDS) == _ACCEPTED:
                    sock.send(b"\x05\x01\x00\x03" + bytes((len(name),)) + name + b"\x00\x01")
                    if self._hear(sock, _JOINED_BYTES, _HELD_SECONDS)[:2] == _ACCEPTED:
                        return sock
        except OSError:
            pass
        sock.close()
        return None

    def _hear(self, sock: socket.socket, size: int, seconds: float) -> bytes:
        """So many bytes, or fewer where it ends before, or says too little in time."""
        got, until = b"", self._clock.monotonic() + seconds
        while len(got) < size and self._wait(sock, select.POLLIN, max(until - self._clock.monotonic(), 0.0)):
            piece = sock.recv(size - len(got))
            if not piece:
                break
            got += piece
        return got

    def _wait(self, sock: socket.socket | None, events: int, seconds: float | None) -> bool:
        """Whether ``sock`` is ready within ``seconds``; the bell ends the wait."""
        poller = select.poll()
        poller.register(self._bell.fd, select.POLLIN)
        if sock is not None:
            poller.register(sock, events)
        ready = {fd for fd, _ in poller.poll(None if seconds is None else seconds * 1000)}
        return self._bell.fd not in ready and sock is not None and sock.fileno() in ready

    def _carry(self, near: socket.socket, far: socket.socket, size: int) -> None:
        """Every byte either way, ``size`` at a time, until both have ended, or one has and the other does not."""
        for sock in (near, far):
            sock.setblocking(False)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ways = [_Way(near, far, size), _Way(far, near, size)]
        until: float | None = None
        while ways:
            poller = select.poll()
            poller.register(self._bell.fd, select.POLLIN)
            wanted: dict[int, int] = {}
            for way in ways:
                sock, event = (way.target, select.POLLOUT) if way.held else (way.source, select.POLLIN)
                wanted[sock.fileno()] = wanted.get(sock.fileno(), 0) | event
            for fd, events in wanted.items():
                poller.register(fd, events)
            left = None if until is None else max(until - self._clock.monotonic(), 0.0) * 1000
            ready = dict(poller.poll(left))
            if self._bell.fd in ready or not ready:
                return
            for way in list(ways):
                if not way.go_on():
                    ways.remove(way)
                    until = self._clock.monotonic() + _PARTING_SECONDS


class _Way:
    """One direction: ``size`` bytes at a time, and none where none are under way."""

    def __init__(self, source: socket.socket, target: socket.socket, size: int) -> None:
        self.source = source
        self.target = target
        self._size = size
        self.held = memoryview(b"")

    def go_on(self) -> bool:
        """As much as goes without waiting; False at the end, which the other side is told."""
        try:
            if not self.held:
                data = self.source.recv(self._size)
                if not data:
                    self.target.shutdown(socket.SHUT_WR)
                    return False
                self.held = memoryview(data)
            left = self.held[self.target.send(self.held) :]
            self.held = left or memoryview(b"")
        except BlockingIOError:
            pass
        except OSError:
            with contextlib.suppress(OSError):
                self.target.shutdown(socket.SHUT_WR)
            return False
        return True
