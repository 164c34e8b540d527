"""``python -m tests.support.held_send WORDS``: ``zkc WORDS``, whose file is read to `HELD` at most until stdin ends.

So what a test does in the middle of a file happens there, however busy the machine is.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any, Final

from tests.support.by_itself import send_by_itself
from tests.support.program import TOP
from zkc.client.sources import FileSource
from zkc.testing import Fleet

HELD: Final = 1 << 20
"""Bytes that go out first, in chunks of any size: the recipient writes them all. What follows is within the credit that
was there from the beginning: no acknowledgement has to come for it."""
SIZE: Final = HELD + (32 << 10)
"""Of a file that is held there: its last chunk follows, so that nothing is on its way before the last words."""


def held_send(fleet: Fleet, name: str, *words: str, env: dict[str, str] | None = None, **pipes: Any) -> Any:
    """``zkc send WORDS`` by a client, running; it goes on once the caller has closed its stdin."""
    own = fleet.environment(name) | {"PYTHONPATH": str(TOP)} | (env or {})
    command = [sys.executable, "-m", "tests.support.held_send", "send", *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=own, cwd=fleet.folder, **pipes)


class _Hold:
    """In place of `FileSource.fd`: what is polled before each read."""

    released = False

    def __get__(self, source: FileSource, _: object) -> int | None:
        held = not self.released and source._position >= HELD
        return sys.stdin.fileno() if held else None


def _hold() -> None:
    hold, read = _Hold(), FileSource.readinto

    def read_on(source: FileSource, into: memoryview) -> int:
        # Asked to read beyond: stdin is readable.
        hold.released = hold.released or source.fd is not None
        return read(source, into)

    setattr(FileSource, "fd", hold)  # noqa: B010  (for the program, not for mypy)
    setattr(FileSource, "readinto", read_on)  # noqa: B010


if __name__ == "__main__":
    from zkc.ui.cli.main import main

    _hold()
    send_by_itself()
    sys.exit(main(sys.argv[1:]))
