"""``zkc coordinator audit`` and ``zkc audit``: what was decided, without what was sent."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.program import environment
from tests.support.waiting import DEADLINE, wait_until
from zkc.testing import Fleet


def test_decisions_are_told_verified_and_hold_nothing_of_a_payload() -> None:
    with Fleet("alice", "bob") as fleet:
        secret = fleet.home("alice").parent / "merger-plan-7731.txt"
        secret.write_bytes(b"the-content-4711 " * 20_000)
        assert fleet.zkc("alice", "send", "bob", str(secret)).code == 0
        assert fleet.zkc("alice", "send", "nobody-here", str(secret)).code == 20

        def kinds() -> list[tuple[str, str, str | None, int]]:
            done = fleet.zkc("coordinator", "coordinator", "audit", "--json")
            assert done.code == 0, done
            return [(each["kind"], each["from"] or "", each["to"], each["code"]) for each in done.events]

        wait_until(lambda: ("transfer", "alice", "bob", 0) in kinds())
        assert ("registered", "alice", None, 0) in kinds()
        assert ("invited", "", "bob", 0) in kinds()
        noted = fleet.zkc("coordinator", "coordinator", "audit", "--verify", "--json").events[0]
        assert fleet.zkc("coordinator", "coordinator", "revoke", "bob").code == 0
        assert ("revoked", "bob", None, 0) in kinds()
        later = ("audit", "--verify", "--head", noted["head"], "--json")
        again = fleet.zkc("coordinator", "coordinator", *later).events[0]
        assert again["seq"] > noted["seq"]

        fleet.coordinator.kill()
        fleet.start_coordinator()
        wait_until(lambda: [kind for kind, *_ in kinds()].count("started") == 2)
        assert fleet.zkc("coordinator", "coordinator", *later).code == 0

        data = fleet.home("coordinator")
        for path in data.rglob("*"):
            if path.is_file():
                held = path.read_bytes()
                assert b"merger-plan" not in held, path
                assert b"the-content" not in held, path

        with closing(sqlite3.connect(next(data.rglob("keys.db")))) as raw, raw:
            raw.execute("UPDATE audit SET recipient = 'carol' WHERE seq = 1")
        broken = fleet.zkc("coordinator", "coordinator", "audit", "--verify", "--json")
        assert (broken.code, broken.events[-1]["detail"]) == (12, "audit-chain")


Told = tuple[str, str | None, str | None, int]


def told(fleet: Fleet, name: str) -> list[Told]:
    """What ``name`` has noted: kind, from, to, code."""
    done = fleet.zkc(name, "audit", "--json")
    assert done.code == 0, done
    return [(each["kind"], each["from"], each["to"], each["code"]) for each in done.events]


def test_a_client_notes_what_it_decided_as_recipient_and_as_sender() -> None:
    """The daemon, commands beside it, and commands without one write one chain; a killed daemon does not break it."""
    with Fleet("alice", "bob") as fleet:
        secret = fleet.home("alice").parent / "merger-plan-7731.txt"
        secret.write_bytes(b"the-content-4711 " * 20_000)
        assert fleet.zkc("alice", "send", "bob", str(secret)).code == 0
        wait_until(lambda: ("received", "alice", "bob", 0) in told(fleet, "bob"))
        assert ("incoming", "alice", "bob", 0) in told(fleet, "bob")
        assert ("outgoing", "alice", "bob", 0) in told(fleet, "alice")

        fleet.configure("bob", {"inbox.accept": "none"})
        fleet.program("bob").process.send_signal(signal.SIGHUP)
        wait_until(lambda: ("policy-reloaded", "bob", None, 0) in told(fleet, "bob"))
        assert fleet.zkc("alice", "send", "bob", "-m", "no").code == 25
        wait_until(lambda: ("incoming", "alice", "bob", 25) in told(fleet, "bob"))
        wait_until(lambda: ("outgoing", "alice", "bob", 25) in told(fleet, "alice"))

        fleet.configure("bob", {"inbox.accept": "ask"})
        fleet.program("bob").process.send_signal(signal.SIGHUP)
        wait_until(lambda: told(fleet, "bob").count(("policy-reloaded", "bob", None, 0)) == 2)
        with fleet.popen("alice", "send", "bob", "-m", "may I?", stderr=subprocess.DEVNULL) as sending:
            wait_until(lambda: ("asked", "alice", "bob", 0) in told(fleet, "bob"))
            (item,) = [each for each in fleet.zkc("bob", "inbox", "--json").events if each["state"] == "pending"]
            assert fleet.zkc("bob", "refuse", item["id"], "--reason", "a-reason-of-mine").code == 0
            assert sending.wait(DEADLINE) == 24
        wait_until(lambda: ("answered", "alice", "bob", 24) in told(fleet, "bob"))

        fleet.program("alice").kill()
        assert fleet.zkc("alice", "verify", "bob", "--confirm").code == 0
        assert fleet.zkc("alice", "send", "nobody-here", "-m", "x").code == 20
        fleet.start_daemon("alice")
        assert fleet.zkc("alice", "peers", "forget", "bob").code == 0
        noted = told(fleet, "alice")
        for wanted in (
            ("verified", "alice", "bob", 0), ("outgoing", "alice", "nobody-here", 20), ("forgotten", None, "bob", 0)
        ):
            assert wanted in noted
        head = fleet.zkc("alice", "audit", "--verify", "--json").events[0]["head"]
        assert fleet.zkc("alice", "audit", "--verify", "--head", head).code == 0

        for name in ("alice", "bob"):
            for path in fleet.home(name).glob("audit.db*"):
                assert path.stat().st_mode & 0o777 == 0o600
                for word in (b"merger-plan", b"the-content", b"may I", b"a-reason-of-mine"):
                    assert word not in path.read_bytes(), path
        fleet.program("alice").terminate()
        with closing(sqlite3.connect(fleet.home("alice") / "audit.db")) as raw, raw:
            raw.execute("UPDATE audit SET recipient = 'carol' WHERE event = 'verified'")
        broken = fleet.zkc("alice", "audit", "--verify", "--json")
        assert (broken.code, broken.events[-1]["detail"]) == (12, "audit-chain")


def test_new_identities_are_entries_at_each_end_and_the_log_verifies_across_them() -> None:
    """A coordinator's rows keep their MACs; whose key moved along a succession can be read later."""
    with Fleet("alice", "bob") as fleet:
        assert fleet.zkc("alice", "send", "bob", "-m", "hi").code == 0
        assert fleet.zkc("coordinator", "coordinator", "rotate").code == 0
        wait_until(lambda: ("coordinator-succeeded", "alice", None, 0) in told(fleet, "alice"))
        assert fleet.zkc("bob", "rotate", "--identity").code == 0
        assert fleet.zkc("alice", "send", "bob", "-m", "hi").code == 0
        wait_until(lambda: ("key-succeeded", "alice", "bob", 0) in told(fleet, "alice"))
        wait_until(lambda: ("rotated", "bob", None, 0) in told(fleet, "bob"))
        noted = fleet.zkc("coordinator", "coordinator", "audit", "--json").events
        assert {"identity-rotated", "succeeded"} <= {each["kind"] for each in noted}
        assert fleet.zkc("coordinator", "coordinator", "audit", "--verify").code == 0


@pytest.mark.attack("K06")
def test_a_coordinator_on_a_full_disk_goes_on_and_writes_later(
    small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    """Registering does not: it would have to be durable."""
    disk, folder = small_disk(8 << 20), tmp_path / "fleet"
    folder.mkdir(mode=0o700)
    (folder / "coordinator").symlink_to(disk)
    with Fleet("alice", "bob", folder=folder) as fleet:
        with pytest.raises(OSError, match="No space"):
            (disk / "filler").write_bytes(bytes(8 << 20))

        def is_full() -> bool:
            assert fleet.zkc("alice", "send", "bob", "-m", "hi").code == 0
            return "no space" in fleet.coordinator.log.read_text()

        wait_until(is_full)
        assert fleet.zkc("coordinator", "coordinator", "invite", "carol").code == 33
        assert fleet.zkc("alice", "send", "nobody-here", "-m", "hi").code == 20
        (disk / "filler").unlink()

        def codes() -> list[int]:
            noted = fleet.zkc("coordinator", "coordinator", "audit", "--json").events
            return [each["code"] for each in noted if each["kind"] == "transfer"]

        wait_until(lambda: codes()[-1:] == [20])
        received = len(fleet.zkc("bob", "inbox", "--json").events)
        assert codes().count(0) == received
        assert fleet.zkc("coordinator", "coordinator", "audit", "--verify").code == 0
        assert fleet.zkc("coordinator", "coordinator", "invite", "carol").code == 0


@pytest.mark.attack("K03")
def test_a_command_whose_log_is_damaged_does_its_work_and_warns_and_a_daemon_does_not_start() -> None:
    with Fleet("alice", daemons=False) as fleet:
        path = fleet.home("alice") / "audit.db"
        path.write_bytes(b"garbage " * 1000)
        path.chmod(0o600)
        done = fleet.zkc("alice", "send", "nobody-here", "-m", "x", "--json")
        assert (done.code, len(done.out.splitlines()), b"audit log" in done.err) == (20, len(done.events), True)
        assert fleet.zkc("alice", "daemon", "--json").events[-1]["detail"] == "damaged"
        path.unlink()
        assert fleet.zkc("alice", "send", "nobody-here", "-m", "x").code == 20
        assert told(fleet, "alice") == [("outgoing", "alice", "nobody-here", 20)]


def test_following_tells_of_what_comes_and_ends_by_a_signal() -> None:
    """Also of what another process writes."""
    with Fleet("alice") as fleet:
        with fleet.popen("alice", "audit", "--follow", "--json", stdout=subprocess.PIPE) as following:
            assert following.stdout is not None
            assert fleet.zkc("alice", "send", "nobody-here", "-m", "x").code == 20
            assert any(b'"to":"nobody-here"' in line for line in following.stdout)
            following.send_signal(signal.SIGINT)
            assert following.wait(DEADLINE) == 130
        home = str(fleet.home("coordinator"))
        words = [sys.executable, "-m", "zkc", "--home", home, "coordinator", "audit", "--follow", "--json"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment({})) as following:
            assert following.stdout is not None
            assert fleet.zkc("coordinator", "coordinator", "invite", "late").code == 0
            assert any(b'"to":"late"' in line for line in following.stdout)
            following.send_signal(signal.SIGINT)
            assert following.wait(DEADLINE) == 130
