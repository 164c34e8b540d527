"""New permanent keys while everything runs: nobody notices, whatever is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.dying_rotate import MOMENTS, Moment
from tests.support.looking import log_of
from tests.support.program import TOP
from tests.support.waiting import DEADLINE, wait_until
from zkc.stores.home import Home
from zkc.stores.key_rows import Pin
from zkc.stores.keystore import KeyStore
from zkc.testing import Fleet


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob") as running:
        yield running


def store_of(fleet: Fleet, name: str) -> KeyStore:
    return KeyStore.open(Home.resolve("client", str(fleet.home(name))))


def pin_of(fleet: Fleet, name: str, peer: str) -> Pin:
    with store_of(fleet, name) as store:
        found = store.pin(peer)
    assert found is not None
    return found


def rotated(fleet: Fleet, name: str) -> list[dict[str, Any]]:
    done = fleet.zkc(name, "rotate", "--json")
    assert done.code == 0, done
    return done.events


def sent(fleet: Fleet, sender: str, recipient: str, text: str) -> None:
    done = fleet.zkc(sender, "send", recipient, "-m", text)
    assert done.code == 0, done


@pytest.mark.attack("H11")
def test_daemons_renew_their_keys_in_the_middle_of_a_transfer(fleet: Fleet) -> None:
    """It goes on, neither is offline for a moment, and peers take the newer card without a word."""
    assert fleet.zkc("alice", "verify", "bob", "--confirm").code == 0
    before = pin_of(fleet, "alice", "bob")
    sender = fleet.popen(
        "alice", "send", "bob", "--json", "--bwlimit", "1M", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert sender.stdin is not None
    assert sender.stdout is not None
    sender.stdin.write(b"a" * (1 << 20))
    sender.stdin.flush()
    while json.loads(sender.stdout.readline())["event"] != "progress":
        pass
    for name in ("bob", "alice"):
        (event,) = rotated(fleet, name)
        assert (event["name"], event["epoch"]) == (name, 2)
    sent(fleet, "alice", "bob", "meanwhile")
    sent(fleet, "bob", "alice", "and back")
    sender.stdin.close()
    assert json.loads(sender.stdout.read().splitlines()[-1])["event"] == "delivered"
    assert sender.wait(DEADLINE) == 0
    after = pin_of(fleet, "alice", "bob")
    assert (before.epoch, after.epoch) == (1, 2)
    assert (after.fingerprint, after.verified, after.alarm) == (before.fingerprint, before.verified, b"")
    assert [event for event in log_of(fleet, "coordinator") if event["event"] == "offline"] == []
    sender.stdout.close()


@pytest.mark.attack("K04")
def test_a_rotation_that_is_killed_leaves_keys_that_work(fleet: Fleet) -> None:
    """The former or the new ones, never neither; the next one goes on from there."""
    fleet.program("alice").terminate()
    more = {"kept": 1, "told": 1, "stored": 2}
    for moment in MOMENTS:
        before = _epoch(fleet, "alice")
        died = subprocess.run(
            [sys.executable, "-m", "tests.support.dying_rotate", moment], check=False, capture_output=True,
            env=fleet.environment("alice") | {"PYTHONPATH": str(TOP)}, timeout=DEADLINE,
        )
        assert died.returncode == -signal.SIGKILL, died
        _works(fleet, moment)
        (event,) = rotated(fleet, "alice")
        assert event["epoch"] == before + more[moment]
    fleet.start_daemon("alice")
    sent(fleet, "bob", "alice", "to the last of them")


@pytest.mark.attack("K04")
def test_an_application_whose_new_keys_were_lost_goes_on_though_its_owner_has_a_new_identity_since(
    fleet: Fleet,
) -> None:
    """The coordinator has a card that the former identity vouches for: that one first, then another one."""
    assert fleet.zkc("bob", "join", "--app", "lost").code == 0
    fleet.program("bob").terminate()
    for words in ([], ["--identity"]):
        died = subprocess.run(
            [sys.executable, "-m", "tests.support.dying_rotate", "application", *words], check=False,
            env=fleet.environment("bob") | {"PYTHONPATH": str(TOP)}, timeout=DEADLINE,
        )
        assert died.returncode == -signal.SIGKILL
    fleet.start_daemon("bob")
    wait_until(lambda: len(_renewals(fleet, "bob/lost")) == 2)
    sent(fleet, "alice", "bob/lost", "to both of them")


def _works(fleet: Fleet, moment: Moment) -> None:
    sent(fleet, "alice", "bob", moment)


def _epoch(fleet: Fleet, name: str) -> int:
    from zkc.client.principal import load_main

    with store_of(fleet, name) as store:
        return load_main(store).card.body.epoch


def test_a_daemon_renews_by_itself_and_goes_on_where_another_process_died(fleet: Fleet) -> None:
    """A card near its end, and an application's with it."""
    fleet.configure("alice", {"keys.lifetime": "10m"})
    assert fleet.zkc("alice", "join", "--app", "backup").code == 0
    rotated(fleet, "alice")
    before = _epoch(fleet, "alice")
    fleet.configure("alice", {"keys.lifetime": "90d"})
    seen = len(_renewals(fleet))
    fleet.program("alice").process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(_renewals(fleet)) == seen + 2)
    assert {event["client"] for event in _renewals(fleet)[seen:]} == {"alice", "alice/backup"}
    assert _epoch(fleet, "alice") == before + 1
    sent(fleet, "bob", "alice/backup", "to the application")


def _renewals(fleet: Fleet, name: str = "") -> list[dict[str, Any]]:
    """By the daemon of ``name``, of this registration alone; of alice, of all."""
    events = log_of(fleet, name.partition("/")[0] or "alice")
    return [event for event in events if event["event"] == "keys-renewed" and name in {"", event["client"]}]


@pytest.mark.attack("C16")
def test_a_wrong_clock_hinders_nothing_but_is_blamed_for_a_card_that_has_expired_by_it(fleet: Fleet) -> None:
    """Sessions and handshakes know no date; only the end of the recipient's card is judged by it, at the sender."""
    fleet.program("alice").terminate()
    year = 365 * 86400
    for shift, code in ((-year, 0), (-3600, 0), (3600, 0), (year, 12)):
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.shifted", str(shift), "send", "bob", "-m", str(shift), "--json"],
            check=False, capture_output=True, timeout=DEADLINE,
            env=fleet.environment("alice") | {"PYTHONPATH": str(TOP)},
        )
        assert done.returncode == code, done
    error = json.loads(done.stdout.splitlines()[-1])
    assert error["detail"] == "clock"
    assert "min ahead of the coordinator's" in error["message"]
    fleet.start_daemon("alice")


@pytest.mark.attack("H13")
def test_a_new_identity_for_which_the_former_one_vouches_is_taken_silently(fleet: Fleet) -> None:
    """By sender and recipient, also one that slept through two; what was compared stays so, receipts stay good."""
    kept = str(fleet.folder / "before.receipt")
    assert fleet.zkc("alice", "verify", "bob", "--confirm").code == 0
    assert fleet.zkc("alice", "send", "bob", "-m", "before", "--receipt", kept).code == 0
    sent(fleet, "bob", "alice", "before")
    assert fleet.zkc("bob", "join", "--app", "mail").code == 0
    sent(fleet, "alice", "bob/mail", "before")
    pins = [pin_of(fleet, "alice", "bob")]
    with store_of(fleet, "alice") as store:
        behind = store.former("bob")
    for events in [fleet.zkc("bob", "rotate", "--identity", "--json").events for _ in range(2)]:
        assert {"bob", "bob/mail"} <= {event["name"] for event in events}
    fingerprint = json.loads(fleet.zkc("bob", "status", "--json").out)["fingerprint"]

    sent(fleet, "alice", "bob", "to the third identity")
    pins.append(pin_of(fleet, "alice", "bob"))
    assert pins[1].fingerprint.hex() == fingerprint != pins[0].fingerprint.hex()
    assert (pins[1].verified, pins[1].alarm) == (pins[0].verified, b"")
    sent(fleet, "bob", "alice", "from the third identity")
    sent(fleet, "alice", "bob/mail", "vouched for by the third identity")
    assert fleet.zkc("alice", "receipt", "verify", kept).code == 0
    with store_of(fleet, "alice") as store:
        assert store.former("bob")[: len(behind) + 1] == (*behind, pins[0].fingerprint)
        assert len(store.former("bob")) == len(behind) + 2

    # A command that only looks takes it too, with and without a daemon.
    fleet.zkc("bob", "rotate", "--identity")
    (row,) = [event for event in fleet.zkc("alice", "peers", "--json").events if event["name"] == "bob"]
    assert (row["alarm"], row["verified"]) == (None, True)
    fleet.program("alice").terminate()
    fleet.zkc("bob", "rotate", "--identity")
    assert fleet.zkc("alice", "verify", "bob").code == 0
    fleet.start_daemon("alice")
    sent(fleet, "bob", "alice", "from the fifth identity")
    # What was rotated here stands in the key log, and is nobody else's to those who follow it.
    assert not [each for name in ("alice", "bob") for each in log_of(fleet, name) if each["event"] == "key-log-alarm"]
