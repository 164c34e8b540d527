"""How the transfers of one process share its credit, so that what is under way to all of them fits into memory.

Credit that was given cannot be taken back, and a sender may sit on it for days: so a transfer never waits for another
one's. Each of the `TRANSFERS_MAX` places owns the floor of two of the smallest chunks, given or not. What the budget
has beyond these floors is lent: first for larger chunks, agreed while there is room, then for longer windows, by
what a transfer has shown that it uses.
"""

from __future__ import annotations

import threading
from typing import Final

from zkc.constants import CHUNK_MIN, TRANSFERS_MAX, WINDOW_BUDGET, WINDOW_MAX

_FIRST: Final = 1024 * 1024
"""Bytes beyond its floor that a transfer may have before it has received any."""


class Budget:
    """``total`` bytes for at most ``places`` transfers at once. Any thread."""

    def __init__(self, total: int = WINDOW_BUDGET, places: int = TRANSFERS_MAX) -> None:
        self.lock: Final = threading.Lock()
        self.free = total - places * 2 * CHUNK_MIN
        """Beyond all floors, and not lent. Below zero only where a larger chunk was agreed than was offered."""
        self.active = 0
        """Transfers under way, among which windows are shared."""


class Share:
    """One transfer's part; held from its `Listener`'s beginning to its end."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._chunk = CHUNK_MIN
        self._lent = 0
        """Of the window, beyond two chunks."""
        self._limit = 0
        self._active = False
        self.held = False
        """No credit is given for now."""

    def offer(self, wanted: int) -> int:
        """The chunk size to agree on: ``wanted`` bytes, or less, in steps of `CHUNK_MIN`, where many share."""
        with self._budget.lock:
            # A quarter of what is left: so there is always something left for the next one and for windows.
            room = max(self._budget.free // 4, 0) // 2
            more = wanted - CHUNK_MIN
            self._take(CHUNK_MIN + (more if more <= room else room // CHUNK_MIN * CHUNK_MIN))
            return self._chunk

    def begin(self, chunk: int) -> None:
        """The transfer is agreed, with this chunk size."""
        with self._budget.lock:
            self._take(chunk)
            self._budget.active += 1
            self._active = True

    def credit(self, received: int) -> int:
        """Bytes that may be under way beyond ``received``: never less than was given before, at least two chunks; none
        while it is `held`."""
        if self.held:
            return 0
        with self._budget.lock:
            budget, floor = self._budget, 2 * self._chunk
            budget.free += self._lent
            # What was given and not yet used stays lent.
            held = max(self._limit - received - floor, 0)
            most = max(min(max(received, _FIRST), WINDOW_MAX - floor, budget.free // max(budget.active, 1)), 0)
            self._lent = max(held, (floor + most) // self._chunk * self._chunk - floor)
            budget.free -= self._lent
            self._limit = max(self._limit, received + floor + self._lent)
            return self._limit - received

    def close(self) -> None:
        """Give everything back; again: nothing."""
        with self._budget.lock:
            self._take(CHUNK_MIN)
            self._budget.free += self._lent
            self._budget.active -= self._active
            self._lent, self._active = 0, False

    def _take(self, chunk: int) -> None:
        self._budget.free -= 2 * (chunk - self._chunk)
        self._chunk = chunk
