"""Key pairs made ahead (claims A2; Figure 4, block 402; Figure 7, block 701): an RSA pair takes 200 ms to make.

Each pair is handed out once (claims A8) and never put back. A thread makes them all, also the one that somebody waits
for: making a pair releases the interpreter's lock, so the event loop goes on meanwhile (measured: it stands for at most
10 ms, for RSA).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from zkc.crypto.suites import KemPrivateKey, Suite


@dataclass(slots=True)
class PoolCounts:
    """What became of the pool."""

    taken: int = 0
    made_late: int = 0
    """Of those taken: made while a registration waited, because the pool was empty."""


class KeyPool:
    """At most ``size`` prepared pairs of ``suite``. Nothing but `wait_full` and `close` waits. Thread-safe."""

    def __init__(self, suite: Suite, size: int) -> None:
        self._suite = suite
        self._size = size
        self._ready: deque[KemPrivateKey] = deque()
        self._waiting: deque[Callable[[KemPrivateKey], object]] = deque()
        self._change = threading.Condition()
        self._closed = False
        self.counts = PoolCounts()
        self._thread = threading.Thread(target=self._refill, name="zkc-keypool", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._ready)

    def take(self) -> KemPrivateKey | None:
        """A pair that nobody else gets, if one is ready."""
        with self._change:
            if not self._ready:
                return None
            self.counts.taken += 1
            self._change.notify_all()
            return self._ready.popleft()

    def order(self, to: Callable[[KemPrivateKey], object]) -> None:
        """The next pair that is made goes to ``to``, which is called in the pool's thread; the first asked is first."""
        with self._change:
            self.counts.taken += 1
            self.counts.made_late += 1
            self._waiting.append(to)
            self._change.notify_all()

    def wait_full(self, timeout: float) -> bool:
        """Whether the pool was filled within ``timeout`` seconds."""
        with self._change:
            return self._change.wait_for(lambda: len(self._ready) >= self._size, timeout)

    def close(self) -> None:
        """End the thread and wipe what nobody took; who waits gets nothing. Harmless when repeated."""
        with self._change:
            self._closed = True
            self._waiting.clear()
            self._change.notify_all()
        self._thread.join()
        while self._ready:
            self._ready.pop().wipe()

    def _refill(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or self._waiting or len(self._ready) < self._size)
                if self._closed:
                    return
            key = self._suite.generate()
            with self._change:
                to = self._waiting.popleft() if self._waiting else None
                if to is None:
                    self._ready.append(key)
                    self._change.notify_all()
            if to is not None:
                to(key)
