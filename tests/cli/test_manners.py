"""``zkc send`` and what others need beside it: the line's other users, and whoever waits for it to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.looking import inbox_of
from tests.support.program import PATIENCE
from tests.support.waiting import wait_until
from zkc.constants import SMALL_MAX
from zkc.rules.rates import PIECE_MIN
from zkc.testing import Fleet

MIB = 1 << 20


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob") as running:
        yield running


@pytest.fixture
def inbox(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, with bob's inbox empty before and after."""
    yield fleet
    while fleet.zkc("bob", "recv", "-o", "-").code == 0:
        pass
    # What came of a pipe goes once the daemon has heard of its sender's end.
    wait_until(lambda: all(
        fleet.zkc("bob", "inbox", "rm", item.id).code == 0 for item in inbox_of(fleet.home("bob"))[1]
    ))


@pytest.fixture
def fleets() -> Iterator[Callable[..., Fleet]]:
    """Makes fleets of a test's own, which end with it."""
    with ExitStack() as running:
        yield lambda *names, **options: running.enter_context(Fleet(*names, **options))


def a_file(folder: Path, size: int) -> Path:
    path = folder / "file.bin"
    path.write_bytes(os.urandom(size))
    return path


def told(process: subprocess.Popen[bytes]) -> Iterator[tuple[float, dict[str, Any]]]:
    """Each object of a running command, and when it came."""
    assert process.stdout is not None
    for line in process.stdout:
        yield time.monotonic(), json.loads(line)


# --- --bwlimit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "size"), [(MIB, 4 * MIB), (10 * 1024, 50 * 1024)], ids=["fast", "slow"])
@pytest.mark.parametrize("piped", [False, True], ids=["file", "pipe"])
def test_a_limit_holds_and_is_smooth(rate: int, size: int, piped: bool, inbox: Fleet, tmp_path: Path) -> None:
    """Within a fifth, from what the recipient says that it has; and never much at once."""
    path = a_file(tmp_path, size)
    with path.open("rb") as file, inbox.popen(
        "alice", "send", "bob", "--json", "--bwlimit", str(rate), *([] if piped else [str(path)]),
        stdin=file, stdout=subprocess.PIPE,
    ) as process:
        events = list(told(process))
    assert process.returncode == 0
    at, done = zip(*((when, event["bytes"]) for when, event in events if event["event"] == "progress"), strict=True)
    assert done[-1] == size
    assert 0.8 * rate < (done[-1] - done[0]) / (at[-1] - at[0]) < 1.2 * rate
    assert max(later - earlier for earlier, later in pairwise(done)) < rate + 2 * PIECE_MIN


def test_a_signal_ends_a_command_that_waits_for_its_limit(inbox: Fleet, tmp_path: Path) -> None:
    """At this rate the next piece would leave after an hour."""
    with inbox.popen(
        "alice", "send", "bob", "--json", "--bwlimit", "1", str(a_file(tmp_path, 2 * SMALL_MAX)),
        stdout=subprocess.PIPE,
    ) as process:
        wait_until(lambda: any(item.size == PIECE_MIN for item in inbox_of(inbox.home("bob"))[1]))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 143


def test_no_rate_and_none_that_can_be_read(inbox: Fleet) -> None:
    """0 is no limit, as for rsync."""
    assert inbox.zkc("alice", "send", "bob", "--bwlimit", "0", "-m", "x").code == 0
    done = inbox.zkc("alice", "send", "bob", "--bwlimit", "fast", "-m", "x")
    assert (done.code, done.err.startswith(b"zkc: send: --bwlimit: 'fast' is not a size")) == (2, True)



def test_a_small_payload_that_the_daemon_sends_is_held_to_the_limit_too(inbox: Fleet) -> None:
    began = time.monotonic()
    done = inbox.zkc("alice", "send", "bob", "--bwlimit", "10K", "--compress", stdin=os.urandom(30 * 1024))
    assert done.code == 0
    assert time.monotonic() - began > 0.8 * 3


# --- --compress -----------------------------------------------------------------------------------------------------


def digits(folder: Path, size: int) -> Path:
    """Half of it can be left out."""
    path = folder / "digits.txt"
    path.write_text(os.urandom(size // 2).hex())
    return path


def ended(process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, (out, err)
    return [json.loads(line) for line in out.splitlines()]


def begun(fleet: Fleet, size: int) -> None:
    wait_until(lambda: any(item.size >= size for item in inbox_of(fleet.home("bob"))[1]))


def arrived(fleet: Fleet, path: Path) -> None:
    done = fleet.zkc("bob", "recv", "-o", "-")
    assert (done.code, done.out == path.read_bytes()) == (0, True)
    assert inbox_of(fleet.home("bob")) == ([], [])


@pytest.mark.parametrize("source", ["sender", "coordinator"])
@pytest.mark.parametrize("piped", [False, True], ids=["file", "pipe"])
def test_what_was_compressed_on_the_way_arrives_as_it_was(
    source: str, piped: bool, fleets: Callable[..., Fleet], tmp_path: Path
) -> None:
    both = {"transfer.key_sources": ["sender", "coordinator"]}
    fleet = fleets("alice", "bob", client=both, coordinator=both)
    path = digits(tmp_path, 5 * MIB + 1)
    words = ["send", "bob", "--compress", "--json", "--key-source", source, *([] if piped else [str(path)])]
    done = fleet.zkc("alice", *words, stdin=path.read_bytes() if piped else b"")
    assert (done.code, done.events[-1]["bytes"]) == (0, path.stat().st_size)
    arrived(fleet, path)


def test_a_limit_counts_what_leaves(inbox: Fleet, tmp_path: Path) -> None:
    """8 MiB of zeros would take two minutes as they are."""
    path = tmp_path / "zeros"
    path.write_bytes(bytes(8 * MIB))
    words = ["--compress", "--bwlimit", "64K", "--json", str(path)]
    with inbox.popen("alice", "send", "bob", *words, stdout=-1) as process:
        assert ended(process)[-1]["event"] == "delivered"
    arrived(inbox, path)


@pytest.mark.attack("D10")
def test_a_compressed_transfer_outlives_both_ends(inbox: Fleet, tmp_path: Path) -> None:
    """kill -9 of the sender, whose next command need not compress; then of the recipient under a running command."""
    path = digits(tmp_path, 16 * MIB)
    words = ["alice", "send", "bob", "--json", str(path)]
    with inbox.popen(*words, "--compress", "--bwlimit", "1M", stdout=-1) as process:
        begun(inbox, 3 * MIB)
        process.kill()
    with inbox.popen(*words, "--bwlimit", "1M", stdout=-1) as process:
        begun(inbox, 6 * MIB)
        process.kill()
    with inbox.popen(*words, "--compress", "--bwlimit", "2M", stdout=-1) as process:
        begun(inbox, 9 * MIB)
        inbox.program("bob").kill()
        inbox.start_daemon("bob")
        granted = [event["resumed_from"] for event in ended(process) if event["event"] == "granted"]
    assert granted[0] >= 6 * MIB
    assert granted[-1] >= 9 * MIB
    arrived(inbox, path)
