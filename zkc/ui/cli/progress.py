"""How far a transfer is: an object a second for scripts, a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Final

from zkc.env import Clock, SystemClock
from zkc.rules.units import show_size
from zkc.ui.cli.output import Out, one_line

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

QUIET_SECONDS: Final = 0.5
"""What is over sooner shows nothing, and does not pay for the import of rich."""
REDRAW_SECONDS: Final = 0.1
LINE_SECONDS: Final = 1.0
"""Between two objects or lines."""


class Progress:
    """The progress of one transfer, as a context manager; `update` may be called for each chunk.

    ``label`` is for people and is printed escaped already; ``total`` is in bytes, None while nobody knows.
    ``fields`` are added to each object (the recipient, where there are several).
    """

    def __init__(
        self, out: Out, label: str, total: int | None, *, fields: dict[str, object] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._out: Final = out
        self._label: Final = one_line(label)
        self._total: Final = total
        self._fields: Final = fields or {}
        self._clock: Final = clock or SystemClock()
        self._next = self._clock.monotonic() + (LINE_SECONDS if out.json else QUIET_SECONDS)
        self._bar: RichProgress | None = None
        self._told: int | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, done: int) -> None:
        """``done`` bytes by now."""
        now = self._clock.monotonic()
        if now < self._next or done == self._told:
            return
        self._told = done
        if self._out.json:
            self._next = now + LINE_SECONDS
            self._out.event("progress", {**self._fields, "bytes": done, "total": self._total})
        elif not self._out.shows_progress:
            self._next = float("inf")
        elif self._out.redraws:
            self._next = now + REDRAW_SECONDS
            self._draw(done)
        else:
            self._next = now + LINE_SECONDS
            of = f" of {show_size(self._total)}" if self._total is not None else ""
            self._out.notice(f"{self._label}: {show_size(done)}{of}")

    def close(self) -> None:
        """Takes the bar away; what came of the transfer is said by another line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, done: int) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            # No refresh thread: the bar moves when bytes do, and a signal finds one thread.
            self._bar = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                console=Console(file=self._out.stderr), auto_refresh=False, transient=True, redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bar.add_task(self._label, total=self._total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, refresh=True)
