"""A recipient loses its power: what it had not synced is gone, what it has acknowledged is there, and nothing is there
twice.

No power is cut, and no file system is made for it: the daemon is killed, and its home becomes what was synced of it,
call by call (tests/support/power.py says how, and why so). What a disk itself loses after it has said that it has
synced is not tried.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from blake3 import blake3

from tests.support import power
from tests.support.held_send import HELD, SIZE, held_send
from tests.support.looking import inbox_of, payloads
from tests.support.waiting import DEADLINE, wait_until
from zkc.testing import Done, Fleet

LARGE: Final = 1_500_000
"""Three chunks."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Who know each other: nothing else than the item has to be written down."""
    with Fleet("alice", "bob", client={"transfer.listen": "tcp://127.0.0.1:0"}) as fleet:
        assert fleet.zkc("bob", "send", "alice", "-m", "hello").code == 0
        yield fleet


@pytest.fixture(autouse=True)
def empty(fleet: Fleet) -> Iterator[None]:
    yield
    items, partials = inbox_of(fleet.home("bob"))
    for item in (*items, *partials):
        fleet.client("bob")._inbox.remove(item.id)


def back(fleet: Fleet, kept: Path, unsynced: power.Unsynced) -> None:
    """Bob's daemon, on what his disk held when its power failed."""
    fleet.program("bob").kill()
    if "bob" in fleet._clients:
        fleet._clients.pop("bob").close()  # it has the inbox of before open
    power.survived(fleet.home("bob"), kept, unsynced)
    fleet.start_daemon("bob")


def once(fleet: Fleet, content: bytes) -> None:
    """One item, with its bytes."""
    (item,), partials = inbox_of(fleet.home("bob"))
    assert (partials, payloads(fleet.home("bob"))) == ([], [item.id])
    assert item.digest == blake3(content).digest()
    out = fleet.zkc("bob", "recv", "--keep", "-o", "-")
    assert (out.code, out.out) == (0, content)


def repeated(fleet: Fleet, *words: str, stdin: bytes = b"") -> dict[str, Any]:
    """What alice's command ends with, who has no receipt: bob alone knows what was delivered."""
    for receipt in (fleet.home("alice") / "receipts").iterdir():
        receipt.unlink()
    done = fleet.zkc("alice", *words, stdin=stdin)
    assert done.code == 0, done
    return done.events[-1]


@pytest.mark.attack("D14")
@pytest.mark.parametrize(
    ("size", "unsynced"), [(1000, "lost"), (LARGE, "lost"), (LARGE, "empty"), (LARGE, "zeros")]
)
def test_what_was_acknowledged_outlives_a_loss_of_power(
    fleet: Fleet, tmp_path: Path, size: int, unsynced: power.Unsynced
) -> None:
    """Whole, with its receipt, and once: its power fails as the receipt is sealed."""
    source, content, kept = tmp_path / "source", os.urandom(size), tmp_path / "kept"
    source.write_bytes(content)
    words = "send", "bob", str(source), "--json", "--id", f"{size}-{unsynced}"
    fleet.program("bob").terminate()
    power.start_daemon(fleet, "bob", kept, at="receipt")
    first = fleet.zkc("alice", *words)
    assert first.code == 0, first
    assert (kept / power.CUT).exists()
    back(fleet, kept, unsynced)
    once(fleet, content)
    again = repeated(fleet, *words)
    assert again["transfer"] == first.events[-1]["transfer"]
    once(fleet, content)


class Interrupted:
    """A command of alice's whose recipient has most of it, and has lost its power."""

    def __init__(self, fleet: Fleet, folder: Path, key: str, *, piped: bool) -> None:
        self.content = os.urandom(SIZE)
        source = folder / "source"
        source.write_bytes(self.content)
        self.words = "send", "bob", *([] if piped else [str(source)]), "--json", "--id", key
        self.stdin = self.content if piped else b""
        self._piped = piped
        self._rest = memoryview(self.content)[HELD:]
        self._out = folder / "out"
        self._fleet = fleet
        self._kept = folder / "kept"

    def __enter__(self) -> Interrupted:
        fleet = self._fleet
        fleet.program("bob").terminate()
        power.start_daemon(fleet, "bob", self._kept)
        with self._out.open("wb") as out:
            pipes = {"stdout": out, "stderr": subprocess.PIPE}
            if self._piped:
                self.process = fleet.popen("alice", *self.words, stdin=subprocess.PIPE, bufsize=0, **pipes)
                self.process.stdin.write(self.content[:HELD])
            else:
                self.process = held_send(fleet, "alice", *self.words[1:], **pipes)
        wait_until(lambda: [item.size for item in inbox_of(fleet.home("bob"))[1]] == [HELD])
        if self._piped:
            wait_until(self._heard)
        power.cut(fleet.home("bob"), self._kept)
        return self

    def _heard(self) -> bool:
        """Whether alice was told that some of it was taken over, and so has it no longer; else a little more goes out,
        for bob to say something about."""
        told = [json.loads(line) for line in self._out.read_bytes().split(b"\n")[:-1]]
        if any(event["event"] == "progress" and event["bytes"] for event in told):
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0.1)  # it tells of no more than five steps a second
        self.process.stdin.write(self._rest[:1])
        self._rest = self._rest[1:]
        return False

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def back(self, unsynced: power.Unsynced) -> None:
        back(self._fleet, self._kept, unsynced)
        assert inbox_of(self._fleet.home("bob"))[0] == []
        assert payloads(self._fleet.home("bob")) == []

    def ended(self) -> Done:
        """The command, which gets the rest."""
        _, err = self.process.communicate(self._rest if self._piped else None, timeout=2 * DEADLINE)
        return Done(self.process.returncode, self._out.read_bytes(), err)


@pytest.mark.attack("D14")
@pytest.mark.parametrize("unsynced", ["lost", "empty", "zeros"])
def test_a_running_command_delivers_a_file_whose_first_part_was_lost(
    fleet: Fleet, tmp_path: Path, unsynced: power.Unsynced
) -> None:
    """Acknowledged as taken over, and never synced: the digest of the whole tells, or its length does."""
    with Interrupted(fleet, tmp_path, f"running-{unsynced}", piped=False) as sent:
        sent.back(unsynced)
        done = sent.ended()
        assert done.code == 0, done
        once(fleet, sent.content)
        assert repeated(fleet, *sent.words)["transfer"] == done.events[-1]["transfer"]
        once(fleet, sent.content)


@pytest.mark.attack("D14")
@pytest.mark.parametrize("unsynced", ["lost", "zeros"])
def test_the_same_command_delivers_a_file_whose_first_part_was_lost(
    fleet: Fleet, tmp_path: Path, unsynced: power.Unsynced
) -> None:
    """Its sender's process is gone too."""
    with Interrupted(fleet, tmp_path, f"again-{unsynced}", piped=False) as sent:
        sent.process.kill()
        sent.process.wait()
        sent.back(unsynced)
        first = repeated(fleet, *sent.words)
        once(fleet, sent.content)
        assert repeated(fleet, *sent.words)["transfer"] == first["transfer"]
        once(fleet, sent.content)


@pytest.mark.attack("D14")
@pytest.mark.parametrize("unsynced", ["empty", "zeros"])
def test_a_pipe_whose_first_part_was_lost_is_told_so_and_its_key_delivers_once(
    fleet: Fleet, tmp_path: Path, unsynced: power.Unsynced
) -> None:
    """Nobody has those bytes any more: 31 or 32, never 0, and nothing of it is delivered."""
    with Interrupted(fleet, tmp_path, f"pipe-{unsynced}", piped=True) as sent:
        sent.back(unsynced)
        done = sent.ended()
        assert done.code in {31, 32}, done
        assert json.loads(done.out.splitlines()[-1])["event"] == "error"
        assert inbox_of(fleet.home("bob"))[0] == []
        assert payloads(fleet.home("bob")) == []
        first = repeated(fleet, *sent.words, stdin=sent.stdin)
        once(fleet, sent.content)
        assert repeated(fleet, *sent.words, stdin=sent.stdin)["transfer"] == first["transfer"]
        once(fleet, sent.content)
