"""How often one peer may do one thing, and how fast bytes may leave: counted where it is asked, never by a timer."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

PIECE_MIN: Final = 4096
"""Bytes that leave at once under the slowest of limits: below it a frame's own bytes would weigh."""
_BURST_SECONDS: Final = 0.1
"""What was not sent is made up for by at most so much at once."""


class Rate(NamedTuple):
    """So many at once, and so many a second for long."""

    at_once: int
    per_second: float


class Bucket:
    """What one peer has left of a `Rate`. ``now`` is monotonic seconds."""

    __slots__ = ("_at", "_spent")

    def __init__(self) -> None:
        self._spent = 0.0
        self._at = 0.0

    def take(self, rate: Rate, now: float) -> bool:
        """One more, if the rate allows it."""
        spent = self._left_over(rate, now)
        allowed = spent + 1 <= rate.at_once
        self._spent, self._at = spent + allowed, now
        return allowed

    def is_unused(self, rate: Rate, now: float) -> bool:
        """Whether it is worth no more than a new one."""
        return self._left_over(rate, now) == 0

    def _left_over(self, rate: Rate, now: float) -> float:
        return max(self._spent - (now - self._at) * rate.per_second, 0.0)


class Window:
    """Counts what happened in the current second."""

    __slots__ = ("_count", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._count = 0

    def add(self, now: float) -> int:
        """One more; how many there were before it in this second."""
        if int(now) != self._second:
            self._second, self._count = int(now), 0
        self._count += 1
        return self._count - 1

    def is_over(self, now: float) -> bool:
        """Whether it is worth no more than a new one."""
        return int(now) != self._second


class Pace:
    """A token bucket of bytes: at most ``per_second`` of them for long. ``now`` is monotonic seconds.

    Whoever has waited as long as `pause` says may send one piece, whatever its size came to be, and all then wait until
    it is paid for. So several may share one, and a frame that was made shorter counts as what it is.
    """

    def __init__(self, per_second: float = math.inf) -> None:
        self._per_second: Final = per_second
        self.piece: Final = max(per_second * _BURST_SECONDS, PIECE_MIN)
        """Bytes that should leave at once, at most."""
        self._paid = -math.inf
        """Until when what has left takes, at this rate."""

    def pause(self, now: float) -> float:
        """Seconds until the next piece may leave."""
        return max(self._paid - now, 0.0)

    def take(self, size: int, now: float) -> None:
        """``size`` bytes leave."""
        self._paid = max(self._paid, now - _BURST_SECONDS) + size / self._per_second
