"""What a command waits for itself is taken by no other, as long as it lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.wanted import Wanted

FP, TID = b"f" * 32, b"t" * 16
WAITS = """
import sys
from zkc.stores.home import Home
from zkc.stores.wanted import Wanted
with Wanted(Home.resolve("client", sys.argv[1])).waiting(b"f" * 32, b"t" * 16):
    print("waits", flush=True)
    sys.stdin.read()
"""


def left(home: Home) -> list[Path]:
    return list((home.inbox / "wanted").iterdir())


def test_it_is_wanted_inside_the_block(home: Home) -> None:
    with Inbox.open(home) as inbox:
        wanted = inbox.wanted
        assert not wanted.has(FP, TID)
        with wanted.waiting(FP, TID):
            assert wanted.has(FP, TID)
            assert not wanted.has(FP, b"o" * 16)
            wanted.sweep()
            assert wanted.has(FP, TID), "it is locked"
        assert not wanted.has(FP, TID)
        assert left(home) == []


def test_who_is_killed_wants_nothing_any_more(home: Home) -> None:
    Inbox.open(home).close()
    wanted = Wanted(home)
    command = [sys.executable, "-c", WAITS, str(home.data)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waits\n"
        assert wanted.has(FP, TID)
        process.kill()
    assert not wanted.has(FP, TID)
    assert len(left(home)) == 1
    with Inbox.open(home) as inbox:
        inbox.recover(0.0)
    assert left(home) == []
