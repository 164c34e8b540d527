"""``zkc send bob,carol``: the same to each, one result each, and the code of the worst."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from tests.support.looking import inbox_of
from tests.support.program import PATIENCE
from tests.support.trees import make_folder
from tests.support.waiting import wait_until
from zkc.testing import Fleet

MIB = 1 << 20
RECEIVE = ("bob", "carol")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """alice sends, bob and carol receive, dave is registered and offline."""
    with Fleet("alice", *RECEIVE, client={"transfer.patience": "2s"}) as running:
        running.join("dave")
        yield running


@pytest.fixture(autouse=True)
def empty(fleet: Fleet) -> Iterator[None]:
    yield
    for name in RECEIVE:
        while fleet.zkc(name, "recv", "-o", "-").code == 0:
            pass
        # What came of a pipe goes once the daemon has heard of its sender's end; files' partial items are removed.
        wait_until(lambda name=name: all(
            fleet.zkc(name, "inbox", "rm", item.id).code == 0 for item in inbox_of(fleet.home(name))[1]
        ))


def taken(fleet: Fleet, name: str) -> bytes:
    done = fleet.zkc(name, "recv", "-o", "-")
    assert done.code == 0, done.err
    return done.out


def test_each_gets_a_file_and_has_a_result_and_a_receipt(fleet: Fleet, tmp_path: Path) -> None:
    path, copy = tmp_path / "report.bin", tmp_path / "receipt"
    path.write_bytes(os.urandom(3 * MIB))
    done = fleet.zkc("alice", "send", "bob,carol", str(path), "--json", "--receipt", str(copy))
    assert (done.code, done.err) == (0, b"")
    assert {event["recipient"] for event in done.events} == set(RECEIVE)
    for name in RECEIVE:
        mine = [event for event in done.events if event["recipient"] == name]
        assert [each["event"] for each in mine if each["event"] != "progress"] == ["requested", "granted", "delivered"]
        assert mine[-1]["digest"] == f"blake3:{blake3(path.read_bytes()).hexdigest()}"
        assert Path(f"{copy}.{name}").read_bytes() == Path(mine[-1]["receipt"]).read_bytes()
        assert taken(fleet, name) == path.read_bytes()
    assert len({event["transfer"] for event in done.events if event["event"] == "delivered"}) == 2


def test_a_person_reads_a_line_for_each(fleet: Fleet) -> None:
    done = fleet.zkc("alice", "send", "bob,dave,carol", "-m", "hello")
    lines = sorted(done.err.decode().splitlines())
    assert [line.partition(":")[0] for line in lines] == ["sent message to bob", "sent message to carol", "zkc"]
    assert lines[-1].startswith("zkc: dave: dave ")


def test_one_that_is_offline_does_not_keep_it_from_others_and_decides_the_code(fleet: Fleet) -> None:
    done = fleet.zkc("alice", "send", "dave,bob,carol", "--json", stdin=b"for all")
    ends = {event["recipient"]: event for event in done.events if event["event"] in {"delivered", "error"}}
    assert done.code == 21
    assert (ends["dave"]["event"], ends["dave"]["reason"]) == ("error", "recipient-offline")
    assert [taken(fleet, name) for name in RECEIVE] == [b"for all"] * 2


def test_the_highest_code_is_that_of_the_command(fleet: Fleet) -> None:
    """An unknown name is 20, one that is offline 21."""
    assert fleet.zkc("alice", "send", "dave,bob,nobody", "-m", "x").code == 21
    assert fleet.zkc("alice", "send", "nobody,bob", "-m", "x").code == 20


def test_a_pipe_goes_to_all_of_them(fleet: Fleet) -> None:
    data = os.urandom(24 * MIB)
    assert fleet.zkc("alice", "send", "bob,carol", "--compress", stdin=data).code == 0
    assert [taken(fleet, name) == data for name in RECEIVE] == [True, True]


def test_one_that_dies_holds_up_the_others_for_its_patience_at_most(fleet: Fleet) -> None:
    """Its pipe is full by then: the others starve until it is given up, and no longer."""
    data = os.urandom(24 * MIB)
    with fleet.popen(
        "alice", "send", "bob,carol", "--bwlimit", "16M", stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(data[: 12 * MIB])
        process.stdin.flush()
        wait_until(lambda: all(any(item.size > MIB for item in inbox_of(fleet.home(name))[1]) for name in RECEIVE))
        fleet.program("bob").kill()
        _, err = process.communicate(data[12 * MIB :], timeout=PATIENCE)
    assert process.returncode == 31, err
    assert b"zkc: bob: " in err
    assert b"sent stdin to carol" in err
    assert taken(fleet, "carol") == data
    fleet.start_daemon("bob")


def test_a_pipe_that_nobody_takes_is_not_read_to_its_end(fleet: Fleet) -> None:
    with fleet.popen("alice", "send", "dave,nobody", stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.wait(PATIENCE) == 21


def test_the_limit_is_of_the_command(fleet: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(2 * MIB))
    done = fleet.zkc("alice", "send", "bob,carol", "--bwlimit", "1M", "--json", str(path))
    assert done.code == 0
    assert max(event["seconds"] for event in done.events if event["event"] == "delivered") > 0.8 * 4


def test_a_folder_goes_to_each_and_what_is_skipped_is_told_once(fleet: Fleet, tmp_path: Path) -> None:
    place = tmp_path / "many"
    place.mkdir()
    (place / "file").write_bytes(b"content")
    os.mkfifo(place / "fifo")
    done = fleet.zkc("alice", "send", "bob,carol", str(place))
    assert (done.code, done.err.count(b"skipped")) == (0, 1)
    for name in RECEIVE:
        assert fleet.zkc(name, "recv", "-o", str(tmp_path / name)).code == 0
        assert (tmp_path / name / "file").read_bytes() == b"content"


ONCE = """
import sys
from zkc.client.walking import Walk
walk, walked = Walk.root, []
def once(self, root):
    assert not walked, "it was walked before"
    walked.append(root)
    walk(self, root)
Walk.root = once
from zkc.ui.cli.main import main
sys.exit(main())
"""


def test_a_folder_is_walked_once_whoever_it_goes_to(fleet: Fleet, tmp_path: Path) -> None:
    """A listing may be 32 MiB, and the recipients 64."""
    place = make_folder(tmp_path / "many")
    command = [sys.executable, "-c", ONCE, "send", "bob,carol", str(place)]
    done = subprocess.run(command, env=fleet.environment("alice"), capture_output=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    for name in RECEIVE:
        assert fleet.zkc(name, "recv", "-o", str(tmp_path / name)).code == 0
        assert (tmp_path / name / "big.bin").read_bytes() == (place / "big.bin").read_bytes()


@pytest.mark.attack("L07")
def test_a_signal_ends_all_of_them(fleet: Fleet) -> None:
    words = ["send", "bob,dave", "--wait", "60s", "--bwlimit", "1K"]
    with fleet.popen("alice", *words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(bytes(MIB // 16))
        process.stdin.flush()
        wait_until(lambda: inbox_of(fleet.home("bob"))[1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 143
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert inbox_of(fleet.home("bob"))[0] == []


def test_a_key_delivers_once_to_each(fleet: Fleet) -> None:
    words = ["send", "--json", "--id", "nightly", "-m", "x"]
    first = fleet.zkc("alice", *words, "bob,carol")
    again = fleet.zkc("alice", *words, "carol,bob")
    told = [
        {event["recipient"]: event["transfer"] for event in done.events if event["event"] == "delivered"}
        for done in (first, again)
    ]
    assert told[0] == told[1]
    assert set(told[0]) == set(RECEIVE)
    assert [len(inbox_of(fleet.home(name))[0]) for name in RECEIVE] == [1, 1]


def test_a_dry_run_asks_each(fleet: Fleet) -> None:
    done = fleet.zkc("alice", "send", "bob,carol,dave", "--dry-run", "--json", stdin=b"x")
    assert done.code == 21
    assert {event["recipient"] for event in done.events if event["event"] == "accepted"} == set(RECEIVE)
    assert inbox_of(fleet.home("bob")) == ([], [])


@pytest.mark.parametrize(
    "words",
    [["bob,bob"], ["bob,"], [",bob"], ["bob, carol"], ["bob,carol", "--receipt", "-"],
     [",".join(f"n{number}" for number in range(65))]],
)  # fmt: skip
def test_what_cannot_be_meant_is_a_usage_error(words: list[str], fleet: Fleet) -> None:
    assert fleet.zkc("alice", "send", *words, "-m", "x").code == 2
