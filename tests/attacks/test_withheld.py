"""A coordinator that withholds a succession: of a client, or its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.evil_fleet import EvilFleet, error_of
from tests.support.looking import log_of
from tests.support.program import zkc
from tests.support.waiting import wait_until
from zkc.testing import Fleet
from zkc.wire.codec import decode
from zkc.wire.messages import CoordinatorNow, TransferGrant

NONE_OF_THEM: dict[str, Any] = {"successions": [], "more": False}


def events(fleet: Fleet, name: str, event: str) -> list[dict[str, Any]]:
    return [each for each in log_of(fleet, name) if each["event"] == event]


def has_event(fleet: Fleet, name: str, event: str, detail: str) -> bool:
    return any(each["detail"] == detail for each in events(fleet, name, event))


def rotated(fleet: Fleet) -> str:
    """The coordinator's new identity."""
    done = fleet.zkc("coordinator", "coordinator", "rotate", "--json")
    assert done.code == 0, done
    fingerprint: str = done.events[0]["fingerprint"]
    return fingerprint


def knows(fleet: Fleet, name: str, fingerprint: str) -> bool:
    """Whether the daemon has learned of that identity of the coordinator."""
    return any(each["fingerprint"] == fingerprint for each in events(fleet, name, "coordinator-identity"))


@pytest.mark.attack("H13")
def test_without_a_peers_succession_its_new_key_is_an_alarm_until_it_is_told(tmp_path: Path) -> None:
    """Nothing is sent meanwhile, to neither key; what a person said of it stands again as soon as the way is shown."""
    with EvilFleet("alice", "bob", folder=tmp_path) as fleet:
        assert fleet.send("alice", "bob", "before").code == 0
        assert fleet.zkc("alice", "verify", "bob", "--confirm").code == 0
        old = fleet.peer("alice", "bob")["fingerprint"]
        (former,) = [data for to, kind, data in fleet.evil.records if (to, kind) == ("alice", "TransferGrant")]
        assert fleet.zkc("bob", "rotate", "--identity").code == 0
        fleet.evil.lie("alter", message="Successions", fields=NONE_OF_THEM)
        error = error_of(fleet.send("alice", "bob", "to whom"))
        assert (error["code"], error["detail"]) == (12, "identity")
        assert fleet.evil.report()["altered"] > 0
        row = fleet.peer("alice", "bob")
        assert (row["fingerprint"], row["verified"]) == (old, True)
        new = row["alarm"]
        assert new not in {None, old}

        # As if there had been no rotation: the answer is of a key that the former card has not.
        grant = decode(former, TransferGrant)
        fields = {name: {"hex": getattr(grant, name).hex()} for name in ("card", "certificate")}
        fleet.evil.lie("alter", message="TransferGrant", fields=fields)
        assert error_of(fleet.send("alice", "bob", "to whom"))["code"] == 12
        assert fleet.evil.report()["altered"] > 0
        assert fleet.texts("bob") == [b"before"]

        fleet.evil.lie("truth")
        assert fleet.send("alice", "bob", "after").code == 0
        row = fleet.peer("alice", "bob")
        assert (row["fingerprint"], row["verified"], row["alarm"]) == (new, True, None)


@pytest.mark.attack("H13")
def test_without_the_coordinators_own_succession_nothing_that_its_new_identity_signs_is_taken(tmp_path: Path) -> None:
    with EvilFleet("alice", "bob", folder=tmp_path) as fleet:
        assert fleet.send("alice", "bob", "before").code == 0
        # Nobody is told of the first one: who sees what it has signed asks.
        fleet.evil.lie("withhold", message="CoordinatorRenewed")
        second = rotated(fleet)
        wait_until(lambda: fleet.evil.report()["withheld"] > 1)
        assert fleet.send("alice", "bob", "not told").code == 0
        for name in ("alice", "bob"):
            wait_until(partial(knows, fleet, name, second))
        told = [decode(data, CoordinatorNow) for _, kind, data in fleet.evil.records if kind == "CoordinatorNow"][-1]

        # Who asks is not shown the way, or is told that nothing has changed.
        fleet.evil.lie("alter", message="CoordinatorNow", fields=NONE_OF_THEM)
        third = rotated(fleet)
        wait_until(lambda: fleet.evil.report()["altered"] > 1)
        error = error_of(fleet.send("alice", "bob", "by whom"))
        assert (error["code"], error["detail"]) == (12, "identity")
        stale = {name: {"hex": getattr(told, name).hex()} for name in ("card", "signature")} | NONE_OF_THEM
        fleet.evil.lie("alter", message="CoordinatorNow", fields=stale)
        error = error_of(fleet.send("alice", "bob", "by whom"))
        assert (error["code"], error["detail"]) == (12, "bad-certificate")
        assert fleet.texts("bob") == [b"before", b"not told"]

        # Nor does a new link come about, until the way is shown.
        fleet.evil.lie("alter", message="CoordinatorNow", fields=NONE_OF_THEM)
        fleet.program("alice").terminate()
        error = error_of(fleet.send("alice", "bob", "by whom"))
        assert (error["code"], error["detail"]) == (12, "identity")
        fleet.evil.lie("truth")
        fleet.start_daemon("alice")
        assert fleet.send("alice", "bob", "after").code == 0
        for name in ("alice", "bob"):
            assert knows(fleet, name, third)
            assert events(fleet, name, "key-log-alarm") == []


@pytest.mark.attack("H12", "H13", "P10")
def test_a_log_under_the_former_identity_for_one_who_is_not_told_of_the_new_one_is_caught_on_both_sides(
    tmp_path: Path,
) -> None:
    """alice is kept behind, with a log of her own; who has followed the succession has evidence, and she is warned."""
    with EvilFleet("alice", "carol", folder=tmp_path) as fleet:
        assert fleet.send("alice", "carol", "before").code == 0
        fleet.evil.lie("keep-behind", name="dave", to=["alice"])
        new = rotated(fleet)
        wait_until(partial(knows, fleet, "carol", new))
        fleet.join("dave")
        for name in ("alice", "carol"):
            fleet.program(name).terminate()
            fleet.start_daemon(name)
        assert fleet.send("alice", "carol", "behind").code == 0
        assert not knows(fleet, "alice", new)
        wait_until(partial(has_event, fleet, "carol", "key-log-alarm", "log-fork"))
        wait_until(partial(has_event, fleet, "alice", "key-log-alarm", "log-signer"))
        (alarm,) = events(fleet, "alice", "key-log-alarm")
        assert new in alarm["error"]
        (evidence,) = (fleet.home("carol") / "evidence").iterdir()
        verified = zkc("coordinator", "audit", "--verify", str(evidence), "--json")
        assert (verified.code, verified.objects[0]["coordinator"]) == (0, new)
        old, present = verified.objects[0]["signers"]
        assert (present, old in events(fleet, "carol", "key-log-alarm")[0]["error"]) == (new, True)
        assert fleet.zkc("carol", "doctor").code == 12
