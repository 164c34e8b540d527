"""The coordinator gets a new identity: whoever is linked takes it, whoever was away when they come back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.looking import log_of
from tests.support.waiting import wait_until
from zkc.testing import Done, Fleet


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob") as running:
        yield running


def sent(fleet: Fleet, sender: str, recipient: str, text: str) -> None:
    done = fleet.zkc(sender, "send", recipient, "-m", text)
    assert done.code == 0, done


def rotated(fleet: Fleet) -> dict[str, Any]:
    done = fleet.zkc("coordinator", "coordinator", "rotate", "--json")
    assert done.code == 0, done
    return done.events[0]


def learned(fleet: Fleet, name: str) -> list[str]:
    """The identities that a daemon has learned of."""
    return [event["fingerprint"] for event in log_of(fleet, name) if event["event"] == "coordinator-identity"]


def error_of(done: Done) -> tuple[int, str]:
    event = [event for event in done.events if event["event"] == "error"][-1]
    return event["code"], event["detail"]


@pytest.mark.attack("H13")
def test_clients_take_the_coordinators_new_identity_linked_or_away(fleet: Fleet) -> None:
    sent(fleet, "alice", "bob", "before")
    assert fleet.zkc("alice", "verify", "bob", "--confirm").code == 0
    old = fleet.invite("carol")
    fleet.program("bob").terminate()
    second = rotated(fleet)
    assert second["invitations"] == ["carol"]
    wait_until(lambda: learned(fleet, "alice") == [second["fingerprint"]])
    third = rotated(fleet)
    status = json.loads(fleet.zkc("coordinator", "coordinator", "status", "--json").out)
    assert status["fingerprint"] == third["fingerprint"]
    fleet.start_daemon("bob")
    assert learned(fleet, "bob") == [third["fingerprint"]]
    sent(fleet, "alice", "bob", "under the third")
    sent(fleet, "bob", "alice", "and back")
    (row,) = fleet.zkc("alice", "peers", "--json").events
    assert (row["verified"], row["alarm"]) == (True, None)

    # Who was invited before is told, and whoever is invited now comes in; so does an application.
    done = fleet.zkc("carol", "join", "--json", env={"ZKC_INVITE": old})
    assert error_of(done) == (12, "identity")
    assert "another identity since" in done.events[-1]["message"]
    assert fleet.zkc("carol", "join", env={"ZKC_INVITE": fleet.invite("carol")}).code == 0
    sent(fleet, "carol", "bob", "by a newcomer")
    assert fleet.zkc("alice", "join", "--app", "backup").code == 0
    assert fleet.zkc("alice", "rotate").code == 0
    sent(fleet, "bob", "alice/backup", "to an application")


@pytest.mark.attack("K04", "K05")
def test_a_coordinator_that_dies_with_a_new_identity_goes_on_and_one_with_an_older_one_is_refused(
    fleet: Fleet,
) -> None:
    """The identity is one file, old or new; a backup of it from before a rotation is nobody's coordinator any more."""
    file, backup = fleet.home("coordinator") / "identity.key", fleet.folder / "older.key"
    shutil.copy2(file, backup)
    before = len(learned(fleet, "bob"))
    fleet.coordinator.kill()
    rotated(fleet)  # nobody is there to be told
    fleet.start_coordinator()
    for name in ("alice", "bob"):
        fleet.wait_linked(name)
    wait_until(lambda: len(learned(fleet, "bob")) == before + 1)
    sent(fleet, "alice", "bob", "after the kill")

    fleet.coordinator.terminate()
    newer = fleet.folder / "newer.key"
    shutil.copy2(file, newer)
    shutil.copy2(backup, file)
    fleet.start_coordinator()
    fleet.program("alice").terminate()
    assert error_of(fleet.zkc("alice", "send", "bob", "-m", "x", "--json")) == (12, "identity")
    wait_until(lambda: "identity" in [each["detail"] for each in log_of(fleet, "bob") if each["event"] == "no-link"])
    fleet.coordinator.terminate()
    shutil.copy2(newer, file)
    fleet.start_coordinator()
    fleet.wait_linked("bob")
    sent(fleet, "alice", "bob", "from the right one again")
    assert not [each for name in ("alice", "bob") for each in log_of(fleet, name) if each["event"] == "key-log-alarm"]
