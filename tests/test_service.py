"""What a program says to the service manager that started it: when it is ready, alive, reloaded, ending."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import DEADLINE
from zkc.coordinator import admin
from zkc.service import Manager
from zkc.stores.home import Home
from zkc.testing import Fleet

ALIVE_USEC = 100_000
"""What a unit with ``WatchdogSec=100ms`` is told: a sign of life every 50 ms."""
SILENT_SECONDS = 1.0
"""Twenty times that."""


class Listener:
    """The manager's end of ``NOTIFY_SOCKET``."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)

    def next(self, within: float = DEADLINE) -> dict[str, str]:
        """The next words, as names and values."""
        self._socket.settimeout(within)
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines())

    def wait_for(self, name: str, passing_over: str = "WATCHDOG") -> dict[str, str]:
        """The next words with ``name``; before them comes nothing but what is passed over."""
        while name not in (said := self.next()):
            assert set(said) == {passing_over}, said
        return said

    def wait_for_silence(self) -> None:
        """Until nothing is said for so long as it takes to say twenty times that all is well."""
        end = time.monotonic() + DEADLINE
        try:
            while time.monotonic() < end:
                assert self.next(SILENT_SECONDS) == {"WATCHDOG": "1"}
        except TimeoutError:
            return
        pytest.fail("it goes on to say that it is alive")

    def fill(self) -> None:
        """Until it takes no more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sender.sendto(b"full", self._socket.getsockname())

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    found = Listener(str(tmp_path / "notify"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A coordinator and alice, whose programs the tests run."""
    with Fleet("alice", folder=tmp_path_factory.mktemp("fleet"), daemons=False) as started:
        started.join("relay1")
        yield started


# --- programs -------------------------------------------------------------------------------------------------------

HELD = """
import os, signal, sys
from zkc.ui.cli.main import main
signal.signal(signal.SIGUSR1, lambda *_: os.close(os.open(sys.argv.pop(1), os.O_RDONLY)))
words = sys.argv[2:]
sys.argv = [sys.argv[0], sys.argv[1]]
main(words)
"""
"""``zkc WORDS`` (argv[2:]) that hangs at SIGUSR1, its threads alive, until somebody opens the FIFO argv[1] to write."""

PROGRAMS = {
    "coordinator": ("coordinator", "run", "--listen", "tcp://127.0.0.1:0"),
    "alice": ("daemon",),
    "relay1": ("relay", "--listen", "tcp://127.0.0.1:0"),
}


def started(fleet: Fleet, name: str, address: str, *, command: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """The program of that home, as a unit with ``WatchdogSec=`` starts it."""
    own = fleet.environment(name) | {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(ALIVE_USEC)}
    if name == "coordinator":
        own["ZKC_HOME"] = str(fleet.folder / "other")
    return subprocess.Popen(
        [*(command or (sys.executable, "-m", "zkc")), *PROGRAMS[name]], env=own, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, cwd=fleet.folder,
    )


def ended(process: subprocess.Popen[bytes]) -> int:
    """Its exit status after SIGTERM."""
    process.terminate()
    try:
        return process.wait(DEADLINE)
    finally:
        process.kill()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_says_that_it_is_ready_alive_reloaded_and_ending(
    fleet: Fleet, listener: Listener, name: str
) -> None:
    process = started(fleet, name, listener.address)
    try:
        listener.wait_for("READY")
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"ready ")
        for _ in range(3):
            assert listener.next() == {"WATCHDOG": "1"}
        if name != "relay1":  # it has nothing to read again
            before = time.monotonic_ns() // 1000
            process.send_signal(signal.SIGHUP)
            said = listener.wait_for("RELOADING")
            # systemd takes it for the answer to its own request by this time.
            assert before <= int(said["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
            listener.wait_for("READY")
        assert process.poll() is None
        process.terminate()
        assert listener.wait_for("STOPPING") == {"STOPPING": "1"}
        assert process.wait(DEADLINE) == 0
    finally:
        ended(process)


def test_a_coordinator_whose_process_hangs_is_not_said_to_be_alive(fleet: Fleet, listener: Listener) -> None:
    """The supervisor lives, and says nothing of its own accord; nor does it die of what it is not told."""
    process = started(fleet, "coordinator", listener.address)
    try:
        listener.wait_for("READY")
        child = admin.status(Home.resolve("coordinator", str(fleet.folder / "other")), DEADLINE).pid
        os.kill(child, signal.SIGSTOP)
        listener.wait_for_silence()
        os.kill(child, signal.SIGCONT)
        assert listener.next() == {"WATCHDOG": "1"}
        os.kill(child, signal.SIGKILL)
        listener.wait_for("READY")  # of the process that takes its place
        assert listener.next() == {"WATCHDOG": "1"}
    finally:
        assert ended(process) == 0


def test_a_daemon_whose_loop_hangs_does_not_say_that_it_is_alive(
    fleet: Fleet, listener: Listener, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = started(fleet, "alice", listener.address, command=(sys.executable, "-c", HELD, str(fifo)))
    try:
        listener.wait_for("READY")
        process.send_signal(signal.SIGUSR1)
        listener.wait_for_silence()
        os.close(os.open(fifo, os.O_WRONLY))  # what it waits for
        assert listener.next() == {"WATCHDOG": "1"}
    finally:
        assert ended(process) == 0


def test_a_manager_that_is_not_there_is_no_reason_to_fail(fleet: Fleet) -> None:
    process = started(fleet, "alice", "/nowhere/at/all")
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"ready ")
    finally:
        assert ended(process) == 0


# --- its parts ------------------------------------------------------------------------------------------------------


def test_what_a_program_starts_is_not_the_service() -> None:
    environ = {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "5000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    manager = Manager.of(environ)
    assert environ == {"HOME": "/"}
    assert (manager.address, manager.alive_every) == ("/run/n", 2.5)


@pytest.mark.parametrize(
    "environ",
    [
        {}, {"NOTIFY_SOCKET": "/run/n"}, {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "-5"}, {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "²"},
        {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "5000000"},
    ],
    ids=str,
)
def test_signs_of_life_are_given_only_to_who_waits_for_ours(environ: dict[str, str]) -> None:
    assert Manager.of(environ).alive_every == 0.0


def test_a_name_of_an_abstract_socket_is_an_address() -> None:
    listener = Listener(f"@zkc-{os.getpid()}")
    try:
        Manager.of({"NOTIFY_SOCKET": listener.address}).stopping()
        assert listener.next() == {"STOPPING": "1"}
    finally:
        listener.close()


@pytest.mark.parametrize("address", ["/nowhere", "@zkc-nobody", "nonsense", "vsock:2:1234", f"/{'long' * 99}", ""])
def test_a_word_to_nobody_is_nothing(address: str) -> None:
    Manager.of({"NOTIFY_SOCKET": address}).ready()


def test_a_manager_that_does_not_read_holds_nobody_up_for_long(listener: Listener) -> None:
    manager = Manager(listener.address)
    listener.fill()
    for say in (manager.alive, manager.ready):
        done = threading.Thread(target=say, daemon=True)
        done.start()
        done.join(DEADLINE)
        assert not done.is_alive()
