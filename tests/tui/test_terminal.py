"""``zkc ui`` as a program: in a terminal, and where there is none."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Self

import pyte
import pytest

from tests.support.waiting import DEADLINE
from zkc.testing import Fleet

_UI = [sys.executable, "-m", "zkc", "ui"]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob") as running:
        assert running.zkc("alice", "send", "bob", "-m", "Hello\nBob").code == 0
        yield running


class Terminal:
    """``zkc ui`` on a terminal of its own, and what a person sees there."""

    def __init__(self, fleet: Fleet, name: str, columns: int = 80, lines: int = 24) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        env = fleet.environment(name) | {"TERM": "xterm-16color", "LC_ALL": "C.UTF-8"}
        env.pop("COLORTERM", None)
        self.process = subprocess.Popen(
            _UI, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, cwd=fleet.folder
        )
        os.close(slave)

    def press(self, keys: str) -> Self:
        os.write(self._master, keys.encode())
        return self

    def sees(self, text: str, *, gone: bool = False) -> str:
        """The screen, once ``text`` stands on it, or no more."""
        end = time.monotonic() + DEADLINE
        while (text in (shown := "\n".join(self._screen.display))) is gone:
            assert time.monotonic() < end, f"{text!r} in:\n{shown}"
            self._read()
        return shown

    def _read(self) -> None:
        if select.select([self._master], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # the program has ended
                self._stream.feed(os.read(self._master, 65536))

    def ended(self) -> int:
        end = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            assert time.monotonic() < end
            self._read()
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


DEFECT = """
import sys
from zkc.ui.cli.main import main
from zkc.ui.tui.app import Face

def fail(self):
    pin = "31415926"
    raise ValueError("a defect")

Face.on_mount = fail
sys.exit(main(["ui"]))
"""


def test_a_defect_shows_no_local_variable(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PIN may be among them."""
    monkeypatch.setattr(sys.modules[__name__], "_UI", [sys.executable, "-c", DEFECT])
    with contextlib.closing(Terminal(fleet, "alice")) as terminal:
        shown = terminal.sees("defect")
        assert terminal.ended() == 1
        assert "31415926" not in shown + terminal.sees("defect")


@pytest.mark.claims("F3")
def test_in_a_terminal_of_sixteen_colours_by_keyboard_alone(fleet: Fleet) -> None:
    with contextlib.closing(Terminal(fleet, "bob")) as terminal:
        shown = terminal.sees("│ Hello")
        assert "Inbox (1" in shown
        terminal.press("?").sees("Esc: back")
        terminal.press("\x1b").sees("Esc: back", gone=True)
        terminal.press("r").sees("New message or files")
        terminal.press("and to you").sees("and to you")
        terminal.press("\x13")
        terminal.sees("delivered to alice")
        terminal.press("q")
        assert terminal.ended() == 0
    assert fleet.zkc("alice", "recv", "-o", "-").out == b"and to you"


@pytest.mark.parametrize(
    ("env", "detail"),
    [
        ({"TERM": "dumb"}, b"cannot move its cursor"),
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, b"not UTF-8"),
    ],
)
def test_a_terminal_that_cannot_is_told_so(fleet: Fleet, env: dict[str, str], detail: bytes) -> None:
    master, slave = pty.openpty()
    done = subprocess.run(
        _UI, env=fleet.environment("bob") | {"TERM": "xterm"} | env, stdin=slave, stdout=slave, stderr=subprocess.PIPE,
        check=False, timeout=DEADLINE,
    )
    os.close(slave)
    os.close(master)
    assert done.returncode == 2
    assert detail in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_without_a_terminal_or_a_registration_or_for_a_script_it_says_what_to_do(fleet: Fleet) -> None:
    assert b"there is no terminal" in fleet.zkc("bob", "ui").err
    refused = fleet.zkc("bob", "ui", "--json")
    assert (refused.code, refused.events[-1]["code"]) == (2, 2)
    with contextlib.closing(Terminal(fleet, "nobody")) as terminal:
        assert terminal.ended() == 11
