"""How far transfers are: objects for scripts, bars on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from zkc.env import Clock, SystemClock
from zkc.rules.names import escape
from zkc.rules.units import show_size
from zkc.ui.cli.output import Out, one_line

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn, TaskID

QUIET_SECONDS: Final = 0.5
"""What is over sooner shows nothing, and does not pay for the import of rich."""
REDRAW_SECONDS: Final = 0.1
OBJECT_SECONDS: Final = 0.2
"""Between two objects of one transfer."""
LINE_SECONDS: Final = 1.0
"""The same for lines."""
RATE_SECONDS: Final = 10.0
"""A rate is that of so many seconds."""
_SAMPLES: Final = 64
_NARROW: Final = (80, 50)
"""Columns of a terminal below which there is no bar, and below which there is neither rate nor time."""


class Pulse:
    """Rate and time left, of what goes by now: what was there before it began, or again, counts for neither."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def begin(self, now: float, done: int) -> None:
        """It begins, again perhaps, where ``done`` bytes are there."""
        self._seen.clear()
        self._seen.append((now, done))

    def add(self, now: float, done: int) -> None:
        """``done`` bytes by ``now``."""
        if len(self._seen) > 1 and self._seen[-1][0] - self._seen[-2][0] < RATE_SECONDS / _SAMPLES:
            self._seen.pop()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] > RATE_SECONDS:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Bytes a second; 0 while nobody knows."""
        (began, first), (now, done) = self._seen[0], self._seen[-1]
        return (done - first) / (now - began) if now > began else 0.0

    def left(self, total: int | None) -> float | None:
        """Seconds to ``total`` bytes; None where nobody knows."""
        rate = self.rate
        return None if total is None or rate <= 0 else max(total - self._seen[-1][1], 0) / rate


class Board:
    """What one command shows of its transfers: a bar, or lines, for each. Any thread."""

    def __init__(self, out: Out, clock: Clock | None = None) -> None:
        self.out: Final = out
        self.clock: Final = clock or SystemClock()
        self.mutex: Final = threading.RLock()
        """Held by whoever prints."""
        self._bars: Bars | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bars away; what came of the transfers is said by other lines."""
        with self.mutex:
            if self._bars is not None:
                self._bars.stop()
                self.out.print_above(None)
                self._bars = None

    def bars(self) -> Bars:
        """Drawn from now on."""
        if self._bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn
            from rich.table import Column

            console = Console(file=self.out.stderr)
            columns: list[ProgressColumn] = [
                TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
                TaskProgressColumn(),
            ]
            if console.width >= _NARROW[0]:
                columns[1:1] = [BarColumn(bar_width=20)]
            if console.width >= _NARROW[1]:
                columns += [
                    DownloadColumn(binary_units=True), TextColumn("{task.fields[rate]}", justify="right"),
                    TextColumn("{task.fields[left]}", justify="right"),
                ]
            # No refresh thread: the bar moves when bytes do, and a signal finds one thread.
            self._bars = Progress(
                *columns, console=console, auto_refresh=False, transient=True, redirect_stdout=False,
                redirect_stderr=False, expand=True,
            )
            self._bars.start()
            self.out.print_above(
                lambda text: console.print(text, end="", markup=False, highlight=False, emoji=False, soft_wrap=True)
            )
        return self._bars


class Progress:
    """The progress of one transfer, as a context manager; `update` may be called for each chunk.

    ``label`` is for people and is printed escaped already; ``total`` is in bytes, None while nobody knows.
    ``fields`` are added to each object. Of several transfers that share a ``board`` each has a bar, and another for
    the file that it is at, where there are several.
    """

    def __init__(
        self, out: Out, label: str, total: int | None, *, fields: dict[str, object] | None = None,
        clock: Clock | None = None, board: Board | None = None,
    ) -> None:
        self._board: Final = board or Board(out, clock)
        self._owns_board: Final = board is None
        self._out: Final = out
        self._label: Final = one_line(label)
        self._total: Final = total
        self._fields: Final = fields or {}
        self._clock: Final = self._board.clock
        self._pulse: Final = Pulse()
        self._bar: TaskID | None = None
        self._done = 0
        self._told: int | None = None
        self._entry = ""
        self._entry_done = self._entry_total = 0
        self._entry_pulse: Final = Pulse()
        self._entry_bar: TaskID | None = None
        now = self._clock.monotonic()
        self._pulse.begin(now, 0)
        self._next = now + (OBJECT_SECONDS if out.json else QUIET_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def begin(self, done: int) -> None:
        """It begins, or goes on after an interruption, where ``done`` bytes are there: they are no part of the rate."""
        with self._board.mutex:
            self._done, self._entry = done, ""
            self._pulse.begin(self._clock.monotonic(), done)

    def update(self, done: int, entry: str = "", entry_done: int = 0, entry_total: int = 0) -> None:
        """``done`` bytes by now; of several files it is at ``entry``, of which ``entry_done`` bytes are done."""
        with self._board.mutex:
            now = self._clock.monotonic()
            if entry != self._entry:
                self._entry_pulse.begin(now, entry_done)
            self._done, self._entry, self._entry_done, self._entry_total = done, entry, entry_done, entry_total
            if now < self._next or done == self._told:
                return
            self._pulse.add(now, done)
            self._entry_pulse.add(now, entry_done)
            if self._out.json:
                self._next = now + OBJECT_SECONDS
                self._tell()
            elif not self._out.shows_progress:
                self._next = float("inf")
            elif self._out.redraws:
                self._next = now + REDRAW_SECONDS
                self._draw()
            else:
                self._next = now + LINE_SECONDS
                self._out.notice(self._line())
            self._told = done

    def close(self) -> None:
        """The last object; takes the bar away. What came of the transfer is said by another line."""
        with self._board.mutex:
            if self._out.json and self._done not in (0, self._told):
                self._tell()
                self._told = self._done
            for bar in (self._bar, self._entry_bar):
                if bar is not None:
                    self._board.bars().remove_task(bar)
            self._bar = self._entry_bar = None
            if self._owns_board:
                self._board.close()

    def _tell(self) -> None:
        entry: dict[str, object] = {}
        if self._entry:
            entry = {"entry": self._entry, "entry_bytes": self._entry_done, "entry_total": self._entry_total}
        self._out.event("progress", {**self._fields, "bytes": self._done, "total": self._total, **entry})

    def _draw(self) -> None:
        bars = self._board.bars()
        if self._bar is None:
            self._bar = bars.add_task(self._label, total=self._total, rate="", left="")
            self._entry_bar = bars.add_task("", visible=False, rate="", left="")
        if self._entry_bar is not None:
            rate, left = _pace(self._entry_pulse, self._entry_total)
            bars.update(
                self._entry_bar, visible=bool(self._entry), completed=self._entry_done, total=self._entry_total,
                description=f"  {escape(self._entry)}", rate=rate, left=left,
            )
        rate, left = _pace(self._pulse, self._total)
        bars.update(self._bar, completed=self._done, refresh=True, rate=rate, left=left)

    def _line(self) -> str:
        line = f"{self._label}: {_so_far(self._done, self._total, self._pulse)}"
        if self._entry:
            line += f"; {escape(self._entry)}: {_so_far(self._entry_done, self._entry_total, self._entry_pulse)}"
        return line


def _pace(pulse: Pulse, total: int | None) -> tuple[str, str]:
    """Rate and time left, as they stand at the end of a bar."""
    rate, left = pulse.rate, pulse.left(total)
    return f"{show_size(rate)}/s" if rate else "", "" if left is None else show_left(left)


def _so_far(done: int, total: int | None, pulse: Pulse) -> str:
    """The same as a piece of a line."""
    rate, left = _pace(pulse, total)
    return (
        show_size(done)
        + (f" of {show_size(total)}" if total is not None else "")
        + (f", {rate}" if rate else "")
        + (f", {left} left" if left else "")
    )


def show_left(seconds: float) -> str:
    """Seconds, rounded, for people: ``1:05``, ``2:03:04``, ``3d``."""
    whole = round(seconds)
    if whole >= 2 * 86400:
        return f"{whole // 86400}d"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
