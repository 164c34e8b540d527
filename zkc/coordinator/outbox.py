"""What a peer's socket queue has no room for waits here, bounded, in its order, until there is room.

libzmq's queue holds 16 messages for each peer (its bytes could not be bounded otherwise). A burst of answers to one
client may be longer; a client that never reads must not cost more than its share (attack O05).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from zkc.constants import OUTBOX_BYTES_MAX, OUTBOXES_BYTES_MAX
from zkc.net.loopsocket import Sent

Send = Callable[[bytes, bytes], Sent]
"""(frame, routing id): hand a frame to the socket; never waits."""

_FIRST_SECONDS: Final = 0.001
_LAST_SECONDS: Final = 0.25
"""Between two tries, doubled from the first to the last while the peer takes nothing."""


@dataclass
class _Queue:
    frames: deque[bytes] = field(default_factory=deque)
    size: int = 0
    pause: float = _FIRST_SECONDS
    timer: asyncio.TimerHandle | None = None


class Outbox:
    """All queues, by routing id."""

    def __init__(self, send: Send, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._hand_over = send
        self._loop = loop or asyncio.get_running_loop()
        self._queues: dict[bytes, _Queue] = {}
        self.size = 0
        """Bytes in all queues."""

    def send(self, frame: bytes, routing_id: bytes) -> Sent:
        """`Sent.OK`: with the socket, or it will be; `Sent.FULL`: dropped, there is no room here either."""
        queue = self._queues.get(routing_id)
        if queue is None:
            sent = self._hand_over(frame, routing_id)
            if sent is not Sent.FULL:
                return sent
            queue = self._queues[routing_id] = _Queue()
            self._try_later(routing_id, queue)
        if queue.size + len(frame) > OUTBOX_BYTES_MAX or self.size + len(frame) > OUTBOXES_BYTES_MAX:
            return Sent.FULL
        queue.frames.append(frame)
        self._grow(queue, len(frame))
        return Sent.OK

    def close(self) -> None:
        """Throws everything away."""
        for routing_id in list(self._queues):
            self._drop(routing_id)

    def _flush(self, routing_id: bytes) -> None:
        queue = self._queues[routing_id]
        before = len(queue.frames)
        while queue.frames:
            match self._hand_over(queue.frames[0], routing_id):
                case Sent.OK:
                    self._grow(queue, -len(queue.frames.popleft()))
                case Sent.FULL:
                    moved = len(queue.frames) < before
                    queue.pause = _FIRST_SECONDS if moved else min(queue.pause * 2, _LAST_SECONDS)
                    self._try_later(routing_id, queue)
                    return
                case Sent.GONE:
                    break
        self._drop(routing_id)

    def _try_later(self, routing_id: bytes, queue: _Queue) -> None:
        queue.timer = self._loop.call_later(queue.pause, self._flush, routing_id)

    def _grow(self, queue: _Queue, by: int) -> None:
        queue.size += by
        self.size += by

    def _drop(self, routing_id: bytes) -> None:
        queue = self._queues.pop(routing_id)
        self.size -= queue.size
        if queue.timer is not None:
            queue.timer.cancel()
