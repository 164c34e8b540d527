"""Key pairs made ahead (claims A2), so that no registration waits for one: an RSA pair takes 200 ms to make.

Each pair is handed out once (claims A8) and never put back. A thread refills the pool: making a pair releases the
interpreter's lock, so the event loop goes on meanwhile (measured: 10 ms at most, for RSA).
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from zkc.crypto.suites import KemPrivateKey, Suite


@dataclass(slots=True)
class PoolCounts:
    """What became of the pool."""

    taken: int = 0
    made_late: int = 0
    """Of those taken: made while a registration waited, because the pool was empty."""


class KeyPool:
    """At most ``size`` prepared pairs of ``suite``; `take` never waits for the thread. Thread-safe."""

    def __init__(self, suite: Suite, size: int) -> None:
        self._suite = suite
        self._size = size
        self._ready: deque[KemPrivateKey] = deque()
        self._change = threading.Condition()
        self._closed = False
        self.counts = PoolCounts()
        self._thread = threading.Thread(target=self._refill, name="zkc-keypool", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._ready)

    def take(self) -> KemPrivateKey:
        """A pair that nobody else gets; made on the spot where none is ready."""
        with self._change:
            key = self._ready.popleft() if self._ready else None
            self.counts.taken += 1
            self.counts.made_late += key is None
            self._change.notify_all()
        return key if key is not None else self._suite.generate()

    def wait_full(self, timeout: float) -> bool:
        """Whether the pool was filled within ``timeout`` seconds."""
        with self._change:
            return self._change.wait_for(lambda: len(self._ready) >= self._size, timeout)

    def close(self) -> None:
        """End the thread and wipe what nobody took. Harmless when repeated."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join()
        while self._ready:
            self._ready.pop().wipe()

    def _refill(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or len(self._ready) < self._size)
                if self._closed:
                    return
            key = self._suite.generate()
            with self._change:
                self._ready.append(key)
                self._change.notify_all()
