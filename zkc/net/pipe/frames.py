"""Messages that chunks are sealed into: libzmq's own memory, used again once the recipient has what was in it.

A bytearray that is handed to libzmq comes back by a thread of pyzmq's, and its memory is cleared before the next chunk
is written there: together a twentieth of what a transfer takes of a processor.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Final, cast

import zmq

from zkc.constants import WINDOW_MAX
from zkc.crypto.chunks import Sealed

ROOM_BYTES: Final = WINDOW_MAX
"""For all that this process sends at once: one window. Over a long way acknowledgements come late, and what is beyond
this lives only until libzmq has written it: a sender's memory does not grow with the windows of its recipients."""


class Room:
    """Bytes that are left for messages. Any thread."""

    def __init__(self, left: int) -> None:
        self._left = left
        self._lock = threading.Lock()

    def take(self, n: int) -> bool:
        """Whether there were so many."""
        with self._lock:
            enough = n <= self._left
            self._left -= n if enough else 0
            return enough

    def give_back(self, n: int) -> None:
        with self._lock:
            self._left += n


_ROOM: Final = Room(ROOM_BYTES)


class Frames:
    """Those of one connection. Whoever acknowledges what it has not read finds later chunks in the place of earlier
    ones, all of them meant for it, and what it finds does not open."""

    def __init__(self, size: int, room: Room = _ROOM) -> None:
        """``size``: bytes of the frames that most are; others are made for one use."""
        self._size = size
        self._room = room
        self._blank = b""
        """Each message keeps what it was made of: of all of them it is this one, as large, from the first on."""
        self._made = 0
        self._free: list[zmq.Frame] = []
        self._sealed: deque[tuple[int, zmq.Frame]] = deque()

    def allot(self, size: int) -> Sealed:
        """Room for the next frame: see `zkc.crypto.chunks.StreamSealer`."""
        if size != self._size:
            return bytearray(size)
        if self._free:
            return self._free.pop().buffer
        if not self._room.take(size):
            return bytearray(size)
        self._made += 1
        self._blank = self._blank or bytes(size)
        return zmq.Frame(self._blank, copy=True).buffer

    def sealed(self, position: int, frames: Iterable[Sealed]) -> None:
        """``frames`` hold what ends at ``position``."""
        self._sealed.extend((position, cast("zmq.Frame", each.obj)) for each in frames if isinstance(each, memoryview))

    def taken(self, position: int) -> None:
        """The recipient has everything before ``position``."""
        while self._sealed and self._sealed[0][0] <= position:
            self._free.append(self._sealed.popleft()[1])

    def close(self) -> None:
        """The connection has ended. Again: nothing."""
        self._free.clear()
        self._sealed.clear()
        self._room.give_back(self._made * self._size)
        self._made = 0


def message_of(frame: Sealed) -> bytearray | zmq.Frame:
    """What libzmq takes without a copy."""
    return cast("zmq.Frame", frame.obj) if isinstance(frame, memoryview) else frame
