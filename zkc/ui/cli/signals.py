"""SIGINT and SIGTERM during a command that has something to put in order before it ends."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Final, Self

_NUMBERS: Final = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """A context in which a signal is noted, told to ``on_signal``, and raised once, as `SystemExit` with its code.

    Whatever comes of the block after a signal, the exit code is that of the signal; 0 where ``graceful``. Nothing is
    raised where ``on_signal`` answers True: the block then ends by itself, at a point that suits it.
    """

    def __init__(self, on_signal: Callable[[], object] = lambda: None, *, graceful: bool = False) -> None:
        self._on_signal: Final = on_signal
        self._graceful: Final = graceful
        self._number: int | None = None
        self._before: dict[int, object] = {}

    @property
    def code(self) -> int:
        """What the command ends with, once there was a signal."""
        return 0 if self._graceful or self._number is None else 128 + self._number

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._came) for number in _NUMBERS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave
        if self._number is not None:
            raise SystemExit(self.code) from None

    def _came(self, number: int, _frame: FrameType | None) -> None:
        """A second one does not disturb what the first has begun to put in order, which takes bounded time."""
        if self._number is None:
            self._number = number
            if self._on_signal() is True:
                return
            raise SystemExit(self.code)
