"""The queue: what is handed to the daemon arrives once, whoever comes late or is killed meanwhile."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import DEADLINE, wait_until
from zkc.env import SystemClock
from zkc.testing import Fleet


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob", client={"log.level": "debug"}) as running:
        yield running


def jobs(fleet: Fleet) -> list[dict[str, Any]]:
    return fleet.zkc("alice", "outbox", "--json").events


def arrived(fleet: Fleet) -> list[str]:
    return sorted(item["name"] for item in fleet.zkc("bob", "inbox", "--json").events if item["state"] == "ready")


def waiting(fleet: Fleet) -> list[dict[str, Any]]:
    return [item for item in fleet.zkc("bob", "inbox", "--json").events if item["state"] == "pending"]


def audited(fleet: Fleet) -> list[tuple[str, str, int, str]]:
    told = fleet.zkc("alice", "audit", "--json").events
    return [(each["kind"], each["to"], each["code"], each["detail"]) for each in told]


def queue(fleet: Fleet, *words: str, **options: Any) -> dict[str, Any]:
    done = fleet.zkc("alice", "send", "bob", *words, "--queue", "--json", **options)
    assert done.code == 0, done.err
    (told,) = done.events
    assert told["event"] == "queued"
    return told


def test_what_waits_survives_both_and_is_delivered_once(fleet: Fleet, tmp_path: Path) -> None:
    big = tmp_path / "big.bin"
    big.write_bytes(os.urandom(3 << 20) * 3)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inside").write_bytes(b"x")
    fleet.program("bob").terminate()
    piped = queue(fleet, "--name", "piped", stdin=b"secret words " * 100_000)
    assert piped["bytes"] == 1_300_000
    copied = queue(fleet, str(big), "--copy")
    named = queue(fleet, str(folder))
    queue(fleet, "-m", "hello")
    wait_until(lambda: all(job["tries"] for job in jobs(fleet)))
    assert {(job["to"], job["state"], job["code"]) for job in jobs(fleet)} == {("bob", "waiting", 21)}
    assert [job["id"] for job in jobs(fleet)][:3] == [piped["id"], copied["id"], named["id"]]
    # Nothing of a pipe lies there in clear; the file may go, for a copy is here.
    outbox = fleet.home("alice") / "outbox"
    assert not any(b"secret words" in path.read_bytes() for path in outbox.rglob("*") if path.is_file())
    sent = big.read_bytes()
    big.unlink()
    fleet.program("alice").kill()
    fleet.start_daemon("alice")
    assert len(jobs(fleet)) == 4
    fleet.start_daemon("bob")
    # Killed in the middle of it, and started again.
    wait_until(lambda: arrived(fleet))
    fleet.program("alice").kill()
    fleet.start_daemon("alice")
    wait_until(lambda: jobs(fleet) == [])
    assert arrived(fleet) == ["big.bin", "folder", "message", "piped"]
    assert [path.name for path in (outbox / "jobs").iterdir()] == [".lock"]
    assert fleet.zkc("bob", "recv", "--name", "piped", "-o", "-").out == b"secret words " * 100_000
    assert fleet.zkc("bob", "recv", "--name", "big.bin", "-o", "-").out == sent
    for name in ("folder", "message"):
        assert fleet.zkc("bob", "recv", "--name", name, "-o", str(tmp_path / "out")).code == 0


def test_what_cannot_be_delivered_fails_with_its_reason_and_can_be_tried_again(fleet: Fleet, tmp_path: Path) -> None:
    source = tmp_path / "later.txt"
    source.write_bytes(b"now")
    fleet.program("bob").terminate()
    job = queue(fleet, str(source))
    source.unlink()
    fleet.start_daemon("bob")
    wait_until(lambda: jobs(fleet)[0]["state"] == "failed")
    (failed,) = jobs(fleet)
    assert (failed["code"], failed["detail"]) == (33, "unreadable")
    assert str(source) in failed["why"]
    source.write_bytes(b"here again")
    assert fleet.zkc("alice", "outbox", "retry", job["id"][:6]).code == 0
    wait_until(lambda: jobs(fleet) == [])
    assert fleet.zkc("bob", "recv", "--name", "later.txt", "-o", "-").out == b"here again"

    # A refusal is the end of it.
    fleet.configure("bob", {"inbox.accept": "none"})
    fleet.program("bob").process.send_signal(signal.SIGHUP)
    wait_until(lambda: fleet.zkc("alice", "check", "bob").code == 25)
    queue(fleet, "-m", "no")
    wait_until(lambda: jobs(fleet)[0]["state"] == "failed")
    assert (jobs(fleet)[0]["code"], jobs(fleet)[0]["detail"]) == (25, "accept")
    fleet.configure("bob", {"inbox.accept": "all"})
    fleet.program("bob").process.send_signal(signal.SIGHUP)
    wait_until(lambda: fleet.zkc("alice", "check", "bob").code == 0)
    assert fleet.zkc("alice", "outbox", "cancel", jobs(fleet)[0]["id"]).code == 0
    assert jobs(fleet) == []
    assert fleet.zkc("alice", "outbox", "cancel", "ffff").code == 2


def test_a_job_waits_for_a_person_and_ends_when_it_expires(fleet: Fleet) -> None:
    queue(fleet, "-m", "for a person", "--require", "present")
    expiring = queue(fleet, "-m", "too late", "--require", "authorised", "--expires", "1s")
    wait_until(lambda: [job["state"] for job in jobs(fleet) if job["id"] == expiring["id"]] == ["failed"])
    told = {job["id"]: job for job in jobs(fleet)}
    assert (told[expiring["id"]]["code"], told[expiring["id"]]["detail"]) == (30, "expired")
    assert fleet.zkc("alice", "outbox", "cancel", expiring["id"]).code == 0
    wait_until(lambda: jobs(fleet)[0]["code"] == 22)
    assert fleet.zkc("bob", "presence", "here").code == 0
    wait_until(lambda: jobs(fleet) == [])
    assert fleet.zkc("bob", "recv", "-o", "-").out == b"for a person"
    wait_until(lambda: ("outbox", "bob", 0, "delivered") in audited(fleet))
    # What a person decides is the end of it.
    queue(fleet, "-m", "for his PIN", "--require", "authorised")
    pin = fleet.folder / "pin"
    pin.write_text("2580")
    pin.chmod(0o600)
    assert fleet.zkc("bob", "person", "enrol", "--pin-file", str(pin)).code == 0
    (retried,) = jobs(fleet)
    assert fleet.zkc("alice", "outbox", "retry", retried["id"]).code == 0
    wait_until(lambda: waiting(fleet))
    assert fleet.zkc("bob", "refuse", waiting(fleet)[0]["id"], "--reason", "not mine").code == 0
    wait_until(lambda: jobs(fleet)[0]["state"] == "failed")
    (refused,) = jobs(fleet)
    assert (refused["code"], refused["why"]) == (24, "a person at bob refused it: not mine")
    assert fleet.zkc("alice", "outbox", "cancel", refused["id"]).code == 0


def test_a_job_that_is_cancelled_while_it_is_sent_ends(fleet: Fleet, tmp_path: Path) -> None:
    source = tmp_path / "slow.bin"
    source.write_bytes(os.urandom(8 << 20))
    job = queue(fleet, str(source), "--bwlimit", "64K")
    wait_until(lambda: jobs(fleet)[0]["state"] == "sending")
    wait_until(lambda: fleet.zkc("bob", "inbox", "--partial", "--json").events)
    wait_until(lambda: 0 < (jobs(fleet)[0]["sent"] or 0) < 8 << 20)
    assert fleet.zkc("alice", "outbox", "cancel", job["id"]).code == 0
    assert jobs(fleet) == []
    wait_until(lambda: "not-received" in fleet.program("bob").log.read_text())
    assert arrived(fleet) == []


def test_a_disk_that_is_full_takes_no_job_and_keeps_nothing_of_it(fleet: Fleet) -> None:
    command = f"ulimit -f 512; exec {shlex.quote(sys.executable)} -m zkc send bob --queue --json"
    done = subprocess.run(
        ["bash", "-c", command], env=fleet.environment("alice"), input=bytes(2 << 20), capture_output=True, check=False,
        timeout=DEADLINE,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, told["event"], told["code"]) == (33, "error", 33)
    assert jobs(fleet) == []
    assert [path.name for path in (fleet.home("alice") / "outbox" / "jobs").iterdir()] == [".lock"]


def test_who_answers_slowly_keeps_nobody_else_waiting_and_is_not_asked_again_at_once(fleet: Fleet) -> None:
    set_inbox(fleet, {"inbox.accept": "ask", "inbox.ask_timeout": "1h"})
    for number in range(6):
        queue(fleet, "-m", f"number {number}")
    wait_until(lambda: len(waiting(fleet)) == 4)
    assert fleet.zkc("alice", "send", "alice", "-m", "to myself", "--queue").code == 0
    wait_until(lambda: fleet.zkc("alice", "inbox", "--json").events)
    assert len(waiting(fleet)) == 4
    for job in jobs(fleet):
        assert fleet.zkc("alice", "outbox", "cancel", job["id"]).code == 0
    wait_until(lambda: not waiting(fleet))
    # A question ends with its job's time; one that nobody has answered is not put again soon.
    queue(fleet, "-m", "soon over", "--expires", "3s")
    wait_until(lambda: waiting(fleet))
    wait_until(lambda: jobs(fleet)[0]["state"] == "failed")
    (expired,) = jobs(fleet)
    assert (expired["code"], expired["detail"]) == (30, "expired")
    wait_until(lambda: not waiting(fleet))
    assert fleet.zkc("alice", "outbox", "cancel", expired["id"]).code == 0
    set_inbox(fleet, {"inbox.accept": "ask", "inbox.ask_timeout": "1s"})
    queue(fleet, "-m", "nobody says a word")
    wait_until(lambda: jobs(fleet)[0]["detail"] == "unanswered")
    (asked,) = jobs(fleet)
    assert datetime.fromisoformat(asked["next"]).timestamp() - SystemClock().wall() > 25 * 60
    assert fleet.zkc("alice", "outbox", "cancel", asked["id"]).code == 0
    set_inbox(fleet, {"inbox.accept": "all", "inbox.ask_timeout": "60s"})


def set_inbox(fleet: Fleet, values: dict[str, str]) -> None:
    fleet.configure("bob", values)
    before = fleet.program("bob").log.read_text().count("configuration-read")
    fleet.program("bob").process.send_signal(signal.SIGHUP)
    wait_until(lambda: fleet.program("bob").log.read_text().count("configuration-read") > before)


def test_what_a_killed_command_has_begun_takes_no_room_for_long(fleet: Fleet) -> None:
    folder = fleet.home("alice") / "outbox" / "jobs"
    with fleet.popen("alice", "send", "bob", "--queue", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(bytes(4 << 20))
        process.stdin.flush()
        wait_until(lambda: any((each / "data").exists() for each in folder.glob(".new-*")))
        fleet.program("alice").terminate()
        fleet.start_daemon("alice")
        assert list(folder.glob(".new-*")), "it is being made"
        process.kill()
    assert list(folder.glob(".new-*"))
    fleet.program("alice").terminate()
    fleet.start_daemon("alice")
    wait_until(lambda: not list(folder.glob(".new-*")))


def test_bounds_and_words_that_do_not_go_together(fleet: Fleet, tmp_path: Path) -> None:
    fleet.program("alice").terminate()
    fleet.configure("alice", {"outbox.max_jobs": 1, "outbox.max_bytes": "1M"})
    refused = fleet.zkc("alice", "send", "bob", "--queue", "--json", stdin=bytes(2 << 20))
    assert (refused.code, refused.events[-1]["detail"]) == (25, "limit")
    assert jobs(fleet) == []
    told = fleet.zkc("alice", "send", "bob", "-m", "one", "--queue")
    assert (told.code, b"no daemon runs here" in told.err) == (0, True)
    assert fleet.zkc("alice", "send", "bob", "-m", "two", "--queue").code == 25
    for words in (("--wait", "1s"), ("--dry-run",), ("--receipt", str(tmp_path / "r"))):
        assert fleet.zkc("alice", "send", "bob", "-m", "x", "--queue", *words).code == 2
    assert fleet.zkc("alice", "send", "bob", "-m", "x", "--copy").code == 2
    assert fleet.zkc("alice", "send", "bob", str(tmp_path / "none"), "--queue").code == 33
    assert fleet.zkc("alice", "send", "bob,bob", "-m", "x", "--queue").code in (2, 25)
    assert len(jobs(fleet)) == 1
    fleet.start_daemon("alice")
    wait_until(lambda: jobs(fleet) == [])
    assert fleet.zkc("bob", "recv", "-o", "-").out == b"one"
    assert fleet.zkc("alice", "send", "bob,alice", "-m", "to both", "--queue").code == 25
    assert jobs(fleet) == [], "all or none"
