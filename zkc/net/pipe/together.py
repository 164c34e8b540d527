"""One ZeroMQ context for all small payloads that this process sends at the same time.

A context is two threads, which cost a small transfer more than its two sockets. The last sender to leave ends it, and
waits until what was said last has left. A large payload has a context, and with it a thread for its bytes, to itself.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Final

import zmq

from zkc.net.pipe.meeting import ADDRESSES_AT_ONCE
from zkc.net.sockets import Context, context

_SENDERS_MAX: Final = 512
"""For each two sockets towards an address, and two for the monitor of each: libzmq's bound is set beforehand."""


class Together:
    """The context while somebody uses it. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._context: Context | None = None
        self._users = 0

    @contextlib.contextmanager
    def use(self) -> Iterator[Context]:
        """`DescriptorsTaken`."""
        with self._lock:
            if self._context is None:
                self._context = context()
                self._context.set(zmq.MAX_SOCKETS, 6 * ADDRESSES_AT_ONCE * _SENDERS_MAX)
            shared = self._context
            self._users += 1
        try:
            yield shared
        finally:
            with self._lock:
                self._users -= 1
                is_last = not self._users
                if is_last:
                    self._context = None
            if is_last:
                shared.destroy(linger=0)


senders = Together()


def _begin_anew() -> None:
    """A process that was forked has none of the threads."""
    global senders  # noqa: PLW0603 - there is one for each process
    senders = Together()


os.register_at_fork(after_in_child=_begin_anew)
