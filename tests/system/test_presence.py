"""Somebody is there, and may receive: real processes, three levels (claims D1 to D4)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import DEADLINE, wait_until
from zkc.testing import Done, Fleet


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    sources = {"transfer.key_sources": ["sender", "coordinator"]}
    with Fleet("alice", "bob", coordinator=sources, client=sources | {"log.level": "debug"}) as running:
        (running.home("alice") / "payload").write_bytes(b"hello")
        for name, pin in (("pin", "right horse"), ("wrong", "wrong horse")):
            (running.home("bob") / name).write_text(f"{pin}\n")
        yield running


def asked(fleet: Fleet, *words: str) -> Done:
    return fleet.zkc("alice", "check", "bob", "--json", *words)


def send(fleet: Fleet, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "zkc", "send", "bob", str(fleet.home("alice") / "payload"), "--json", *words],
        env=fleet.environment("alice"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )


def ended(process: subprocess.Popen[bytes]) -> tuple[int, list[dict[str, Any]]]:
    out, _ = process.communicate(timeout=DEADLINE)
    return process.returncode, [json.loads(line) for line in out.splitlines()]


@pytest.mark.claims("D1", "D2", "D3", "D4", 12, 13, 34, 35, 41, 42, 62, 63, 86, 87)
def test_a_transfer_goes_only_if_the_right_person_is_there(fleet: Fleet, tmp_path: Path) -> None:
    home = fleet.home("bob")
    # Nobody has said anything: unknown is not yes.
    assert asked(fleet).code == 0
    assert (asked(fleet, "--require", "present").code, asked(fleet, "--require", "authorised").code) == (22, 23)
    waiting = send(fleet, "--require", "present", "--wait", f"{DEADLINE:g}s")
    watching = subprocess.Popen(
        [sys.executable, "-m", "zkc", "wait", "bob", "--present", "--json"], env=fleet.environment("alice"),
        stdout=subprocess.PIPE,
    )
    assert fleet.zkc("bob", "presence", "here").code == 0
    assert ended(watching)[0] == 0
    code, told = ended(waiting)
    assert code == 0, told
    assert [each["presence"] for each in told if each["event"] == "granted"] == ["present"]
    receipt = fleet.zkc("alice", "receipt", "show", told[-1]["receipt"], "--json").events[-1]
    assert receipt["presence"] == "present"
    (peer,) = fleet.zkc("alice", "peers", "--json").events
    assert (peer["online"], peer["person"]) == (True, "present")
    assert fleet.zkc("bob", "status", "--json").events[-1]["presence"] == "present"

    # Authorised: he proves it for this transfer, whose key the coordinator makes once he has.
    assert fleet.zkc("bob", "person", "enrol", "--pin-file", str(home / "pin")).code == 0
    process = send(fleet, "--require", "authorised", "--key-source", "coordinator")
    wait_until(lambda: pending(fleet))
    (item,) = pending(fleet)
    for words, detail in (((), "pin-needed"), (("--pin-file", str(home / "wrong")), "wrong-pin")):
        refused = fleet.zkc("bob", "accept", item["id"], "--json", *words)
        assert (refused.code, refused.events[-1]["detail"]) == (23, detail)
    assert fleet.zkc("bob", "accept", item["id"], "--pin-file", str(home / "pin")).code == 0
    code, told = ended(process)
    assert code == 0, told
    (granted,) = [each for each in told if each["event"] == "granted"]
    assert (granted["presence"], granted["key_source"]) == ("authorised", "coordinator")

    assert fleet.zkc("bob", "presence", "away").code == 0
    assert asked(fleet, "--require", "present").code == 22
    late = fleet.zkc("alice", "wait", "bob", "--present", "--timeout", "1s", "--json")
    assert (late.code, late.events[-1]["detail"]) == (22, "absent")
    assert fleet.zkc("alice", "wait", "bob", "--timeout", "1s").code == 0
    log = fleet.program("bob").log.read_text()
    assert "wrong-pin" in log
    assert "right horse" not in log
    assert "wrong horse" not in log


def pending(fleet: Fleet) -> list[dict[str, Any]]:
    return [item for item in fleet.zkc("bob", "inbox", "--json").events if item["state"] == "pending"]


def test_nobody_can_be_waited_for_who_does_not_exist_or_is_not_there(fleet: Fleet) -> None:
    assert fleet.zkc("alice", "wait", "nobody").code == 20
    fleet.join("carol")
    assert fleet.zkc("alice", "wait", "carol", "--timeout", "1s").code == 21
