"""Policy with real processes: who refuses, with which code, before any key exists; files that change, well or badly."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.looking import log_of
from tests.support.waiting import DEADLINE, wait_until
from zkc.testing import Fleet


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob") as running:
        yield running


def write(fleet: Fleet, name: str, text: str, outcome: str = "configuration-read") -> None:
    """SIGHUP with ``text`` behind what the configuration had at first, until its ``outcome`` is logged."""
    path = fleet.home(name) / "config.toml"
    kept = path.with_suffix(".kept")
    if not kept.exists():
        kept.write_text(path.read_text() if path.exists() else "")
    path.write_text(kept.read_text() + text)
    before = count(fleet, name, outcome)
    program = fleet.coordinator if name == "coordinator" else fleet.program(name)
    program.process.send_signal(signal.SIGHUP)
    wait_until(lambda: count(fleet, name, outcome) > before)


def count(fleet: Fleet, name: str, event: str) -> int:
    return sum(each.get("event") == event for each in log_of(fleet, name))


def send(fleet: Fleet, name: str = "a.iso", size: int = 5) -> tuple[int, str]:
    (fleet.folder / name).write_bytes(b"x" * size)
    done = fleet.zkc("alice", "send", "bob", name, "--timeout", "30s")
    return done.code, done.err.decode()


def rules(fleet: Fleet, name: str) -> list[tuple[str, str | None, str | None, int, str]]:
    """The audit log's kind, from, to, code and rule."""
    words = ("coordinator", "audit") if name == "coordinator" else ("audit",)
    told = fleet.zkc(name, *words, "--json").events
    return [(each["kind"], each["from"], each["to"], each["code"], each["rule"]) for each in told]


def pending(fleet: Fleet) -> list[dict[str, Any]]:
    return [item for item in fleet.zkc("bob", "inbox", "--json").events if item["state"] == "pending"]


@pytest.mark.attack("H14")
def test_a_recipient_and_a_coordinator_refuse_by_their_rules_and_keep_what_they_had_for_a_bad_file(
    fleet: Fleet,
) -> None:
    bob = '\n[groups]\nfriends = ["ali*"]\n[[policy]]\nname = "images"\nfrom = ["@friends"]\nnames = ["*.iso"]\n'
    write(fleet, "bob", bob + '[[policy]]\nname = "rest"\nmode = "refuse"\n')
    assert send(fleet)[0] == 0
    code, said = send(fleet, "a.exe")
    assert code == 25
    assert "images" not in said
    assert "rest" not in said
    # A file with a mistake changes nothing.
    write(fleet, "bob", bob + '[[policy]]\nmode = "deny"\n', "configuration-kept")
    assert send(fleet, "b.exe")[0] == 25
    done = fleet.zkc("bob", "status")
    assert done.code == 2
    assert b'mode cannot be "deny"' in done.err
    # A rule that asks is asked as any other question: by the name, which alice shows to whom she has pinned.
    write(fleet, "bob", '\n[[policy]]\nnames = ["*.iso"]\n[[policy]]\nmode = "ask"\nrequire = "present"\n')
    assert send(fleet)[0] == 0
    assert send(fleet, "a.exe")[0] == 22
    assert fleet.zkc("bob", "presence", "here").code == 0
    (fleet.folder / "a.exe").write_bytes(b"x")
    with fleet.popen("alice", "send", "bob", "a.exe") as process:
        wait_until(lambda: pending(fleet))
        (item,) = pending(fleet)
        assert (item["name"], item["require"]) == ("a.exe", "present")
        assert fleet.zkc("bob", "accept", item["id"]).code == 0
        assert process.wait(DEADLINE) == 0
    assert fleet.zkc("bob", "presence", "auto").code == 0
    write(fleet, "bob", '\n[[policy]]\nrate = "1/d"\n')
    assert [send(fleet)[0], send(fleet)[0]] == [0, 25]
    write(fleet, "bob", '\n[[policy]]\nrequire = "present"\n')
    assert send(fleet)[0] == 22
    write(fleet, "bob", '\n[[policy]]\nfrom = ["*"]\nmode = "refuse"\n', "configuration-notice")
    write(fleet, "bob", "")


def test_a_coordinator_refuses_by_its_rules_and_keeps_them_where_its_file_is_gone(fleet: Fleet) -> None:
    write(fleet, "coordinator", '\n[[policy]]\nname = "small"\nmax_size = "1K"\n[[policy]]\nmode = "refuse"\n')
    refused = count(fleet, "bob", "refused")
    assert send(fleet)[0] == 0
    code, said = send(fleet, "c.iso", 2000)
    assert code == 25
    assert "policy" in said
    assert count(fleet, "bob", "refused") == refused  # bob never heard of it
    (event,) = [each for each in log_of(fleet, "coordinator") if each.get("event") == "policy-refused"]
    assert (event["sender"], event["recipient"], event["rule"]) == ("alice", "bob", "policy 2")
    write(fleet, "coordinator", '\n[[policy]]\nrequire = "authorised"\n')
    assert send(fleet)[0] == 23
    # Whom the coordinator wants to be there is asked, though nobody else requires it.
    pin = fleet.folder / "pin"
    pin.write_text("2580")
    pin.chmod(0o600)
    assert fleet.zkc("bob", "person", "enrol", "--pin-file", str(pin)).code == 0
    with fleet.popen("alice", "send", "bob", "a.iso", "--timeout", "60s") as process:
        wait_until(lambda: pending(fleet))
        (item,) = pending(fleet)
        assert item["require"] == "authorised"
        assert fleet.zkc("bob", "accept", item["id"], "--pin-file", str(pin)).code == 0
        assert process.wait(DEADLINE) == 0
    write(fleet, "coordinator", '\n[[policy]]\nmode = "refuse"\n', "configuration-notice")
    path, kept = fleet.home("coordinator") / "config.toml", count(fleet, "coordinator", "configuration-kept")
    path.rename(path.with_suffix(".away"))
    fleet.coordinator.process.send_signal(signal.SIGHUP)
    wait_until(lambda: count(fleet, "coordinator", "configuration-kept") > kept)
    assert send(fleet)[0] == 25, "rules outlive their file"
    write(fleet, "coordinator", "")

    path = fleet.home("alice") / "config.toml"
    before = path.read_text()
    path.write_text(before + '\n[[policy]]\nname = "out"\nto = ["bob"]\nnames = ["secret*"]\nmode = "refuse"\n')
    code, said = send(fleet, "secret.txt")
    assert code == 25
    assert "'out'" in said
    assert send(fleet)[0] == 0
    path.write_text(before)

    # Each party has noted what it decided, and by which rule.
    wait_until(lambda: ("transfer", "alice", "bob", 25, "policy 2") in rules(fleet, "coordinator"))
    assert ("transfer", "alice", "bob", 0, "small") in rules(fleet, "coordinator")
    wait_until(lambda: ("incoming", "alice", "bob", 0, "images") in rules(fleet, "bob"))
    assert ("asked", "alice", "bob", 0, "policy 2") in rules(fleet, "bob")
    assert ("outgoing", None, "bob", 25, "out") in rules(fleet, "alice")


def test_who_may_not_see_another_finds_it_in_no_listing_and_still_sends_to_it(fleet: Fleet) -> None:
    write(fleet, "coordinator", '\n[[visible]]\nwho = ["al*"]\nwhom = ["bob"]\nmode = "refuse"\n')

    def peers(name: str) -> set[str]:
        """Those that the coordinator tells of; who is pinned is listed in any case, as one that it does not know."""
        rows = map(json.loads, fleet.zkc(name, "--json", "peers").out.splitlines())
        return {row["name"] for row in rows if row["online"]}

    assert "bob" not in peers("alice")
    assert "alice" in peers("bob")
    assert fleet.zkc("alice", "wait", "bob", "--timeout", "1s").code == 21
    assert send(fleet)[0] == 0
    write(fleet, "coordinator", "")
    assert "bob" in peers("alice")
    assert fleet.zkc("alice", "wait", "bob", "--timeout", "1s").code == 0


def test_policy_check_says_which_rule_decides(fleet: Fleet) -> None:
    path = fleet.home("bob") / "config.toml"
    before = path.read_text()
    path.write_text(
        before + '\n[[policy]]\nname = "nights"\nfrom = ["fleet-*"]\nhours = ["22:00-06:00"]\n'
        '[[policy]]\nname = "asked"\nfrom = ["alice"]\nmode = "ask"\nrequire = "present"\n'
        '[[policy]]\nname = "no"\nmode = "refuse"\n'
    )

    def check(*words: str) -> tuple[int, dict[str, object]]:
        done = fleet.zkc("bob", "--json", "policy", "check", "--to", "bob", *words)
        return done.code, json.loads(done.out.splitlines()[0])

    assert check("--from", "fleet-1", "--at", "2026-11-27T23:00")[1]["rule"] == "nights"
    code, told = check("--from", "fleet-1", "--at", "2026-11-27T12:00")
    assert (code, told["rule"], told["mode"], told["event"], told["v"]) == (25, "no", "refuse", "policy", 1)
    code, told = check("--from", "alice")
    assert (code, told["mode"], told["require"]) == (0, "ask", "present")
    text = fleet.zkc("bob", "policy", "check", "--from", "eve", "--to", "bob")
    assert text.code == 25
    assert [line.split()[:2] for line in text.out.decode().splitlines()] == [
        ["no", "nights:"], ["no", "asked:"], ["refuse", "no:"],
    ]
    assert text.err.count(b"\n") == 1
    other = fleet.zkc("alice", "policy", "check", "--from", "eve", "--to", "bob")
    assert (other.code, b"the policy of alice alone" in other.err) == (0, True)
    shown = fleet.zkc("bob", "config", "--show-origin").out.decode()
    assert 'policy."nights".from' in shown
    path.write_text(before)
