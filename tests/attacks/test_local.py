"""The local control socket, and how programs end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.bystander import transfer_meanwhile
from tests.support.held_send import SIZE, held_send
from tests.support.looking import inbox_of, log_of, memory, stopped, tree
from tests.support.nobody import NOBODY, knock
from tests.support.waiting import DEADLINE, wait_until
from zkc.client.control import AskStatus
from zkc.constants import CONTROL_CONNECTIONS_MAX, CONTROL_REQUEST_MAX
from zkc.net.local import REQUEST_SECONDS
from zkc.net.local_client import encode
from zkc.testing import Fleet

MIB: Final = 1 << 20


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """alice and bob with daemons; carol's home is for what ends badly."""
    config = {"transfer.listen": "tcp://127.0.0.1:0", "transfer.chunk": "64K", "transfer.patience": "60s"}
    with Fleet("alice", "bob", client=config) as fleet:
        fleet.join("carol")
        yield fleet


def control(fleet: Fleet, name: str) -> Path:
    return fleet.home(name) / "run" / "control.sock"


def is_served(fleet: Fleet, name: str) -> bool:
    return fleet.zkc(name, "status", "--wait", "20s").code == 0


def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(DEADLINE)
    sock.connect(os.fspath(path))
    return sock


def is_closed(sock: socket.socket) -> bool:
    """Once the other side has closed; `TimeoutError` if it does not."""
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(4096):
            pass
    return True


# --- who may talk --------------------------------------------------------------------------------------------------


@pytest.mark.attack("L01")
def test_the_socket_is_for_its_owner_alone(fleet: Fleet) -> None:
    path = control(fleet, "bob")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.root
@pytest.mark.attack("L01")
@pytest.mark.parametrize("opened", [False, True], ids=["as zkc made it", "with modes that let everybody in"])
def test_another_user_is_refused_by_mode_and_by_the_kernel_s_word(fleet: Fleet, opened: bool) -> None:
    path = control(fleet, "bob")
    try:
        if opened:
            path.parent.chmod(0o755)
            path.chmod(0o666)
        outcome = knock(path, frame(encode(AskStatus())))
    finally:
        path.chmod(0o600)
        path.parent.chmod(0o700)
    if opened:
        assert outcome == "closed"
        wait_until(lambda: any(
            event.get("why") == "foreign-uid" and event["uid"] == NOBODY for event in log_of(fleet, "bob")
        ))
    else:
        assert outcome == "denied"
    assert is_served(fleet, "bob")


# --- the path ------------------------------------------------------------------------------------------------------


def a_file(path: Path, _: Path) -> None:
    path.write_text("somebody's")


def a_link_to_a_file(path: Path, elsewhere: Path) -> None:
    elsewhere.write_text("somebody's")
    path.symlink_to(elsewhere)


def a_link_to_nowhere(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere)


def a_folder(path: Path, _: Path) -> None:
    path.mkdir()


def a_pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


def a_socket_that_anybody_may_write_to(path: Path, _: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(path))
    path.chmod(0o777)


def a_folder_open_to_all(path: Path, _: Path) -> None:
    path.parent.chmod(0o777)


def a_link_in_place_of_the_folder(path: Path, elsewhere: Path) -> None:
    shutil.rmtree(path.parent)
    elsewhere.mkdir(mode=0o700)
    path.parent.symlink_to(elsewhere)


def a_folder_of_somebody_else(path: Path, _: Path) -> None:
    os.chown(path.parent, NOBODY, NOBODY)


IN_THE_WAY: Final = [
    a_file, a_link_to_a_file, a_link_to_nowhere, a_folder, a_pipe, a_socket_that_anybody_may_write_to,
    a_folder_open_to_all, a_link_in_place_of_the_folder,
    pytest.param(a_folder_of_somebody_else, marks=pytest.mark.root),
]


@pytest.mark.attack("L02")
@pytest.mark.parametrize("put", IN_THE_WAY, ids=lambda put: put.__name__)
def test_what_stands_where_the_socket_belongs_is_refused_and_left_as_it_is(
    fleet: Fleet, tmp_path: Path, put: Callable[[Path, Path], None]
) -> None:
    path, elsewhere = control(fleet, "carol"), tmp_path / "elsewhere"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.unlink(missing_ok=True)
    put(path, elsewhere)
    before = tree(fleet.home("carol")) | tree(tmp_path)
    before.pop("run/lock", None)
    try:
        done = fleet.zkc("carol", "daemon", timeout=DEADLINE)
        assert done.code in {33, 34}, done
        assert done.err.count(b"\n") == 1, done.err
        after = tree(fleet.home("carol")) | tree(tmp_path)
        assert {name: after.get(name) for name in before} == before
    finally:
        if path.parent.is_symlink():
            path.parent.unlink()
        else:
            os.chown(path.parent, os.geteuid(), os.getegid())
            shutil.rmtree(path.parent)


# --- one daemon ----------------------------------------------------------------------------------------------------


@pytest.mark.attack("L03")
def test_a_second_daemon_ends_at_once_and_the_first_goes_on(fleet: Fleet) -> None:
    done = fleet.zkc("bob", "daemon", "--json", timeout=DEADLINE)
    assert done.code == 34
    assert done.events[-1]["reason"] == "daemon"
    assert done.events[-1]["detail"] == "already-running"
    assert is_served(fleet, "bob")
    fleet.client("alice").send("bob", b"still here")
    with fleet.client("bob").receive() as item:
        assert item.read() == b"still here"


@pytest.mark.attack("L06")
def test_after_a_killed_daemon_commands_help_themselves_and_the_next_one_recovers(fleet: Fleet) -> None:
    assert fleet.program("alice").kill() == -signal.SIGKILL
    assert control(fleet, "alice").is_socket(), "the stale socket is there"
    status = fleet.zkc("alice", "status", "--json")
    assert status.code == 34
    assert status.events[-1]["detail"] == "not-running"
    sent = fleet.zkc("alice", "send", "bob", stdin=b"by a link of my own")
    assert sent.code == 0, sent
    with fleet.client("bob").receive(sender="alice") as item:
        assert item.read() == b"by a link of my own"
    fleet.start_daemon("alice")
    assert is_served(fleet, "alice")
    assert fleet.zkc("alice", "send", "bob", stdin=b"by the daemon").code == 0
    with fleet.client("bob").receive(sender="alice"):
        pass


# --- what is said on it ---------------------------------------------------------------------------------------------


def frame(body: bytes, length: int | None = None) -> bytes:
    return (len(body) if length is None else length).to_bytes(4, "big") + body


@pytest.mark.attack("L04")
@pytest.mark.parametrize(
    "words",
    [
        b"\0\0\0\0", frame(b"\xff"), frame(b"", 1 << 31), frame(b"", (1 << 32) - 1), frame(b"x" * 100),
        frame(b'["other"]'), frame(b"[" * 10_000), frame(b'["grant",'), b"GET / HTTP/1.1\r\n\r\n",
        frame(b"", CONTROL_REQUEST_MAX + 1) + bytes(MIB),
    ],
    ids=["empty", "no JSON", "2 GiB", "4 GiB", "text", "unknown request", "nested", "short list", "HTTP", "long"],
)
def test_a_malformed_request_ends_its_connection_and_nothing_else(fleet: Fleet, words: bytes) -> None:
    with connected(control(fleet, "bob")) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(words)
        assert is_closed(sock)
    assert is_served(fleet, "bob")
    assert not [event for event in log_of(fleet, "bob") if event["event"] == "defect" or "exception" in event]


@pytest.mark.attack("L04")
def test_an_endless_request_takes_no_memory(fleet: Fleet) -> None:
    pid = fleet.program("bob").process.pid
    before = memory(pid)
    with connected(control(fleet, "bob")) as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(frame(b"", CONTROL_REQUEST_MAX))
        for _ in range(64):
            sock.sendall(bytes(MIB))
    assert memory(pid) - before < 16 * MIB
    assert is_served(fleet, "bob")


@pytest.mark.attack("L04")
def test_half_a_request_is_ended_by_its_own_clock(fleet: Fleet) -> None:
    with connected(control(fleet, "bob")) as sock:
        sock.sendall(frame(b"half", 100))
        assert is_closed(sock)
    wait_until(lambda: any(event.get("why") == "half-request" for event in log_of(fleet, "bob")))


@pytest.mark.attack("L04")
def test_of_a_thousand_connections_few_stand_and_the_daemon_is_alive(fleet: Fleet) -> None:
    pid, path, count = fleet.program("bob").process.pid, os.fspath(control(fleet, "bob")), 1000
    descriptors = descriptors_of(pid)
    with contextlib.ExitStack() as opened, transfer_meanwhile(fleet):
        before, began = memory(pid), time.monotonic()
        crowd = []
        for _ in range(count):
            crowd.append(opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)))
            crowd[-1].setblocking(False)
            # Not before the daemon has taken earlier ones: the kernel queues only so many.
            wait_until(lambda: crowd[-1].connect_ex(path) == 0)
        said: dict[socket.socket, bytes] = {}
        wait_until(lambda: sum(stands(each, said) for each in crowd) <= CONTROL_CONNECTIONS_MAX)
        # One that says nothing has its place for REQUEST_SECONDS: so many were let in at most, the rest were refused.
        let_in = CONTROL_CONNECTIONS_MAX * (1 + int((time.monotonic() - began) / REQUEST_SECONDS))
        refused = sum(b"too many" in words for words in said.values())
        assert count - let_in <= refused <= count - CONTROL_CONNECTIONS_MAX
        assert descriptors_of(pid) <= descriptors + CONTROL_CONNECTIONS_MAX + 32
        assert memory(pid) - before < 16 * MIB
    wait_until(lambda: is_served(fleet, "bob"))
    with transfer_meanwhile(fleet):
        pass


def stands(sock: socket.socket, said: dict[socket.socket, bytes]) -> bool:
    """Whether the other side has not closed it; what it said until then is kept in ``said``."""
    try:
        while data := sock.recv(4096):
            said[sock] = said.get(sock, b"") + data
    except BlockingIOError:
        return True
    except ConnectionResetError:
        pass
    return False


def descriptors_of(pid: int) -> int:
    """What the process has open, as far as root sees it; nobody else looks into a protected process."""
    return len(os.listdir(f"/proc/{pid}/fd")) if os.geteuid() == 0 else 0


# --- the end ---------------------------------------------------------------------------------------------------------

ENDINGS: Final = {signal.SIGTERM: 143, signal.SIGINT: 130}


def ended(process: subprocess.Popen[bytes], number: int, within: float = DEADLINE) -> int:
    """The exit status after a signal; how long it took is bounded."""
    began = time.monotonic()
    process.send_signal(number)
    try:
        code = process.wait(within)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    assert time.monotonic() - began < within
    return code


@pytest.mark.attack("L07")
@pytest.mark.parametrize("number", ENDINGS, ids=lambda number: number.name)
@pytest.mark.parametrize("coordinator", ["there", "stopped"])
def test_a_daemon_ends_with_0_whatever_the_coordinator_does(fleet: Fleet, number: int, coordinator: str) -> None:
    daemon = fleet.start_daemon("carol")
    with stopped(fleet.coordinator.process.pid) if coordinator == "stopped" else contextlib.nullcontext():
        daemon.process.send_signal(number)
        assert daemon.process.wait(DEADLINE) == 0
    daemon.terminate()
    assert not control(fleet, "carol").exists()


@pytest.mark.attack("L07")
@pytest.mark.parametrize("number", ENDINGS, ids=lambda number: number.name)
def test_a_daemon_ends_in_the_middle_of_a_transfer_and_its_sender_knows(fleet: Fleet, number: int) -> None:
    daemon = fleet.start_daemon("carol")
    sender = slow_send(fleet, "alice", "carol", ZKC_TRANSFER_PATIENCE="2s")
    daemon.process.send_signal(number)
    assert daemon.process.wait(DEADLINE) == 0
    daemon.terminate()
    assert sender.stdin is not None
    sender.stdin.close()
    assert sender.wait(DEADLINE) == 31
    sender.kill()
    sender.wait()
    assert sender.stdout is not None
    sender.stdout.close()


def slow_send(fleet: Fleet, name: str, recipient: str, **variables: str) -> subprocess.Popen[bytes]:
    """A sender of a pipe that goes on, once its first bytes are at the recipient."""
    known = {item.id for item in inbox_of(fleet.home(recipient))[1]}
    pipe = subprocess.PIPE
    process = fleet.popen(name, "send", recipient, "--json", env=variables, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    process.stdin.write(bytes(200 * 1024))
    process.stdin.flush()
    wait_until(lambda: [item for item in inbox_of(fleet.home(recipient))[1] if item.id not in known and item.size])
    return process


def unlinked(fleet: Fleet) -> contextlib.AbstractContextManager[None]:
    return stopped(fleet.coordinator.process.pid)


PHASES: Final = [
    "while it links", "while it waits for the daemon", "while it waits for the recipient", "while it sends",
    "while its recipient stands still", "while its pipe is silent", "after its recipient was killed",
]


@pytest.mark.attack("L07")
@pytest.mark.parametrize("number", ENDINGS, ids=lambda number: number.name)
@pytest.mark.parametrize("phase", PHASES)
def test_a_sender_ends_with_the_code_of_the_signal_in_every_phase(fleet: Fleet, phase: str, number: int) -> None:
    if phase == "while it waits for the daemon":
        needs_root_to_look_inside()
    with contextlib.ExitStack() as around:
        if phase == "while it links":
            around.enter_context(unlinked(fleet))
            process = fleet.popen("carol", "send", "bob", "--json", "-m", "x", stdout=subprocess.PIPE)
            first_line(process)
        elif phase == "while it waits for the daemon":
            around.enter_context(stopped(fleet.program("alice").process.pid))
            process = fleet.popen("alice", "send", "bob", "--json", "-m", "x", stdout=subprocess.PIPE)
            wait_until(lambda: any("socket:" in target for target in opened(process.pid)))
        elif phase == "while it waits for the recipient":
            words = "send", "carol", "--json", "--wait", "60s", "-m", "x"
            process = fleet.popen("alice", *words, stdout=subprocess.PIPE)
            first_line(process)
        elif phase == "after its recipient was killed":
            daemon = fleet.start_daemon("carol")
            source = fleet.folder / "source"
            with source.open("wb") as file:
                file.truncate(SIZE)
            around.callback(source.unlink)
            known = {item.id for item in inbox_of(fleet.home("carol"))[1]}
            process = held_send(fleet, "alice", "carol", "--json", str(source), stdout=subprocess.PIPE)
            wait_until(lambda: {item.id for item in inbox_of(fleet.home("carol"))[1] if item.size} - known)
            daemon.kill()
        else:
            process = slow_send(fleet, "alice", "bob")
            if phase == "while its recipient stands still":
                around.enter_context(stopped(fleet.program("bob").process.pid))
            elif phase == "while it sends":
                assert process.stdin is not None
                os.set_blocking(process.stdin.fileno(), False)
                with contextlib.suppress(BlockingIOError):
                    os.write(process.stdin.fileno(), bytes(MIB))
        assert ended(process, number) == ENDINGS[signal.Signals(number)]
    assert is_served(fleet, "bob")


def first_line(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert b"requested" in process.stdout.readline()


@pytest.mark.attack("L07")
@pytest.mark.parametrize("number", ENDINGS, ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("words", "graceful"), [(("recv", "--wait", "60s"), False), (("recv", "--loop"), True)], ids=["wait", "loop"]
)
def test_a_waiting_recv_ends_with_its_documented_code(
    fleet: Fleet, words: tuple[str, ...], graceful: bool, number: int
) -> None:
    needs_root_to_look_inside()
    process = fleet.popen("carol", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: any("index.db" in target for target in opened(process.pid)))
    assert ended(process, number) == (0 if graceful else ENDINGS[signal.Signals(number)])


@pytest.mark.attack("L07")
@pytest.mark.parametrize("number", ENDINGS, ids=lambda number: number.name)
def test_a_recv_whose_reader_has_stopped_reading_ends_too(fleet: Fleet, number: int, tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(bytes(4 * MIB))
    assert fleet.zkc("alice", "send", "bob", str(payload)).code == 0
    process = fleet.popen("bob", "recv", "-o", "-", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1) == b"\0"
    assert ended(process, number) == ENDINGS[signal.Signals(number)]
    with fleet.client("bob").receive(sender="alice") as item:
        assert item.item.size == 4 * MIB, "an item that was not fully written stays"


def needs_root_to_look_inside() -> None:
    """A process of zkc is protected: not even its own user sees what it has open (attack K07)."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


def opened(pid: int) -> list[str]:
    """What the process has open."""
    targets = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            targets.append(os.readlink(path))
    return targets
