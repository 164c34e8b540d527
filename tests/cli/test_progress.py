"""What progress looks like: rates that are honest, bars that fit, objects that are few."""

from __future__ import annotations

import io
import json
from typing import Any

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkc.errors import RecipientOffline
from zkc.ui.cli.output import Out, Style
from zkc.ui.cli.progress import OBJECT_SECONDS, Board, Progress, Pulse, show_left

MIB = 1 << 20


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 0.0


class Terminal(io.StringIO):
    """A terminal of some width, and what stands on it."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise io.UnsupportedOperation

    @property
    def shown(self) -> list[str]:
        screen = pyte.Screen(self.columns, 24)
        pyte.Stream(screen).feed(self.getvalue().replace("\n", "\r\n"))
        return [line.rstrip() for line in screen.display if line.strip()]


@pytest.fixture(params=[120, 60, 30])
def terminal(request: Any, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(request.param))
    return Terminal(request.param)


def on(terminal: Terminal) -> Out:
    return Out(Style(), io.StringIO(), terminal)


@given(
    start=st.integers(0, 1 << 40), rate=st.integers(1 << 10, 1 << 30),
    pauses=st.lists(st.floats(0.1, 5), min_size=3, max_size=99),
)
def test_a_steady_rate_is_told_whatever_was_there_before(start: int, rate: int, pauses: list[float]) -> None:
    """What an earlier command had sent counts for nothing."""
    pulse, now, done = Pulse(), 50.0, 0.0
    pulse.begin(now, start)
    for pause in pauses:
        now, done = now + pause, done + rate * pause
        pulse.add(now, start + int(done))
    assert pulse.rate == pytest.approx(rate, rel=0.05)
    assert pulse.left(start + int(done) + 100 * rate) == pytest.approx(100, rel=0.05)


def test_a_rate_is_that_of_the_last_seconds_and_begins_again_after_an_interruption() -> None:
    pulse = Pulse()
    pulse.begin(0.0, 0)
    for second in range(1, 61):
        pulse.add(second, second * 1000)
    for second in range(61, 81):
        pulse.add(second, 60_000 + (second - 60) * 10)
    assert pulse.rate == pytest.approx(10)
    pulse.begin(100.0, 30_000)
    assert pulse.rate == 0
    assert pulse.left(60_000) is None
    pulse.add(101.0, 30_500)
    assert pulse.left(31_000) == 1


def test_nobody_knows_when_a_pipe_ends() -> None:
    pulse = Pulse()
    pulse.begin(0.0, 0)
    pulse.add(1.0, 10)
    assert pulse.left(None) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:00"), (65, "1:05"), (3599.7, "1:00:00"), (7384, "2:03:04"), (200_000, "2d")]
)
def test_time_left_is_read_at_a_glance(seconds: float, text: str) -> None:
    assert show_left(seconds) == text


def test_a_bar_tells_rate_and_time_left_where_there_is_room(terminal: Terminal) -> None:
    clock = Clock()
    with Progress(on(terminal), "film.mkv", 10 * MIB, clock=clock) as progress:
        progress.begin(5 * MIB)
        clock.now += 2
        progress.update(7 * MIB)
        (line,) = terminal.shown
        assert "film.mkv"[:8] in line
        assert "70%" in line
        assert ("1.0M/s" in line and "0:03" in line) is (terminal.columns >= 50)
        assert ("━" in line) is (terminal.columns >= 80)
        assert len(line) <= terminal.columns
    assert terminal.shown == []


def test_several_have_a_bar_each_and_what_is_told_stands_above_them(terminal: Terminal) -> None:
    clock, out = Clock(), on(terminal)
    with Board(out, clock) as board:
        both = [Progress(out, f"{'long name ' * 20}to {name}", MIB, board=board) for name in ("bob", "carol")]
        for each in both:
            each.begin(0)
        clock.now += 1
        for each in both:
            each.update(MIB // 2)
        assert len(terminal.shown) == 2
        out.error(RecipientOffline("dave is offline"), about="dave")
        both[0].close()
        clock.now += 1
        both[1].update(MIB)
        assert terminal.shown[0] == "zkc: dave: dave is offline"
        assert len(terminal.shown) == 2
    assert terminal.shown == ["zkc: dave: dave is offline"]


def test_objects_are_at_most_five_a_second_and_a_last_one() -> None:
    clock, stdout = Clock(), io.StringIO()
    with Progress(Out(Style(json=True), stdout, io.StringIO()), "x", 1000, clock=clock) as progress:
        progress.begin(0)
        for done in range(1, 1001):
            clock.now += 0.002
            progress.update(done)
    told = [json.loads(line) for line in stdout.getvalue().splitlines()]
    assert 2 / OBJECT_SECONDS - 1 <= len(told) <= 2 / OBJECT_SECONDS + 1
    assert told[-1] == {"v": 1, "event": "progress", "bytes": 1000, "total": 1000}


def test_an_entry_is_named_where_there_are_several() -> None:
    clock, stdout = Clock(), io.StringIO()
    with Progress(Out(Style(json=True), stdout, io.StringIO()), "x", 10, clock=clock) as progress:
        clock.now += 1
        progress.update(5, "photos/one.jpg", 2, 3)
    told = json.loads(stdout.getvalue())
    assert (told["entry"], told["entry_bytes"], told["entry_total"]) == ("photos/one.jpg", 2, 3)


def test_of_several_files_the_one_that_it_is_at_has_a_bar_of_its_own(terminal: Terminal) -> None:
    clock = Clock()
    with Progress(on(terminal), "photos", 10 * MIB, clock=clock) as progress:
        progress.begin(0)
        progress.update(MIB, "one\x1b.jpg", MIB, 8 * MIB)
        clock.now += 2
        progress.update(5 * MIB, "one\x1b.jpg", 5 * MIB, 8 * MIB)
        whole, file = terminal.shown
        assert ("photos" in whole, "50%" in whole) == (True, True)
        assert ("one\\x1b"[:5] in file, "62%" in file) == (True, True)
        if terminal.columns >= 50:
            assert ("2.5M/s" in whole, "0:02" in whole, "2.0M/s" in file) == (True, True, True)
        # The next one begins at its own beginning.
        clock.now += 1
        progress.update(8 * MIB, "two.jpg", 0, 2 * MIB)
        whole, file = terminal.shown
        assert ("80%" in whole, "two" in file, "0%" in file, "M/s" in file) == (True, True, True, False)
    assert terminal.shown == []


def test_lines_tell_of_the_file_too() -> None:
    clock, stderr = Clock(), io.StringIO()
    with Progress(Out(Style(progress=True), io.StringIO(), stderr), "photos", 10 * MIB, clock=clock) as progress:
        progress.begin(0)
        progress.update(0, "one.jpg", 0, 8 * MIB)
        clock.now += 2
        progress.update(4 * MIB, "one.jpg", 4 * MIB, 8 * MIB)
    assert stderr.getvalue() == (
        "photos: 4.0M of 10.0M, 2.0M/s, 0:03 left; one.jpg: 4.0M of 8.0M, 2.0M/s, 0:02 left\n"
    )
