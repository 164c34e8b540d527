"""A TCP proxy on loopback that sees every byte, and cuts, stalls, delays or damages on command."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from tests.support.waiting import DEADLINE, wait_until

Way = Literal["up", "down"]
"""``up``: from the client that connected to the server behind; ``down``: back."""

_PIECE = 64 * 1024


@dataclass
class Recorded:
    """What one connection carried, as it came in (before any damage)."""

    up: bytearray = field(default_factory=bytearray)
    down: bytearray = field(default_factory=bytearray)

    def way(self, way: Way) -> bytearray:
        return self.up if way == "up" else self.down


@dataclass
class _Flip:
    """One byte to be damaged: at ``at`` of a connection's stream, or (None) the next that passes."""

    way: Way
    at: int | None
    mask: int


class TcpProxy:
    """Listens on ``port`` of 127.0.0.1 and forwards to ``target``; use as a context manager.

    Commands work at once on open connections and from any thread. The record outlives the connections.
    """

    def __init__(self, target: tuple[str, int], *, listen: str = "127.0.0.1", port: int = 0) -> None:
        self.target = target
        self._listener = socket.create_server((listen, port), backlog=128)
        self.host, self.port = self._listener.getsockname()[:2]
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._delay = 0.0
        self._latency = 0.0
        self._flips: deque[_Flip] = deque()
        self._open: dict[int, tuple[socket.socket, socket.socket]] = {}
        self._threads: list[threading.Thread] = []
        self.connections: list[Recorded] = []
        self._acceptor = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._acceptor.start()

    @property
    def endpoint(self) -> str:
        return f"tcp://{self.host}:{self.port}"

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every connection and every thread."""
        self._closing.set()
        self._flowing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    # --- commands ---

    def cut(self) -> int:
        """Break every open connection, at both ends, with a reset; how many there were."""
        with self._lock:
            pairs = list(self._open.values())
            for pair in pairs:
                for sock in pair:
                    with contextlib.suppress(OSError):
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        sock.shutdown(socket.SHUT_RDWR)
        return len(pairs)

    def refuse(self, refusing: bool = True) -> None:
        """Close new connections as soon as they come, or no longer."""
        self._refusing = refusing

    def stall(self) -> None:
        """Carry nothing until `resume`; connections stay open."""
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    def delay(self, seconds: float) -> None:
        """Hold each piece (at most 64 KiB) for so long before it goes on, and all behind it."""
        self._delay = seconds

    def latency(self, seconds: float) -> None:
        """Each piece arrives so much later, and others are under way meanwhile."""
        self._latency = seconds

    def flip(self, way: Way, at: int | None = None, mask: int = 0x01) -> None:
        """Damage one byte, once: the next that passes, or that at position ``at`` of a connection."""
        with self._lock:
            self._flips.append(_Flip(way, at, mask))

    # --- what was seen ---

    def recorded(self, way: Way | None = None) -> bytes:
        """The bytes of all connections so far, of one way or of both, in order of connections."""
        ways: tuple[Way, ...] = ("up", "down") if way is None else (way,)
        return b"".join(bytes(record.way(one)) for record in list(self.connections) for one in ways)

    @property
    def open_connections(self) -> int:
        with self._lock:
            return len(self._open)

    @property
    def damaged(self) -> bool:
        """Whether every `flip` that was asked for has happened."""
        with self._lock:
            return not self._flips

    def wait_for_bytes(self, way: Way, count: int, within: float = DEADLINE) -> None:
        """Return once ``count`` bytes have been seen."""
        wait_until(lambda: len(self.recorded(way)) >= count, within)

    # --- inside ---

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._closing.is_set() or self._refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(self.target, timeout=DEADLINE)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            record = Recorded()
            self.connections.append(record)
            with self._lock:
                self._open[id(record)] = client, server
            thread = threading.Thread(target=self._carry, args=(client, server, record), name="proxied", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _carry(self, client: socket.socket, server: socket.socket, record: Recorded) -> None:
        routes: dict[socket.socket, tuple[socket.socket, Way]] = {client: (server, "up"), server: (client, "down")}
        under_way: deque[tuple[float, socket.socket, bytes]] = deque()
        try:
            while routes or under_way:
                pause = max(under_way[0][0] - time.monotonic(), 0.0) if under_way else None
                readable, _, _ = select.select(list(routes), [], [], pause)
                while under_way and under_way[0][0] <= time.monotonic():
                    self._flowing.wait()
                    self._arrive(*under_way.popleft()[1:])
                for source in readable:
                    target, way = routes[source]
                    self._flowing.wait()
                    piece = source.recv(_PIECE)
                    if self._closing.is_set():
                        return
                    if not piece:
                        del routes[source]
                    start = len(record.way(way))
                    record.way(way).extend(piece)
                    if self._delay:
                        self._closing.wait(self._delay)
                    piece = self._damage(way, start, piece)
                    if self._latency or under_way:
                        under_way.append((time.monotonic() + self._latency, target, piece))
                    else:
                        self._arrive(target, piece)
        except OSError:
            pass  # One end has gone: so does the other.
        finally:
            with self._lock:
                del self._open[id(record)]
                client.close()
                server.close()

    @staticmethod
    def _arrive(target: socket.socket, piece: bytes) -> None:
        if piece:
            target.sendall(piece)
        else:
            target.shutdown(socket.SHUT_WR)

    def _damage(self, way: Way, start: int, piece: bytes) -> bytes:
        with self._lock:
            out = bytearray(piece)
            for flip in [flip for flip in self._flips if flip.way == way]:
                at = 0 if flip.at is None else flip.at - start
                if 0 <= at < len(out):
                    out[at] ^= flip.mask
                    self._flips.remove(flip)
            return bytes(out)
