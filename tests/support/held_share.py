"""``python -m tests.support.held_share GATE``: ``zkc daemon``, which reads `HELD` bytes at most of what it sends on
request while there is a FIFO at GATE, until somebody writes into that.

So what a test does to a right in the middle of a delivery happens there, however busy the machine is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

from tests.support.program import TOP
from zkc.client.sources import FileSource
from zkc.client.trees import TreeSource
from zkc.testing import Fleet, Program

HELD: Final = 1 << 20


def start_held(fleet: Fleet, name: str, gate: Path) -> Program:
    """In the place of a client's daemon, for as long as there is none other."""
    own = fleet.environment(name) | {"PYTHONPATH": str(TOP)}
    command = [sys.executable, "-m", "tests.support.held_share", str(gate)]
    fleet.program(name).kill()
    program = fleet._programs[name] = Program(command, own, fleet.folder / f"{name}.log")
    program.wait_ready()
    fleet.wait_linked(name)
    return program


class _Held:
    """In place of `FileSource.fd` and `TreeSource.fd`: what is polled before each read."""

    def __init__(self, gate: Path) -> None:
        self._gate = gate
        self._opened: int | None = None

    def __get__(self, source: Any, _: object) -> int | None:
        if source._position < HELD or not self._gate.exists():
            return None
        if self._opened is None or self._is_another(self._opened):
            self._opened = os.open(self._gate, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return self._opened

    def _is_another(self, descriptor: int) -> bool:
        """Whether the FIFO there is of a later test."""
        return not os.path.samestat(os.fstat(descriptor), self._gate.stat())


if __name__ == "__main__":
    from zkc.ui.cli.main import main

    held = _Held(Path(sys.argv[1]))
    for kind in (FileSource, TreeSource):
        setattr(kind, "fd", held)  # noqa: B010  (for the program, not for mypy)
    sys.exit(main(["daemon"]))
