"""A clock that stands still until a test moves it, and entropy that is the same in every run."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass
class FixedClock:
    """`zkc.env.Clock`: both clocks go only when `advance` says so; ``set_wall`` lets the wall clock jump."""

    now: float = 1000.0
    """Monotonic seconds."""
    date: float = 1_800_000_000.0
    """Seconds since 1970."""

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.date

    def advance(self, seconds: float) -> float:
        """Both clocks go on; the new monotonic time."""
        if seconds < 0:
            raise ValueError("a monotonic clock never goes back")
        self.now += seconds
        self.date += seconds
        return self.now

    def set_wall(self, date: float) -> None:
        """The wall clock jumps; the monotonic one does not."""
        self.date = date


@dataclass
class SeededEntropy:
    """`zkc.env.Entropy` for tests alone: the same bytes for the same seed."""

    seed: int = 1
    _random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def bytes(self, n: int) -> bytes:
        return self._random.randbytes(n)

    def jitter(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)
