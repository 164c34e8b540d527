"""A recipient whose disk fills up, that is slow, or to whom 64 come at once: nothing is lost, and memory is bounded."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from blake3 import blake3

from tests.support.held_daemon import Hold, held_daemon
from tests.support.looking import inbox_of, log_of, memory, payloads
from tests.support.waiting import DEADLINE, wait_until
from zkc.constants import WINDOW_MAX
from zkc.testing import Done, Fleet

MIB: Final = 1 << 20
MEMORY: Final = 150 * MIB
LONG: Final = 4 * DEADLINE


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    client = {"transfer.listen": "tcp://127.0.0.1:0", "transfer.patience": "60s", "log.level": "debug"}
    with Fleet("alice", "bob", client=client) as fleet:
        yield fleet


@pytest.fixture(autouse=True)
def no_defect(fleet: Fleet) -> Iterator[None]:
    """Whatever happened: no traceback in any log, and the inbox is empty for the next test."""
    yield
    for name in ("alice", "bob"):
        assert not [event for event in log_of(fleet, name) if event["event"] == "defect" or "exception" in event]
    assert inbox_of(fleet.home("bob")) == ([], [])
    assert payloads(fleet.home("bob")) == []


@contextlib.contextmanager
def sending(fleet: Fleet, *words: str, **pipes: Any) -> Iterator[subprocess.Popen[bytes]]:
    """``zkc send`` by alice, running."""
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | pipes
    process = fleet.popen("alice", "send", *words, "--json", **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def result(process: subprocess.Popen[bytes]) -> Done:
    out, err = process.communicate(timeout=LONG)
    return Done(process.returncode, out, err)


def begun(fleet: Fleet, name: str, size: int) -> int:
    """Return once a client has so many bytes of something: how many they are."""
    wait_until(lambda: any(item.size >= size for item in inbox_of(fleet.home(name))[1]))
    return inbox_of(fleet.home(name))[1][0].size


def being_received(fleet: Fleet, name: str) -> bool:
    """Whether a client's daemon writes a partial item now."""
    partial = str(fleet.home(name) / "inbox" / "partial")
    found = []
    for descriptor in Path(f"/proc/{fleet.program(name).process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(descriptor))
    return any(path.startswith(f"{partial}/") for path in found)


def positions(done: Done) -> list[int]:
    """Where the recipient stood at each handshake."""
    return [event["resumed_from"] for event in done.events if event["event"] == "granted"]


# --- a full disk ----------------------------------------------------------------------------------------------------


DISK: Final = 64 * MIB
SIZE: Final = 30 * MIB
"""Of what is sent: of its size the handshake tells that it is more than 16 MiB."""


@pytest.fixture
def erin(fleet: Fleet) -> Iterator[Path]:
    """A client whose inbox is a disk of its own: where that is. Needs root."""
    inbox = fleet.home("erin") / "inbox"
    if not inbox.exists():
        fleet.join("erin")
        fleet.configure("erin", {"inbox.min_free": "0"})
        inbox.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0700", "tmpfs", str(inbox)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode()}")
    try:
        fleet.start_daemon("erin")
        yield inbox
        assert not [event for event in log_of(fleet, "erin") if event["event"] == "defect" or "exception" in event]
    finally:
        fleet.program("erin").kill()
        subprocess.run(["umount", "-l", str(inbox)], check=True)


def fill(filler: Path, left: int) -> None:
    """Another file takes all room of a disk but ``left`` bytes."""
    disk = os.statvfs(filler.parent)
    with filler.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, file.tell() + disk.f_bavail * disk.f_frsize - left)


def a_file(folder: Path) -> Path:
    source = folder / "source.bin"
    source.write_bytes(os.urandom(SIZE))
    return source


def a_folder(folder: Path) -> Path:
    source = folder / "many"
    source.mkdir()
    for number in range(8):
        (source / f"{number}.bin").write_bytes(os.urandom(SIZE // 8))
    return source


def content(path: Path) -> dict[str, bytes]:
    """Of a file, or of each in a folder: its digest."""
    files = {"": path} if path.is_file() else {file.name: file for file in path.iterdir()}
    return {name: blake3(file.read_bytes()).digest() for name, file in files.items()}


@pytest.mark.root
@pytest.mark.attack("D16", "D10")
@pytest.mark.parametrize("make", [a_file, a_folder], ids=["file", "folder"])
def test_what_finds_no_room_in_the_middle_goes_on_once_there_is_some(
    fleet: Fleet, erin: Path, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    """33 each time, and no byte that has come is lost meanwhile, or sent again. (A pipe, with which nobody can go on,
    is in test_faults.py.)"""
    source, filler = make(tmp_path), erin / "filler"
    words = "erin", str(source)
    stopped_at = [0]
    for part in (SIZE // 3, SIZE - 6 * MIB):
        with sending(fleet, *words, "--bwlimit", "16M") as process:
            here = begun(fleet, "erin", stopped_at[-1] + MIB)
            fill(filler, part - here)
            full = result(process)
        assert positions(full) == stopped_at[-1:]
        no_room(full)
        wait_until(lambda: not being_received(fleet, "erin"))
        (listed,) = fleet.zkc("erin", "inbox", "--partial", "--json").events
        assert (listed["state"], here <= listed["bytes"] < SIZE) == ("partial", True)
        assert fleet.zkc("erin", "inbox", "--json").events == []
        stopped_at.append(listed["bytes"])
        # Not a byte; then enough for what the handshake tells of the size, and not for all of it.
        for left in (0, SIZE - stopped_at[-1] - MIB):
            filler.unlink(missing_ok=True)
            fill(filler, left)
            no_room(fleet.zkc("alice", "send", *words, "--json"))
            wait_until(lambda: not being_received(fleet, "erin"))
            assert [item.size for item in inbox_of(fleet.home("erin"))[1]] == stopped_at[-1:]
        filler.unlink()

    # Enough for the rest, and for nothing else.
    fill(filler, SIZE - stopped_at[-1] + MIB)
    done = fleet.zkc("alice", "send", *words, "--json")
    assert (done.code, positions(done)) == (0, stopped_at[-1:]), done
    assert inbox_of(fleet.home("erin"))[1] == []
    taken = tmp_path / "taken"
    assert fleet.zkc("erin", "recv", "-o", str(taken)).code == 0
    assert content(taken) == content(source)
    assert fleet.zkc("erin", "recv").code == 22


def no_room(done: Done) -> None:
    assert (done.code, done.events[-1]["reason"], done.events[-1]["detail"]) == (33, "local-io", "no-space"), done


# --- a slow recipient -----------------------------------------------------------------------------------------------


class Feed:
    """``total`` bytes for a command's stdin, from a thread: as fast as it takes them, and no end."""

    def __init__(self, process: subprocess.Popen[bytes], total: int) -> None:
        assert process.stdin is not None
        self.taken = 0
        """Bytes so far."""
        self._stdin = process.stdin
        self._total = total
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def stands_still(self) -> bool:
        """Whether nothing was taken for a while."""
        before = self.taken
        self._thread.join(0.2)
        return self._thread.is_alive() and self.taken == before

    def end(self) -> None:
        """Once it has taken all."""
        self._thread.join(LONG)
        assert self.taken == self._total

    def _write(self) -> None:
        piece = memoryview(PIECE)
        # A test that fails ends the command, and its pipe.
        with contextlib.suppress(BrokenPipeError, ValueError):
            while self.taken < self._total:
                self.taken += os.write(self._stdin.fileno(), piece[: self._total - self.taken])


PIECE: Final = bytes(MIB)
STREAM: Final = 200 * MIB
AHEAD: Final = 2 * WINDOW_MAX
"""Bytes that a sender may have read and a recipient not yet written: a window, and what sockets and pipes hold."""


@pytest.mark.attack("D18")
def test_a_slow_disk_holds_its_sender_back_and_nothing_else_happens(fleet: Fleet, tmp_path: Path) -> None:
    """It takes longer than anybody has patience, which is for what is lost. Memory is bounded at both ends."""
    slow = tmp_path / "slow"
    slow.touch()
    patience = fleet.environment("alice") | {"ZKC_TRANSFER_PATIENCE": "5s"}
    with held_daemon(fleet, "bob", Hold(slow=str(slow))) as daemon, sending(fleet, "bob", env=patience) as process:
        feed = Feed(process, STREAM)
        for part in range(1, 10):
            here = begun(fleet, "bob", part * 6 * MIB)
            assert feed.taken - here < AHEAD
        slow.unlink()
        feed.end()
        # It has no end to send yet.
        assert memory(process.pid, "VmHWM") < MEMORY
        done = result(process)
        assert (done.code, positions(done), done.events[-1]["bytes"]) == (0, [0], STREAM), done
        assert memory(daemon.process.pid, "VmHWM") < MEMORY
    taken(fleet, blake3(bytes(STREAM)).digest())


@contextlib.contextmanager
def waiting(fleet: Fleet, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """``zkc recv --live`` by a client, which waits for a transfer by now."""
    with fleet.popen(name, "recv", "--live", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            assert b"waiting" in process.stderr.readline()
            yield process
        finally:
            process.kill()


@pytest.mark.attack("D18")
def test_a_slow_reader_of_a_stream_holds_its_sender_back_and_nothing_else_happens(fleet: Fleet) -> None:
    with waiting(fleet, "bob") as reader, sending(fleet, "bob") as process:
        assert reader.stdout is not None
        feed, got = Feed(process, STREAM), 0
        for _ in range(8):
            wait_until(feed.stands_still)
            assert feed.taken - got < AHEAD
            got += len(reader.stdout.read(4 * MIB))
        while got < STREAM - AHEAD:
            got += len(reader.stdout.read(MIB))
        peaks = [memory(each.pid, "VmHWM") for each in (reader, process)]
        rest = ThreadPoolExecutor(1).submit(reader.stdout.read)
        feed.end()
        done = result(process)
        assert got + len(rest.result(LONG)) == STREAM
        assert reader.wait(DEADLINE) == 0
    assert (done.code, positions(done), done.events[-1]["bytes"]) == (0, [0], STREAM), done
    assert max(peaks) < MEMORY


def taken(fleet: Fleet, *digests: bytes) -> None:
    """These items are in bob's inbox, and leave it."""
    items, partials = inbox_of(fleet.home("bob"))
    assert partials == []
    assert sorted(item.digest for item in items) == sorted(digests)
    for _ in digests:
        with fleet.client("bob").receive() as item, item.open() as payload:
            whole = blake3()
            while piece := payload.read(MIB):
                whole.update(piece)
            assert whole.digest() == item.item.digest


# --- many at once ---------------------------------------------------------------------------------------------------


MANY: Final = 64
"""As many as one sender may have under way to one recipient."""


def test_sixty_four_at_once_all_arrive_in_bounded_memory(fleet: Fleet) -> None:
    """None ends before each has begun; then all go on."""
    bodies = [os.urandom(MIB // 2 + number) * 4 for number in range(MANY)]
    daemon = fleet.program("bob").process
    all_begun = threading.Event()

    def send(body: bytes) -> bytes:
        readable, writable = os.pipe()
        with open(readable, "rb") as source, open(writable, "wb") as sink:
            sent = pool.submit(fleet.client("alice").send, "bob", source)
            sink.write(body[: MIB // 2])
            sink.flush()
            assert all_begun.wait(LONG)
            sink.write(body[MIB // 2 :])
            sink.close()
            return bytes.fromhex(sent.result(LONG).digest.removeprefix("blake3:"))

    with ThreadPoolExecutor(MANY) as pool, ThreadPoolExecutor(MANY) as feeders:
        sending = [feeders.submit(send, body) for body in bodies]
        try:
            wait_until(lambda: sum(item.size > 0 for item in inbox_of(fleet.home("bob"))[1]) == MANY)
        finally:
            all_begun.set()
        digests = [each.result(LONG) for each in sending]
    assert digests == [blake3(body).digest() for body in bodies]
    assert memory(daemon.pid, "VmHWM") < MEMORY
    taken(fleet, *digests)
