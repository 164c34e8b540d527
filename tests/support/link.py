"""A link in memory that loses, repeats, reorders and damages what it carries, the same way for the same seed."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest


@dataclass(frozen=True)
class Faults:
    """How often each fault happens to a message: a probability between 0 and 1."""

    lose: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0
    damage: float = 0.0


PERFECT = Faults()
ROUGH = Faults(lose=0.2, repeat=0.2, reorder=0.3)
HOSTILE = Faults(lose=0.15, repeat=0.1, reorder=0.1, damage=0.1)


@dataclass
class Link:
    """One direction. What `send` takes comes out of `receive` some time, or never, or more than once."""

    seed: int
    faults: Faults = PERFECT
    lost: int = 0
    repeated: int = 0
    reordered: int = 0
    damaged: int = 0
    _under_way: list[bytes] = field(default_factory=list, repr=False)
    _random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def __len__(self) -> int:
        return len(self._under_way)

    def send(self, data: bytes) -> None:
        """``data`` sets out."""
        if self._happens(self.faults.lose):
            self.lost += 1
            return
        if self._happens(self.faults.damage):
            self.damaged += 1
            data = flipped(data, self._random.randrange(len(data)), 1 << self._random.randrange(8))
        self._put(data)
        if self._happens(self.faults.repeat):
            self.repeated += 1
            self._put(data)

    def receive(self) -> bytes | None:
        """The next that arrives; None while nothing is under way."""
        return self._under_way.pop(0) if self._under_way else None

    def drop_all(self) -> None:
        """The connection breaks: all that is under way is gone."""
        self.lost += len(self._under_way)
        self._under_way.clear()

    def _put(self, data: bytes) -> None:
        place = len(self._under_way)
        if place and self._happens(self.faults.reorder):
            self.reordered += 1
            place = self._random.randrange(place)
        self._under_way.insert(place, data)

    def _happens(self, probability: float) -> bool:
        return self._random.random() < probability


def flipped(data: bytes, place: int, mask: int = 0x01) -> bytes:
    """``data`` with the bits of ``mask`` in the byte at ``place`` turned over."""
    damaged = bytearray(data)
    damaged[place] ^= mask
    return bytes(damaged)


def sampled(count: int) -> pytest.MarkDecorator:
    """The test gets a ``count`` for `places`: this one in the suite, one without bound in `scripts/soak`."""
    return pytest.mark.parametrize(
        "count", [pytest.param(count, id="sample"), pytest.param(sys.maxsize, id="all", marks=pytest.mark.soak)]
    )


def places(start: int, end: int, count: int) -> Iterable[int]:
    """At most ``count`` places spread evenly over [start, end), the first and the last among them."""
    length = end - start
    if length <= count:
        return range(start, end)
    return sorted({start + round(i * (length - 1) / (count - 1)) for i in range(count)})
