"""The coordinator and its key log: a false card at first contact, and a database from yesterday."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.evil_fleet import EvilFleet, error_of
from tests.support.waiting import wait_until
from zkc.testing import Fleet


def alarms(fleet: Fleet, name: str, detail: str) -> bool:
    log = fleet.program(name).log.read_text()
    return any("key-log-alarm" in line and detail in line for line in log.splitlines())


def noted(fleet: Fleet, name: str) -> list[tuple[str, str | None, int, str]]:
    """The audit log's kind, from, code and detail."""
    return [
        (each["kind"], each["from"], each["code"], each["detail"]) for each in fleet.zkc(name, "audit", "--json").events
    ]


@pytest.mark.attack("H01")
def test_a_false_card_at_first_contact_is_refused_unless_it_is_logged_and_then_its_true_owner_is_told(
    tmp_path: Path,
) -> None:
    with EvilFleet("alice", "bob", folder=tmp_path) as fleet:
        fleet.evil.lie("impersonate", name="bob")
        error = error_of(fleet.send("alice", "bob", "for bob alone"))
        assert (error["code"], error["detail"]) == (12, "log-proof")
        assert error_of(fleet.zkc("alice", "verify", "bob", "--json"))["detail"] == "log-proof"
        report = fleet.evil.report()
        assert (report["seen"], report["stolen"]) == ({"notified": 1}, []), "a key was made for somebody else"
        assert fleet.pin("alice", "bob") is None
        # The other way round: bob takes nothing from a false carol whom nobody has logged.
        fleet.evil.lie("truth")
        assert fleet.evil.command("pose", name="carol", to="bob")["answer"] == ["Failure", 12, "log-proof"]
        assert fleet.pin("bob", "carol") is None

        # What cannot be prevented at first contact cannot be hidden either.
        fleet.evil.lie("impersonate", name="bob", logged=True)
        assert fleet.send("alice", "bob", "for bob alone").code == 0
        assert not alarms(fleet, "bob", "log-own")
        fleet.program("bob").terminate()
        fleet.start_daemon("bob")
        wait_until(lambda: alarms(fleet, "bob", "log-own"))
        wait_until(lambda: ("key-log-alarm", "bob", 12, "log-own") in noted(fleet, "bob"))
        assert ("outgoing", "alice", 12, "log-proof") in noted(fleet, "alice")


@pytest.mark.attack("K05")
def test_a_coordinator_from_an_older_backup_is_refused_at_first_contact(tmp_path: Path) -> None:
    with Fleet("alice", "bob", folder=tmp_path) as fleet:
        assert fleet.zkc("alice", "send", "bob", "-m", "known to each other").code == 0
        folder, backup = fleet.home("coordinator"), tmp_path / "backup"
        fleet.coordinator.terminate()
        shutil.copytree(folder, backup, symlinks=True)
        fleet.start_coordinator()
        fleet.join("carol")
        fleet.start_daemon("carol")
        assert fleet.zkc("alice", "send", "carol", "-m", "alice has seen three entries").code == 0

        # Yesterday's database, in which dave is registered where carol was.
        fleet.coordinator.terminate()
        shutil.rmtree(folder)
        shutil.copytree(backup, folder, symlinks=True)
        fleet.start_coordinator()
        for name in ("alice", "bob"):
            fleet.wait_linked(name)
        wait_until(lambda: alarms(fleet, "alice", "log-shrunk"))
        fleet.join("dave")
        fleet.start_daemon("dave")
        error = error_of(fleet.zkc("alice", "send", "dave", "-m", "x", "--json"))
        assert (error["code"], error["detail"]) == (12, "log-fork")
        assert fleet.zkc("alice", "send", "bob", "-m", "those who know each other need no log").code == 0
