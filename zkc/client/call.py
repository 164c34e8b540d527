"""One call of a program that is under way in a thread, and how it is told to end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from zkc.errors import Interrupted, ZkcError
from zkc.net.pipe.bell import Bell


class Call:
    """One call under way. It is told to end from any thread, also before it has begun and after it has ended."""

    def __init__(self) -> None:
        self._reason: ZkcError | None = None
        self._mutex = threading.Lock()
        self._told = threading.Event()
        self._ways: list[Callable[[], object]] = []

    def end(self, reason: ZkcError | None = None) -> None:
        """``reason``: what it ends with where it is heard by a bell; of several the first counts."""
        with self._mutex:
            self._reason = self._reason or reason
            self._told.set()
            for way in self._ways:
                way()

    @property
    def reason(self) -> ZkcError | None:
        """What it was told to end with; None: it was not, or nobody said why."""
        return self._reason

    @property
    def ended(self) -> bool:
        """Whether it was told to end."""
        return self._told.is_set()

    @contextlib.contextmanager
    def ended_by(self, way: Callable[[], object]) -> Iterator[None]:
        """Inside the block `end` calls ``way``, at once where this was told to end already; never after the block."""
        with self._mutex:
            self._ways.append(way)
            if self._told.is_set():
                way()
        try:
            yield
        finally:
            with self._mutex:
                self._ways.remove(way)

    @contextlib.contextmanager
    def bell(self) -> Iterator[Bell]:
        """A bell that `end` rings; never once its descriptors may be somebody else's."""
        with contextlib.closing(Bell()) as bell, self.ended_by(lambda: bell.ring(self._reason)):
            yield bell

    def check(self) -> None:
        """Raises what it ends with, once it is told to."""
        if self._told.is_set():
            raise self._reason or Interrupted("this client ends", detail="shutdown")

    def pause(self, seconds: float) -> None:
        """Sleep; `Interrupted` when it is told to end."""
        if self._told.wait(seconds):
            raise Interrupted("waiting for an item was interrupted")
