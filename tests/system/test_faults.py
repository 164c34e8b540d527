"""What goes wrong in real life: disks, processes, sources, links. A code, one line, nothing half delivered."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from blake3 import blake3

from tests.support.held_send import HELD, SIZE, held_send
from tests.support.looking import family, inbox_of, lives, log_of, memory, payloads, stopped
from tests.support.waiting import DEADLINE, wait_until
from zkc.constants import CHUNK_MIN
from zkc.testing import Done, Fleet

MIB: Final = 1 << 20
CHUNK: Final = CHUNK_MIN
CONFIG: Final = {
    "transfer.listen": "tcp://127.0.0.1:0", "transfer.chunk": "64K", "transfer.patience": "20s",
    "log.level": "debug",  # each ending, also where one is like another
}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob", client=CONFIG) as fleet:
        fleet.join("carol")
        yield fleet


@pytest.fixture(autouse=True)
def no_defect(fleet: Fleet) -> Iterator[None]:
    """Whatever happened: no traceback in any log, and the inbox is empty for the next test."""
    yield
    for name in ("alice", "bob"):
        assert not [event for event in log_of(fleet, name) if event["event"] == "defect" or "exception" in event]
    items, partials = inbox_of(fleet.home("bob"))
    for item in (*items, *partials):
        fleet.client("bob")._inbox.remove(item.id)


def one_line(done: Done) -> str:
    """The error, which is one line and never a traceback."""
    assert done.err.endswith(b"\n"), done.err
    assert done.err.count(b"\n") == 1, done.err
    assert b"Traceback" not in done.err
    return done.err.decode()


def received(fleet: Fleet, payload: bytes) -> None:
    """The oldest item is this payload."""
    with fleet.client("bob").receive(wait=DEADLINE) as item:
        assert item.item.digest == blake3(payload).digest()
        assert item.read() == payload


def nothing(fleet: Fleet, *, partial: bool = False) -> None:
    items, partials = inbox_of(fleet.home("bob"))
    assert items == []
    assert payloads(fleet.home("bob")) == []
    assert bool(partials) == partial


@contextlib.contextmanager
def sending(fleet: Fleet, *words: str, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """``zkc send bob`` by alice, running; ended and its pipes closed afterwards."""
    with _ended(fleet.popen("alice", "send", "bob", *words, stderr=subprocess.PIPE, **options)) as process:
        yield process


@contextlib.contextmanager
def held(fleet: Fleet, source: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """The same of a new file, which stands still before its last chunk, once bob has the others, until stdin ends."""
    with source.open("wb") as file:
        file.truncate(SIZE)
    known = {item.id for item in inbox_of(fleet.home("bob"))[1]}
    words = "bob", str(source), "--json"
    with _ended(
        held_send(fleet, "alice", *words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    ) as process:
        wait_until(lambda: any(
            item.id not in known and item.size == HELD for item in inbox_of(fleet.home("bob"))[1]
        ))
        yield process


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def begun(fleet: Fleet, size: int = 1) -> None:
    """Return once bob has so many bytes of something."""
    wait_until(lambda: any(item.size >= size for item in inbox_of(fleet.home("bob"))[1]))


def failed(fleet: Fleet) -> list[dict[str, Any]]:
    """What bob's daemon has said of transfers that did not arrive."""
    return [event for event in log_of(fleet, "bob") if event["event"] == "not-received"]


def failure(fleet: Fleet, number: int) -> dict[str, Any]:
    """The ``number``th of these, once it is there."""
    wait_until(lambda: len(failed(fleet)) >= number)
    return failed(fleet)[number - 1]


# --- what is sent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 10_000_000])
@pytest.mark.parametrize("how", ["file", "pipe"])
def test_every_size_arrives_as_it_was(fleet: Fleet, tmp_path: Path, size: int, how: str) -> None:
    payload = os.urandom(size)
    if how == "file":
        (tmp_path / "source").write_bytes(payload)
        done = fleet.zkc("alice", "send", "bob", str(tmp_path / "source"), "--json")
    else:
        done = fleet.zkc("alice", "send", "bob", "--json", stdin=payload)
    assert done.code == 0, done
    delivered = done.events[-1]
    assert delivered["bytes"] == size
    assert delivered["digest"] == f"blake3:{blake3(payload).hexdigest()}"
    out = fleet.zkc("bob", "recv", "-o", "-")
    assert (out.code, out.out) == (0, payload)
    nothing(fleet)


def test_a_pipe_that_is_silent_for_a_while_is_no_fault(fleet: Fleet) -> None:
    with sending(fleet, "--json", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"a" * 3 * CHUNK)
        process.stdin.flush()
        begun(fleet, 2 * CHUNK)
        seen = len(log_of(fleet, "bob"))
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2.0)
        assert len(log_of(fleet, "bob")) == seen, "nothing happened meanwhile"
        process.stdin.write(b"b" * 10)
        process.stdin.close()
        assert process.wait(DEADLINE) == 0
    received(fleet, b"a" * 3 * CHUNK + b"b" * 10)


def test_twenty_at_once_all_arrive(fleet: Fleet) -> None:
    bodies = [os.urandom(100_000 + number) for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda body: fleet.client("alice").send("bob", body), bodies))
    assert len({result.transfer for result in results}) == 20
    items, partials = inbox_of(fleet.home("bob"))
    assert sorted(item.digest for item in items) == sorted(blake3(body).digest() for body in bodies)
    assert partials == []


def test_a_long_stream_takes_bounded_memory_at_both_ends(fleet: Fleet) -> None:
    with sending(fleet, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for _ in range(300):
            process.stdin.write(bytes(MIB))
        process.stdin.flush()
        peak = memory(process.pid, "VmHWM")  # it has no end to send yet
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, (out, err)
    assert 0 < peak < 150 * MIB
    assert max(memory(pid, "VmHWM") for pid in family(fleet.program("bob").process.pid)) < 150 * MIB
    (item,) = inbox_of(fleet.home("bob"))[0]
    assert item.size == 300 * MIB


# --- the source ------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_a_local_error(fleet: Fleet, tmp_path: Path) -> None:
    done = fleet.zkc("alice", "send", "bob", str(tmp_path / "missing"))
    assert done.code == 33
    assert "missing" in one_line(done)


def test_a_file_that_cannot_be_read_is_a_local_error(fleet: Fleet) -> None:
    # Root may read any file, but not this one: it opens, and reading it fails.
    unreadable = "/proc/self/mem"
    done = fleet.zkc("alice", "send", "bob", unreadable)
    assert done.code == 33, done
    one_line(done)
    nothing(fleet)


def test_a_file_without_a_size_arrives_as_it_is(fleet: Fleet) -> None:
    done = fleet.zkc("alice", "send", "bob", "/proc/version")
    assert done.code == 0, done
    out = fleet.zkc("bob", "recv", "-o", "-")
    assert (out.code, out.out) == (0, Path("/proc/version").read_bytes())


def test_a_pipe_in_place_of_a_file_hangs_nobody(fleet: Fleet, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    done = fleet.zkc("alice", "send", "bob", str(tmp_path / "fifo"), timeout=DEADLINE)
    assert done.code == 2
    one_line(done)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def truncate(path: Path) -> None:
    os.truncate(path, CHUNK)


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")


@pytest.mark.attack("D07")
@pytest.mark.parametrize("change", [grow, truncate, rewrite], ids=lambda change: change.__name__)
def test_a_file_that_changes_while_it_is_sent_is_not_delivered(
    fleet: Fleet, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    source = tmp_path / "source"
    failures = len(failed(fleet))
    with held(fleet, source) as process:
        change(source)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 33, out
    assert b'"source-changed"' in out
    assert failure(fleet, failures + 1)["detail"] == "source-changed", "bob was told"
    nothing(fleet)


@pytest.mark.attack("D07")
def test_a_file_that_is_replaced_meanwhile_is_sent_as_it_was(fleet: Fleet, tmp_path: Path) -> None:
    """What was opened is one file, whatever the path names later."""
    source, other = tmp_path / "source", tmp_path / "other"
    other.write_bytes(b"another")
    with held(fleet, source) as process:
        other.rename(source)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, (out, err)
    (item,) = inbox_of(fleet.home("bob"))[0]
    assert item.size == SIZE


# --- disks -----------------------------------------------------------------------------------------------------------


def test_too_little_space_is_told_before_the_first_byte_and_the_next_transfer_works(fleet: Fleet) -> None:
    fleet.join("dora")
    fleet.configure("dora", {"inbox.min_free": "8388608G"})
    fleet.start_daemon("dora")
    done = fleet.zkc("alice", "send", "dora", "--json", stdin=b"x" * 1000)
    assert done.code == 33
    assert done.events[-1]["detail"] == "no-space"
    assert payloads(fleet.home("dora")) == []
    fleet.program("dora").terminate()
    config = fleet.home("dora") / "config.toml"
    config.write_text(config.read_text().replace("8388608G", "1M"))
    fleet.start_daemon("dora")
    assert fleet.zkc("alice", "send", "dora", stdin=b"x" * 1000).code == 0
    fleet.program("dora").terminate()


@pytest.mark.root
@pytest.mark.attack("D16")
def test_a_disk_that_fills_up_in_the_middle_loses_nothing_but_that_transfer(fleet: Fleet, tmp_path: Path) -> None:
    fleet.join("erin")
    fleet.configure("erin", {"inbox.min_free": "0"})
    inbox = fleet.home("erin") / "inbox"
    inbox.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs", str(inbox)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode()}")
    try:
        fleet.start_daemon("erin")
        assert fleet.zkc("alice", "send", "erin", stdin=b"kept").code == 0
        for _ in range(2):
            # Piped: nobody knows the size in advance.
            done = fleet.zkc("alice", "send", "erin", "--json", stdin=bytes(32 * MIB))
            assert done.code == 33, done
            assert done.events[-1]["detail"] == "no-space"
            # With a pipe nobody can go on: what came of it makes room at once.
            wait_until(lambda: inbox_of(fleet.home("erin"))[1] == [])
            assert [item.size for item in inbox_of(fleet.home("erin"))[0]] == [4]
        assert fleet.zkc("alice", "send", "erin", stdin=bytes(8 * MIB)).code == 0
        assert inbox_of(fleet.home("erin"))[1] == []
        assert fleet.zkc("erin", "recv", "-o", "-").out == b"kept"
        assert len(fleet.zkc("erin", "recv", "-o", "-").out) == 8 * MIB
        assert not [event for event in log_of(fleet, "erin") if event["event"] == "defect"]
        fleet.program("erin").terminate()
    finally:
        fleet.program("erin").kill()
        subprocess.run(["umount", "-l", str(inbox)], check=True)


# --- processes ------------------------------------------------------------------------------------------------------


def test_a_recipient_that_is_killed_and_comes_back_gets_the_file_once(fleet: Fleet, tmp_path: Path) -> None:
    payload = os.urandom(MIB)
    source = tmp_path / "source"
    source.write_bytes(payload)
    daemon = fleet.program("bob")
    with stopped(daemon.process.pid), sending(fleet, str(source), stdout=subprocess.PIPE) as process:
        # Stopped before the request: it will be answered by the next daemon, or after a broken link.
        daemon.kill()
        fleet.start_daemon("bob")
        code = process.wait(60)
    if code == 21:
        assert fleet.zkc("alice", "send", "bob", str(source)).code == 0
    else:
        assert code == 0
    received(fleet, payload)
    nothing(fleet)


def test_a_recipient_killed_in_the_middle_of_a_file_gets_it_when_it_is_back(fleet: Fleet, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with held(fleet, source) as process:
        fleet.program("bob").kill()
        assert payloads(fleet.home("bob")) == []
        assert process.poll() is None, "it has patience"
        fleet.start_daemon("bob")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, (out, err)
    items, partials = inbox_of(fleet.home("bob"))
    assert [item.size for item in items] == [SIZE]
    assert partials == []


def test_a_file_whose_sender_lost_its_own_daemon_too_goes_on_by_a_link_of_its_own(
    fleet: Fleet, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(256 * MIB)
    with sending(fleet, str(source), "--json", stdout=subprocess.PIPE) as process:
        begun(fleet, MIB)
        fleet.program("alice").kill()
        fleet.program("bob").kill()
        fleet.start_daemon("bob")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, (out, err)
    assert [item.size for item in inbox_of(fleet.home("bob"))[0]] == [256 * MIB]
    fleet.start_daemon("alice")


def test_a_sender_that_waits_goes_on_without_its_daemon(fleet: Fleet) -> None:
    with fleet.popen(
        "alice", "send", "carol", "-m", "x", "--wait", "60s", "--json", stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert b"requested" in process.stdout.readline()
        fleet.program("alice").kill()
        fleet.start_daemon("carol")
        out = process.stdout.read()
        assert process.wait(60) == 0, out
    assert fleet.program("carol").terminate() == 0
    fleet.start_daemon("alice")


def test_a_pipe_whose_recipient_is_killed_goes_on_when_it_is_back(fleet: Fleet) -> None:
    """What it had not taken over is kept by the sender, and nothing else."""
    payload = os.urandom(5 * CHUNK)
    with sending(fleet, "--json", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(payload[: 3 * CHUNK])
        process.stdin.flush()
        begun(fleet, 2 * CHUNK)
        fleet.program("bob").kill()
        fleet.start_daemon("bob")
        out, _ = process.communicate(payload[3 * CHUNK :], timeout=60)
        assert process.returncode == 0, out
    received(fleet, payload)


def test_a_pipe_whose_recipient_stays_away_ends_with_31(fleet: Fleet) -> None:
    impatient = fleet.environment("alice") | {"ZKC_TRANSFER_PATIENCE": "1s"}
    command = [sys.executable, "-m", "zkc", "send", "bob", "--json"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with _ended(subprocess.Popen(command, env=impatient, **pipes)) as process:
        assert process.stdin is not None
        process.stdin.write(bytes(3 * CHUNK))
        process.stdin.flush()
        begun(fleet, 2 * CHUNK)
        fleet.program("bob").kill()
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 31, out
    fleet.start_daemon("bob")
    nothing(fleet, partial=True)


def test_a_recipient_that_stays_away_ends_the_patience_with_31(fleet: Fleet, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with held(fleet, source):
        pass
    with held(fleet, source, ZKC_TRANSFER_PATIENCE="1s") as impatient:
        fleet.program("bob").kill()
        out, _ = impatient.communicate(timeout=60)
        assert impatient.returncode == 31, out
    assert b'"interrupted"' in out
    fleet.start_daemon("bob")
    nothing(fleet, partial=True)


@pytest.mark.attack("D04")
def test_a_sender_killed_in_the_middle_leaves_a_partial_item_that_is_listed_apart(
    fleet: Fleet, tmp_path: Path
) -> None:
    failures = len(failed(fleet))
    with held(fleet, tmp_path / "source") as process:
        process.kill()
        process.wait()
    assert failure(fleet, failures + 1)["code"] == 31
    nothing(fleet, partial=True)
    assert fleet.zkc("bob", "inbox", "--json").events == []
    (listed,) = fleet.zkc("bob", "inbox", "--partial", "--json").events
    assert (listed["state"], listed["bytes"]) == ("partial", HELD)
    assert fleet.zkc("bob", "recv").code == 22
    assert fleet.zkc("bob", "inbox", "save", listed["id"]).code == 2
    assert fleet.zkc("bob", "inbox", "rm", listed["id"]).code == 0
    nothing(fleet)


@pytest.mark.attack("D16")
@pytest.mark.parametrize("how", ["the sender gives up", "the sender is killed", "both are killed"])
def test_what_came_of_a_pipe_goes_once_its_command_cannot_come_back(fleet: Fleet, how: str) -> None:
    """With Ctrl-C at once; else when its patience is over, or that of a later daemon, whose start may be what it is
    waiting for (`test_a_pipe_whose_recipient_is_killed_goes_on_when_it_is_back`)."""
    home = fleet.home("frank")
    if not home.exists():
        fleet.join("frank")
        fleet.configure("frank", {"transfer.patience": "2s"})
    fleet.start_daemon("frank")
    with _ended(fleet.popen("alice", "send", "frank", stdin=subprocess.PIPE)) as process:
        assert process.stdin is not None
        process.stdin.write(bytes(3 * CHUNK))
        process.stdin.flush()
        wait_until(lambda: any(item.size == 3 * CHUNK for item in inbox_of(home)[1]))
        if how == "both are killed":
            fleet.program("frank").kill()
        process.send_signal(signal.SIGINT if how == "the sender gives up" else signal.SIGKILL)
        process.wait(DEADLINE)
    if how == "both are killed":
        assert [item.size for item in inbox_of(home)[1]] == [3 * CHUNK]
        fleet.start_daemon("frank")
    wait_until(lambda: inbox_of(home)[1] == [])
    assert os.listdir(home / "inbox" / "partial") == []
    assert fleet.program("frank").terminate() == 0


def test_a_coordinator_that_is_killed_costs_a_running_transfer_nothing_and_all_come_back(fleet: Fleet) -> None:
    with sending(fleet, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"a" * 3 * CHUNK)
        process.stdin.flush()
        begun(fleet, 2 * CHUNK)
        pids = family(fleet.coordinator.process.pid)
        fleet.coordinator.kill()
        wait_until(lambda: not any(lives(pid) for pid in pids))
        wait_until(lambda: fleet.zkc("bob", "status").code == 10)
        process.stdin.close()
        assert process.wait(DEADLINE) == 0, "the coordinator is not needed while data flows"
    received(fleet, b"a" * 3 * CHUNK)
    fleet.start_coordinator()
    for name in ("alice", "bob"):
        assert fleet.zkc(name, "status", "--wait", "60s").code == 0, "without a hand on it"
    assert fleet.zkc("alice", "send", "bob", "--wait", "60s", stdin=b"again").code == 0
    received(fleet, b"again")


def test_a_coordinator_killed_before_a_request_makes_a_waiting_sender_wait(fleet: Fleet) -> None:
    pids = family(fleet.coordinator.process.pid)
    fleet.coordinator.kill()
    wait_until(lambda: not any(lives(pid) for pid in pids))
    refused = fleet.zkc("alice", "send", "bob", stdin=b"x")
    assert refused.code == 10
    one_line(refused)
    with sending(fleet, "-m", "when it is back", "--wait", "60s", "--json", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"requested" in process.stdout.readline()
        fleet.start_coordinator()
        assert process.wait(60) == 0
    received(fleet, b"when it is back")
