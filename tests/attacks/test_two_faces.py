"""A coordinator that shows its clients different key logs is caught by what they tell each other, and named."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.evil_fleet import EvilFleet, error_of
from tests.support.looking import log_of
from tests.support.program import zkc
from tests.support.waiting import wait_until
from zkc.testing import Fleet


def alarms(fleet: Fleet, name: str) -> list[tuple[str, str]]:
    """Detail and words of each that the daemon of ``name`` has logged."""
    return [(each["detail"], each["error"]) for each in log_of(fleet, name) if each["event"] == "key-log-alarm"]


def is_alarmed(fleet: Fleet, name: str) -> bool:
    return alarms(fleet, name) != []


def noted(fleet: Fleet, name: str) -> list[tuple[str, int, str]]:
    """The alarms of its audit log: from, code and detail."""
    events = fleet.zkc(name, "audit", "--json").events
    return [(each["from"], each["code"], each["detail"]) for each in events if each["kind"] == "key-log-alarm"]


def diagnosis(fleet: Fleet, name: str) -> tuple[int, dict[str, Any]]:
    """The exit code of ``zkc doctor``, and what it says of the key log."""
    done = fleet.zkc(name, "doctor", "--json")
    return done.code, next(each for each in done.events if each.get("step") == "key log")


@pytest.mark.attack("H01", "H12", "P10")
def test_a_coordinator_that_shows_one_client_a_log_of_its_own_is_caught_by_the_next_transfer_and_named(
    tmp_path: Path,
) -> None:
    """alice is given a false bob, logged and proved; bob and all others see nothing of it. Then she meets carol."""
    with EvilFleet("bob", "carol", folder=tmp_path) as fleet:
        fleet.evil.lie("two-faces", name="bob", to=["alice"])
        fleet.join("alice")
        fleet.start_daemon("alice")
        assert fleet.send("alice", "bob", "for bob alone").code == 0
        assert [bytes.fromhex(each) for each in fleet.evil.report()["stolen"]] == [b"for bob alone"]
        assert fleet.send("carol", "bob", "to the true bob").code == 0
        fleet.program("bob").terminate()
        fleet.start_daemon("bob")
        assert diagnosis(fleet, "bob")[1]["state"] == "ok", "in what he is shown nothing is wrong"
        assert [alarms(fleet, name) for name in ("alice", "bob", "carol")] == [[], [], []]

        assert fleet.send("alice", "carol", "hello").code == 0, "its ends have not been lied to about each other"
        assert fleet.texts("carol") == [b"hello"]
        for name, other in (("carol", "alice"), ("alice", "carol")):
            wait_until(partial(is_alarmed, fleet, name))
            ((detail, words),) = alarms(fleet, name)
            assert detail == "log-fork"
            assert f"it has shown {other} another log than this client" in words
            wait_until(lambda name=name: noted(fleet, name))  # written ten times a second
            assert noted(fleet, name) == [(name, 12, "log-fork")]
            (evidence,) = (fleet.home(name) / "evidence").iterdir()
            assert str(evidence) in words
            code, finding = diagnosis(fleet, name)
            assert (code, finding["state"], finding["detail"]) == (12, "wrong", "log-fork")
            assert str(evidence) in finding["message"]

            # Anybody can check whose coordinator that is, with nothing but the file.
            verified = zkc("coordinator", "audit", "--verify", str(evidence), "--json")
            assert verified.code == 0, verified
            status = json.loads(fleet.zkc("coordinator", "coordinator", "status", "--json").out)
            assert (verified.objects[0]["coordinator"], verified.objects[0]["size"]) == (status["fingerprint"], 3)
        # carol tells bob, who has seen the true log alone: nothing is wrong between these two.
        assert fleet.send("carol", "bob", "we agree").code == 0
        assert alarms(fleet, "bob") == []


@pytest.mark.attack("H12", "K05", "P10")
def test_a_coordinator_that_hides_entries_from_a_client_or_goes_back_is_noticed(tmp_path: Path) -> None:
    """Nothing of it is signed twice, so nobody else can check it; the client's log, and its first contacts, tell."""
    with EvilFleet("alice", "bob", folder=tmp_path) as fleet:
        assert fleet.send("alice", "bob", "both have seen two entries").code == 0
        fleet.evil.lie("hide", size=2, to=["bob"])
        fleet.join("carol")
        fleet.start_daemon("carol")
        assert fleet.send("alice", "carol", "alice has seen three").code == 0
        assert alarms(fleet, "bob") == []
        assert fleet.send("alice", "bob", "and tells").code == 0
        wait_until(partial(is_alarmed, fleet, "bob"))
        ((detail, words),) = alarms(fleet, "bob")
        assert (detail, "alice was shown 3 entries, and this client 2" in words) == ("log-shrunk", True)
        wait_until(lambda: noted(fleet, "bob"))
        assert noted(fleet, "bob") == [("bob", 12, "log-shrunk")]
        assert alarms(fleet, "alice") == []

        # A log from which somebody is missing has nobody to be met for the first time.
        error = error_of(fleet.send("bob", "carol", "who is that"))
        assert (error["code"], error["detail"]) == (12, "log-proof")

        # Back to what bob has been shown before.
        fleet.evil.lie("hide", size=1, to=["alice"])
        fleet.program("alice").terminate()
        fleet.start_daemon("alice")
        wait_until(partial(is_alarmed, fleet, "alice"))
        ((detail, words),) = alarms(fleet, "alice")
        assert (detail, "it had 3 entries, and now has 1" in words) == ("log-shrunk", True)
        fleet.join("dave")
        error = error_of(fleet.zkc("alice", "verify", "dave", "--json"))
        assert (error["code"], error["detail"]) == (12, "log-shrunk")
        assert fleet.send("alice", "bob", "those who know each other need no log").code == 0
