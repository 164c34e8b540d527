"""Joining, leaving, trusting, administrating: the commands around a registration, between real processes."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.looking import log_of, stopped
from tests.support.program import PATIENCE
from tests.support.waiting import sooner, wait_until
from zkc.client.daemon import DESCRIPTORS
from zkc.client.principal import load_main
from zkc.env import SystemClock
from zkc.stores.home import Home
from zkc.stores.keystore import KeyStore
from zkc.testing import Done, Fleet


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """alice and bob with daemons. Each test makes the other names that it needs."""
    with Fleet("alice", "bob") as running:
        yield running


Fleets = Callable[..., Fleet]


@pytest.fixture
def fleets() -> Iterator[Fleets]:
    """Makes fleets of a test's own, which end with it."""
    with ExitStack() as running:
        yield lambda *names, **options: running.enter_context(Fleet(*names, **options))


def reason(done: Done) -> tuple[int, str]:
    error = done.events[-1]
    assert (error["event"], error["code"]) == ("error", done.code)
    return done.code, error["detail"]


def invite(fleet: Fleet, *words: str) -> str:
    done = fleet.zkc("coordinator", "coordinator", "invite", *words)
    assert done.code == 0, done.err
    return done.out.decode().strip()


def join(fleet: Fleet, name: str, invitation: str, *words: str) -> Done:
    return fleet.zkc(name, "join", "--invite-file", "-", "--json", *words, stdin=invitation.encode())


def served(fleet: Fleet) -> list[str]:
    """What bob's daemon serves beside him, as it says itself."""
    done = fleet.zkc("bob", "status", "--wait", "30s", "--json")
    assert done.code == 0, done
    apps: list[str] = done.events[0]["apps"]
    return apps


def names(fleet: Fleet) -> list[str]:
    with KeyStore.open(Home.resolve("client", str(fleet.home("alice")))) as store:
        return [pin.name for pin in store.pins()]


# --- join -----------------------------------------------------------------------------------------------------------


def test_join_writes_what_it_was_told_and_says_who_one_is(fleet: Fleet) -> None:
    words = ["--listen", "tcp://127.0.0.1:0", "--accept", "none"]
    done = join(fleet, "told", fleet.invite("told"), *words)
    (told,) = done.events
    assert (done.code, told["event"], told["name"]) == (0, "joined", "told")
    assert told["endpoints"] == [fleet.coordinator.endpoint]
    shown = {row["key"]: row["value"] for row in fleet.zkc("told", "config", "--json").events}
    assert shown["coordinator.endpoints"] == [fleet.coordinator.endpoint]
    assert (shown["transfer.listen"], shown["inbox.accept"]) == ("tcp://127.0.0.1:0", "none")
    assert (fleet.home("told") / "keys.db").stat().st_mode & 0o777 == 0o600


def test_a_join_that_came_to_nothing_leaves_the_home_as_it_was(fleets: Fleets) -> None:
    """A new one holds no key and no role; one that was configured by hand keeps its own words."""
    own = fleets()
    used, invitation = own.invite("wishes"), own.invite("wishes")
    own.zkc("coordinator", "coordinator", "invite", "--cancel", "wishes")
    own.configure("configured", {"inbox.accept": "all"})
    by_hand = (own.home("configured") / "config.toml").read_bytes()
    for home in ("new", "configured"):
        assert reason(join(own, home, used, "--accept", "none")) == (11, "refused-key")
        left = {path.name for path in own.home(home).rglob("*") if path.is_file()}
        assert left == {"lock", *(["config.toml"] if home == "configured" else [])}
    assert (own.home("configured") / "config.toml").read_bytes() == by_hand
    own.coordinator.kill()
    assert reason(join(own, "new", invitation, "--accept", "none")) == (10, "refused")
    own.start_coordinator()
    assert join(own, "new", own.invite("wishes")).code == 0
    shown = {row["key"]: row["value"] for row in own.zkc("new", "config", "--json").events}
    assert shown["inbox.accept"] == "all"


def test_without_a_terminal_everything_is_accepted(fleet: Fleet) -> None:
    assert join(fleet, "silent", fleet.invite("silent")).code == 0
    shown = {row["key"]: row["value"] for row in fleet.zkc("silent", "config", "--json").events}
    assert shown["inbox.accept"] == "all"


@pytest.mark.parametrize("how", ["file", "variable"])
def test_the_invitation_comes_from_a_file_or_the_environment(how: str, fleet: Fleet, tmp_path: Path) -> None:
    invitation = fleet.invite(f"by-{how}")
    if how == "file":
        (tmp_path / "invitation").write_text(invitation + "\n")
        done = fleet.zkc("by-file", "join", "--invite-file", str(tmp_path / "invitation"))
    else:
        done = fleet.zkc("by-variable", "join", env={"ZKC_INVITE": invitation})
    assert (done.code, done.out) == (0, b"")
    assert done.err.startswith(f"joined as by-{how} (fingerprint ".encode())


def test_on_a_terminal_it_asks_for_the_invitation_and_what_to_accept(fleet: Fleet) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "zkc", "join"]
    environment = fleet.environment("asked")
    invitation = fleet.invite("asked")
    with subprocess.Popen(
        command, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, env=environment, start_new_session=True,
        preexec_fn=lambda: _own_terminal(theirs),  # noqa: PLW1509 - no threads in the child
    ) as process:
        os.close(theirs)
        shown = _until(ours, b"Invitation")
        os.write(ours, invitation.encode() + b"\n")
        shown += _until(ours, b"]: ")
        os.write(ours, b"none\n")
        shown += _until(ours, b"joined as asked")
        assert process.wait(PATIENCE) == 0
    os.close(ours)
    assert invitation.encode() not in shown
    assert 'accept = "none"' in (fleet.home("asked") / "config.toml").read_text()


def _own_terminal(descriptor: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)


def _until(terminal: int, text: bytes) -> bytes:
    shown = b""
    while text not in shown:
        assert select.select([terminal], [], [], PATIENCE)[0], shown
        shown += os.read(terminal, 4096)
    return shown


def test_an_invitation_works_once(fleet: Fleet) -> None:
    invitation = fleet.invite("once")
    assert join(fleet, "once", invitation).code == 0
    code, detail = reason(join(fleet, "twice", invitation))
    assert (code, detail) == (11, "invite-used")


def test_an_invitation_that_expired_or_was_cancelled_is_11(fleet: Fleet) -> None:
    expired = invite(fleet, "late", "--ttl", "1s")
    cancelled = fleet.invite("unwanted")
    assert fleet.zkc("coordinator", "coordinator", "invite", "--cancel", "unwanted").code == 0
    assert reason(join(fleet, "unwanted", cancelled))[0] == 11
    rows = fleet.zkc("coordinator", "coordinator", "invite", "--list", "--json").events
    assert {"name": "late", "kind": "computer"}.items() <= next(row for row in rows if row["name"] == "late").items()

    def is_over() -> bool:
        rows = fleet.zkc("coordinator", "coordinator", "invite", "--list", "--json").events
        return next(row for row in rows if row["name"] == "late")["state"] == "expired"

    wait_until(is_over)
    assert reason(join(fleet, "late", expired))[0] == 11


def test_a_taken_name_is_11_until_it_is_revoked(fleet: Fleet) -> None:
    assert join(fleet, "taken", fleet.invite("taken")).code == 0
    assert reason(fleet.zkc("coordinator", "coordinator", "invite", "taken", "--json")) == (11, "name-taken")
    assert fleet.zkc("coordinator", "coordinator", "revoke", "taken").code == 0
    assert join(fleet, "taken-again", fleet.invite("taken")).code == 0


def test_the_first_of_several_invitations_wins(fleet: Fleet) -> None:
    first, second = fleet.invite("several"), fleet.invite("several")
    assert join(fleet, "several-1", second).code == 0
    assert reason(join(fleet, "several-2", first)) == (11, "name-taken")


def test_of_two_invitations_for_one_name_at_once_one_wins(fleet: Fleet) -> None:
    homes = {f"rival-{number}": fleet.invite("rival") for number in (1, 2)}
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda home: join(fleet, *home), homes.items()))
    one, other = sorted(both, key=lambda done: done.code)
    assert (one.code, one.events[-1]["name"]) == (0, "rival")
    assert reason(other) == (11, "name-taken")
    clients = fleet.zkc("coordinator", "coordinator", "clients", "--json").events
    assert [row["name"] for row in clients].count("rival") == 1


def test_a_second_registration_needs_force_and_an_ended_daemon(fleet: Fleet) -> None:
    invitation = fleet.invite("alice-2")
    assert reason(join(fleet, "alice", invitation)) == (2, "already-registered")
    assert reason(join(fleet, "alice", invitation, "--force")) == (34, "already-running")
    assert join(fleet, "forced", fleet.invite("forced-1")).code == 0
    assert join(fleet, "forced", fleet.invite("forced-2"), "--force").code == 0
    assert fleet.zkc("forced", "send", "nobody", "-m", "x").code == 20


def test_of_two_joins_at_once_in_one_home_one_registers(fleet: Fleet) -> None:
    invitations = [fleet.invite("at-once-1"), fleet.invite("at-once-2")]
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda invitation: join(fleet, "at-once", invitation), invitations))
    one, other = sorted(both, key=lambda done: done.code)
    assert (one.code, one.events[-1]["event"]) == (0, "joined")
    # The second waits for the first to end, but not for ever.
    assert reason(other) in {(2, "already-registered"), (34, "already-running")}
    with KeyStore.open(Home.resolve("client", str(fleet.home("at-once")))) as store:
        assert [found.name for found in store.registrations()] == [one.events[-1]["name"]]


def test_nobody_at_the_address_is_10(fleet: Fleet) -> None:
    invitation = invite(fleet, "lost", "--endpoint", "tcp://127.0.0.1:1")
    assert reason(join(fleet, "lost", invitation)) == (10, "refused")


def test_what_is_no_coordinator_is_10(fleet: Fleet) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        server.close()
        invitation = invite(fleet, "lost-2", "--endpoint", f"tcp://127.0.0.1:{port}")
        assert reason(join(fleet, "lost-2", invitation))[0] == 10


# --- applications ---------------------------------------------------------------------------------------------------


@pytest.mark.claims("A9")
def test_an_application_joins_without_an_invitation_and_the_daemon_serves_it(fleet: Fleet) -> None:
    (told,) = fleet.zkc("bob", "join", "--app", "backup", "--json").events
    assert (told["event"], told["name"]) == ("joined", "bob/backup")
    assert reason(fleet.zkc("bob", "join", "--app", "backup", "--json")) == (2, "already-registered")
    assert reason(fleet.zkc("bob", "join", "--app", "bob/x", "--json")) == (2, "bad-name")
    assert fleet.zkc("alice", "send", "bob/backup", "--wait", "30s", "-m", "to the app").code == 0
    assert fleet.zkc("alice", "send", "bob", "-m", "to bob").code == 0
    assert "bob/backup" in served(fleet)
    apps = [(row["app"], row["bytes"]) for row in fleet.zkc("bob", "inbox", "--json").events]
    assert apps == [("bob/backup", 10), (None, 6)]
    assert fleet.zkc("bob", "recv", "--app", "backup", "-o", "-").out == b"to the app"
    assert reason(fleet.zkc("bob", "recv", "--app", "backup", "-o", "/dev/null/", "--json"))[0] == 22
    assert fleet.zkc("bob", "recv", "-o", "-").out == b"to bob"


def test_recv_registers_an_application_that_is_not(fleet: Fleet) -> None:
    done = fleet.zkc("bob", "recv", "--app", "mail", "--json")
    assert reason(done) == (22, "empty")
    clients = fleet.zkc("coordinator", "coordinator", "clients", "--json").events
    assert ("bob/mail", "application") in {(row["name"], row["kind"]) for row in clients}


def test_an_application_that_was_revoked_is_11_and_can_be_registered_anew(fleets: Fleets) -> None:
    fleet = fleets("bob")
    assert fleet.zkc("bob", "join", "--app", "cal").code == 0
    fleet.wait_linked("bob")
    assert fleet.zkc("coordinator", "coordinator", "revoke", "bob/cal").code == 0
    wait_until(lambda: not served(fleet))
    done = fleet.zkc("bob", "recv", "--app", "cal", "--json")
    assert reason(done) == (11, "revoked")
    assert "zkc join --app cal" in done.events[-1]["message"]
    assert fleet.zkc("bob", "join", "--app", "cal").code == 0
    assert served(fleet) == ["bob/cal"]
    assert reason(fleet.zkc("bob", "recv", "--app", "cal", "--json")) == (22, "empty")
    # What stood for bob before is not there for a bob who joins after `leave`.
    assert fleet.zkc("coordinator", "coordinator", "revoke", "bob/cal").code == 0
    wait_until(lambda: not served(fleet))
    assert fleet.zkc("bob", "leave").code == 0
    assert fleet.program("bob").process.wait(PATIENCE) == 0
    assert join(fleet, "bob", fleet.invite("bob")).code == 0
    assert reason(fleet.zkc("bob", "recv", "--app", "cal", "--json")) == (22, "empty")


def test_an_application_that_was_revoked_meanwhile_ends_when_the_daemon_comes_back(fleets: Fleets) -> None:
    """Its key is refused, which nothing authenticates; on its owner's channel the coordinator says that it is gone."""
    fleet = fleets("bob", daemons=False)
    assert fleet.zkc("bob", "join", "--app", "cal").code == 0
    assert fleet.zkc("bob", "join", "--app", "mail").code == 0
    assert fleet.zkc("coordinator", "coordinator", "revoke", "bob/cal").code == 0
    fleet.start_daemon("bob")
    wait_until(lambda: served(fleet) == ["bob/mail"])
    assert reason(fleet.zkc("bob", "recv", "--app", "cal", "--json")) == (11, "revoked")


def test_force_registers_an_application_anew_that_no_daemon_saw_revoked(fleets: Fleets) -> None:
    fleet = fleets("bob", daemons=False)
    assert fleet.zkc("bob", "join", "--app", "cal").code == 0
    done = fleet.zkc("bob", "join", "--app", "cal", "--force", "--json")
    assert reason(done) == (11, "name-taken"), "it is registered"
    assert fleet.zkc("coordinator", "coordinator", "revoke", "bob/cal").code == 0
    done = fleet.zkc("bob", "join", "--app", "cal", "--json")
    assert reason(done) == (2, "already-registered")
    assert "--force" in done.events[-1]["message"]
    assert fleet.zkc("bob", "join", "--app", "cal", "--force").code == 0
    with KeyStore.open(Home.resolve("client", str(fleet.home("bob")))) as store:
        assert [found.name for found in store.registrations()] == ["bob", "bob/cal"]
    assert fleet.zkc("bob", "send", "nobody", "-m", "x").code == 20, "bob's own registration stays"


# --- daemon and status ----------------------------------------------------------------------------------------------


def test_programs_whose_log_cannot_be_written_do_their_work(fleets: Fleets) -> None:
    """The disk of the coordinator's log is full; the reader of the daemon's has gone."""
    fleet = fleets("alice")
    fleet.coordinator.terminate()
    words = ["coordinator", "run", "--debug", "--listen", fleet.coordinator.endpoint]
    reading, writing = os.pipe()
    os.close(reading)
    with ExitStack() as stack, Path("/dev/full").open("wb") as full:
        programs = []
        for name, more, log in (("coordinator", words, full.fileno()), ("bob", ["daemon", "--debug"], writing)):
            if name == "bob":
                assert join(fleet, "bob", fleet.invite("bob")).code == 0
            program = stack.enter_context(fleet.popen(name, *more, stdout=subprocess.PIPE, stderr=log))
            stack.callback(program.terminate)
            programs.append(program)
            assert program.stdout is not None
            assert program.stdout.readline().startswith(b"ready ")
        assert fleet.zkc("bob", "status", "--wait", "30s").code == 0
        assert fleet.zkc("alice", "send", "bob", "-m", "hello", "--wait", "30s").code == 0
        for program in reversed(programs):
            program.terminate()
            assert program.wait(PATIENCE) == 0
    os.close(writing)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_daemon_says_ready_once_and_ends_on_a_signal_with_0(number: signal.Signals, fleet: Fleet) -> None:
    if not (fleet.home("quick") / "keys.db").exists():
        fleet.join("quick")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with fleet.popen("quick", "daemon", "--json", **pipes) as process:
        assert process.stdout is not None
        told = Done(0, process.stdout.readline(), b"").events[0]
        assert (told["event"], told["endpoint"]) == ("ready", fleet.coordinator.endpoint)
        status = fleet.zkc("quick", "status", "--wait", "30s", "--json")
        assert (status.code, status.events[0]["fingerprint"]) == (0, told["fingerprint"])
        process.send_signal(number)
        assert process.communicate(timeout=PATIENCE)[0] == b""
        assert process.returncode == 0


@pytest.mark.attack("L03")
def test_a_second_daemon_is_34_and_the_first_unaffected(fleet: Fleet) -> None:
    assert reason(fleet.zkc("alice", "daemon", "--json")) == (34, "already-running")
    assert fleet.zkc("alice", "status", "--wait", "30s").code == 0


def test_status_has_the_keys_of_the_contract(fleet: Fleet) -> None:
    (told,) = fleet.zkc("alice", "status", "--wait", "30s", "--json").events
    assert (told["client"], told["daemon"], told["linked"], told["presence"]) == ("alice", True, True, "online")
    assert told["coordinator"] == fleet.coordinator.endpoint
    assert told["fingerprint"] == fleet.program("alice").fingerprint
    assert (told["listen"], told["apps"]) == ("tcp://*:0", [])


def test_status_of_a_daemon_that_stands_still_ends_with_its_wait(fleets: Fleets) -> None:
    fleet = fleets("alice")

    def ask(*words: str) -> None:
        assert reason(fleet.zkc("alice", "status", *words, "--json")) == (34, "no-answer")

    with stopped(fleet.program("alice").process.pid):
        sooner(ask, 8.0)
        sooner(lambda: ask("--wait", "0.2s"), 5.0)


def test_status_without_a_daemon_says_who_one_is_and_what_holds_the_home(fleets: Fleets) -> None:
    fleet = fleets("alice", daemons=False)
    status, error = fleet.zkc("alice", "status", "--json").events
    with KeyStore.open(Home.resolve("client", str(fleet.home("alice")))) as store:
        fingerprint = load_main(store).fingerprint.hex()
    assert (status["client"], status["fingerprint"], status["daemon"]) == ("alice", fingerprint, False)
    assert error["message"].endswith("start it: zkc daemon")
    with Home.resolve("client", str(fleet.home("alice"))).lock():
        done = fleet.zkc("alice", "status", "--json")
        assert reason(done) == (34, "not-running")
        assert f"process {os.getpid()} is starting or stopping" in done.events[-1]["message"]


def test_a_daemon_that_cannot_link_says_once_why_and_that_it_ends(fleets: Fleets) -> None:
    fleet = fleets("alice", "bob")

    def told(name: str, event: str) -> list[str]:
        return [row["detail"] for row in log_of(fleet, name) if row["event"] == event]

    assert fleet.zkc("coordinator", "coordinator", "revoke", "bob").code == 0
    assert fleet.program("bob").process.wait(PATIENCE) == 11
    fleet._spawn("bob", "daemon").wait_ready()
    wait_until(lambda: told("bob", "no-link") == ["refused-key"])
    fleet.coordinator.kill()
    wait_until(lambda: told("alice", "link-lost") == ["lost"])
    wait_until(lambda: "refused" in told("alice", "no-link"))
    port = int(fleet.coordinator.endpoint.rpartition(":")[2])
    with closing(socket.create_server(("127.0.0.1", port))) as server:
        server.settimeout(PATIENCE)

        def other() -> bool:
            server.accept()[0].close()
            return "handshake" in told("alice", "no-link")

        wait_until(other, PATIENCE)
    assert fleet.program("alice").terminate() == 0
    assert sorted(told("alice", "no-link")) == ["handshake", "refused"], "each once"
    assert [row["why"] for row in log_of(fleet, "alice") if row["event"] == "ending"] == ["signal"]


def test_a_transfer_that_waits_for_a_port_is_in_the_log_once(fleets: Fleets) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        fleet = fleets("alice", "bob", client={"transfer.listen": f"tcp://127.0.0.1:{port}-{port + 1}"})
        with fleet.popen("alice", "send", "bob", "-m", "x", stderr=subprocess.DEVNULL) as process:
            wait_until(lambda: any(row["event"] == "transfer-waits" for row in log_of(fleet, "bob")))
            process.terminate()
    (row,) = [row for row in log_of(fleet, "bob") if row["event"] == "transfer-waits"]
    assert (row["sender"], str(port) in row["listen"]) == ("alice", True)


def test_a_daemon_claims_open_files(fleet: Fleet) -> None:
    limits = Path(f"/proc/{fleet.program('alice').process.pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    soft, hard = (int(word) for word in line.split()[3:5])
    assert soft >= min(hard, DESCRIPTORS)


@pytest.mark.attack("K01")
def test_keys_that_others_can_read_are_refused_with_the_way_to_mend_it(fleet: Fleet) -> None:
    fleet.join("loose")
    (fleet.home("loose") / "keys.db").chmod(0o644)
    for words in (["daemon"], ["send", "bob", "-m", "x"], ["peers"], ["leave"]):
        done = fleet.zkc("loose", *words, "--json")
        assert reason(done) == (33, "permission")
        assert "chmod 600" in done.events[-1]["message"]


def core_limits(pid: int) -> list[str]:
    limits = Path(f"/proc/{pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    return line.split()[4:6]


@pytest.mark.attack("K07")
def test_a_process_with_keys_leaves_no_core_dump(fleet: Fleet) -> None:
    for name in ("alice", "coordinator"):
        assert core_limits(fleet.program(name).process.pid) == ["0", "0"]


@pytest.mark.attack("K07")
def test_every_command_that_loads_keys_leaves_no_core_dump(fleets: Fleets) -> None:
    fleet = fleets("alice", daemons=False)
    if core_limits(os.getpid())[1] == "0":
        pytest.skip("nothing here leaves core dumps, and so this would show nothing")
    with stopped(fleet.coordinator.process.pid):  # so that each of them waits
        for words in (
            ["send", "bob", "-m", "x"], ["peers"], ["verify", "bob"], ["leave"], ["recv", "--app", "backup"],
            ["join", "--app", "backup"],
        ):
            with fleet.popen("alice", *words, stderr=subprocess.DEVNULL) as process:
                wait_until(lambda: core_limits(process.pid) == ["0", "0"] or process.poll() is not None)
                assert process.poll() is None, words
                process.kill()


def test_a_revocation_that_a_silent_coordinator_has_not_heard_of_is_one_all_the_same(fleets: Fleets) -> None:
    fleet = fleets("alice")
    with stopped(fleet.coordinator.process.pid):
        done = fleet.zkc("coordinator", "coordinator", "revoke", "alice", "--json")
        assert (done.code, [event["name"] for event in done.events]) == (0, ["alice"])
        assert b"alice is revoked; the running coordinator did not answer" in done.err
    assert fleet.program("alice").process.wait(PATIENCE) == 11


def test_a_client_that_finds_a_full_coordinator_is_not_told_to_register_anew(fleets: Fleets) -> None:
    fleet = fleets("alice", "bob", daemons=False, coordinator={"limits.clients": 1})
    fleet.start_daemon("alice")
    fleet.wait_linked("alice")
    done = fleet.zkc("bob", "send", "alice", "-m", "x", "--json")
    assert reason(done) == (10, "overloaded")
    assert "join" not in done.events[-1]["message"]
    daemon = fleet._spawn("bob", "daemon").wait_ready()
    wait_until(lambda: any(row.get("detail") == "overloaded" for row in log_of(fleet, "bob")))
    assert fleet.program("alice").terminate() == 0
    fleet.wait_linked("bob")
    assert daemon.terminate() == 0


def test_addresses_where_nobody_answers_hold_up_no_command(fleets: Fleets) -> None:
    """Those of a VPN or a bridge, which an invitation may name before the one that works."""
    fleet = fleets("alice", "bob", daemons=False)
    fleet.start_daemon("bob")
    fleet.wait_linked("bob")
    with ExitStack() as silent:
        servers = [silent.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
        endpoints = [f"tcp://127.0.0.1:{server.getsockname()[1]}" for server in servers]
        env = {"ZKC_COORDINATOR_ENDPOINTS": ",".join([*endpoints, fleet.coordinator.endpoint])}
        assert fleet.zkc("alice", "send", "bob", "-m", "x", env=env).code == 0


# --- leave ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_daemon", [False, True])
def test_leave_ends_the_registration_here_and_there(with_daemon: bool, fleets: Fleets) -> None:
    fleet = fleets("alice", daemons=with_daemon)
    assert fleet.zkc("alice", "join", "--app", "backup").code == 0
    done = fleet.zkc("alice", "leave", "--json")
    assert (done.code, done.events[0]["names"]) == (0, ["alice", "alice/backup"])
    if with_daemon:
        assert fleet.program("alice").process.wait(PATIENCE) == 0
        ended = [row for row in log_of(fleet, "alice") if row["event"] == "ending"]
        assert [row["why"] for row in ended] == ["left"]
    rows = fleet.zkc("coordinator", "coordinator", "clients", "--json").events
    assert {(row["name"], row["revoked"]) for row in rows} == {("alice", True), ("alice/backup", True)}
    assert reason(fleet.zkc("alice", "send", "bob", "-m", "x", "--json")) == (11, "no-registration")
    assert reason(fleet.zkc("alice", "leave", "--json")) == (11, "no-registration")
    assert (fleet.home("alice") / "config.toml").exists()
    assert join(fleet, "alice", fleet.invite("alice")).code == 0


def test_a_revoked_client_is_11_and_its_daemon_ends_with_11(fleets: Fleets) -> None:
    fleet = fleets("alice", "bob")
    assert fleet.zkc("coordinator", "coordinator", "revoke", "alice", "--reason", "lost\x1b[2J").code == 0
    assert fleet.program("alice").process.wait(PATIENCE) == 11
    assert reason(fleet.zkc("alice", "send", "bob", "-m", "x", "--json")) == (11, "refused-key")
    assert reason(fleet.zkc("bob", "send", "alice", "-m", "x", "--json")) == (20, "unknown")
    (row,) = [row for row in fleet.zkc("coordinator", "coordinator", "clients", "--json").events if row["revoked"]]
    assert (row["name"], row["online"]) == ("alice", False)
    # What it is told to do does help.
    assert "zkc join --force" in fleet.zkc("alice", "send", "bob", "-m", "x", "--json").events[-1]["message"]
    assert b"\x1b" not in fleet.zkc("coordinator", "coordinator", "clients").out
    assert reason(fleet.zkc("coordinator", "coordinator", "revoke", "alice", "--json")) == (11, "unknown")
    done = join(fleet, "alice", fleet.invite("alice"))
    assert reason(done) == (2, "already-registered")
    assert "revoked" in done.events[-1]["message"]
    assert join(fleet, "alice", fleet.invite("alice"), "--force").code == 0


@pytest.mark.parametrize("with_daemon", [False, True])
def test_leave_ends_here_what_has_ended_there(with_daemon: bool, fleets: Fleets) -> None:
    """Revoked, or by an earlier leave that was killed between the two sides."""
    fleet = fleets("alice", daemons=False)
    assert fleet.zkc("coordinator", "coordinator", "revoke", "alice").code == 0
    if with_daemon:
        daemon = fleet.popen("alice", "daemon", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert daemon.stdout is not None
        daemon.stdout.readline()
    done = fleet.zkc("alice", "leave", "--json")
    assert (done.code, done.events[0]["names"]) == (0, ["alice"])
    if with_daemon:
        assert daemon.wait(PATIENCE) == 0
        daemon.stdout.close()
    assert reason(fleet.zkc("alice", "status", "--json"))[0] in {11, 34}
    assert join(fleet, "alice", fleet.invite("alice")).code == 0


# --- peers and verify -----------------------------------------------------------------------------------------------


def test_peers_shows_who_is_there_and_what_is_pinned(fleet: Fleet) -> None:
    fleet.join("shown")
    rows = {row["name"]: row for row in fleet.zkc("alice", "peers", "--json").events}
    assert "alice" not in rows
    assert (rows["bob"]["online"], rows["bob"]["kind"]) == (True, "computer")
    assert (rows["shown"]["online"], rows["shown"]["pinned"], rows["shown"]["verified"]) == (False, False, False)
    assert rows["bob"]["fingerprint"] == fleet.program("bob").fingerprint
    assert set(rows["bob"]) >= {"name", "kind", "online", "person", "last_seen", "fingerprint", "pinned", "verified"}


def test_whoever_is_online_is_seen_now_and_who_has_gone_was_until_then(fleets: Fleets) -> None:
    fleet = fleets("alice", "bob")
    began = datetime.fromtimestamp(SystemClock().wall(), UTC).strftime("%Y-%m-%dT%H:%M:%S")

    def seen(*words: str) -> str:
        rows = fleet.zkc(*words, "--json").events
        return next(str(row["last_seen"]) for row in rows if row["name"] == "bob")

    assert seen("coordinator", "coordinator", "clients") >= began
    fleet.program("bob").terminate()
    assert seen("alice", "peers") >= began


def test_both_ends_see_the_same_safety_number_and_confirm_records_it(fleet: Fleet) -> None:
    (alice,) = fleet.zkc("alice", "verify", "bob", "--json").events
    (bob,) = fleet.zkc("bob", "verify", "alice", "--json").events
    assert alice["safety_number"] == bob["safety_number"]
    assert [len(group) for group in alice["safety_number"].split()] == [5] * 12
    assert (alice["verified"], alice["fingerprint"]) == (False, bob["own_fingerprint"])
    assert fleet.zkc("alice", "verify", "bob", "--confirm").code == 0
    rows = {row["name"]: row for row in fleet.zkc("alice", "peers", "--json").events}
    assert (rows["bob"]["pinned"], rows["bob"]["verified"]) == (True, True)
    assert fleet.zkc("alice", "verify", "bob").out.decode().split() == alice["safety_number"].split()


def test_a_qr_code_is_drawn_on_a_terminal_alone(fleet: Fleet) -> None:
    ours, theirs = pty.openpty()
    with fleet.popen("alice", "verify", "bob", stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        shown = b""
        while select.select([ours], [], [], PATIENCE)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:
                break
        assert process.wait(PATIENCE) == 0
    os.close(ours)
    assert "█" in shown.decode()
    assert "█" not in fleet.zkc("alice", "verify", "bob").out.decode()


def test_forget_removes_a_pin(fleet: Fleet) -> None:
    fleet.join("forgotten")
    assert fleet.zkc("alice", "verify", "forgotten").code == 0
    assert "forgotten" in names(fleet)
    assert fleet.zkc("alice", "peers", "forget", "forgotten").code == 0
    assert "forgotten" not in names(fleet)
    assert reason(fleet.zkc("alice", "peers", "forget", "forgotten", "--json")) == (20, "not-pinned")


def test_verify_of_nobody_or_oneself(fleet: Fleet) -> None:
    assert reason(fleet.zkc("alice", "verify", "nobody", "--json")) == (20, "unknown")
    assert fleet.zkc("alice", "verify", "alice").code == 2


def test_a_changed_key_stops_everything_until_its_fingerprint_is_named(fleets: Fleets) -> None:
    fleet = fleets("alice", "bob")
    assert fleet.zkc("alice", "send", "bob", "-m", "x").code == 0
    assert fleet.zkc("alice", "verify", "bob", "--confirm").code == 0
    old = fleet.program("bob").fingerprint
    # Another computer gets bob's name.
    assert fleet.zkc("coordinator", "coordinator", "revoke", "bob").code == 0
    assert fleet.program("bob").process.wait(PATIENCE) == 11
    fleet.program("bob").terminate()  # closes its log
    assert join(fleet, "bob", fleet.invite("bob"), "--force").code == 0
    new = fleet.start_daemon("bob").fingerprint
    assert old != new

    done = fleet.zkc("alice", "send", "bob", "-m", "x", "--json")
    assert reason(done) == (12, "identity")
    message = done.events[-1]["message"]
    assert old in message
    assert new in message
    assert f"zkc verify bob --trust {new}" in message
    done = fleet.zkc("alice", "verify", "bob", "--json")
    assert reason(done) == (12, "identity")
    assert old in done.events[-1]["message"]
    assert "registered anew at the coordinator on 20" in done.events[-1]["message"]
    assert "by an invitation" in done.events[-1]["message"]
    (row,) = fleet.zkc("alice", "peers", "--json").events
    assert (row["fingerprint"], row["alarm"]) == (old, new)

    assert reason(fleet.zkc("alice", "verify", "bob", "--trust", old, "--json")) == (12, "identity")
    assert reason(fleet.zkc("alice", "verify", "bob", "--trust", "ab" * 32, "--json")) == (12, "identity")
    assert fleet.zkc("alice", "send", "bob", "-m", "x").code == 12
    done = fleet.zkc("alice", "verify", "bob", "--trust", new.upper(), "--json")
    assert (done.code, done.events[0]["verified"]) == (0, False)
    assert fleet.zkc("alice", "send", "bob", "-m", "x").code == 0
    assert fleet.zkc("alice", "verify", "bob", "--confirm", "--json").events[0]["verified"] is True


# --- coordinator ----------------------------------------------------------------------------------------------------


def test_coordinator_status_has_the_keys_of_the_contract(fleet: Fleet) -> None:
    (told,) = fleet.zkc("coordinator", "coordinator", "status", "--json").events
    assert (told["endpoint"], told["fingerprint"]) == (fleet.coordinator.endpoint, fleet.coordinator.fingerprint)
    assert told["clients"] >= told["online"] >= 2
    assert told["keydb"].startswith("sqlite:///")
    assert fleet.coordinator.endpoint in fleet.zkc("coordinator", "coordinator", "status").out.decode()


def test_an_invitation_is_one_line_on_stdout_or_an_object(fleet: Fleet) -> None:
    done = fleet.zkc("coordinator", "coordinator", "invite", "new", "--kind", "user", "--ttl", "2h")
    assert (done.code, done.err, done.out.count(b"\n")) == (0, b"", 1)
    (told,) = fleet.zkc("coordinator", "coordinator", "invite", "new", "--json").events
    assert (told["event"], told["name"]) == ("invite", "new")
    assert told["expires"].endswith("Z")
    listed = fleet.zkc("coordinator", "coordinator", "invite", "--list", "--json")
    assert told["invitation"].encode() not in listed.out
    kinds = {row["kind"] for row in listed.events if row["name"] == "new"}
    assert kinds == {"user", "computer"}
    done = fleet.zkc("coordinator", "coordinator", "invite", "--cancel", "nobody", "--json")
    assert reason(done) == (11, "invite-unknown")


@pytest.mark.attack("L03")
def test_a_second_coordinator_in_a_home_is_34(fleet: Fleet) -> None:
    done = fleet.zkc("coordinator", "coordinator", "run", "--listen", "tcp://127.0.0.1:0", "--json")
    assert reason(done) == (34, "already-running")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_coordinator_says_ready_once_and_ends_on_a_signal_with_0(number: signal.Signals, fleet: Fleet) -> None:
    home = f"other-{number}"
    words = ["coordinator", "--listen", "tcp://127.0.0.1:0", "--json"]  # `coordinator` is `coordinator run`
    waiting = fleet.popen(home, "coordinator", "status", "--wait", "30s", "--json", stdout=subprocess.PIPE)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with waiting, fleet.popen(home, *words, **pipes) as process:
        assert process.stdout is not None
        told = Done(0, process.stdout.readline(), b"").events[0]
        assert told["event"] == "ready"
        (seen,) = Done(0, waiting.communicate(timeout=PATIENCE)[0], b"").events
        assert (seen["endpoint"], seen["fingerprint"]) == (told["endpoint"], told["fingerprint"])
        process.send_signal(number)
        assert process.communicate(timeout=PATIENCE)[0] == b""
        assert process.returncode == 0


def test_a_port_that_is_taken_is_33(fleet: Fleet) -> None:
    done = fleet.zkc("elsewhere", "coordinator", "run", "--listen", fleet.coordinator.endpoint, "--json")
    assert reason(done) == (33, "address-in-use")
