"""Messages that chunks are sealed into: libzmq's own memory, used again once the recipient has what was in it.

A bytearray that is handed to libzmq comes back by a thread of pyzmq's, and its memory is cleared before the next chunk
is written there: together a twentieth of what a transfer takes of a processor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import cast

import zmq

from zkc.crypto.chunks import Frame


class Frames:
    """Those of one connection. Whoever acknowledges what it has not read finds later chunks in the place of earlier
    ones, all of them meant for it, and what it finds does not open."""

    def __init__(self, size: int) -> None:
        """``size``: bytes of the frames that most are; others are made for one use."""
        self._size = size
        self._free: list[zmq.Frame] = []
        self._sealed: deque[tuple[int, zmq.Frame]] = deque()

    def allot(self, size: int) -> Frame:
        """Room for the next frame: see `zkc.crypto.chunks.StreamSealer`."""
        if size != self._size:
            return bytearray(size)
        message = self._free.pop() if self._free else zmq.Frame(bytes(size), copy=True)
        return message.buffer

    def sealed(self, position: int, frames: Iterable[Frame]) -> None:
        """``frames`` hold what ends at ``position``."""
        self._sealed.extend((position, cast("zmq.Frame", each.obj)) for each in frames if isinstance(each, memoryview))

    def taken(self, position: int) -> None:
        """The recipient has everything before ``position``."""
        while self._sealed and self._sealed[0][0] <= position:
            self._free.append(self._sealed.popleft()[1])


def message_of(frame: Frame) -> bytearray | zmq.Frame:
    """What libzmq takes without a copy."""
    return cast("zmq.Frame", frame.obj) if isinstance(frame, memoryview) else frame
