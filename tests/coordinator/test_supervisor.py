"""`zkc coordinator run`: one parent that holds nothing but its child, whatever ends the child or the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.coordinator import RUN, coordinator_in, join
from tests.support.program import environment, finished
from tests.support.waiting import DEADLINE, wait_until
from zkc.coordinator import admin
from zkc.coordinator.banned import ban, read_banned
from zkc.coordinator.reports import SUSPECT_BYTES, pack_suspect, unpack_suspect
from zkc.errors import DaemonError
from zkc.net.monitor import EventKind
from zkc.net.sockets import to_raw
from zkc.wire.messages import Heartbeat, Ok

TEN_TIMES = 10
"""A test's deadline for what should take a second."""


AT_ONCE = "from zkc.coordinator import supervisor\nsupervisor._QUIET_SECONDS = supervisor._BAR_WITHIN = 3600.0\n"
"""Deaths that a test brings about count as close together, also where a busy machine takes minutes for the restarts."""


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_child_is_replaced_at_the_same_endpoint(tmp_path: Path) -> None:
    with coordinator_in(tmp_path) as coordinator:
        bob = join(coordinator, "bob")
        began = time.monotonic()
        coordinator.kill_child()
        assert time.monotonic() - began < 2.0 * TEN_TIMES
        assert coordinator.status.endpoints == [coordinator.endpoint]
        with bob.open() as peer:
            assert peer.ask(Heartbeat()) == Ok()
        (event,) = coordinator.events("process-ended")
        assert event["how"] == "was ended by SIGKILL"
        coordinator.process.terminate()
        assert coordinator.process.wait(DEADLINE) == 0
        assert coordinator.process.stdout is not None
        assert coordinator.process.stdout.read() == b"", "ready is said once"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_parent_and_child_with_0(tmp_path: Path, how: signal.Signals) -> None:
    with coordinator_in(tmp_path) as coordinator:
        child = coordinator.child
        began = time.monotonic()
        coordinator.process.send_signal(how)
        assert coordinator.process.wait(DEADLINE) == 0
        assert time.monotonic() - began < 1.0 * TEN_TIMES
        assert not lives(child)
        with pytest.raises(DaemonError):
            admin.status(coordinator.home)
        assert not coordinator.home.socket_path().exists()


def test_a_killed_parent_takes_its_child_along(tmp_path: Path) -> None:
    with coordinator_in(tmp_path) as coordinator:
        child = coordinator.child
        coordinator.process.kill()
        coordinator.process.wait(DEADLINE)
        wait_until(lambda: not lives(child))
        # And the home is free for the next.
        assert coordinator.process.stdout is not None
        coordinator.process.stdout.close()
        coordinator.start()
        assert coordinator.status.pid != child


def test_sighup_reads_the_configuration_again(tmp_path: Path) -> None:
    with coordinator_in(tmp_path) as coordinator:
        coordinator.home.config_file.write_text('[limits]\nper_second = 7\n[coordinator]\nkey_pool = 3\n')
        coordinator.process.send_signal(signal.SIGHUP)
        wait_until(lambda: coordinator.events("configuration-read"))
        (event,) = coordinator.events("restart-needed")
        assert event["key"] == "coordinator.key_pool"
        coordinator.home.config_file.write_text("[nonsense]\n")
        coordinator.process.send_signal(signal.SIGHUP)
        wait_until(lambda: coordinator.events("configuration-kept"))
        assert coordinator.status.endpoints == [coordinator.endpoint]


def test_sighup_while_a_process_starts_is_not_lost(tmp_path: Path) -> None:
    """It may have read the configuration already, and does so again once it is ready."""
    with coordinator_in(tmp_path) as coordinator:
        former, supervisor = coordinator.child, coordinator.process.pid
        os.kill(former, signal.SIGKILL)
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children")
        wait_until(lambda: set(children.read_text().split()) - {str(former)})
        coordinator.process.send_signal(signal.SIGHUP)
        wait_until(lambda: coordinator.events("configuration-read"))


def test_status_names_the_key_database_in_use_until_the_restart(tmp_path: Path) -> None:
    with coordinator_in(tmp_path) as coordinator:
        used = coordinator.status.keydb
        coordinator.home.config_file.write_text(f'[coordinator]\nkeydb = "sqlite:///{tmp_path / "other.db"}"\n')
        coordinator.process.send_signal(signal.SIGHUP)
        wait_until(lambda: coordinator.events("configuration-read"))
        (event,) = coordinator.events("restart-needed")
        assert event["key"] == "coordinator.keydb"
        assert coordinator.status.keydb == used


@pytest.mark.attack("L03")
def test_a_second_coordinator_in_the_same_home_is_refused(tmp_path: Path) -> None:
    with coordinator_in(tmp_path) as coordinator:
        done = finished([sys.executable, "-c", RUN, str(coordinator.home.data), "tcp://127.0.0.1:0"])
        assert done.code == 34
        assert "already running" in done.err
        assert coordinator.status.endpoints == [coordinator.endpoint]


def test_what_keeps_the_first_child_from_starting_is_the_parents_error(tmp_path: Path) -> None:
    with coordinator_in(tmp_path) as coordinator:
        port = coordinator.endpoint
        done = finished([sys.executable, "-c", RUN, str(tmp_path / "other"), port])
        assert done.code == 33
        assert "in use" in done.err
        done = finished([sys.executable, "-c", RUN, str(tmp_path / "third"), "nonsense"])
        assert done.code == 2


def test_the_parent_imports_nothing_that_could_abort() -> None:
    program = (
        "import sys, zkc.coordinator.admin, zkc.coordinator.supervisor\n"
        "print([name for name in ('zmq', 'sqlalchemy', 'structlog', 'cryptography') if name in sys.modules])"
    )
    assert finished([sys.executable, "-c", program]).out == "[]\n"


def test_the_child_sees_nothing_of_the_folder_it_is_started_in(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "zmq.py").write_text("raise SystemExit('a module of the working folder was imported')")
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", RUN, str(tmp_path / "home"), "tcp://127.0.0.1:0"], cwd=trap,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(),
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline().startswith(b"ready ")
        process.terminate()
        assert process.wait(DEADLINE) == 0


# --- attack O01 ----------------------------------------------------------------------


@pytest.mark.attack("O01")
def test_who_is_let_in_and_silent_at_each_abort_is_named_and_barred(tmp_path: Path) -> None:
    with coordinator_in(tmp_path, before=AT_ONCE) as coordinator:
        mallory, bystander = join(coordinator, "mallory"), join(coordinator, "bystander")
        key = to_raw(mallory.newcomer.curve.public)
        for _ in range(2):
            with bystander.open():
                pass
            with mallory.connect() as wire:
                assert wire.verdict() is EventKind.HANDSHAKE_SUCCEEDED
                coordinator.kill_child(signal.SIGABRT)
        (event,) = coordinator.events("key-barred")
        assert event["key_id"] == key.hex()
        assert event["who"] == f"u:{mallory.uid.hex()}"
        assert read_banned(coordinator.home.data) == {key}
        with mallory.connect() as wire:
            assert wire.verdict() is EventKind.HANDSHAKE_FAILED_AUTH
        with bystander.open() as peer:
            assert peer.ask(Heartbeat()) == Ok()
        # A person lets it in again.
        (coordinator.home.data / "banned").write_text("")
        coordinator.process.send_signal(signal.SIGHUP)
        wait_until(lambda: coordinator.events("configuration-read"))
        with mallory.connect() as wire:
            assert wire.verdict() is EventKind.HANDSHAKE_SUCCEEDED


def test_restarts_are_quick_at_first_and_never_slower_than_two_seconds(tmp_path: Path) -> None:
    with coordinator_in(tmp_path, before=AT_ONCE) as coordinator:
        for _ in range(5):
            coordinator.kill_child(signal.SIGABRT)
        pauses = [event["pause"] for event in coordinator.events("process-ended")]
        assert pauses == [0.0, 0.1, 0.2, 0.4, 0.8]
        assert not (coordinator.home.data / "banned").exists(), "nobody was suspected"


def test_barred_keys_are_kept_in_a_private_file_and_bounded(tmp_path: Path) -> None:
    for number in range(1030):
        ban(tmp_path, number.to_bytes(32, "big"), "u:00")
    ban(tmp_path, (1029).to_bytes(32, "big"), "u:00")
    kept = read_banned(tmp_path)
    assert len(kept) == 1024
    assert (1029).to_bytes(32, "big") in kept
    assert (tmp_path / "banned").stat().st_mode & 0o777 == 0o600
    (tmp_path / "banned").write_text("not a key\n" + "00" * 31 + "\n")
    assert read_banned(tmp_path) == frozenset()


def test_the_record_of_a_suspect_is_read_as_it_was_written() -> None:
    suspect = os.urandom(32), "u:" + "ab" * 16
    record = pack_suspect(suspect)
    assert len(record) == SUSPECT_BYTES
    assert unpack_suspect(record) == suspect
    assert unpack_suspect(pack_suspect(None)) is None
    assert unpack_suspect(b"") is None


@pytest.mark.attack("K07")
def test_no_other_process_of_the_user_reads_the_childs_memory(tmp_path: Path) -> None:
    with coordinator_in(tmp_path) as coordinator:
        limits = Path(f"/proc/{coordinator.child}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert line.split()[4:6] == ["0", "0"]
        # Not dumpable: what the kernel shows of it belongs to root.
        assert Path(f"/proc/{coordinator.child}/mem").stat().st_uid == 0

