"""How often one peer may do one thing: counted where it is asked, never by a timer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
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
