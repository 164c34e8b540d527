from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkc.rules.rates import PIECE_MIN, Pace


def sent_in(pace: Pace, seconds: float, size: int, *, late: float = 0.0, begin: float = 0.0) -> int:
    """Bytes that a sender of pieces of ``size`` gets out, who always comes ``late``."""
    now, sent = begin, 0
    while now < begin + seconds:
        pause = pace.pause(now)
        if pause:
            now += pause + late
        else:
            pace.take(size, now)
            sent += size
    return sent


@given(
    rate=st.integers(1000, 1 << 30), size=st.floats(0.01, 2), late=st.floats(0, 0.05), seconds=st.integers(10, 30),
)
def test_for_long_it_is_the_rate_whatever_leaves_at_once(rate: int, size: float, late: float, seconds: int) -> None:
    """A late sender makes up for what it did not send, where that is not longer than the burst."""
    pace = Pace(rate)
    piece = max(int(pace.piece * size), 1)
    most = rate * (seconds + 0.1) + 2 * piece
    assert rate * seconds - 2 * piece <= sent_in(pace, seconds, piece, late=late) <= most


def test_who_was_silent_gets_a_tenth_of_a_second_at_once_and_no_more() -> None:
    pace = Pace(1_000_000)
    pace.take(1, 0.0)
    at_once = 0
    while not pace.pause(1000.0):
        pace.take(10_000, 1000.0)
        at_once += 10_000
    assert at_once == pytest.approx(100_000, abs=10_000)


@given(rate=st.floats(0.001, 1e12), sharers=st.integers(1, 8))
def test_several_share_one(rate: float, sharers: int) -> None:
    """Whoever comes while others have just sent waits until all of that is paid for."""
    pace = Pace(rate)
    for _ in range(sharers):
        pace.take(int(pace.piece), 0.0)
    assert pace.pause(0.0) == pytest.approx(max(sharers * int(pace.piece) / rate - 0.1, 0), rel=1e-6, abs=1e-6)


def test_a_slow_rate_has_small_pieces() -> None:
    assert Pace(10 * 1024).piece == PIECE_MIN
    assert Pace(1 << 20).piece == pytest.approx((1 << 20) / 10)


def test_without_a_rate_nobody_waits() -> None:
    pace = Pace()
    for now in range(1000):
        pace.take(1 << 30, now)
        assert pace.pause(now) == 0
