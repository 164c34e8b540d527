"""A transfer that waits for a person: real processes, and what each of the two ends is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.looking import log_of
from tests.support.waiting import DEADLINE, wait_until
from zkc.testing import Fleet

SECRET_NAME = "for-bobs-eyes.txt"

HOOK = 'echo "$ZKC_EVENT $ZKC_ITEM $ZKC_SENDER $ZKC_NAME" >>"$ZKC_HOME/hooks"'


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """bob is asked about each transfer; dave is asked, too, and never answers."""
    with Fleet("alice", "bob", "dave", client={"log.level": "debug"}) as running:
        hooks = {f"hooks.{event}": ["/bin/sh", "-c", HOOK] for event in ("arrived", "asked")}
        running.configure("bob", {"inbox.accept": "ask", **hooks})
        running.configure("dave", {"inbox.accept": "ask", "inbox.ask_timeout": "1s"})
        for name in ("bob", "dave"):
            running.program(name).process.send_signal(signal.SIGHUP)
            wait_until(lambda name=name: "configuration-read" in running.program(name).log.read_text())
        yield running


@contextmanager
def sending(fleet: Fleet, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    source = fleet.home("alice") / "payload"
    source.write_bytes(b"hello")
    with source.open("rb") as payload, subprocess.Popen(
        [sys.executable, "-m", "zkc", "send", "--json", *words], env=fleet.environment("alice"),
        stdin=payload, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def pending(fleet: Fleet, name: str = "bob") -> list[dict[str, Any]]:
    return [item for item in fleet.zkc(name, "inbox", "--json").events if item["state"] == "pending"]


def one_pending(fleet: Fleet, name: str = "bob") -> dict[str, Any]:
    wait_until(lambda: len(pending(fleet, name)) == 1)
    return pending(fleet, name)[0]


def events(process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=DEADLINE)
    assert err == b"", err
    return [json.loads(line) for line in out.splitlines()]


def test_a_person_accepts_and_it_is_delivered(fleet: Fleet) -> None:
    """At first contact he judges by the sender alone; once this client is pinned, by name, note and size too."""
    with sending(fleet, "bob", "--name", SECRET_NAME) as process:
        item = one_pending(fleet)
        assert (item["from"], item["name"], item["bytes"], item["verified"]) == ("alice", None, None, False)
        assert fleet.zkc("bob", "accept", item["id"][:12]).code == 0
        told = events(process)
        assert process.returncode == 0
    assert [each["event"] for each in told if each["event"] != "progress"] == [
        "requested", "pending", "granted", "delivered"
    ]
    with sending(fleet, "bob", "--name", SECRET_NAME, "--note", "as you asked") as process:
        item = one_pending(fleet)
        assert (item["name"], item["note"], item["bytes"]) == (SECRET_NAME, "as you asked", None)
        assert fleet.zkc("bob", "accept", item["id"]).code == 0
        events(process)
        assert process.returncode == 0
    assert fleet.zkc("bob", "recv", "-o", "-").out == b"hello"
    assert pending(fleet) == []
    assert SECRET_NAME not in fleet.coordinator.log.read_text()


def test_a_file_that_is_too_large_for_the_daemon_waits_too(fleet: Fleet, tmp_path: Path) -> None:
    source = tmp_path / "large.bin"
    source.write_bytes(os.urandom(3 << 20))
    with sending(fleet, "bob", str(source)) as process:
        item = one_pending(fleet)
        assert fleet.zkc("bob", "accept", item["id"]).code == 0
        assert events(process)[-1]["event"] == "delivered"
    hooks = fleet.home("bob") / "hooks"
    wait_until(lambda: "large.bin" in hooks.read_text() and f"asked {item['id']} alice" in hooks.read_text())
    wait_until(lambda: fleet.zkc("bob", "recv", "--name", "large.bin", "-o", "-").out == source.read_bytes())


def test_a_person_refuses_and_the_sender_ends_with_24(fleet: Fleet) -> None:
    with sending(fleet, "bob") as process:
        assert fleet.zkc("bob", "accept", one_pending(fleet)["id"]).code == 0
        assert events(process)[-1]["event"] == "delivered"
    with sending(fleet, "bob") as process:
        item = one_pending(fleet)
        refused = fleet.zkc("bob", "refuse", item["id"], "--reason", "not today", "--json")
        assert refused.events[-1]["event"] == "refused"
        error = events(process)[-1]
    assert (error["code"], error["reason"]) == (24, "refused")
    assert process.returncode == 24
    assert "not today" in fleet.program("bob").log.read_text()
    assert error["message"] == "a person at bob refused it: not today; ask bob why"
    assert "not today" not in fleet.coordinator.log.read_text()
    again = fleet.zkc("bob", "accept", item["id"], "--json")
    assert (again.code, again.events[-1]["detail"]) == (2, "unknown-id")


@pytest.mark.attack("H16")
def test_nobody_answers_and_the_sender_ends_with_30(fleet: Fleet) -> None:
    with sending(fleet, "dave") as process:
        error = events(process)[-1]
    assert (error["code"], error["detail"]) == (30, "unanswered")
    assert pending(fleet, "dave") == []
    with sending(fleet, "bob", "--timeout", "2s") as process:
        error = events(process)[-1]
    assert (error["code"], error["detail"]) == (30, "unanswered")
    wait_until(lambda: pending(fleet) == [])


@pytest.mark.attack("H16")
def test_a_sender_that_goes_away_is_no_longer_waited_for(fleet: Fleet) -> None:
    with sending(fleet, "bob") as process:
        item = one_pending(fleet)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 130
    wait_until(lambda: pending(fleet) == [])
    assert fleet.zkc("bob", "accept", item["id"]).code == 2


@pytest.mark.attack("H16")
def test_a_recipient_that_is_killed_while_its_person_is_asked_is_offline(fleet: Fleet) -> None:
    with sending(fleet, "bob") as process:
        one_pending(fleet)
        fleet.program("bob").kill()
        error = events(process)[-1]
    assert (error["code"], error["reason"]) == (21, "recipient-offline")
    fleet.start_daemon("bob")
    fleet.wait_linked("bob")


@pytest.mark.attack("H14")
def test_no_more_than_16_of_one_sender_wait_for_a_person(fleet: Fleet) -> None:
    senders = [sending(fleet, "bob") for _ in range(17)]
    running = [each.__enter__() for each in senders]
    try:
        wait_until(lambda: any(each.poll() is not None for each in running))
        (refused,) = [each for each in running if each.poll() is not None]
        error = events(refused)[-1]
        assert (error["code"], error["detail"]) == (25, "limit")
        assert len(pending(fleet)) == 16
    finally:
        for each in senders:
            each.__exit__(None, None, None)
    wait_until(lambda: pending(fleet) == [])


def test_what_waits_can_be_looked_at_and_a_stopped_daemon_hides_nothing_that_has_arrived(fleet: Fleet) -> None:
    with sending(fleet, "bob", "--note", "look at me") as process:
        item = one_pending(fleet)
        assert fleet.zkc("bob", "inbox", "show", item["id"][:8], "--json").events[-1]["note"] == "look at me"
        daemon = fleet.program("bob").process
        daemon.send_signal(signal.SIGSTOP)
        try:
            blind = fleet.zkc("bob", "inbox")
            assert blind.code == 0
            assert b"what waits for a person is not known" in blind.err
        finally:
            daemon.send_signal(signal.SIGCONT)
        assert fleet.zkc("bob", "refuse", item["id"]).code == 0
        events(process)


def test_what_was_accepted_goes_on_after_an_interruption_without_another_question(fleet: Fleet, tmp_path: Path) -> None:
    source = tmp_path / "long.bin"
    source.write_bytes(os.urandom(8 << 20))
    with sending(fleet, "bob", str(source), "--bwlimit", "2M") as process:
        item = one_pending(fleet)
        assert fleet.zkc("bob", "accept", item["id"]).code == 0
        wait_until(lambda: partial_bytes(fleet) > 1 << 20)
        process.kill()
    with sending(fleet, "bob", str(source)) as process:
        told = events(process)
        assert process.returncode == 0, told
    assert "pending" not in [each["event"] for each in told]
    assert [each["resumed_from"] > 0 for each in told if each["event"] == "granted"] == [True]
    # The same once more, with the daemon killed in between: what is here of it was let in.
    source.write_bytes(os.urandom(8 << 20))
    with sending(fleet, "bob", str(source), "--bwlimit", "2M") as process:
        item = one_pending(fleet)
        assert fleet.zkc("bob", "accept", item["id"]).code == 0
        wait_until(lambda: partial_bytes(fleet) > 1 << 20)
        fleet.program("bob").kill()
        fleet.start_daemon("bob")
        told = events(process)
        assert process.returncode == 0, told
    assert [each["event"] for each in told].count("pending") == 1


def partial_bytes(fleet: Fleet) -> int:
    items = fleet.zkc("bob", "inbox", "--partial", "--json").events
    return sum(item["bytes"] or 0 for item in items if item["state"] == "partial")


def test_without_a_daemon_there_is_nothing_to_answer(fleet: Fleet) -> None:
    fleet.join("erin")
    assert fleet.zkc("erin", "inbox").code == 0
    assert fleet.zkc("erin", "accept", "3f9a").code == 34


def test_after_a_dry_run_nobody_is_asked_any_more(fleet: Fleet) -> None:
    done = fleet.zkc("alice", "send", "bob", "--dry-run", "--json")
    assert done.code == 0
    assert done.events[-1]["asks"]
    wait_until(lambda: pending(fleet) == [])


@pytest.mark.attack("H13")
def test_the_coordinator_gets_a_new_identity_while_a_person_is_asked(fleet: Fleet) -> None:
    """What began under the former one is no alarm at either end, and the yes holds."""

    def has_learned(name: str) -> bool:
        return any(event["event"] == "coordinator-identity" for event in log_of(fleet, name))

    fleet.join("frank")
    fleet.configure("frank", {"inbox.accept": "ask"})
    fleet.start_daemon("frank")
    with sending(fleet, "frank") as process:
        item = one_pending(fleet, "frank")
        assert fleet.zkc("coordinator", "coordinator", "rotate").code == 0
        for name in ("alice", "frank"):
            wait_until(partial(has_learned, name))
        assert fleet.zkc("frank", "accept", item["id"]).code == 0
        assert events(process)[-1]["event"] == "delivered"
        assert process.returncode == 0
    for name in ("alice", "frank"):
        assert not [event for event in log_of(fleet, name) if event["event"] == "key-log-alarm"]
