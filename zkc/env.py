"""Clock and entropy: the only module that asks the machine for the time or for random bytes.

Everything below the two programs takes ``now`` and random bytes as arguments, so a test decides both.
"""

from __future__ import annotations

import os
import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks: one for deadlines, one for what people and certificates read."""

    def monotonic(self) -> float:
        """Seconds since some fixed point; never goes back."""

    def wall(self) -> float:
        """Seconds since 1970-01-01T00:00:00Z; may jump."""


class Entropy(Protocol):
    """A source of random bytes fit for keys."""

    def bytes(self, n: int) -> bytes:
        """``n`` random bytes."""

    def jitter(self, low: float, high: float) -> float:
        """A number between ``low`` and ``high``, for deadlines that must not fall together."""


class SystemClock:
    """The machine's clocks."""

    __slots__ = ()

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class SystemEntropy:
    """The operating system's generator."""

    __slots__ = ()

    def bytes(self, n: int) -> bytes:
        return os.urandom(n)

    def jitter(self, low: float, high: float) -> float:
        return low + (high - low) * int.from_bytes(os.urandom(4)) / (1 << 32)
